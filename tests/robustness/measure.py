"""What bad input, faults and changed files do to a run: exit codes, sentences, and what is left behind.

    python -m tests.robustness.measure [--files 5000] [--kills 20] [--json FILE]
    python -m tests.robustness.measure --table FILE        # the tables of an earlier run

Every row is a process of its own: `onnxprune optimize` (or another verb) on the demo network with something wrong. A row holds where the exit code is the
documented one, one line begins with `error[`, there is no traceback, nothing new is on the disk and nothing old has changed.
`--files N` mutated models, and a tenth as many plans and recipes, go through the verbs that read them; see tests/robustness/fuzz.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune import demo
from tests.robustness.faults import FAULTS

MODEL = demo.files().model
FLAGS = ["--criterion=l2", "--repair=none", "--engine=none", "--round-to=1"]
LIMIT_S = 120
SLICE = 250  # mutants a process
PR_CAPBSET_DROP = 24  # linux/prctl.h
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path[1:]]),
}


@dataclass(frozen=True)
class Bad:
    """Something wrong: what, the arguments, the exit code that is documented for it. how: a note on how it was done; run: what else subprocess.run gets."""

    what: str
    arguments: list[str]
    code: int
    how: str = ""
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What came of it. ok: the exit code is the documented one, one sentence, nothing left behind or changed."""

    what: str
    result: str
    code: int
    ok: bool


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with its content."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def tried(bad: Bad, folder: Path) -> Row:
    """One bad input."""
    before = tree(folder)
    command = [sys.executable, "-m", "onnxprune", *bad.arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        **bad.run,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    after = tree(folder)
    left = sorted(k for k in before.keys() | after.keys() if before.get(k, 0) != after.get(k, 0))
    internal = "error[internal]" in done.stderr or "Traceback" in done.stderr
    ok = done.returncode == bad.code and len(said) == 1 and not left and not internal
    text = (
        (said[0] if said else "nothing")
        .replace(f"{folder}/", "")
        .replace(str(folder), "FOLDER")
        .replace(str(MODEL), "model.onnx")
    )
    return Row(
        bad.what + (f" ({bad.how})" if bad.how else ""),
        text + (f"; left or changed: {', '.join(left)}" if left else ""),
        done.returncode,
        ok,
    )


# ---------------------------------------------------------------- bad inputs


def bad_models(folder: Path) -> list[Bad]:
    """Files that are no model, or not one that is supported."""
    whole = MODEL.read_bytes()
    (folder / "text.onnx").write_text("no model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "truncated.onnx").write_bytes(whole[:-5000])
    (folder / "zeros.onnx").write_bytes(bytes(4096))
    _with(folder / "external.onnx", _external("weights.bin"))
    _with(folder / "outside.onnx", _external("../weights.bin"))
    _with(folder / "absolute.onnx", _external("/etc/hostname"))
    _with(folder / "opset.onnx", lambda m: setattr(m.opset_import[0], "version", 5))
    _with(
        folder / "cycle.onnx",
        lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[-1].output[0]),
    )
    _with(folder / "dangling.onnx", lambda m: m.graph.node[3].input.__setitem__(0, "nowhere"))
    _with(folder / "twice.onnx", lambda m: m.graph.initializer.append(m.graph.initializer[0]))
    _with(folder / "huge.onnx", lambda m: _dims(m, 1 << 40))
    _with(folder / "negative.onnx", lambda m: _dims(m, -3))
    _with(folder / "bomb.onnx", _function_bomb)
    _with(folder / "endless.onnx", _recursive)
    os.symlink("/etc", folder / "link")
    _with(folder / "linked.onnx", _external("link/hostname"))
    rows = {
        "not an ONNX file": "text.onnx",
        "an empty file": "empty.onnx",
        "a file of zeros": "zeros.onnx",
        "a truncated file": "truncated.onnx",
        "no such file": "nowhere.onnx",
        "a folder in place of a model": ".",
        "missing external data": "external.onnx",
        "external data that leave the folder": "outside.onnx",
        "external data by an absolute path": "absolute.onnx",
        "external data through a link out of the folder": "linked.onnx",
        "an opset that is too old": "opset.onnx",
        "a cycle": "cycle.onnx",
        "an input that nothing makes": "dangling.onnx",
        "two initializers of one name": "twice.onnx",
        "an input of 2^40 rows": "huge.onnx",
        "a negative length": "negative.onnx",
        "functions that unfold to 10^9 nodes": "bomb.onnx",
        "a function that calls itself": "endless.onnx",
    }
    return [
        Bad(what, ["optimize", name, "-o", "out.onnx", *FLAGS], 1) for what, name in rows.items()
    ]


def bad_data(folder: Path) -> list[Bad]:
    """Calibration data that do not fit."""
    good = np.zeros((8, 1, 8, 8), np.float32)
    arrays = {
        "data of a wrong shape": np.zeros((8, 3, 8, 8), np.float32),
        "data of a wrong type": np.full((8, 1, 8, 8), "a"),
        "data with NaN": np.full_like(good, np.nan),
        "data with infinities": np.full_like(good, np.inf),
        "no samples": good[:0],
        "pickled objects as data": np.array([{"a": 1}] * 8, dtype=object),
    }
    rows = []
    for number, (what, values) in enumerate(arrays.items()):
        np.savez(folder / f"data{number}.npz", images=values)
        rows.append((what, f"data{number}.npz"))
    np.savez(folder / "names.npz", unknown=good)
    (folder / "cut.npz").write_bytes((folder / "data0.npz").read_bytes()[:100])
    (folder / "folder").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "image.png").write_bytes(b"no image")
    (folder / "raises.py").write_text("def feeds():\n    raise RuntimeError('no data today')\n")
    rows += [
        ("data for an input that does not exist", "names.npz"),
        ("a truncated .npz", "cut.npz"),
        ("an empty folder of images", "folder"),
        ("a folder of broken images", "broken"),
        ("no such data", "nowhere"),
        ("a loader that fails", "raises.py:feeds"),
        ("a loader that does not exist", "raises.py:other"),
    ]
    return [
        Bad(what, ["optimize", str(MODEL), "-o", "out.onnx", *FLAGS, "--data", place], 1)
        for what, place in rows
    ]


