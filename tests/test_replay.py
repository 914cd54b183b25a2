"""tools/replay: equal checkouts are equal, and every kind of difference is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tools.replaying.compare import compare_arrays, compare_folders, compare_json

ROOT = Path(__file__).resolve().parents[1]
NETWORK = """
<ir_version: 8, opset_import: ["": 17]>
network (float[N,2] x) => (float[N,2] y)
<float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2,2] v = {5.0, 6.0, 7.0, 8.0}>
{
    h = MatMul (x, w)
    y = MatMul (h, v)
}
"""


def replay(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tools/replay with the Python that runs the tests."""
    command = [sys.executable, ROOT / "tools" / "replay", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


def package(folder: Path, **files: str) -> Path:
    """Write a checkout whose package consists of these modules."""
    (folder / "onnxprune").mkdir(parents=True)
    for name, text in {"__init__": "", **files}.items():
        (folder / "onnxprune" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def perturbed(folder: Path) -> Path:
    """Copy the package and change the ridge of the least-squares repair by one per mille."""
    shutil.copytree(
        ROOT / "onnxprune", folder / "onnxprune", ignore=shutil.ignore_patterns("__pycache__")
    )
    changed = 0
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        text, count = re.subn(r"^(.*\bRIDGE\b.* = )1e-3", r"\g<1>1.001e-3", text, flags=re.M)
        path.write_text(text, encoding="utf-8")
        changed += count
    assert changed, "the constant has another name or value: change this test"
    return folder


def test_a_checkout_equals_itself() -> None:
    done = replay(ROOT, ROOT, "--only", "recurrent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"recurrent +[\d.]+ s +[\d.]+ s  equal\n", done.stdout)
    assert done.stdout.endswith("replay: 1 run, 1 equal, 0 differ, 0 skipped\n")


@pytest.mark.slow
def test_a_changed_number_is_found_and_named(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    changed = perturbed(tmp_path / "changed")
    done = replay(ROOT, changed, "--only", "inspect", "transformer", "--keep", kept)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^inspect .* equal$", done.stdout, re.M)
    assert re.search(r"^transformer .* differs$", done.stdout, re.M)
    assert re.search(
        r"^    out.onnx: tensor '\w+': .*max abs difference \d.*; \d+ other", done.stdout, re.M
    )
    assert "2 runs, 1 equal, 1 differ, 0 skipped" in done.stdout
    files = (kept / "transformer" / side / "out.onnx" for side in "ab")
    first, second = (path.read_bytes() for path in files)
    assert first != second


def test_a_run_that_fails_is_named_with_its_stderr(tmp_path: Path) -> None:
    broken = package(tmp_path / "broken", __main__="raise SystemExit('it broke')")
    done = replay(broken, broken, "--only", "demo")
    assert done.returncode == 1
    assert "with A: onnxprune demo" in done.stdout and "    it broke\n" in done.stdout
    assert done.stdout.endswith("0 equal, 0 differ, 0 skipped, 1 failed\n")


def test_runs_without_trained_models_are_skipped(tmp_path: Path) -> None:
    done = replay(ROOT, ROOT, "--only", "vit", ONNXPRUNE_ZOO=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--zoo PATH" in done.stdout and "0 equal, 0 differ, 1 skipped" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "inspct"], "did you mean inspect"),
        (["--jobs", "0"], "at least 1"),
        (["--zoo", "nowhere"], "no models.json"),
        (["--keep", str(ROOT)], "an empty folder"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: list[str], text: str) -> None:
    done = replay(ROOT, ROOT, *arguments)
    assert done.returncode == 2 and text in done.stderr


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    done = replay(ROOT, tmp_path, "--only", "inspect")
    assert done.returncode == 2 and "is not a checkout" in done.stderr
    assert replay(ROOT).returncode == 2


def test_another_package_than_the_checkout_s_is_refused(tmp_path: Path) -> None:
    shadowed = package(tmp_path / "shadowed", __init__=f"__file__ = {str(tmp_path / 'x.py')!r}")
    done = replay(shadowed, shadowed, "--only", "inspect")
    assert done.returncode == 2 and "not the package in" in done.stderr


def test_the_list_names_at_least_twelve_runs() -> None:
    done = replay("--list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 12


# ---- comparison ----


def written(folder: Path, **files: bytes | str) -> Path:
    """Write files; `__` in a name stands for the dot."""
    folder.mkdir()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def differences(tmp_path: Path, name: str, a: bytes | str, b: bytes | str) -> list[str]:
    """Compare two folders that hold one file each."""
    sides = written(tmp_path / "a", **{name: a}), written(tmp_path / "b", **{name: b})
    return compare_folders(*sides, (tmp_path / "first", tmp_path / "second"))


@pytest.mark.parametrize(
    ("b", "text"),
    [
        ([1.0, 2.5, 1.0], "2 of 3 values differ, max abs difference 2"),
        ([1.0, 2.0], "float32[3] in A, float32[2] in B"),
        ([-0.0, 2.0, 3.0], "1 of 3 values differ, max abs difference 1"),
        ([np.nan, 2.0, 3.0], "1 of 3 values differ, max abs difference nan"),
    ],
)
def test_arrays_differ_by_bytes(b: list[float], text: str) -> None:
    assert compare_arrays(np.float32([1, 2, 3]), np.float32(b)) == text


def test_equal_arrays_have_equal_bytes() -> None:
    assert compare_arrays(np.float32([np.nan, 1]), np.float32([np.nan, 1])) is None
    assert compare_arrays(np.float32([0.0]), np.float32([-0.0])) is not None
    assert compare_arrays(np.float32([1]), np.float64([1])) == "float32[1] in A, float64[1] in B"
    assert "'b' in A, 'c' in B" in str(compare_arrays(np.array(["a", "b"]), np.array(["a", "c"])))


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b[1]: 2 in A, 3 in B (difference 1)"),
        ({"/0/Conv": [1]}, {"/0/Conv": [1, 2]}, '["/0/Conv"]: 1 entries in A, 2 in B'),
        ({"a": 1}, {"a": 1.0}, "a: 1 in A, 1.0 in B (difference 0)"),
        ({"a": 1}, {"a": True}, "a: 1 in A, true in B"),
        ({"a": 1, "b": 2}, {"a": 1}, "b only in A"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "keys: other order of keys"),
        ({"a": float("nan")}, {"a": float("nan")}, None),
    ],
)
def test_json_differences_name_the_path(a: object, b: object, text: str | None) -> None:
    assert compare_json(a, b) == text


def test_times_versions_and_paths_are_no_differences(tmp_path: Path) -> None:
    rows = [
        {"seconds": index, "provenance": {"numpy": index}, "data": f"2 in {tmp_path}/{side}/d.npz"}
        for index, side in enumerate(("first", "second"))
    ]
    assert not differences(tmp_path, "report__json", *map(json.dumps, rows))


def test_other_bytes_of_equal_json_are_a_difference(tmp_path: Path) -> None:
    (found,) = differences(tmp_path, "plan__json", '{"a": 1}', '{"a":1}')
    assert found.startswith("plan.json: the same values in other bytes")


def test_files_of_one_side_and_no_files_are_differences(tmp_path: Path) -> None:
    one = written(tmp_path / "one", plan__json="{}")
    none = written(tmp_path / "none", lock="1")
    assert compare_folders(one, none, (one, none)) == ["plan.json: only in A"]
    assert compare_folders(none, none, (none, none)) != []


def test_scores_are_named_by_group(tmp_path: Path) -> None:
    for side, value in (("a", 1.0), ("b", 1.25)):
        (tmp_path / side).mkdir()
        scores = {"names": np.array(["conv", "head"]), "0": np.ones(2), "1": np.array([2.0, value])}
        np.savez(tmp_path / side / "scores.npz", **scores)
    (found,) = compare_folders(tmp_path / "a", tmp_path / "b", (tmp_path, tmp_path))
    text = "array '1' (head): 1 of 2 values differ, max abs difference 0.25"
    assert found == f"scores.npz: {text}"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("{5.0", "{5.5", "tensor 'v': 1 of 4 values differ, max abs difference 0.5"),
        ("h = MatMul (x, w)", "h = Gemm (x, w)", "node 0: MatMul '' in A, Gemm '' in B"),
        ("MatMul (x, w)", "MatMul (x, v)", "node 0 (MatMul ''): input differs"),
        ("ir_version: 8", "ir_version: 9", "ir_version differs"),
        ("network (", "other (", "graph.name differs"),
    ],
)
def test_models_differ_by_tensor_node_or_field(
    tmp_path: Path, old: str, new: str, text: str
) -> None:
    models = (NETWORK, NETWORK.replace(old, new))
    a, b = (onnx.parser.parse_model(model).SerializeToString() for model in models)
    assert differences(tmp_path, "out__onnx", a, b) == [f"out.onnx: {text}"]


def test_external_data_are_named_by_tensor(tmp_path: Path) -> None:
    for side, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / side).mkdir()
        model = onnx.parser.parse_model(NETWORK)
        weight = np.float32([[value, 2], [3, 4]])
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
        onnx.save(
            model,
            tmp_path / side / "out.onnx",
            save_as_external_data=True,
            location="out.onnx.data",
            size_threshold=0,
        )
    (found,) = compare_folders(tmp_path / "a", tmp_path / "b", (tmp_path, tmp_path))
    text = "tensor 'w': 1 of 4 values differ, max abs difference 1"
    assert found == f"out.onnx.data: {text}"
