"""Commands that a run recommends next, chosen by its verdicts and measurements."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from onnxprune.data.dataset import Data
from onnxprune.engines.bench_warnings import is_width_warning
from onnxprune.named import Named
from onnxprune.report.conclusions import BAD, DOUBT, FAIR, GOOD, UNKNOWN, NextStep
from onnxprune.report.data import Report
from onnxprune.report.verdict import is_missed, judge
from onnxprune.run.adapter import follows_engine
from onnxprune.run.flags import to_flags
from onnxprune.run.label_judgment import find_better_option
from onnxprune.run.recipe import Recipe

MOST_STEPS = 3
FEW_INPUTS = 128  # a default run on the zoo gains less than its standard error from more
FASTER = "1.5x"  # a speed-up that most networks of the zoo reach at half of their MACs
HARDER = 0.8  # of the remaining share, if nothing was lost
PATH = "PATH"  # placeholder of a file that only the user knows


def recommend(report: Report, recipe: Recipe, data: Data) -> tuple[NextStep, ...]:
    """Return what to run next; nothing for models and inputs in memory, which have no path.

    Parameters
    ----------
    recipe
        Recipe as the user gave it, before "auto" is resolved.
    data
        Calibration inputs.
    """
    # data without a path and without the warning of synthetic ones were passed as an object
    in_memory = recipe.data is None and not data.warning
    # an object stands in no command
    in_memory |= any(isinstance(value, Named) for value in (recipe.data, recipe.labeled))
    if not report.source or not report.output or in_memory:
        return ()
    steps: list[NextStep] = []
    # the same command may follow from two verdicts
    for step in _list_steps(report, recipe, data):
        if step.command not in [known.command for known in steps]:
            steps.append(step)
    return tuple(steps[:MOST_STEPS])


def _list_steps(report: Report, recipe: Recipe, data: Data) -> Iterator[NextStep]:
    """Yield all steps that fit the verdicts, the most useful first."""
    levels = {verdict.aspect: verdict.level for verdict in judge(report)}
    # wrong inputs are corrected first, by the option that their warning names
    in_doubt = DOUBT in report.warning_topics
    # it was measured to be better, so that whatever else this run measured is of less use
    for better in filter(None, map(find_better_option, report.warnings)):
        command = _build_command(report, recipe.but(better), "corrected")
        yield NextStep("preprocess inputs as the labels favor, see the warnings", command)
    if levels["quality"] in (FAIR, BAD) and not in_doubt:
        yield from _recover_quality(report, recipe, data)
    if levels["quality"] == UNKNOWN and recipe.data is None:
        command = _build_command(report, recipe.but({"data": PATH}), "calibrated")
        yield NextStep("use a few hundred real inputs, without labels", command)
    elif levels["quality"] == UNKNOWN:
        yield from _use_more(report, recipe, data)
    if levels["speed"] in (FAIR, BAD):
        yield _gain_speed(report, recipe)
    elif any(map(is_width_warning, report.warnings)):
        command = _build_command(report, recipe.but({"round_to": "auto"}), "aligned")
        yield NextStep("try widths in whole blocks of the engine, and compare by bench", command)
    if levels["speed"] == UNKNOWN:
        command = shlex.join(("onnxprune", "bench", report.source, report.output))
        yield NextStep("measure the latency of both models", command)
    is_compared = report.fidelity.agreement is not None
    is_compared |= report.fidelity.relative_error is not None
    if is_compared and not report.quality:
        inputs = to_flags(recipe, "data", "runtime", without=("data", "flip", "samples"))
        options = (*inputs, "--metric", "top1", "--labeled", PATH)
        command = shlex.join(("onnxprune", "compare", report.source, report.output, *options))
        yield NextStep("measure a metric on labeled inputs", command)
    # a model without a speed-up is served by the step for speed instead
    if levels["quality"] == GOOD and levels["speed"] in (GOOD, UNKNOWN):
        share = HARDER * _compute_share(report)
        command = _build_command(report, _set_share(recipe, share), "smaller")
        yield NextStep("remove more: nothing measurable was lost", command)


def _recover_quality(report: Report, recipe: Recipe, data: Data) -> Iterator[NextStep]:
    """Yield what recovers quality: tuning, more inputs, a milder target."""
    if recipe.data is None:
        command = _build_command(report, recipe.but({"data": PATH}), "calibrated")
        yield NextStep("use a few hundred real inputs, without labels", command)
    else:
        yield from _use_more(report, recipe, data)
    if recipe.data is not None:
        inputs = to_flags(recipe, "data", "runtime", without=("samples",))
        options = ("--teacher", report.source, *inputs)
        command = shlex.join(("onnxprune", "tune", report.output, *options))
        yield NextStep("recover quality by distillation (needs torch, no labels)", command)
    yield NextStep("remove less", _build_command(report, _make_milder(report, recipe), "milder"))


def _use_more(report: Report, recipe: Recipe, data: Data) -> Iterator[NextStep]:
    """Yield a run on more inputs, if few were chosen of a source that has clearly more."""
    if len(data.chosen) < FEW_INPUTS and data.source.count > 2 * len(data.chosen):
        samples = {"samples": min(data.source.count, 4 * FEW_INPUTS)}
        yield NextStep("use more inputs", _build_command(report, recipe.but(samples), "calibrated"))


def _make_milder(report: Report, recipe: Recipe) -> Recipe:
    """Return the recipe with what limits its costs half as strict."""
    if recipe.max_divergence is not None:
        return recipe.but({"max_divergence": recipe.max_divergence / 2})
    if recipe.ratio and not recipe.target:
        return recipe.but({"ratio": {name: share / 2 for name, share in recipe.ratio.items()}})
    return _set_share(recipe, (1 + _compute_share(report)) / 2)


def _set_share(recipe: Recipe, share: float) -> Recipe:
    """Return the recipe with a share of the MACs as its only target."""
    values = {"target": f"macs={100 * share:.0f}%", "ratio": (), "max_divergence": None}
    return recipe.but(values)


def _compute_share(report: Report) -> float:
    """Return the share of the MACs that remains."""
    return report.after.macs / report.before.macs if report.before.macs else 1.0


def _gain_speed(report: Report, recipe: Recipe) -> NextStep:
    """Return what makes the model faster: widths that fit the engine, else a latency target."""
    missed = any(is_missed(row) for row in report.targets)
    if not follows_engine(recipe) and not missed:
        command = _build_command(report, recipe.but({"round_to": "auto"}), "aligned")
        return NextStep("keep widths that the engine computes in whole blocks", command)
    # speed has a level only if a latency was measured, so there is one
    engine = next(iter(report.latency))
    values = {"target": f"latency.{engine}={FASTER}", "ratio": (), "max_divergence": None}
    values["candidate"] = "none"  # these are compared at counted targets only
    command = _build_command(report, recipe.but(values), "faster")
    return NextStep("choose widths by measured latency", command)


def _build_command(report: Report, recipe: Recipe, suffix: str) -> str:
    """Return the command of a run with another recipe, which writes another file."""
    output = Path(report.output)
    path = output.with_name(f"{output.stem}.{suffix}.onnx")
    words = ("onnxprune", "optimize", report.source, "-o", str(path), *to_flags(recipe))
    return shlex.join(words)
