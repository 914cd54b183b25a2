"""Runs: targets, reproducible bytes, resumption, errors, outputs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from file_tree import tree
from graph_text import net

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.errors import OutputError, TargetError, UsageError
from onnxprune.events import Event
from onnxprune.run.job import REPORT_FILES
from onnxprune.run.pipeline import optimize
from onnxprune.run.results import Result
from onnxprune.run.rundir import JOURNAL, open_run_dir

MODEL = demo.files().model
FAST = {"criterion": "l2", "repair": "none", "engine": "none", "round_to": 1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]


def small(output: Path | None = None, **options: object) -> Result:
    return optimize(MODEL, output, **{**FAST, **options})


@pytest.mark.parametrize(
    ("target", "cost", "share"),
    [("macs=70%", "macs", 0.7), ("params=2x", "params", 0.5), ("bytes=200kB", "bytes", None)],
)
def test_target_is_met_and_model_runs(
    tmp_path: Path, target: str, cost: str, share: float | None
) -> None:
    report = small(tmp_path / "out.onnx", target=target).report
    most = share * report.before[cost] if share else 200e3
    assert 0.8 * most < report.after[cost] <= most
    assert report.verification["ok"] and report.verification["masked_difference"] > 0
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    parameters = sum(
        np.prod(t.dims)
        for t in onnx.load(tmp_path / "out.onnx").graph.initializer
        if t.data_type == 1
    )
    assert parameters == report.after["params"]


def test_latency_target_is_met_on_its_engine(tmp_path: Path) -> None:
    """On a modeled engine, whose latency is computed: nothing depends on the machine."""
    report = small(tmp_path / "out.onnx", target=["latency.systolic8=1.5x", "params=90%"]).report
    row = report.latency["systolic8"]
    assert (
        row["after_ms"] <= row["before_ms"] / 1.5
        and report.after["params"] <= 0.9 * report.before["params"]
    )
    assert not [w for w in report.warnings if "target" in w]
    less = small(target=["latency.systolic8=1.2x"]).report
    assert row["after_ms"] < less.latency["systolic8"]["after_ms"] <= row["before_ms"] / 1.2


def test_command_python_and_recipe_give_equal_bytes(tmp_path: Path) -> None:
    small(tmp_path / "python.onnx", target="macs=60%")
    assert (
        run(
            [
                "optimize",
                str(MODEL),
                "-o",
                str(tmp_path / "flags.onnx"),
                "--target",
                "macs=60%",
                *FLAGS,
            ]
        )
        == 0
    )
    resolved = tmp_path / "flags.run" / "recipe.toml"
    assert (
        run(
            ["optimize", str(MODEL), "-o", str(tmp_path / "recipe.onnx"), "--recipe", str(resolved)]
        )
        == 0
    )
    models = [(tmp_path / f"{way}.onnx").read_bytes() for way in ("python", "flags", "recipe")]
    plans = [
        (tmp_path / f"{way}.run" / "plan.json").read_bytes()
        for way in ("python", "flags", "recipe")
    ]
    assert models[0] == models[1] == models[2] and plans[0] == plans[1] == plans[2]


QUANTIZED = (
    "float[n,4,8,8] x | int8[32,4,3,3] k1, float[32] v1, int8[24,32,3,3] k2, float[24] v2, "
    "int8[5,24,1,1] k3, float[5] v3, float[5,24,1,1] w3 |"
    "u = DequantizeLinear<axis=0>(k1, v1); a = Conv(x, u); r = Relu(a);"
    "v = DequantizeLinear<axis=0>(k2, v2); b = Conv(r, v); s = Relu(b);"
)


@pytest.mark.parametrize(
    ("ending", "repair"),
    [("w = DequantizeLinear<axis=0>(k3, v3); y = Conv(s, w)", "none"), ("y = Conv(s, w3)", "bias")],
)
def test_weights_that_cannot_be_refitted_cause_one_warning(
    tmp_path: Path, ending: str, repair: str
) -> None:
    """The default uses scores without refitting; naming reconstruction is an error."""
    np.savez(
        tmp_path / "x.npz",
        x=np.random.default_rng(0).standard_normal((48, 4, 8, 8)).astype(np.float32),
    )
    model, options = (
        net(QUANTIZED + ending).SerializeToString(),
        {"data": str(tmp_path / "x.npz"), "engine": "none", "round_to": 1, "target": "macs=60%"},
    )
    report = optimize(model, **options).report
    assert (report.recipe["criterion"], report.recipe["allocate"], report.recipe["repair"]) == (
        "activation*weight",
        "knapsack",
        repair,
    )
    assert (
        len([w for w in report.warnings if "prune the float model and quantize the result" in w])
        == 1
    )
    assert report.after["macs"] <= 0.6 * report.before["macs"] and report.verification["ok"]
    if repair == "none":
        with pytest.raises(UsageError, match="plain weights"):
            optimize(model, criterion="reconstruction", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("flip", True),
        ("samples", 48),
        ("seed", 1),
        ("batch_size", 7),
        ("freeze", "*"),
        ("criterion", "l1"),
        ("allocate", "uniform"),
        ("repair", "least-squares"),
        ("max_fraction", 0.5),
        ("floor", 9),
        ("round_to", 4),
        ("ratio", "0.3"),
        ("blocks", True),
    ],
)
def test_a_changed_option_reuses_no_stage_that_depends_on_it(
    tmp_path: Path, option: str, value: object
) -> None:
    """The result is that of a run that begins anew, or the same error."""
    given = {
        "criterion": "activation*weight",
        "allocate": "knapsack",
        "repair": "bias",
        "engine": "none",
        "round_to": 1,
        "data": str(demo.files().calibration),
        "samples": 64,
        "target": "macs=50%",
    }

    def bytes_of(path: Path, options: dict[str, object]) -> bytes | str:
        try:
            optimize(MODEL, path, overwrite=True, **options)
        except TargetError as problem:
            return problem.message
        return path.read_bytes()

    before = bytes_of(tmp_path / "a.onnx", given)
    changed = bytes_of(tmp_path / "a.onnx", {**given, option: value})
    assert changed == bytes_of(tmp_path / "b.onnx", {**given, option: value})
    # some values give the same model, from other stages; those of data never do
    assert changed != before or option not in ("flip", "samples", "freeze")


def test_same_command_reuses_finished_stages(tmp_path: Path) -> None:
    events: list[Event] = []
    small(tmp_path / "out.onnx")
    first = (tmp_path / "out.onnx").read_bytes()
    optimize(MODEL, tmp_path / "out.onnx", on_event=events.append, **FAST)
    assert {e.stage for e in events if e.state == "reused"} >= {"score", "plan", "verify"}
    assert (tmp_path / "out.onnx").read_bytes() == first
    events.clear()
    with pytest.raises(OutputError, match="--overwrite"):
        small(tmp_path / "out.onnx", target="macs=60%")
    optimize(
        MODEL,
        tmp_path / "out.onnx",
        overwrite=True,
        on_event=events.append,
        **{**FAST, "target": "macs=60%"},
    )
    assert {e.stage for e in events if e.state == "reused"} == {"score"}
    (tmp_path / "out.onnx").write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        small(tmp_path / "out.onnx", target="macs=60%")


@pytest.mark.parametrize("stage", ["load", "analyze", "score", "plan", "cut", "verify"])
def test_interrupted_run_resumes_to_equal_bytes(tmp_path: Path, stage: str) -> None:
    def stop(event: Event) -> None:
        if event.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="no output was written"):
        optimize(MODEL, tmp_path / "out.onnx", on_event=stop, **FAST)
    assert not (tmp_path / "out.onnx").exists()
    small(tmp_path / "out.onnx")
    small(tmp_path / "undisturbed.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "undisturbed.onnx").read_bytes()


def test_run_killed_between_output_and_report_resumes_without_overwrite(tmp_path: Path) -> None:
    small(tmp_path / "out.onnx")
    journal = tmp_path / "out.run" / JOURNAL
    assert json.loads(journal.read_text().splitlines()[-1])["stage"] == "report"
    for name in REPORT_FILES:
        (tmp_path / "out.run" / name).unlink()
    before = (tmp_path / "out.onnx").read_bytes()
    small(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == before
    assert all((tmp_path / "out.run" / name).exists() for name in REPORT_FILES)


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], int]]:
    """What can be wrong -> (arguments, exit code)."""
    (folder / "text.onnx").write_text("no model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes(MODEL.read_bytes()[:-5000])
    np.savez(folder / "nan.npz", images=np.full((40, 1, 8, 8), np.nan, np.float32))
    np.savez(folder / "shape.npz", images=np.zeros((40, 3, 8, 8), np.float32))
    (folder / "folder").mkdir()
    (folder / "x").mkdir()
    copy = str(folder / "copy.onnx")
    shutil.copy(MODEL, copy)
    (folder / "typo.toml").write_text("rount_to = 8")
    (folder / "there.onnx").write_bytes(b"precious")
    model, good = str(MODEL), ["-o", str(folder / "out.onnx"), *FLAGS]
    return {
        "not onnx": ([str(folder / "text.onnx"), *good], 1),
        "empty": ([str(folder / "empty.onnx"), *good], 1),
        "truncated": ([str(folder / "cut.onnx"), *good], 1),
        "missing": ([str(folder / "nowhere.onnx"), *good], 1),
        "NaN in data": ([model, *good, "--data", str(folder / "nan.npz")], 1),
        "data of wrong shape": ([model, *good, "--data", str(folder / "shape.npz")], 1),
        "empty data folder": ([model, *good, "--data", str(folder / "folder")], 1),
        "target out of reach": ([model, *good, "--target", "macs=0.1%"], 3),
        "unknown criterion": ([model, *good, "--criterion", "l3"], 2),
        "unknown key": ([model, *good, "--recipe", str(folder / "typo.toml")], 2),
        "unknown engine": ([model, *good, "--engine", "onnxrt"], 2),
        "metric without labels": ([model, *good, "--metric", "top1"], 2),
        "nothing to freeze": ([model, *good, "--freeze", "nowhere*"], 2),
        "output exists": ([model, "-o", str(folder / "there.onnx"), *FLAGS], 1),
        "output is the input": ([copy, "-o", str(folder / "x" / ".." / "copy.onnx"), *FLAGS], 2),
        "output is no .onnx file": ([model, "-o", str(folder / "out.pt"), *FLAGS], 2),
        "no such folder": ([model, "-o", str(folder / "nowhere" / "out.onnx"), *FLAGS], 1),
        "folder is a file": ([model, "-o", str(folder / "text.onnx" / "out.onnx"), *FLAGS], 1),
    }


def test_bad_input_is_one_error_and_leaves_no_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = bad_inputs(tmp_path)
    before = tree(tmp_path)
    for name, (arguments, code) in cases.items():
        assert run(["optimize", *arguments]) == code, name
        out, err = capfd.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error[")]
        assert (
            len(errors) == 1 and "Traceback" not in err and "error[internal]" not in err and not out
        ), (name, err)
        assert tree(tmp_path) == before, name


def test_few_images_and_default_preprocessing_cause_warnings(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for i in range(12):
        image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    options = {"criterion": "activation*weight", "data": str(tmp_path)}
    few, numbers = (w.partition(":")[0] for w in small(**options).report.warnings)
    assert few.startswith("only 10 calibration inputs") and numbers.startswith(
        "images are preprocessed with the defaults"
    )
    assert len(small(**options, mean="0.3").report.warnings) == 1


def test_unknown_keyword_suggests_the_closest_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'criterion'"):
        optimize(MODEL, criterium="l2")


def test_unreachable_target_reports_what_is_reachable() -> None:
    with pytest.raises(TargetError, match="is the least with floor=40"):
        small(target="macs=10%", floor=40)


def test_run_in_memory_writes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = small()
    assert result.report.output == "" and not tree(tmp_path)
    assert result.model.size_bytes() < MODEL.stat().st_size


def test_verify_accepts_only_the_written_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plan = tmp_path / "out.onnx", tmp_path / "out.run" / "plan.json"
    small(out)
    assert run(["verify", str(MODEL), str(out), "--plan", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] <= 1e-5
    changed = onnx.load(out)
    weight = next(t for t in changed.graph.initializer if len(t.dims) == 4)
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * 1.01).tobytes()
    onnx.save(changed, tmp_path / "changed.onnx")
    assert run(["verify", str(MODEL), str(tmp_path / "changed.onnx"), "--plan", str(plan)]) == 4
    assert run(["verify", str(MODEL), str(MODEL), "--plan", str(plan)]) == 4
    assert run(["verify", str(out), str(out), "--plan", str(plan)]) == 2


def test_verify_accepts_repaired_model_with_external_data(tmp_path: Path) -> None:
    out, plan = tmp_path / "out.onnx", tmp_path / "out.run" / "plan.json"
    options = {
        **FAST,
        "repair": "bias",
        "data": str(demo.files().calibration),
        "external_data": True,
    }
    report = optimize(MODEL, out, **options).report
    (data,) = tmp_path.glob("out.onnx.*.data")
    assert report.fidelity["samples"] > 0
    assert run(["verify", str(MODEL), str(out), "--plan", str(plan)]) == 0
    with data.open("r+b") as file:
        file.write(b"\x01\x02\x03\x04")
    assert run(["verify", str(MODEL), str(out), "--plan", str(plan)]) == 4


def test_plan_and_cut_equal_optimize(tmp_path: Path) -> None:
    small(tmp_path / "whole.onnx")
    steps = [f for f in FLAGS if not f.startswith(("--repair", "--engine"))]
    assert run(["plan", str(MODEL), "-o", str(tmp_path / "plan.json"), *steps]) == 0
    assert (
        run(["cut", str(MODEL), str(tmp_path / "plan.json"), "-o", str(tmp_path / "steps.onnx")])
        == 0
    )
    assert (tmp_path / "steps.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"freeze": 3}},
        {"options": {"grouped": "odd"}},
        {"source": "0"},
        {"format": 2},
        {"groups": []},
        {"groups": {"a": {"kept": [0], "size": 1}}},
        {"groups": {"a": {"kept": [1, 0], "size": 2}}},
        {"decided_by": 3},
    ],
)
def test_invalid_plan_is_one_error(
    tmp_path: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {**small().plan.to_json(), **change}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert (
        run(["cut", str(MODEL), str(tmp_path / "plan.json"), "-o", str(tmp_path / "out.onnx")]) == 2
    )
    err = capsys.readouterr().err
    assert (
        err.startswith("error[") and "internal" not in err and not (tmp_path / "out.onnx").exists()
    )


def test_json_is_one_object_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", str(MODEL), "-o", str(tmp_path / "out.onnx"), "--json", *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == str(MODEL) and found["output"] == str(tmp_path / "out.onnx")
    assert (
        found["after"]["macs"] <= found["before"]["macs"] / 2
        and found["verification"]["ok"]
        and isinstance(found["warnings"], list)
    )
    assert run(["report", str(tmp_path / "out.run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_strict_run_rejects_operators_without_rule(tmp_path: Path) -> None:
    model = onnx.load(MODEL)
    last = model.graph.output[0].name
    model.graph.node.append(
        onnx.helper.make_node("Mystery", [last], ["after"], name="odd", domain="custom")
    )
    model.opset_import.append(onnx.helper.make_opsetid("custom", 1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("after", 1, None))
    with pytest.raises(UsageError, match="odd .*no rule for custom::Mystery"):
        optimize(model.SerializeToString(), strict=True, **FAST)


def test_second_run_in_the_same_directory_is_rejected(tmp_path: Path) -> None:
    with (
        open_run_dir(tmp_path / "out.run"),
        pytest.raises(OutputError, match=f"in use by process {os.getpid()}"),
    ):
        small(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
