"""The whole job: load -> analyze -> score -> plan -> cut -> verify -> repair -> measure -> report.

Every stage is a function of the model, the recipe and the data. With a run directory, the stages that cost time (score, plan, verify, repair,
measure) leave their result there, and the same command does not do them again; analysis and cut are cheap and always done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data
from onnxprune.engines import ENGINES
from onnxprune.engines.base import require
from onnxprune.engines.cost.explain import explain
from onnxprune.errors import DataError, UsageError, plural
from onnxprune.events import Listener, silent
from onnxprune.files import sha256, write_bytes, write_json
from onnxprune.ir.io import Model, digest, load, save
from onnxprune.metrics import find_metric
from onnxprune.report import html
from onnxprune.report.collect import (
    frozen_rows,
    graph_rows,
    group_rows,
    latency_rows,
    layer_rows,
    sensitivity_rows,
)
from onnxprune.report.data import Report, TargetRow
from onnxprune.run.evaluation import (
    RESULT,
    Parts,
    evaluated,
    guessed,
    metric_options,
    open_data_for,
    open_labels,
    oracle,
    parts_of,
)
from onnxprune.run.outputs import check_output, check_same, default_run_dir, versions
from onnxprune.run.planning import decide, engines_of, measured, target_rows
from onnxprune.run.recipe import Recipe
from onnxprune.run.recipe_file import read_data_only, to_toml
from onnxprune.run.rundir import key, opened
from onnxprune.run.stages import MODEL, PLAN, SCORES, Stages, as_json
from onnxprune.run.tuner import Tuner
from onnxprune.run.variants import CANDIDATES, Variants, check_options, figures_of
from onnxprune.search import ONE_SHOT
from onnxprune.search.journal import Journal
from onnxprune.statistics.moments import refittable
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores

FEW_INPUTS = 32  # the demo keeps 65, 88 and 98 % top-1 by 8, 16 and 32, and 99 % by more
GUESSED = (
    "images were preprocessed with the defaults: RGB, values from 0 to 1; if the model was trained "
    "with other preprocessing, pass --scale, --mean, --std and --order "
    "(ImageNet: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
)
# what "auto" stands for
WITH_DATA = {"criterion": "reconstruction", "allocate": "divergence", "repair": "least-squares"}
WITHOUT_DATA = {"criterion": "l2", "allocate": "knapsack", "repair": "none"}
TARGET = "macs=50%"  # where neither a target nor a tolerance is given
WITHOUT_REFIT = {
    "criterion": "activation*weight",
    "allocate": "knapsack",
    "repair": "bias",
}  # with data, if most weights cannot be refitted (quantized, recurrent or computed)
LEAST_REFITTABLE = 0.5  # share of the channels; with fewer, least squares skips most of the model
SEARCH = "search.jsonl"  # in the run directory: what a search method measured
LATENCY_SLACK = 0.05  # two measurements of one model agree to about this on a quiet machine
NO_DATA = (
    "no calibration data: channels are scored by their weights only and nothing is repaired, "
    "which costs accuracy; pass --data with a few hundred real inputs"
)

Source = str | os.PathLike[str] | bytes | Model


@dataclass(frozen=True)
class Result:
    """What `optimize` returns: the smaller model, the decisions that made it, and all that is known of them."""

    model: Model
    plan: Plan
    report: Report


def optimize(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_event: Listener = silent,
    **options: Any,
) -> Result:
    """Make a model smaller and faster.

    Parameters
    ----------
    model
        Path, bytes, or a loaded Model.
    output
        Where the result goes; None keeps it in memory.
    recipe
        A Recipe or a TOML file; `options` win over it.
    run_dir
        For plan, report, resolved recipe and journal. None: OUT's name with `.run` beside OUT, and nothing where there is no output.
    overwrite
        Replace an existing output.
    on_event
        Called at the beginning and the end of each stage, and with the progress of long ones.
    options
        The fields of Recipe: `target="macs=50%"`, `data="images/"`, `criterion="l2"`, ...; an unknown one is an error. `data` may also be a Data object.

    Raises
    ------
    OnnxpruneError
        Bad input, an unreachable target, a failed verification, an unwritable output. Nothing is left behind then.
    """
    data = options.pop("data") if isinstance(options.get("data"), Data) else None
    recipe = (
        recipe
        if isinstance(recipe, Recipe)
        else Recipe.of(read_data_only(recipe, options) if recipe else {})
    ).but(options)
    _check_names(recipe)
    check_options(recipe, data is not None or bool(recipe.data))
    folder = Path(run_dir) if run_dir else default_run_dir(output) if output else None
    if output:
        overwrite = check_output(output, overwrite, folder, recipe.external_data is True)
    stages = Stages(on_event)
    try:
        with ExitStack() as stack:
            stack.enter_context(threadpool_limits(recipe.threads))
            source = stages.do("load", lambda: load(model))
            if folder:
                stages.run = stack.enter_context(opened(folder, keep=run_dir is not None))
            return _Job(
                stages, recipe, source, data, Path(output) if output else None, overwrite
            ).run()
    except KeyboardInterrupt:
        hint = f"; run the same command to resume from {folder}" if stages.run else ""
        raise KeyboardInterrupt(
            f"stopped in stage {stages.current}, no output was written{hint}"
        ) from None


def resolved(
    recipe: Recipe, analysis: Analysis, has_data: bool = False
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with a method in place of each "auto", and a target; and what the user must know of that choice."""
    chosen, warnings = (
        _with_data(recipe, analysis) if has_data or recipe.data else (WITHOUT_DATA, ())
    )
    if recipe.method != ONE_SHOT:  # a search has a criterion of its own
        chosen = {option: name for option, name in chosen.items() if option != "criterion"}
    values: dict[str, Any] = {
        option: name for option, name in chosen.items() if getattr(recipe, option) == "auto"
    }
    if recipe.candidate == ("auto",):
        values["candidate"] = (
            CANDIDATES
            if values.items() >= WITH_DATA.items() - {("repair", "least-squares")}
            and _compares(recipe)
            else ()
        )
    if not recipe.target and recipe.max_divergence is None:
        values["target"] = TARGET
    return recipe.but(values), warnings


