"""Every option that a command offers is read by it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import onnx
import onnx.parser
import pytest
from option_reads import DERIVED

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.cli.app import COMMANDS, app
from onnxprune.run.recipe import OPTIONS, Recipe

MODEL, CALIBRATION, EVALUATION = map(str, demo.files())
DATA = ["--data", CALIBRATION, "--samples", "40"]
LABELS = ["--metric", "top1", "--labeled", EVALUATION]
FAST = ["--criterion", "l2", "--allocate", "uniform", "--repair", "none", "--engine", "none"]
TINY_BENCH = ["--engine", "onnxruntime", "--seconds", "0.01"]
LEAKY = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4] x) => (float[1, 4] y) { y = LeakyRelu (x) }
"""
# which parse, copy or store recipes, and so read every option
OWN_FILES = {"recipe.py", "recipe_file.py", "option.py", "dataclasses.py"}

# command -> command lines that together take every path on which it reads options; {out} is a
# folder that holds pruned.onnx, plan.json and leaky.onnx
LINES: dict[str, list[list[str]]] = {
    "optimize": [
        [
            MODEL,
            "-o",
            "{out}/a.onnx",
            *DATA,
            *FAST,
            *LABELS,
            "--curve",
            "--candidate",
            "l1+uniform",
        ],
        [MODEL, "-o", "{out}/b.onnx", *DATA, "--criterion", "l2", "--repair", "none", *TINY_BENCH],
        [MODEL, "-o", "{out}/c.onnx", *DATA, *FAST, "--method", "pagcp", "--target", "macs=95%"],
        [MODEL, "-o", "{out}/d.onnx", *DATA, *FAST, "--max-divergence", "0.9"],
    ],
    "plan": [
        [MODEL, *DATA, "--criterion", "l2", "--allocate", "uniform"],
        [MODEL, *DATA, "--method", "pagcp", "--criterion", "l2", "--target", "macs=95%"],
    ],
    "cut": [[MODEL, "{out}/plan.json", "-o", "{out}/cut.onnx"]],
    "verify": [[MODEL, "{out}/pruned.onnx", "--plan", "{out}/plan.json"]],
    "inspect": [[MODEL]],
    "bench": [[MODEL, "{out}/pruned.onnx", *TINY_BENCH]],
    "sensitivity": [[MODEL, "-o", "{out}/s.jsonl", *DATA, *LABELS, "--rates", "0.5", "--no-time"]],
    "compare": [
        [MODEL, "{out}/pruned.onnx", *LABELS],
        [MODEL, "{out}/pruned.onnx", "--data", EVALUATION, "--samples", "40"],
    ],
    "subnet": [
        [MODEL, "{out}/plan.json", "-o", "{out}/fix_subnet.json"],
        [MODEL, "{out}/fix_subnet.json", *DATA],
    ],
    "tune": [
        ["{out}/pruned.onnx", "-o", "{out}/t.onnx", "--teacher", MODEL, *DATA, "--steps", "1"]
        + LABELS,
        [MODEL, "-o", "{out}/u.onnx", *DATA, "--steps", "2", "--interval", "1"]
        + ["--cut-step", "40", "--target", "macs=95%"],
    ],
    "rewrite": [["{out}/leaky.onnx", "-o", "{out}/r.onnx", "--activation", "relu"]],
    "extract": [[MODEL, "-o", "{out}/part.onnx", "--save-inputs", "{out}/part.npz", *DATA]],
    "join": [[MODEL, "{out}/pruned.onnx", "-o", "{out}/joined.onnx", *DATA]],
    "quantize": [
        [MODEL, "-o", "{out}/int8.onnx", *DATA, *LABELS, *TINY_BENCH, "--max-divergence", "1"],
    ],
    "sparsify": [[MODEL, "-o", "{out}/sparse.onnx", *DATA, *TINY_BENCH]],
    "handoff": [[MODEL, "--to", "jetson", "-o", "{out}/bundle", *DATA]],
}
NEEDS_TORCH = {"tune", "rewrite"}


def offered(command: str) -> set[str]:
    """Return the options of the recipe that a command offers."""
    declared = app.get_command(click.Context(app), command)
    assert declared is not None
    return {parameter.name for parameter in declared.params if parameter.name in OPTIONS}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the options that are read from recipes from now on."""
    names: set[str] = set()

    def get(recipe: Recipe, name: str) -> Any:
        option = DERIVED.get(name, name)
        if option in OPTIONS:
            reader = Path(sys._getframe(1).f_code.co_filename).name
            if reader not in OWN_FILES:
                names.add(option)
        return object.__getattribute__(recipe, name)

    monkeypatch.setattr(Recipe, "__getattribute__", get)
    return names


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a pruned model, its plan, and a model to rewrite."""
    folder = tmp_path_factory.mktemp("out")
    onnx.save(onnx.parser.parse_model(LEAKY), folder / "leaky.onnx")
    plan = str(folder / "plan.json")
    ratio = ["--criterion", "l2", "--allocate", "uniform", "--target", "macs=80%"]
    assert run(["plan", MODEL, "-o", plan, *ratio]) == 0
    assert run(["cut", MODEL, plan, "-o", str(folder / "pruned.onnx")]) == 0
    return folder


def test_every_command_with_options_of_the_recipe_is_tested() -> None:
    """The demo is optimize with other defaults."""
    assert set(LINES) | {"demo"} == {command for command in COMMANDS if offered(command)}
    assert offered("demo") == offered("optimize")


@pytest.mark.parametrize("command", LINES)
def test_offered_options_are_read(command: str, out: Path, read: set[str]) -> None:
    if command in NEEDS_TORCH:
        pytest.importorskip("torch")
    for line in LINES[command]:
        assert run([command, *(argument.format(out=out) for argument in line)]) == 0, line
    assert offered(command) - read == set()


# command and what it accepts for one more release without reading it
IGNORED = [
    ("verify", ["a.onnx", "b.onnx", "--plan", "p.json"], ["--flip", "--batch-size", "4"]),
    ("handoff", ["a.onnx"], ["--flip", "--batch-size", "4", "--threads", "2"]),
    ("compare", ["a.onnx", "b.onnx"], ["--flip"]),
    ("tune", ["a.onnx"], ["--swaps", "3", "--blocks"]),
]


@pytest.mark.parametrize(("command", "line", "flags"), IGNORED, ids=[row[0] for row in IGNORED])
def test_options_that_were_never_read_are_hidden_and_warn(
    command: str, line: list[str], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    declared = app.get_command(click.Context(app), command)
    assert declared is not None
    required = ["--to", "jetson"] if command == "handoff" else []
    context = declared.make_context(command, [*line, *required, *flags])
    warnings = capsys.readouterr().err.splitlines()
    names = [flag for flag in flags if flag.startswith("--")]
    expected = [f"warning: {flag} has no effect on {command} and will be removed" for flag in names]
    assert sorted(warnings) == sorted(expected)
    assert not any(name.startswith("ignored") for name in context.params)
    assert not any(flag in declared.get_help(context).split() for flag in names)
    declared.make_context(command, [*line, *required])
    assert capsys.readouterr().err == ""