def bad_words(folder: Path) -> list[Bad]:
    """Options, recipes and plans."""
    (folder / "typo.toml").write_text("rount_to = 8")
    (folder / "broken.toml").write_text("target = [")
    (folder / "code.toml").write_text('data = "raises.py:feeds"')
    (folder / "plan.json").write_text(
        '{"format": 1, "source": "0", "groups": {"a": {"size": 2, "kept": [1, 0]}}}'
    )
    (folder / "other.json").write_text('{"format": 1, "source": "0", "groups": {}}')
    model, good = str(MODEL), ["-o", "out.onnx", *FLAGS]
    optimize = ["optimize", model, *good]
    return [
        Bad("a target below reach", [*optimize, "--target=macs=0.1%"], 3),
        Bad("an unknown criterion", [*optimize, "--criterion=l3"], 2),
        Bad("an unknown cost in a target", [*optimize, "--target=flops=50%"], 2),
        Bad("a target that is no number", [*optimize, "--target=macs=much"], 2),
        Bad("an unknown option", [*optimize, "--ratioo=1"], 2),
        Bad("an unknown verb", ["optimize", model], 2),
        Bad("an unknown engine", [*optimize, "--engine=onnxrt"], 2),
        Bad("a metric without labels", [*optimize, "--metric=top1"], 2),
        Bad("a pattern that matches nothing", [*optimize, "--freeze=nowhere*"], 2),
        Bad("an unknown key in a recipe", [*optimize, "--recipe=typo.toml"], 2),
        Bad("a recipe that is not TOML", [*optimize, "--recipe=broken.toml"], 2),
        Bad("a recipe that names Python code", ["optimize", model, *good, "--recipe=code.toml"], 2),
        Bad("no such recipe", [*optimize, "--recipe=nowhere.toml"], 2),
        Bad("a plan whose channels are unsorted", ["cut", model, "plan.json", "-o", "out.onnx"], 2),
        Bad("a plan of another model", ["cut", model, "other.json", "-o", "out.onnx"], 2),
        Bad("a plan that is no JSON", ["cut", model, "broken.toml", "-o", "out.onnx"], 2),
        Bad("a report of no run", ["report", "folder"], 2),
    ]