def _compares(recipe: Recipe) -> bool:
    """Whether candidates can be compared, and nothing else was asked for."""
    alone = recipe.fast or recipe.max_divergence is not None or any(t.engine for t in recipe.target)
    return bool(recipe.metric and recipe.labeled) and not alone


def _with_data(recipe: Recipe, analysis: Analysis) -> tuple[dict[str, str], tuple[str, ...]]:
    """What "auto" stands for where there are data, by what the model's weights are."""
    channels = sum(g.size for g in analysis.groups)
    plain = sum(analysis.group(name).size for name in refittable(analysis))
    if recipe.criterion == "auto" and plain < LEAST_REFITTABLE * channels:
        what = (
            f"{channels - plain} of {channels} channels feed only quantized, recurrent or computed "
            "weights, which cannot be refitted; expect lower accuracy. If the model was quantized, "
            "prune the float model and quantize the result"
        )
        return (WITHOUT_REFIT if plain else {**WITHOUT_REFIT, "repair": "none"}), (what,)
    return {**WITH_DATA, **({"allocate": "layer-error"} if recipe.fast else {})}, ()


def _check_names(recipe: Recipe) -> None:
    """Engines that are not here, metrics that do not exist and labels that are missing stop a run before it begins."""
    for name in engines_of(recipe):
        require(ENGINES.get(name))
    for name in recipe.metric:
        find_metric(name, metric_options(recipe))
    if recipe.metric and not recipe.labeled:
        raise UsageError(
            "labeled-missing",
            f"metric {recipe.metric[0]!r} needs labeled inputs: pass --labeled PATH",
        )
    if recipe.labeled and not os.path.exists(recipe.labeled):
        raise DataError(
            "data-missing",
            f"no labeled inputs at {recipe.labeled}: the file or folder does not exist",
        )


