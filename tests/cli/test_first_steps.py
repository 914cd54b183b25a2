"""What people type first: other names, forgotten units, files of other kinds."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path

import click
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.cli.app import ALIASES, COMMANDS, app
from onnxprune.cli.command import EXPERT, GROUPS, Command, full_help, group_of
from onnxprune.engines.base import static_inputs
from onnxprune.errors import ModelError, UsageError
from onnxprune.ir.file_kinds import KINDS
from onnxprune.ir.io import load
from onnxprune.run.adapter import analyze_for, count_at, open_data_for
from onnxprune.run.flags import to_flags
from onnxprune.run.recipe import OPTIONS, Recipe
from onnxprune.run.target import Target

MODEL = demo.files().model
LISTS = ("doctor", "rules", "criteria", "engines", "devices")
FAST = ["--criterion=l2", "--repair=none", "--engine=none"]


def commands() -> dict[str, Command]:
    """All commands by name."""
    found = {name: app.get_command(click.Context(app), name) for name in COMMANDS}
    return {name: c for name, c in found.items() if isinstance(c, Command)}


def test_every_option_of_a_recipe_is_in_one_group_of_the_help() -> None:
    names = [name for group in GROUPS.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert not set(OPTIONS) - set(names)
    own = {
        "output",
        "overwrite",
        "run_dir",
        "recipe_file",
        "as_json",
        "debug",
        "quiet",
        "help",
        "help_all",
    }
    assert set(names) <= set(OPTIONS) | own | {"preprocess"}


def test_help_lists_options_by_purpose_and_hides_those_for_experts() -> None:
    assert set(commands()) == set(COMMANDS)
    for name, command in commands().items():
        text = CliRunner().invoke(app, [name, "--help"]).output
        everything = full_help(command, name, 100)
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                flag = option.opts[-1]
                assert flag in everything, (name, flag)
                # an option begins its line; other options may mention it
                listed = re.search(rf"^ +(-\w, |.* / )?{flag}\b(?!-)", text, re.MULTILINE)
                assert bool(listed) == (group_of(option) != EXPERT), (name, flag)


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in LISTS])
def test_help_begins_with_examples_that_parse(name: str) -> None:
    command = commands()[name]
    assert command.examples
    for line in command.examples:
        words = line.partition("#")[0].split()
        assert words[:2] == ["onnxprune", name]
        command.make_context(name, words[2:], resilient_parsing=False)


def test_help_all_shows_everything() -> None:
    result = CliRunner().invoke(app, ["optimize", "--help-all"])
    assert result.exit_code == 0 and "--allow-mixing" in result.output
    assert "--allow-mixing" not in CliRunner().invoke(app, ["optimize", "--help"]).output


def test_model_alone_is_optimized(tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    assert run([str(MODEL), "-o", str(out), *FAST]) == 0
    assert out.exists()


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_other_names_of_commands(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and f" {ALIASES[name]} " in result.output.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("50%", "macs", 0.5),
        ("2x", "macs", 0.5),
        ("flops=50%", "macs", 0.5),
        ("MACS=2x", "macs", 0.5),
        ("FLOPs=2x", "macs", 0.5),
        ("size=1.5MB", "bytes", 1.5e6),
        ("Params=60%", "params", 0.6),
        ("macs=1.5M", "macs", 1.5e6),
        ("activations=50%", "activation_bytes", 0.5),
    ],
)
def test_other_forms_of_targets(text: str, cost: str, limit: float) -> None:
    target = Target.parse(text)
    assert (target.cost, target.limit) == (cost, limit)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("macs=50", "did you mean 50%"),
        ("params=2", "did you mean 2%"),
        ("macs=0.5", "write 50%"),
        ("flops=2G", "macs=1e+09"),
        ("speed=2x", "unknown cost"),
        ("latency=2x", "write latency.onnxruntime=2x"),
        ("50", "did you mean 50%?"),
    ],
)
def test_hints_of_targets(text: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        Target.parse(text)
    assert hint in str(caught.value)


def test_other_names_of_metrics_and_engines() -> None:
    recipe = Recipe.of({"metric": "accuracy,mAP,miou", "engine": ["trt", "CPU"]})
    assert recipe.metric == ("top1", "coco", "miou")
    assert recipe.engine == ("tensorrt", "onnxruntime")
    assert Recipe.of({"metric": "My.py:Func"}).metric == ("My.py:Func",)


@pytest.mark.parametrize("suffix", sorted(KINDS))
def test_files_of_other_kinds_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ModelError) as caught:
        load(path)
    what, advice = KINDS[suffix]
    assert what in caught.value.message and advice in caught.value.message
    path.write_bytes(MODEL.read_bytes())
    assert load(path).proto.graph.node


def test_addresses_folders_and_pointers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="download"):
        load("https://example.com/model.onnx")
    (tmp_path / "a.onnx").write_bytes(MODEL.read_bytes())
    with pytest.raises(ModelError, match=r"its models: a\.onnx"):
        load(tmp_path)
    (tmp_path / "p.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        load(tmp_path / "p.onnx")


@pytest.mark.parametrize("value", ["2,1,8,8", "2x1x8x8", ["2,1,8,8"], (2, 1, 8, 8), [2, 1, 8, 8]])
def test_shape_without_a_name_is_that_of_the_only_input(value: object) -> None:
    recipe = Recipe.of({"shape": value})
    assert Recipe.of({"shape": to_flags(recipe)[1]}) == recipe
    analysis = analyze_for(MODEL, recipe)
    assert count_at(analysis, None, recipe).counted_at.inputs == {"images": (2, 1, 8, 8)}
    data = open_data_for(analysis.model, recipe)
    assert next(data.batches(5))["images"].shape == (2, 1, 8, 8)
    assert static_inputs(analysis.model, recipe.shape)["images"].shape == (2, 1, 8, 8)


def test_shape_without_a_name_needs_one_input(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4] a, float[n, 4] b) => (float[n, 4] y) { y = Add (a, b) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "two.onnx")
    recipe = Recipe.of({"shape": "1,4"})
    with pytest.raises(UsageError, match="'a', 'b': write --shape a:1,4, once per input"):
        count_at(analyze_for(str(tmp_path / "two.onnx"), recipe), None, recipe)


def test_other_errors_of_files_with_other_suffixes_stay(tmp_path: Path) -> None:
    proto = onnx.load(str(MODEL))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    (tmp_path / "model.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "model.pb")
    assert caught.value.code == "external-data"


@pytest.mark.parametrize("run_dir", [None, "runs/my run"])
def test_command_of_the_page_repeats_the_run_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("runs").mkdir()
    shutil.copy(demo.files().model, "models/m.onnx")
    words = ["optimize", "models/m.onnx", "--criterion", "l2", "--engine", "none"]
    assert run([*words, *(["--run-dir", run_dir] if run_dir else [])]) == 0
    page = Path(run_dir or "models/m.pruned.run", "report.html").read_text()
    start = "In the folder where this run was started:</p>\n<pre><code>"
    command = shlex.split(html.unescape(page.split(start)[1].split("</code>")[0]))
    before = Path("models/m.pruned.onnx").read_bytes()
    assert command[0] == "onnxprune" and Path(command[-1]).is_file()
    assert run([*command[1:], "--overwrite"]) == 0
    assert Path("models/m.pruned.onnx").read_bytes() == before
