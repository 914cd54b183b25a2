"""The whole job: load -> analyse -> score -> plan -> cut -> verify -> repair -> measure -> report.

Every stage is a function of the model, the recipe and the data. With a run directory, the stages that cost time (score, plan, verify, repair,
measure) leave their result there, and the same command does not do them again; analysis and cut are cheap and always done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from onnx import TensorProto

from onnxprune.allocate.base import Constraints, allocate
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyse
from onnxprune.calibrate.data import Data, Preprocess, open_data
from onnxprune.engines import ENGINES
from onnxprune.engines.base import Options, require
from onnxprune.engines.bench import bench
from onnxprune.engines.measure import Schedule
from onnxprune.errors import UsageError, VerificationError
from onnxprune.events import Listener, silent
from onnxprune.files import write_bytes, write_json
from onnxprune.model.io import Model, load, save
from onnxprune.outputs import check_output, default_output, default_run_dir, versions
from onnxprune.recipe import Recipe, read, to_toml
from onnxprune.repair import REPAIRS
from onnxprune.report.collect import frozen_rows, group_rows, latency_rows, layer_rows
from onnxprune.report.data import Report, TargetRow
from onnxprune.rundir import key, opened
from onnxprune.saliency import CRITERIA
from onnxprune.saliency.base import Context
from onnxprune.stages import MODEL, PLAN, SCORES, Stages, as_json
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan, Scores

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
    for name in dict.fromkeys((*recipe.engine, *(t.engine for t in recipe.target if t.engine))):
        require(ENGINES.get(name))
    folder = Path(run_dir) if run_dir else default_run_dir(output) if output else None
    if output:
        overwrite = check_output(output, overwrite, folder, recipe.external_data is True)
    stages = Stages(on_event)
    try:
        with ExitStack() as stack:
            source = stages.do("load", lambda: load(model))
            if folder:
                stages.run = stack.enter_context(opened(folder, keep=run_dir is not None))
            return _Job(stages, recipe, source, data, Path(output) if output else None, overwrite).run()
    except KeyboardInterrupt:
        on = f"; the same command goes on from {folder}" if stages.run else ""
        raise KeyboardInterrupt(f"stopped in stage {stages.current}, no output was written{on}") from None


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
        data = self.data or open_data_for(analysis.model, recipe)
        context = Context(analysis, self.stages.watched(data), recipe.seed, recipe.threads, recipe.batch_size)
        provenance = {**versions(), "source_sha256": analysis.digest, "data_sha256": data.fingerprint()}
        self.stages.chain = key(provenance, recipe.plain("analyse"), recipe.plain("runtime"))
        scores = do("score", lambda: CRITERIA.get(recipe.criterion)(context), recipe.plain("score"), SCORES)
        plan = do("plan", lambda: decide(analysis, scores, recipe, self.stages), recipe.plain("plan"), PLAN)
        smaller = do("cut", lambda: cut(analysis, plan))
        verification = do("verify", lambda: verified(analysis, plan, smaller, data, recipe), recipe.plain("verify"), as_json("verify.json"))
        if recipe.repair != "none":
            smaller = do("repair", partial(REPAIRS.get(recipe.repair), analysis, plan, smaller, context), recipe.plain("repair"), MODEL)
        timing: Mapping[str, Any] = {}
        if recipe.engine:
            timing = do("measure", lambda: measured(self.source, smaller, data, recipe, self.stages), recipe.plain("measure"), as_json("measure.json"))
        used = data.describe() if self.stages.reads or any(s.reused for s in self.stages.done) else ""
        warnings = [data.warning] if data.warning and self.stages.reads else []
        before, after = analysis.cost().as_dict(), analysis.cost(plan.kept).as_dict()
        latency = latency_rows(timing)
        report = Report(
            str(self.source.path or ""), str(self.output or ""), before, after, targets=target_rows(recipe, before, after, latency),
            verification=verification, latency=latency, groups=group_rows(analysis, plan), layers=layer_rows(analysis, plan, timing),
            frozen=frozen_rows(analysis.frozen), data=used, decided_by=plan.decided_by, recipe=recipe.plain(), provenance=provenance,
            stages=tuple(self.stages.done), warnings=(*warnings, *timing.get("warnings", ())),
        )  # fmt: skip
        self._write(smaller, report, provenance)
        return Result(smaller, plan, report)

    def _write(self, model: Model, report: Report, provenance: Mapping[str, str]) -> None:
        """The output, and beside the journal the report and the recipe. The journal says first that the output is coming, see `check_output`."""
        run = self.stages.run
        if run:
            write_bytes(run.file("recipe.toml"), to_toml(self.recipe, provenance).encode())
            run.record("write", self.stages.chain, 0.0, facts={"output": str(self.output)})
        if self.output:
            save(model, self.output, external_data=self.recipe.external_data, overwrite=self.overwrite or run is not None)
        if run:
            write_json(run.file("report.json"), report.to_json())
            run.record("report", self.stages.chain, 0.0, ["report.json", "recipe.toml"])


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


def open_data_for(model: Model, recipe: Recipe) -> Data:
    """The calibration data of a recipe, checked against the model's inputs."""
    given = Preprocess(
        resize=recipe.resize, crop=recipe.crop, interp=recipe.interp, order=recipe.order, scale=recipe.scale, mean=recipe.mean, std=recipe.std,
        post=recipe.post, layout=recipe.layout,
    )  # fmt: skip
    return open_data(recipe.data, input_types(model), samples=recipe.samples, seed=recipe.seed, preprocess=given, shapes=recipe.shape or None)