@dataclass(frozen=True)
class _Job:
    """One run whose input is there."""

    stages: Stages
    recipe: Recipe
    source: Model
    data: Data | None
    output: Path | None
    overwrite: bool
    notes: tuple[str, ...] = ()

    def run(self) -> Result:
        """All stages, and the files they leave."""
        analysis = self.stages.do(
            "analyze", lambda: analyzed(self.source, self.recipe, self.stages)
        )
        recipe, notes = resolved(self.recipe, analysis, self.data is not None)
        return replace(self, recipe=recipe, notes=notes).on(analysis)

    def on(self, analysis: Analysis) -> Result:
        """All that follows the analysis, by a recipe without "auto"."""
        do, recipe = self.stages.do, self.recipe
        everything = self.data or open_data_for(analysis.model, recipe)
        parts = parts_of(everything, open_labels(analysis.model, recipe), recipe)
        data = parts.calibration
        provenance = {
            **versions(),
            "source_sha256": analysis.digest,
            "data_sha256": everything.fingerprint(),
        }
        self.stages.chain = key(
            provenance, recipe.plain("analyze"), recipe.plain("runtime"), data.samples
        )
        run_key = key(self.stages.chain, recipe.plain())
        overwrite = (
            check_same(self.output, self.overwrite, self.stages.run, run_key)
            if self.output
            else False
        )
        variants = Variants(
            self.stages, self.source, _context(analysis, data, recipe, self.stages), parts
        )
        tuner = Tuner(self.stages, variants.context, recipe)
        recipe, plan, choice = self._plan(variants, tuner)
        found_by = self.stages.chain
        smaller = do("cut", lambda: cut(analysis, plan))
        verification = do(
            "verify",
            lambda: oracle(analysis, plan, smaller, data, recipe),
            recipe.plain("verify"),
            as_json("verify.json"),
        )
        tuned = plan.decided_by.get("tuned")
        if tuned or recipe.repair != "none":
            new = (
                partial(_tuned, tuner, found_by)
                if tuned
                else partial(variants.repaired, recipe, plan, smaller)
            )
            smaller = do("repair", new, recipe.plain("repair"), MODEL)
            plan = replace(
                plan,
                decided_by={
                    **plan.decided_by,
                    **({} if tuned else {"repair": recipe.repair}),
                    RESULT: digest(smaller),
                },
            )
        worth = self._worth(smaller, parts)
        others = self._others(variants, recipe, plan, worth)
        before, after = analysis.cost().as_dict(), analysis.cost(plan.kept).as_dict()
        targets = (*target_rows(self.recipe, before, after, worth["latency"]), *choice["targets"])
        layers = layer_rows(analysis, plan, worth["timing"], smaller)
        unpaid = (
            explain(layers, smaller, ENGINES.get(engines_of(recipe)[0]), recipe.precision)
            if worth["timing"]
            else ()
        )
        curves = self.recipe.method == ONE_SHOT and self.recipe.criterion == "reconstruction"
        report = Report(
            str(self.source.path or ""),
            str(self.output or ""),
            before,
            after,
            targets=targets,
            verification=verification,
            latency=worth["latency"],
            fidelity=worth["fidelity"],
            quality=worth["quality"],
            splits=parts.describe(),
            control=others["control"],
            selection=choice["selection"],
            bisection=choice["bisection"],
            curve=others["curve"],
            groups=group_rows(analysis, plan),
            layers=layers,
            graph=graph_rows(analysis),
            frozen=frozen_rows(analysis.frozen),
            sensitivity=sensitivity_rows(variants.scores_of("reconstruction"), recipe.max_fraction)
            if curves
            else {},
            data=data.describe() if self.stages.used else "",
            decided_by=plan.decided_by,
            recipe=self.recipe.plain(),
            provenance=provenance,
            machine=worth["timing"].get("machine", {}),
            stages=tuple(self.stages.done),
            warnings=(
                *self._warnings(parts, targets, worth),
                *choice["warnings"],
                *others["warnings"],
                *worth["timing"].get("warnings", ()),
                *unpaid,
            ),
        )
        self._write(Result(smaller, plan, report), provenance, run_key, overwrite)
        return Result(smaller, plan, report)

    def _plan(self, variants: Variants, tuner: Tuner) -> tuple[Recipe, Plan, dict[str, Any]]:
        """The recipe that a tolerance or labels settle on, its plan, and of the report "targets", "selection", "bisection" and "warnings"."""
        do, recipe, stages = self.stages.do, self.recipe, self.stages
        choice: dict[str, Any] = {"targets": (), "selection": {}, "bisection": {}, "warnings": ()}
        if recipe.method == ONE_SHOT:  # searches score the models that they meet
            variants.scores[recipe.criterion] = do(
                "score", lambda: variants.scores_of(recipe.criterion), recipe.plain("score"), SCORES
            )
        if recipe.max_divergence is not None:
            recipe, found = variants.within(recipe)
            row = TargetRow(
                f"max_divergence={found['max_divergence']:g}",
                found["max_divergence"],
                found["reached"],
            )
            choice |= {"bisection": found, "targets": (row,)}
            if self.recipe.target and recipe.target != self.recipe.target:
                wanted, reached = (", ".join(map(str, r.target)) for r in (self.recipe, recipe))
                choice["warnings"] = (
                    f"max_divergence {found['max_divergence']:g} stopped pruning at {reached}, "
                    f"before the target {wanted}",
                )
        elif variants.parts.selection_labels is not None:
            recipe, choice["selection"] = variants.chosen(recipe)

        def work() -> Plan:
            return _decided(
                variants.context,
                variants.scores_of(recipe.criterion) if recipe.method == ONE_SHOT else {},
                recipe,
                stages,
                tuner,
            )

        return (
            recipe,
            do("plan", work, {**recipe.plain("score"), **recipe.plain("plan")}, PLAN),
            choice,
        )

    def _worth(self, smaller: Model, parts: Parts) -> dict[str, Any]:
        """fidelity, quality, timing (all that was measured) and latency (of it, by engine); empty where not asked for."""
        do, recipe = self.stages.do, self.recipe
        found: dict[str, Any] = {"fidelity": {}, "quality": {}, "timing": {}}
        labels = parts.report_labels
        if parts.report is not None or labels is not None:
            watched = self.stages.watched(parts.report) if parts.report is not None else None
            depends = {
                **recipe.plain("evaluate"),
                "labels": labels.fingerprint() if labels is not None else "",
            }
            worth = do(
                "evaluate",
                lambda: evaluated(self.source, smaller, watched, labels, recipe),
                depends,
                as_json("quality.json"),
            )
            found.update(worth)
        if engines_of(recipe):
            chain = self.stages.chain
            found["timing"] = do(
                "measure",
                lambda: self._measured(smaller, parts.calibration),
                recipe.plain("measure"),
                as_json("measure.json"),
            )
            self.stages.chain = chain  # nothing depends on a time
        return {**found, "latency": latency_rows(found["timing"])}

    def _others(
        self, variants: Variants, recipe: Recipe, plan: Plan, worth: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The trade-off and the random controls: "curve", "control" and "warnings" of the report."""
        found: dict[str, Any] = {"curve": (), "control": (), "warnings": ()}
        if recipe.control:
            found["control"] = variants.controls(recipe, plan)
        if recipe.curve:
            found["curve"], found["warnings"] = variants.curve(
                recipe, plan, figures_of(worth, "after"), figures_of(worth, "before")
            )
        return found

    def _measured(self, smaller: Model, data: Data) -> Mapping[str, Any]:
        """Both models on one real input."""
        stages = self.stages
        found = measured(
            self.source,
            smaller,
            self.recipe,
            next(data.batches(1)),
            lambda text, left_s: stages.progress(None, text, left_s),
        )
        stages.detail(
            ", ".join(
                f"{row['speedup']:.2f}x on {engine}" for engine, row in latency_rows(found).items()
            )
        )
        return found

    def _warnings(
        self, parts: Parts, targets: Sequence[TargetRow], worth: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """What the user must know of data, targets and outputs, in the order of the stages."""
        warning = parts.calibration.warning
        found = [*self.notes, *([warning if self.stages.used else NO_DATA] if warning else [])]
        if self.stages.used and not warning and parts.calibration.samples < FEW_INPUTS:
            few = parts.calibration.samples
            found.append(
                f"only {plural(few, 'calibration input')}, to which weights are refitted: use at "
                f"least {FEW_INPUTS}, better a few hundred (labels are not needed)"
            )
        if self.stages.used and guessed(parts.calibration, self.recipe):
            found.append(GUESSED)
        if (
            self.recipe.candidate
            and parts.selection_labels is None
            and parts.report_labels is not None
        ):
            found.append(
                f"too few labeled samples ({parts.report_labels.samples}) to select among "
                "candidates: all are used for the report"
            )
        found += [
            f"target {row.target}: final measurement is {row.reached:.3g} ms (limit "
            f"{row.allowed:.3g} ms) although the search measured less; re-measure on an idle machine"
            for target, row in zip(self.recipe.target, targets, strict=False)
            if target.engine and row.reached > row.allowed * (1 + LATENCY_SLACK)
        ]
        return (*found, *worth["fidelity"].get("warnings", ()))

    def _write(
        self, result: Result, provenance: Mapping[str, str], run_key: str, overwrite: bool
    ) -> None:
        """The output, and beside the journal the plan, the report and the recipe. The journal says first that the output is coming, see `check_same`."""
        run, facts = self.stages.run, {"output": str(self.output), "run": run_key}
        if run:
            write_json(run.file("plan.json"), result.plan.to_json())
            write_bytes(run.file("recipe.toml"), to_toml(self.recipe, provenance).encode())
            run.record("write", self.stages.chain, 0.0, facts=facts)
        if self.output:
            save(
                result.model,
                self.output,
                external_data=self.recipe.external_data,
                overwrite=overwrite,
            )
            facts["sha256"] = sha256(self.output)
        if run:
            write_json(run.file("report.json"), result.report.to_json())
            html.write(result.report, run.file(html.PAGE).parent)
            run.record(
                "report",
                self.stages.chain,
                0.0,
                ["report.json", html.PAGE, "recipe.toml", "plan.json"],
                facts,
            )


def analyzed(model: Source, recipe: Recipe, stages: Stages | None = None) -> Analysis:
    """The analysis of a model under a recipe.

    Raises
    ------
    UsageError
        The recipe is strict and an operator has no rule.
    """
    analysis = analyze(
        load(model), freeze=recipe.freeze, allow_mixing=recipe.allow_mixing, grouped=recipe.grouped
    )
    without = [f for f in analysis.frozen if f.reason.startswith("no rule")]
    if recipe.strict and without:
        raise UsageError(
            "strict",
            f"{without[0].node} ({without[0].op}): {without[0].reason}; omit --strict to freeze "
            "the axes it touches",
        )
    if stages:
        stages.detail(
            f"{plural(len(analysis.groups), 'group')}, "
            f"{plural(sum(g.size for g in analysis.groups), 'channel')}"
        )
    return analysis


def _context(analysis: Analysis, data: Data, recipe: Recipe, stages: Stages) -> Context:
    """What criteria and repairs work with."""
    return Context(
        analysis,
        stages.watched(data),
        seed=recipe.seed,
        threads=recipe.threads,
        batch_size=recipe.batch_size,
        flip=recipe.flip,
        progress=stages.progress,
    )


def _tuned(tuner: Tuner, chain: str) -> Model:
    """What a search that tunes ended with; a run that was stopped behind the search does it again, from its journal and checkpoints."""
    if tuner.model is None:
        _decided(tuner.context, {}, tuner.recipe, tuner.stages, tuner, chain)
    assert tuner.model is not None
    return tuner.model


def _decided(
    context: Context,
    scores: Scores,
    recipe: Recipe,
    stages: Stages,
    tuner: Tuner | None = None,
    chain: str = "",
) -> Plan:
    """The plan, with what it leaves as the stage's detail."""
    feeds = (
        next(context.required_data("a latency target").batches(1))
        if any(t.engine for t in recipe.target)
        else None
    )
    analysis = context.analysis
    journal = Journal(stages.run.file(SEARCH) if stages.run else None, chain or stages.chain)
    plan = decide(
        context, scores, recipe, feeds, lambda text: stages.progress(None, text), journal, tuner
    )
    stages.detail(
        f"{analysis.cost(plan.kept).macs / max(analysis.cost().macs, 1):.1%} of the MACs remain"
    )
    return plan


def make_plan(model: Source, recipe: Recipe, on_event: Listener = silent) -> Plan:
    """The plan alone: analyze, score, allocate.

    Raises
    ------
    UsageError
        The recipe has a tolerance, which takes a whole run to keep.
    """
    if recipe.max_divergence is not None:
        raise UsageError(
            "options-clash",
            "max_divergence needs repaired models to measure, which plan does not build: use "
            "optimize, which writes plan.json into its run directory",
        )
    stages = Stages(on_event)
    asked = recipe
    analysis = stages.do("analyze", lambda: analyzed(model, asked, stages))
    recipe, _ = resolved(recipe, analysis)
    context = _context(analysis, open_data_for(analysis.model, recipe), recipe, stages)
    scores: Scores = (
        stages.do("score", lambda: CRITERIA.get(recipe.criterion)(context))
        if recipe.method == ONE_SHOT
        else {}
    )
    return stages.do("plan", lambda: _decided(context, scores, recipe, stages))


def replay(model: Source, plan: Plan) -> Analysis:
    """The analysis that a plan was made on: the model with the plan's own options.

    Raises
    ------
    UsageError
        The plan's options make no sense.
    """
    return analyzed(
        model,
        Recipe.of(
            {
                n: plan.options[n]
                for n in ("freeze", "allow_mixing", "grouped")
                if n in plan.options
            },
            "plan",
        ),
    )
