"""Bad inputs of the command line: files, options and outputs that it must reject."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune import demo

MODEL = demo.files().model

FLAGS = ["--criterion=l2", "--repair=none", "--engine=none", "--round-to=1"]

PR_CAPBSET_DROP = 24  # linux/prctl.h


@dataclass(frozen=True)
class Bad:
    """A command line that must fail.

    Attributes
    ----------
    what
        The defect, for the table.
    arguments
        Arguments of onnxprune.
    code
        Documented exit code.
    how
        How the defect was produced, if that is not obvious.
    run
        Further arguments of subprocess.run.
    """

    what: str
    arguments: list[str]
    code: int
    how: str = ""
    run: dict[str, Any] = field(default_factory=dict)


def bad_models(folder: Path) -> list[Bad]:
    """Write invalid and unsupported models; return the commands that read them."""
    valid = MODEL.read_bytes()
    (folder / "text.onnx").write_text("no model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "truncated.onnx").write_bytes(valid[:-5000])
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
        "external data outside the folder": "outside.onnx",
        "external data by an absolute path": "absolute.onnx",
        "external data through a link out of the folder": "linked.onnx",
        "an opset that is too old": "opset.onnx",
        "a cycle": "cycle.onnx",
        "a node input that no node defines": "dangling.onnx",
        "two initializers of the same name": "twice.onnx",
        "an input of 2^40 rows": "huge.onnx",
        "a negative length": "negative.onnx",
        "functions that unfold to 10^9 nodes": "bomb.onnx",
        "a function that calls itself": "endless.onnx",
    }
    return [
        Bad(what, ["optimize", name, "-o", "out.onnx", *FLAGS], 1) for what, name in rows.items()
    ]


def bad_data(folder: Path) -> list[Bad]:
    """Write calibration data that does not fit; return the commands that read it."""
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


def bad_options(folder: Path) -> list[Bad]:
    """Write invalid recipes and plans; return their commands, and invalid options."""
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
        Bad("an unreachable target", [*optimize, "--target=macs=0.1%"], 3),
        Bad("an unknown criterion", [*optimize, "--criterion=l3"], 2),
        Bad("an unknown cost in a target", [*optimize, "--target=watts=50%"], 2),
        Bad("a target that is no number", [*optimize, "--target=macs=much"], 2),
        Bad("an unknown option", [*optimize, "--ratioo=1"], 2),
        Bad("an unknown command", ["optimze", model], 2),
        Bad("an unknown engine", ["optimize", model, "-o", "out.onnx", "--engine=onnxrt"], 2),
        Bad("a metric without labels", [*optimize, "--metric=top1"], 2),
        Bad("a pattern that matches nothing", [*optimize, "--freeze=nowhere*"], 2),
        Bad("an unknown key in a recipe", [*optimize, "--recipe=typo.toml"], 2),
        Bad("a recipe that is not TOML", [*optimize, "--recipe=broken.toml"], 2),
        Bad("a recipe that names Python code", ["optimize", model, *good, "--recipe=code.toml"], 2),
        Bad("no such recipe", [*optimize, "--recipe=nowhere.toml"], 2),
        Bad("a plan whose channels are unsorted", ["cut", model, "plan.json", "-o", "out.onnx"], 2),
        Bad("a plan of another model", ["cut", model, "other.json", "-o", "out.onnx"], 2),
        Bad("a plan that is no JSON", ["cut", model, "broken.toml", "-o", "out.onnx"], 2),
        Bad("a report of a folder without a run", ["report", "folder"], 2),
    ]


def bad_places(folder: Path) -> list[Bad]:
    """Prepare outputs that cannot be written; return the commands that try."""
    (folder / "there.onnx").write_bytes(b"precious")
    (folder / "closed").mkdir()
    shutil.copy(MODEL, folder / "model.onnx")
    (folder / "strange.run").mkdir()
    (folder / "strange.run" / "letter.txt").write_text("precious")
    optimize = ["optimize", str(MODEL), *FLAGS, "-o"]
    rows = [
        Bad("an output that exists", [*optimize, "there.onnx"], 1),
        Bad("an output that is the input", ["optimize", "model.onnx", "-o", "./model.onnx"], 2),
        Bad("an output that is no .onnx file", [*optimize, "out.pt"], 2),
        Bad("an output in a missing folder", [*optimize, "nowhere/out.onnx"], 1),
        Bad("an output below a file", [*optimize, "text.onnx/out.onnx"], 1),
        Bad("a run directory with other files", [*optimize, "strange.onnx"], 1),
    ]
    (folder / "closed").chmod(0o555)
    closed = [*optimize, "closed/out.onnx"]
    as_user = {"preexec_fn": _drop_override}
    rows.append(Bad("a folder that cannot be written", closed, 1, run=as_user))
    return rows + full_disk(optimize)


def full_disk(optimize: list[str]) -> list[Bad]:
    """Return commands whose writes fail in the middle by a limit on the size of a file."""
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


def _drop_override() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that permissions apply to root."""
    if os.geteuid() == 0:
        import ctypes

        for capability in (1, 2):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def _with(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Write the demo model with a change."""
    model = onnx.load(MODEL)
    change(model)
    path.write_bytes(model.SerializeToString())


def _external(location: str) -> Callable[[onnx.ModelProto], object]:
    """Return a change that moves an initializer to external data."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def _dims(model: onnx.ModelProto, size: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size


def call_functions(model: onnx.ModelProto, calls: Sequence[list[str]]) -> None:
    """Add functions fN that make these calls in sequence, and a call of the last one."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for number, called in enumerate(calls):
        names = ["x", *[f"v{i}" for i in range(len(called) - 1)], "y"]
        nodes = [
            helper.make_node(op, [a], [b], domain="local" if op[0] == "f" else "")
            for op, a, b in zip(called, names[:-1], names[1:], strict=True)
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
