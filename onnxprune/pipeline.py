"""The whole job: load -> analyse -> score -> plan -> cut -> verify -> repair -> measure -> report.

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
from onnxprune.analysis.walk import analyse
from onnxprune.calibrate.data import Data
from onnxprune.checks import RESULT, evaluated, held_out, metric_options, open_data_for, oracle
from onnxprune.decide import decide, engines_of, measured, target_rows
from onnxprune.engines import ENGINES
from onnxprune.engines.base import require
from onnxprune.engines.explain import explain
from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate import find_metric
from onnxprune.events import Listener, silent
from onnxprune.files import sha256, write_bytes, write_json
from onnxprune.model.io import Model, digest, load, save
from onnxprune.outputs import check_output, check_same, default_run_dir, versions
from onnxprune.recipe import Recipe, read, to_toml
from onnxprune.repair import REPAIRS
from onnxprune.report import html
from onnxprune.report.collect import frozen_rows, graph_rows, group_rows, latency_rows, layer_rows
from onnxprune.report.data import Report, TargetRow
from onnxprune.rundir import key, opened
from onnxprune.saliency import CRITERIA
from onnxprune.saliency.base import Context
from onnxprune.search import ONE_SHOT
from onnxprune.search.journal import Journal
from onnxprune.stages import MODEL, PLAN, SCORES, Stages, as_json
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores

# what "auto" stands for
WITH_DATA = {"criterion": "reconstruction", "allocate": "divergence", "repair": "least-squares"}
WITHOUT_DATA = {"criterion": "l2", "allocate": "knapsack", "repair": "none"}
SEARCH = "search.jsonl"  # in the run directory: what a search method measured
LATENCY_SLACK = 0.05  # two measurements of one model agree to about this on a quiet machine
NO_DATA = (
    "no calibration data: channels are chosen by weights alone and nothing is repaired, which costs accuracy; pass --data with some tens of real inputs"
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
    recipe = (recipe if isinstance(recipe, Recipe) else Recipe.of(read(recipe) if recipe else {})).but(options)
    recipe = resolved(recipe, data is not None)
    _check_names(recipe)
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
            return _Job(stages, recipe, source, data, Path(output) if output else None, overwrite).run()
    except KeyboardInterrupt:
        on = f"; the same command goes on from {folder}" if stages.run else ""
        raise KeyboardInterrupt(f"stopped in stage {stages.current}, no output was written{on}") from None


def resolved(recipe: Recipe, has_data: bool = False) -> Recipe:
    """The recipe with a method in place of each "auto"."""
    chosen = WITH_DATA if has_data or recipe.data else WITHOUT_DATA
    if recipe.fast and chosen is WITH_DATA:
        chosen = {**chosen, "allocate": "layer-error"}
    if recipe.method != ONE_SHOT:  # a search has a criterion of its own
        chosen = {option: name for option, name in chosen.items() if option != "criterion"}
    return recipe.but({option: name for option, name in chosen.items() if getattr(recipe, option) == "auto"})


def _check_names(recipe: Recipe) -> None:
    """Engines that are not here, metrics that do not exist and labels that are missing stop a run before it begins."""
    for name in engines_of(recipe):
        require(ENGINES.get(name))
    for name in recipe.metric:
        find_metric(name, metric_options(recipe))
    if recipe.metric and not recipe.labelled:
        raise UsageError("labelled-missing", f"metric {recipe.metric[0]!r} needs labelled inputs: pass --labelled PATH")
    if recipe.labelled and not os.path.exists(recipe.labelled):
        raise DataError("data-missing", f"no labelled inputs at {recipe.labelled}: the file or folder does not exist")


@dataclass(frozen=True)
class _Job:
    """One run whose input is there."""

    stages: Stages
    recipe: Recipe
    source: Model
    data: Data | None
    output: Path | None
    overwrite: bool

    def run(self) -> Result:
        """All stages, and the files they leave."""
        do, recipe = self.stages.do, self.recipe
        analysis = do("analyse", lambda: analysed(self.source, recipe, self.stages))
        everything = self.data or open_data_for(analysis.model, recipe)
        data, apart = held_out(everything)
        provenance = {**versions(), "source_sha256": analysis.digest, "data_sha256": everything.fingerprint()}
        self.stages.chain = key(provenance, recipe.plain("analyse"), recipe.plain("runtime"))
        run_key = key(self.stages.chain, recipe.plain())
        overwrite = check_same(self.output, self.overwrite, self.stages.run, run_key) if self.output else False
        context = _context(analysis, data, recipe, self.stages)
        plan = self._plan(context, data)
        smaller = do("cut", lambda: cut(analysis, plan))
        verification = do("verify", lambda: oracle(analysis, plan, smaller, data, recipe), recipe.plain("verify"), as_json("verify.json"))
        if recipe.repair != "none":
            smaller = do("repair", partial(REPAIRS.get(recipe.repair), analysis, plan, smaller, context), recipe.plain("repair"), MODEL)
            plan = replace(plan, decided_by={**plan.decided_by, "repair": recipe.repair, RESULT: digest(smaller)})
        worth = self._worth(smaller, data, apart)
        before, after = analysis.cost().as_dict(), analysis.cost(plan.kept).as_dict()
        targets = target_rows(recipe, before, after, worth["latency"])
        layers = layer_rows(analysis, plan, worth["timing"], smaller)
        unpaid = explain(layers, smaller, ENGINES.get(engines_of(recipe)[0]), recipe.precision) if worth["timing"] else ()
        report = Report(
            str(self.source.path or ""), str(self.output or ""), before, after, targets=targets,
            verification=verification, latency=worth["latency"], fidelity=worth["fidelity"], quality=worth["quality"],
            groups=group_rows(analysis, plan), layers=layers, graph=graph_rows(analysis), frozen=frozen_rows(analysis.frozen),
            data=data.describe() if self.stages.used else "", decided_by=plan.decided_by, recipe=recipe.plain(), provenance=provenance,
            machine=worth["timing"].get("machine", {}),
            stages=tuple(self.stages.done), warnings=(*self._warnings(data, targets, worth), *unpaid),
        )  # fmt: skip
        self._write(Result(smaller, plan, report), provenance, run_key, overwrite)
        return Result(smaller, plan, report)

    def _plan(self, context: Context, data: Data) -> Plan:
        """Scores, and the widths that meet the targets."""
        do, recipe = self.stages.do, self.recipe
        scores: Scores = {}
        if recipe.method == ONE_SHOT:  # searches score the models that they meet
            scores = do("score", lambda: CRITERIA.get(recipe.criterion)(context), recipe.plain("score"), SCORES)
        return do("plan", lambda: _decided(context, scores, data, recipe, self.stages), recipe.plain("plan"), PLAN)

    def _worth(self, smaller: Model, data: Data, apart: Data | None) -> dict[str, Any]:
        """fidelity, quality, timing (all that was measured) and latency (of it, by engine); empty where not asked for."""
        do, recipe = self.stages.do, self.recipe
        found: dict[str, Any] = {"fidelity": {}, "quality": {}, "timing": {}}
        if apart is not None or recipe.metric:
            watched = self.stages.watched(apart) if apart is not None else None
            worth = do("evaluate", lambda: evaluated(self.source, smaller, watched, recipe), recipe.plain("evaluate"), as_json("quality.json"))
            found.update(worth)
        if engines_of(recipe):
            found["timing"] = do("measure", lambda: self._measured(smaller, data), recipe.plain("measure"), as_json("measure.json"))
        return {**found, "latency": latency_rows(found["timing"])}

    def _measured(self, smaller: Model, data: Data) -> Mapping[str, Any]:
        """Both models on one real input."""
        stages = self.stages
        found = measured(self.source, smaller, self.recipe, next(data.batches(1)), lambda text, left_s: stages.progress(None, text, left_s))
        stages.detail(", ".join(f"{row['speedup']:.2f}x on {engine}" for engine, row in latency_rows(found).items()))
        return found

    def _warnings(self, data: Data, targets: Sequence[TargetRow], worth: Mapping[str, Any]) -> tuple[str, ...]:
        """What the user must know, in the order of the stages."""
        found = [data.warning] if data.warning and self.stages.used else [NO_DATA] if data.warning else []
        found += [
            f"target {t.target}: the last measurement found {t.reached:.3g} ms, not {t.allowed:.3g}; the search had found less: measure on a quieter machine"
            for t in targets
            if t.reached > t.allowed * (1 + LATENCY_SLACK)
        ]
        return (*found, *worth["fidelity"].get("warnings", ()), *worth["timing"].get("warnings", ()))

    def _write(self, result: Result, provenance: Mapping[str, str], run_key: str, overwrite: bool) -> None:
        """The output, and beside the journal the plan, the report and the recipe. The journal says first that the output is coming, see `check_same`."""
        run, facts = self.stages.run, {"output": str(self.output), "run": run_key}
        if run:
            write_json(run.file("plan.json"), result.plan.to_json())
            write_bytes(run.file("recipe.toml"), to_toml(self.recipe, provenance).encode())
            run.record("write", self.stages.chain, 0.0, facts=facts)
        if self.output:
            save(result.model, self.output, external_data=self.recipe.external_data, overwrite=overwrite)
            facts["sha256"] = sha256(self.output)
        if run:
            write_json(run.file("report.json"), result.report.to_json())
            html.write(result.report, run.file(html.PAGE).parent)
            run.record("report", self.stages.chain, 0.0, ["report.json", html.PAGE, "recipe.toml", "plan.json"], facts)


def analysed(model: Source, recipe: Recipe, stages: Stages | None = None) -> Analysis:
    """The analysis of a model under a recipe.

    Raises
    ------
    UsageError
        The recipe is strict and an operator has no rule.
    """
    analysis = analyse(load(model), freeze=recipe.freeze, allow_mixing=recipe.allow_mixing, grouped=recipe.grouped)
    without = [f for f in analysis.frozen if f.reason.startswith("no rule")]
    if recipe.strict and without:
        raise UsageError("strict", f"{without[0].node} ({without[0].op}): {without[0].reason}; leave out --strict to freeze what it touches")
    if stages:
        stages.detail(f"{len(analysis.groups)} groups, {sum(g.size for g in analysis.groups)} channels")
    return analysis


def _context(analysis: Analysis, data: Data, recipe: Recipe, stages: Stages) -> Context:
    """What criteria and repairs work with."""
    return Context(analysis, stages.watched(data), seed=recipe.seed, threads=recipe.threads, batch_size=recipe.batch_size, flip=recipe.flip, progress=stages.progress)


def _decided(context: Context, scores: Scores, data: Data, recipe: Recipe, stages: Stages) -> Plan:
    """The plan, with what it leaves as the stage's detail."""
    feeds = next(data.batches(1)) if any(t.engine for t in recipe.target) else None
    analysis = context.analysis
    journal = Journal(stages.run.file(SEARCH) if stages.run else None, stages.chain)
    plan = decide(context, scores, recipe, feeds, lambda text: stages.progress(None, text), journal)
    stages.detail(f"{analysis.cost(plan.kept).macs / max(analysis.cost().macs, 1):.1%} of the MACs stay")
    return plan


def make_plan(model: Source, recipe: Recipe, on_event: Listener = silent) -> Plan:
    """The plan alone: analyse, score, allocate."""
    recipe = resolved(recipe)
    stages = Stages(on_event)
    analysis = stages.do("analyse", lambda: analysed(model, recipe, stages))
    data = open_data_for(analysis.model, recipe)
    context = _context(analysis, data, recipe, stages)
    scores: Scores = stages.do("score", lambda: CRITERIA.get(recipe.criterion)(context)) if recipe.method == ONE_SHOT else {}
    return stages.do("plan", lambda: _decided(context, scores, data, recipe, stages))


def replay(model: Source, plan: Plan) -> Analysis:
    """The analysis that a plan was made on: the model with the plan's own options.

    Raises
    ------
    UsageError
        The plan's options make no sense.
    """
    return analysed(model, Recipe.of({n: plan.options[n] for n in ("freeze", "allow_mixing", "grouped") if n in plan.options}, "plan"))
