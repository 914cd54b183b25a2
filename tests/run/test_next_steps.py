"""Recommended commands: chosen by the verdicts, quoted, and accepted by the command line."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from graph_text import net

from onnxprune import demo
from onnxprune.cli.app import app
from onnxprune.cli.common import recipe_from
from onnxprune.data.dataset import Data, synthetic
from onnxprune.engines.bench_warnings import is_width_warning
from onnxprune.ir.io import load
from onnxprune.report.conclusions import DOUBT
from onnxprune.report.data import Report
from onnxprune.run.adapter import analyze_for, open_labels
from onnxprune.run.flags import to_flags
from onnxprune.run.label_judgment import find_better_option, judge_labels
from onnxprune.run.next_steps import recommend
from onnxprune.run.recipe import OPTIONS, Recipe
from onnxprune.run.warnings import timing_warnings

SOURCE = "my models/a;b.onnx"
REPORT = Report(SOURCE, "out/small model.onnx", {"macs": 100}, {"macs": 50})
FAST = {"cpu": {"before_ms": 2, "after_ms": 1, "speedup": 2, "low": 1.9, "high": 2.1}}
NO_GAIN = {"onnxruntime": {"before_ms": 2, "after_ms": 2, "speedup": 1, "low": 0.9, "high": 1.1}}
RECIPES: list[dict[str, Any]] = [
    {},
    {"target": ("macs=50%", "params=2x"), "mean": (0.485, 0.456, 0.406), "order": "bgr"},
    {"shape": {"x": (1, 3, -1, 64)}, "batch_axis": {"x": "none"}, "freeze": ("a*", "b c")},
    {"ratio": {"*": 0.25, "#3": 0.5}, "resize": (64, 48), "crop": 32, "candidate": "none"},
    {"engine": "none", "fast": True, "external_data": False, "scale": 0.1 + 0.2, "pin": (0, 1)},
    {"method": "pagcp", "method_option": {"initial_rate": "0.06"}, "metric": ("top1", "top5")},
]


def parse(words: list[str], command: str = "optimize") -> Recipe:
    """Return the recipe that the command line reads from these flags."""
    declared = app.get_command(click.Context(app), command)
    assert declared is not None
    values = declared.make_context(command, ["m.onnx", *words]).params
    # the device of tune is the one that trains
    names = [n for n in OPTIONS if n in values and (command, n) != ("tune", "device")]
    return recipe_from(None, {name: values[name] for name in names})


def data(count: int = 8) -> Data:
    """Return random inputs."""
    return synthetic({"x": (["n", 3], "tensor(float)")}, samples=count)


@pytest.mark.parametrize("values", RECIPES)
def test_flags_give_the_recipe_back(values: dict[str, Any]) -> None:
    recipe = Recipe.of(values)
    assert parse(to_flags(recipe)) == recipe


def commands(report: Report, **values: Any) -> list[list[str]]:
    """Return the recommended commands, split as the shell does."""
    return [shlex.split(step.command) for step in recommend(report, Recipe.of(values), data())]


def test_lost_quality_recommends_tuning_and_a_milder_target() -> None:
    lost = {"before": 0.9, "after": 0.8, "standard_error": 0.01, "samples": 500}
    report = replace(REPORT, quality={"top1": lost}, latency=FAST)
    tune, milder = commands(report, data="my images", target="macs=50%", mean=0.5)
    assert tune[:5] == ["onnxprune", "tune", report.output, "--teacher", SOURCE]
    assert parse(tune[5:], "tune").data == "my images"
    assert milder[:5] == ["onnxprune", "optimize", SOURCE, "-o", "out/small model.milder.onnx"]
    recipe = parse(milder[5:])
    assert [str(t) for t in recipe.target] == ["macs=75%"] and recipe.mean == (0.5,)


def test_quality_of_too_few_inputs_recommends_more_of_them_and_labels() -> None:
    few = {"samples": 3, "agreement": 1.0}
    report = replace(REPORT, fidelity=few, latency=FAST)
    chosen = replace(data(200), chosen=tuple(range(16)))
    steps = recommend(report, Recipe.of({"data": "d"}), chosen)
    assert [step.purpose for step in steps] == [
        "use more inputs",
        "measure a metric on labeled inputs",
    ]
    # nothing to take them from
    steps = recommend(report, Recipe.of({"data": "d"}), data(16))
    assert [step.purpose for step in steps] == ["measure a metric on labeled inputs"]


def test_faster_model_with_partial_blocks_is_compared_with_whole_ones() -> None:
    warnings = (
        "pruned: 1 of 2 convolutions have output channels that x rounds up to multiples of 8",
    )
    assert all(map(is_width_warning, warnings))
    report = replace(REPORT, latency=FAST, warnings=warnings)
    (step,) = [
        s for s in recommend(report, Recipe.of({"data": "d"}), data()) if "blocks" in s.purpose
    ]
    assert parse(shlex.split(step.command)[5:]).round_to == "auto"
    # widths of whole blocks are not questioned
    kinds = [("auto", 0), (None, 1)]
    for round_to, count in kinds:
        recipe = Recipe.of({"round_to": round_to, "engine": "onnxruntime"})
        bench = {"warnings": warnings, "layers": []}
        found = timing_warnings(bench, (), load(demo.files().model), recipe)
        assert sum(is_width_warning(text) for _, text in found) == count


@pytest.mark.parametrize(
    ("values", "key", "milder"),
    [({"max_divergence": 0.2}, "max_divergence", 0.1), ({"ratio": 0.5}, "ratio", {"*": 0.25})],
)
def test_milder_limit_is_of_the_same_kind(values: dict[str, Any], key: str, milder: Any) -> None:
    report = replace(REPORT, fidelity={"samples": 9, "agreement": 0.4}, latency=FAST)
    words = next(
        w for w in commands(report, data="d", **values) if "out/small model.milder.onnx" in w
    )
    assert getattr(parse(words[5:]), key) == milder


def test_no_gain_recommends_aligned_widths_then_a_latency_target() -> None:
    report = replace(REPORT, latency=NO_GAIN)
    steps = commands(report, target="macs=50%")
    assert any(parse(words[5:]).round_to == "auto" for words in steps if "optimize" in words)
    steps = commands(report, target="macs=50%", round_to="auto")
    assert any("latency.onnxruntime=1.5x" in words for words in steps)


def test_run_without_data_recommends_real_inputs() -> None:
    assert commands(REPORT)[0][-2:] == ["--data", "PATH"]


def test_runs_on_inputs_in_doubt_are_not_repeated_with_the_same_inputs() -> None:
    fidelity = {"samples": 51, "agreement": 1.0}
    fine = Report("a.onnx", "b.onnx", {"macs": 2}, {"macs": 1}, fidelity=fidelity)
    doubted = replace(fine, warnings=("w",), warning_topics=("doubt",))
    assert any("b.smaller.onnx" in words for words in commands(fine, data="x.npz"))
    assert not any({"optimize", "tune"} & {*w} for w in commands(doubted, data="x.npz"))


def test_models_in_memory_have_no_commands() -> None:
    assert recommend(replace(REPORT, source=""), Recipe(), data()) == ()


@pytest.mark.parametrize(
    ("option", "given", "changed"),
    [
        ("--order bgr", {"mean": 0.5}, {"order": "bgr", "mean": (0.5,)}),
        (
            "--preprocess unit",
            {"mean": 0.5, "std": 2},
            {"scale": 1 / 255, "mean": (0,), "std": (1,)},
        ),
    ],
)
def test_preprocessing_that_was_measured_to_be_better_comes_first(
    option: str, given: dict[str, Any], changed: dict[str, Any]
) -> None:
    warning = f"coco of the unpruned model is 0.1 on 35 labeled inputs; with {option} it is 0.2"
    quality = {"coco": {"before": 0.1, "after": 0.01, "standard_error": 0.01, "samples": 35}}
    report = replace(
        REPORT, latency=FAST, quality=quality, warnings=(warning,), warning_topics=(DOUBT,)
    )
    first = commands(report, data="d", **given)[0]
    assert first[:5] == ["onnxprune", "optimize", SOURCE, "-o", "out/small model.corrected.onnx"]
    recipe = parse(first[5:])
    assert {name: getattr(recipe, name) for name in changed} == changed


def test_the_option_is_read_from_the_warning_that_names_it(tmp_path: Path) -> None:
    """The text of the judgment, on a model that tells the orders of color apart."""
    model = net(
        "float[n,3,4,4] x | float[3,3] w = {5,0,0, 0,0,0, 0,0,5} "
        "| p = GlobalAveragePool(x); f = Flatten(p); y = Gemm(f, w) | float[n,3] y"
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    images = np.random.default_rng(0).integers(0, 90, (60, 4, 4, 3), np.uint8)
    labels = np.where(np.arange(60) % 2, 2, 0)
    # the label is the brighter of red and blue, of which the model sees the other
    images[np.arange(60), :, :, 2 - labels] += 100
    np.savez(tmp_path / "d.npz", x=images, labels=labels)
    recipe = Recipe.of({"metric": "top1", "labeled": str(tmp_path / "d.npz")})
    analysis = analyze_for(str(path), recipe)
    (warning,) = judge_labels(analysis, open_labels(analysis.model, recipe), recipe)
    assert find_better_option(warning) == {"order": "bgr"}