def bad_places(folder: Path) -> list[Bad]:
    """Outputs that cannot be written."""
    (folder / "there.onnx").write_bytes(b"precious")
    (folder / "closed").mkdir()
    (folder / "strange.run").mkdir()
    (folder / "strange.run" / "letter.txt").write_text("precious")
    optimize = ["optimize", str(MODEL), *FLAGS, "-o"]
    rows = [
        Bad("an output that exists", [*optimize, "there.onnx"], 1),
        Bad("an output that is a folder", [*optimize, "folder"], 1),
        Bad("an output in no folder", [*optimize, "nowhere/out.onnx"], 1),
        Bad("an output below a file", [*optimize, "text.onnx/out.onnx"], 1),
        Bad("a run directory that is something else", [*optimize, "strange.onnx"], 1),
    ]
    (folder / "closed").chmod(0o555)
    rows.append(
        Bad(
            "a folder that cannot be written",
            [*optimize, "closed/out.onnx"],
            1,
            run={"preexec_fn": _no_override},
        )
    )
    return rows + full_disk(optimize)


def full_disk(optimize: list[str]) -> list[Bad]:
    """A limit on the size of a file fails a write in the middle, as a full disk does."""
    import resource

    def limited(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return [
        Bad(
            f"a disk that is full after {size} kB",
            [*optimize, "there.onnx", "--overwrite"],
            1,
            "RLIMIT_FSIZE",
            {"preexec_fn": limited(size * 1000)},
        )
        for size in (0, 1, 50)
    ]


def _no_override() -> None:
    """Permissions hold for root as well: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are given up at the next exec."""
    if os.geteuid() == 0:
        import ctypes

        for capability in (1, 2):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def _with(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(MODEL)
    change(model)
    path.write_bytes(model.SerializeToString())


def _external(location: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def _dims(model: onnx.ModelProto, size: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size


def call_functions(model: onnx.ModelProto, calls: Sequence[list[str]]) -> None:
    """Add functions: number N makes these calls in a row; the last one is called once."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for number, called in enumerate(calls):
        names = ["x", *[f"v{i}" for i in range(len(called) - 1)], "y"]
        nodes = [
            helper.make_node(op, [a], [b], domain="local" if op[0] == "f" else "")
            for op, a, b in zip(called, names, names[1:], strict=False)
        ]
        model.functions.append(
            helper.make_function("local", f"f{number}", ["x"], ["y"], nodes, imports)
        )
    model.opset_import.append(imports[1])
    model.graph.node.add(
        op_type=f"f{len(calls) - 1}",
        domain="local",
        input=[model.graph.input[0].name],
        output=["called"],
    )
    model.graph.output.append(helper.make_empty_tensor_value_info("called"))


def _function_bomb(model: onnx.ModelProto) -> None:
    call_functions(model, [["Relu"], *[[f"f{i}"] * 10 for i in range(9)]])


def _recursive(model: onnx.ModelProto) -> None:
    call_functions(model, [["f1"], ["f0"]])


# ---------------------------------------------------------------- all of it


def bad_inputs() -> list[Row]:
    """Every bad input."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="robustness-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        cases = [
            bad for make in (bad_models, bad_data, bad_words, bad_places) for bad in make(folder)
        ]
        for bad in cases:
            row = tried(bad, folder)
            print(
                ("ok   " if row.ok else "WRONG"),
                row.what,
                row.code,
                row.result,
                file=sys.stderr,
                flush=True,
            )
            rows.append(row)
        (folder / "closed").chmod(0o755)
    return rows


def faults(kills: int) -> list[Row]:
    """Every fault, see tests/robustness/faults.py."""
    rows = []
    for what, fault in FAULTS.items():
        with tempfile.TemporaryDirectory(prefix="robustness-") as name:
            ok, result = fault(Path(name), kills)
        print(("ok   " if ok else "WRONG"), what, result, file=sys.stderr, flush=True)
        rows.append(Row(what, result, 0, ok))
    return rows


def fuzzed(files: int) -> list[dict[str, Any]]:
    """Mutants of each kind, in processes of SLICE."""
    found = []
    for kind, count in (("models", files), ("plans", files // 10), ("recipes", files // 10)):
        parts: list[dict[str, Any]] = []
        for first in range(0, count, SLICE):
            command = [
                sys.executable,
                "-m",
                "tests.robustness.fuzz",
                "--kind",
                kind,
                "--first",
                str(first),
                "--files",
                str(min(SLICE, count - first)),
                "--json",
            ]
            done = subprocess.run(
                command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False
            )
            parts.append(json.loads(done.stdout))
            print(
                f"{kind} {first + parts[-1]['files']} of {count}: {len(parts[-1]['faults'])} faults",
                file=sys.stderr,
                flush=True,
            )
        if parts:
            found.append(joined(parts))
    return found


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Slices of one kind as one."""
    sums = {
        key: dict(sum((Counter(p[key]) for p in parts), Counter()).most_common())
        for key in ("ends", "codes")
    }
    most = {key: max(p[key] for p in parts) for key in ("slowest_s", "peak_bytes")}
    return {
        "kind": parts[0]["kind"],
        "files": sum(p["files"] for p in parts),
        "seed": parts[0]["seed"],
        **sums,
        **most,
        "faults": [f for p in parts for f in p["faults"]],
    }


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["## Bad inputs", "", "| tried | exit code | what is said |", "| --- | --- | --- |"]
    lines += [
        f"| {r['what']} | {r['code']}{'' if r['ok'] else ' (wrong)'} | {_cell(r['result'])} |"
        for r in found["bad"]
    ]
    lines += ["", "## Faults", "", "| what happens | what comes of it |", "| --- | --- |"]
    lines += [
        f"| {r['what']} | {'' if r['ok'] else 'WRONG: '}{_cell(r['result'])} |"
        for r in found["faults"]
    ]
    lines += [
        "",
        "## Changed files",
        "",
        "| files | number | go through | refused with one sentence | tracebacks, crashes, hangs | slowest verb | most memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in found["fuzzed"]:
        ends = r["ends"]
        lines.append(
            f"| {r['kind']} | {r['files']} | {ends.get('goes through', 0)} | {ends.get('refused with one sentence', 0)} | {len(r['faults'])} | {r['slowest_s']:.1f} s | {r['peak_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")[:300]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=5000, help="mutated models")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the tables of this file and do nothing"
    )
    given = parser.parse_args()
    if given.table:
        print(tables(json.loads(given.table.read_text())))
        return
    found = {
        "command": f"python -m tests.robustness.measure --files {given.files} --kills {given.kills}",
        "versions": {
            "python": platform.python_version(),
            "onnx": onnx.__version__,
            "system": platform.system(),
        },
        "bad": [asdict(r) for r in bad_inputs()],
        "faults": [asdict(r) for r in faults(given.kills)],
        "fuzzed": fuzzed(given.files),
    }
    if given.json:
        given.json.write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(tables(found))
    wrong = [r for r in (*found["bad"], *found["faults"]) if not r["ok"]] + [
        f for r in found["fuzzed"] for f in r["faults"]
    ]  # type: ignore[misc]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