def decide(analysis: Analysis, scores: Scores, recipe: Recipe, stages: Stages | None = None) -> Plan:
    """The plan that meets the recipe's targets; TargetError where there is none."""
    original = analysis.cost().as_dict()
    timed = [str(t) for t in recipe.target if t.engine]
    if timed:
        raise UsageError("target-latency", f"target {timed[0]}: the allocator {recipe.allocate!r} knows MACs, params, bytes and activation_bytes only")
    budgets = {t.cost: t.ceiling(original[t.cost]) for t in recipe.target}
    constraints = Constraints(budgets=budgets, round_to=multiple(recipe), floor=recipe.floor, max_fraction=recipe.max_fraction, ratios=recipe.ratio)
    plan = allocate(recipe.allocate, analysis, scores, constraints)
    plan = replace(plan, decided_by={**plan.decided_by, "criterion": recipe.criterion, "allocate": recipe.allocate, "seed": recipe.seed})
    if stages:
        after = analysis.cost(plan.kept)
        stages.detail(f"{after.macs / max(original['macs'], 1):.1%} of the MACs stay")
    return plan


def multiple(recipe: Recipe) -> int:
    """`round_to` as a number: the largest multiple of the engines that are measured or targeted where it is "auto"."""
    if isinstance(recipe.round_to, int):
        return recipe.round_to
    names = dict.fromkeys((*recipe.engine, *(t.engine for t in recipe.target if t.engine)))
    return max((int(ENGINES.get(n).channel_multiple(recipe.precision)) for n in names), default=1)


def verified(analysis: Analysis, plan: Plan, pruned: Model, data: Data, recipe: Recipe) -> dict[str, Any]:
    """The figures of the masked oracle; VerificationError where the cut model differs by more than the recipe's tolerance."""
    found, problem = check(analysis, plan, pruned, data, recipe)
    if problem:
        raise VerificationError("verification-failed", problem)
    return found


def check(analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe) -> tuple[dict[str, Any], str]:
    """Figures of the masked oracle as plain data, and what is wrong in one sentence ("" where nothing is)."""
    feeds = next(data.batches(1)) if data else None
    found = verify(analysis, plan, pruned, feeds)
    return asdict(found), ""


def measured(source: Model, pruned: Model, data: Data, recipe: Recipe, stages: Stages) -> dict[str, Any]:
    """Both models on the recipe's engines, interleaved, on one real input."""
    options = Options(threads=recipe.threads, precision=recipe.precision, shapes=recipe.shape)
    named = [replace(model, path=Path(name)) for model, name in ((source, "original"), (pruned, "pruned"))]
    found = bench(named, recipe.engine, options=options, schedule=Schedule(seconds=recipe.seconds), feeds=next(data.batches(1)), seed=recipe.seed)
    for engine, rows in found.ratios.items():
        stages.detail(f"{rows[0].median:.2f}x on {engine}")
    return found.as_dict()


def target_rows(recipe: Recipe, before: Mapping[str, int], after: Mapping[str, int], latency: Mapping[str, Mapping[str, float]]) -> tuple[TargetRow, ...]:
    """Each target with what it allowed and what was reached."""
    rows = []
    for target in recipe.target:
        times = latency.get(target.engine, {})
        was = times.get("before_ms", 0.0) if target.engine else before[target.cost]
        now = times.get("after_ms", 0.0) if target.engine else after[target.cost]
        rows.append(TargetRow(str(target), target.ceiling(was), now))
    return tuple(rows)


def input_types(model: Model) -> dict[str, tuple[list[int | str | None], str]]:
    """Shape and onnxruntime's type string of every input, without opening a session."""
    found: dict[str, tuple[list[int | str | None], str]] = {}
    for info in model.proto.graph.input:
        if info.name not in model.weights:
            kind = info.type.tensor_type
            dims: list[int | str | None] = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
            found[info.name] = dims, f"tensor({TensorProto.DataType.Name(kind.elem_type).lower()})"
    return found


def make_plan(model: Source, recipe: Recipe, on_event: Listener = silent) -> Plan:
    """The plan alone: analyse, score, allocate."""
    stages = Stages(on_event)
    analysis = stages.do("analyse", lambda: analysed(model, recipe, stages))
    data = stages.watched(open_data_for(analysis.model, recipe))
    context = Context(analysis, data, recipe.seed, recipe.threads, recipe.batch_size)
    scores = stages.do("score", lambda: CRITERIA.get(recipe.criterion)(context))
    return stages.do("plan", lambda: decide(analysis, scores, recipe, stages))


def replay(model: Source, plan: Plan) -> Analysis:
    """The analysis that a plan was made on: the model with the plan's own options.

    Raises
    ------
    UsageError
        The plan was made for another model.
    """
    return analyse(load(model), **{n: plan.options[n] for n in ("freeze", "allow_mixing", "grouped") if n in plan.options})
