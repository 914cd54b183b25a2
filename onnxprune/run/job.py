"""One run from a loaded model to the written result, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.allocators.steps import asked_ratios
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import TargetError, plural
from onnxprune.files import hash_key, staging
from onnxprune.ir.io import Model, Source, digest, save
from onnxprune.report.collect import (
    frozen_rows,
    graph_rows,
    group_rows,
    latency_rows,
    layer_rows,
    operator_rows,
    sensitivity_rows,
)
from onnxprune.report.data import (
    BisectionSummary,
    CurvePoint,
    LayerCost,
    Provenance,
    Report,
    SelectionSummary,
    TargetRow,
    VerificationSummary,
)
from onnxprune.report.verdict import judge
from onnxprune.run.adapter import analyze_for, context_for, engines_of
from onnxprune.run.candidates import select_candidate
from onnxprune.run.comparison import build_controls, build_curve
from onnxprune.run.evaluation import EVALUATION, RESULT, Evaluation, evaluate, verify_cut
from onnxprune.run.examples import collect_examples
from onnxprune.run.next_steps import recommend
from onnxprune.run.outputs import check_same
from onnxprune.run.planning import (
    PlanInputs,
    check_targets,
    decide,
    measure_models,
    target_rows,
    tighten_targets,
)
from onnxprune.run.quantization import quantize_stage
from onnxprune.run.recipe import Recipe
from onnxprune.run.report_files import REPORT_FILES, write_report
from onnxprune.run.results import ComparisonModels, Decision, Result, StageResults, Timing
from onnxprune.run.splits import Splits
from onnxprune.run.stages import MODEL, PLAN, SCORES, Stages, json_artifact
from onnxprune.run.stored import count_artifact, count_original
from onnxprune.run.timed_form import check_timed_type
from onnxprune.run.tolerance import bisect_tolerance, tolerance_row, tolerance_warning
from onnxprune.run.tuner import Tuner
from onnxprune.run.variants import Variants
from onnxprune.run.warnings import (
    INPUTS,
    MACHINE,
    data_warnings,
    growth_warning,
    latency_warnings,
    of_topic,
    refit_warning,
    timing_warnings,
    verification_warnings,
)
from onnxprune.search import ONE_SHOT
from onnxprune.search.journal import Journal
from onnxprune.statistics.finite import check_activations, check_weights
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores

RECOUNTS = 2  # plans with tighter targets if the repair adds more than they allow
SEARCH = "search.jsonl"  # measurements of a search method, in the run directory


@dataclass(frozen=True)
class RunJob:
    """A run whose model is analyzed and whose recipe has no "auto".

    Attributes
    ----------
    source
        The original as it was loaded.
    splits
        Inputs by purpose.
    given
        The recipe before "auto" was resolved.
    notes
        (topic, text) of the warnings from before the run.
    output
        Path of the result; None to keep it in memory.
    overwrite
        Whether it may replace an existing file.
    """

    stages: Stages
    recipe: Recipe
    source: Model
    analysis: Analysis
    splits: Splits
    provenance: Provenance
    given: Recipe
    notes: tuple[tuple[str, str], ...] = ()
    output: Path | None = None
    overwrite: bool = False

    def run(self) -> Result:
        """Do all stages after the analysis, and write the result."""
        stages, recipe = self.stages, self.recipe
        stages.chain = hash_key(
            dict(self.provenance),
            recipe.plain("analyze"),
            recipe.plain("runtime"),
            self.splits.calibration.samples,
            # mirror images are made from the data, whose fingerprint is that of the files
            recipe.flip,
            # of the factored model, which depends on more than the provenance says
            self.analysis.digest,
        )
        run_key, overwrite = hash_key(stages.chain, recipe.plain()), False
        if self.output:
            overwrite = check_same(self.output, self.overwrite, stages.run, run_key)
        check_timed_type(self.analysis.model, recipe)
        check_weights(self.analysis)
        if not self.splits.calibration.warning:  # synthetic inputs may be far from real ones
            check_activations(self.analysis, self.splits.calibration, recipe.compute_threads)
        context = context_for(
            self.analysis, stages.watch(self.splits.calibration), recipe, stages.progress
        )
        variants = Variants(stages, self.source, context, self.splits)
        tuner = Tuner(stages, context, recipe)
        decision = self._decide(variants, tuner)
        model, plan, verification = self._build(variants, tuner, decision)
        before = count_original(self.source, self.analysis)
        after = count_artifact(model, self.analysis)
        for _ in range(RECOUNTS):
            tighter = tighten_targets(recipe, before, after)
            if tighter is None:
                break
            try:
                decision = self._plan_again(variants, decision, tighter)
            except TargetError:  # the error below says what the first plan reaches
                break
            model, plan, verification = self._build(variants, tuner, decision)
            after = count_artifact(model, self.analysis)
        check_targets(recipe, before, after, self.analysis.counted_at.describe())
        quantized = quantize_stage(stages, decision.recipe, self.source, model, plan, self.splits)
        model, plan = quantized.model, quantized.plan
        after = quantized.count(after, self.analysis)
        evaluation = self._evaluate(model)
        timing = self._measure(model)
        comparison = self._compare(variants, decision.recipe, plan, evaluation)
        results = StageResults(
            decision, verification, evaluation, timing, comparison, (before, after), quantized.facts
        )
        report = self._report(variants, model, plan, results)
        self._write(Result(model, plan, report), run_key, overwrite)
        return Result(model, plan, report)

    def _decide(self, variants: Variants, tuner: Tuner) -> Decision:
        """Settle the recipe by a tolerance or by candidates, and make its plan."""
        stages, recipe = self.stages, self.recipe
        if recipe.method == ONE_SHOT:  # searches score the models that they visit
            variants.scores[recipe.criterion] = stages.do(
                "score", lambda: variants.scores_of(recipe.criterion), recipe.plain("score"), SCORES
            )
        selection, bisection = SelectionSummary(), BisectionSummary()
        splits = variants.splits
        if recipe.max_divergence is not None:
            recipe, bisection = bisect_tolerance(variants, recipe)
        elif splits.selection_labels is not None or splits.selection is not None:
            recipe, selection = select_candidate(variants, recipe)

        def work() -> Plan:
            scores = variants.scores_of(recipe.criterion) if recipe.method == ONE_SHOT else {}
            return decide_stage(variants.context, scores, recipe, stages, tuner)

        plan = stages.do("plan", work, {**recipe.plain("score"), **recipe.plain("plan")}, PLAN)
        return Decision(recipe, plan, stages.chain, selection, bisection)

    def _plan_again(self, variants: Variants, decision: Decision, recipe: Recipe) -> Decision:
        """Return the decision with a plan for tighter targets."""
        recipe = decision.recipe.but({"target": recipe.target})
        scores = variants.scores_of(recipe.criterion)
        plan = self.stages.do(
            "plan",
            lambda: decide_stage(variants.context, scores, recipe, self.stages),
            {**recipe.plain("score"), **recipe.plain("plan")},
            PLAN,
        )
        return replace(decision, plan=plan, chain=self.stages.chain)

    def _build(
        self, variants: Variants, tuner: Tuner, decision: Decision
    ) -> tuple[Model, Plan, VerificationSummary]:
        """Cut, verify and repair; return the artifact, its plan and the verification."""
        pruned = self.stages.do("cut", lambda: cut(self.analysis, decision.plan))
        verification = self._verify(decision.plan, pruned)
        model, plan = self._repair(variants, tuner, decision, pruned)
        return model, plan, verification

    def _verify(self, plan: Plan, pruned: Model) -> VerificationSummary:
        """Compare the cut model with the masked original."""
        calibration = self.splits.calibration
        figures = self.stages.do(
            "verify",
            lambda: verify_cut(self.analysis, plan, pruned, calibration, self.recipe),
            self.recipe.plain("verify"),
            json_artifact("verify.json"),
        )
        return VerificationSummary.from_json(figures)

    def _repair(
        self, variants: Variants, tuner: Tuner, decision: Decision, pruned: Model
    ) -> tuple[Model, Plan]:
        """Repair the cut model; return it with the plan that has its hash.

        The model of a search that tunes is taken instead.
        """
        recipe, plan = decision.recipe, decision.plan
        is_tuned = bool(plan.decided_by.get("tuned"))
        # int8 alone may meet the targets
        if not is_tuned and (recipe.repair == "none" or not plan.kept):
            return pruned, plan

        def work() -> Model:
            if is_tuned:
                return _tune_again(tuner, decision.chain)
            return variants.repair(recipe, plan, pruned)

        model = self.stages.do("repair", work, recipe.plain("repair"), MODEL)
        # the hash lets `verify` accept this model, whose weights differ from those of the cut
        repair = {} if is_tuned else {"repair": recipe.repair}
        return model, replace(plan, decided_by={**plan.decided_by, **repair, RESULT: digest(model)})

    def _evaluate(self, model: Model) -> Evaluation:
        """Compare the model with the original on the held-out inputs."""
        held_out, labels = self.splits.report, self.splits.report_labels
        if held_out is None and labels is None:
            return Evaluation()
        watched = self.stages.watch(held_out) if held_out is not None else None
        depends = {
            **self.recipe.plain("evaluate"),
            # the path of the labels stays the same if their content changes
            "labels": labels.fingerprint() if labels is not None else "",
        }
        return self.stages.do(
            "evaluate",
            lambda: self._score(model, watched, labels),
            depends,
            EVALUATION,
        )

    def _score(self, model: Model, held_out: Data | None, labels: LabeledData | None) -> Evaluation:
        """Evaluate the model, and collect examples of labeled inputs, else of held-out ones."""
        evaluation = evaluate(self.source, model, held_out, labels, self.recipe)
        shown = labels if labels is not None else self.splits.report
        if shown is None:
            return evaluation
        examples = collect_examples(self.source, model, shown, self.recipe)
        return replace(evaluation, examples=examples)

    def _measure(self, model: Model) -> Timing:
        """Measure both models on one real input."""
        stages, recipe = self.stages, self.recipe
        if not engines_of(recipe):
            return Timing()

        def work() -> Mapping[str, Any]:
            figures = measure_models(
                {"original": self.source, "pruned": model},
                recipe,
                next(self.splits.calibration.batches(1)),
                lambda text, left_s: stages.progress(None, text, left_s),
            )
            speedups = [
                f"{row.speedup:.2f}x on {engine}" for engine, row in latency_rows(figures).items()
            ]
            stages.detail(", ".join(speedups))
            return figures

        chain = stages.chain
        bench = stages.do("measure", work, recipe.plain("measure"), json_artifact("measure.json"))
        stages.chain = chain  # no later stage depends on a time
        return Timing(bench)

    def _compare(
        self, variants: Variants, recipe: Recipe, plan: Plan, evaluation: Evaluation
    ) -> ComparisonModels:
        """Build the random controls and the trade-off curve, if asked for."""
        curve: Sequence[CurvePoint] = ()
        problems: Sequence[str] = ()
        controls = build_controls(variants, recipe, plan)
        if recipe.curve:
            curve, problems = build_curve(variants, recipe, plan, evaluation)
        return ComparisonModels(*controls, curve, problems)

    def _report(
        self, variants: Variants, model: Model, plan: Plan, results: StageResults
    ) -> Report:
        """Return the report of the run."""
        analysis, recipe, stages = self.analysis, self.recipe, self.stages
        evaluation, timing, (before, after) = results.evaluation, results.timing, results.costs
        targets = target_rows(recipe, before, after, timing.latency)
        layers = layer_rows(analysis, plan, timing.bench, model)
        sensitivity: Mapping[str, list[list[float]]] = {}
        if recipe.method == ONE_SHOT and recipe.criterion == "reconstruction":
            # these scores are errors, whose running sum is a curve; others are ranks only
            scores = variants.scores_of("reconstruction")
            sensitivity = sensitivity_rows(scores, recipe.max_fraction)
        warnings = tuple(self._warnings(targets, layers, model, results))
        report = Report(
            str(self.source.path or ""),
            str(self.output or ""),
            before,
            after,
            counted_at=analysis.counted_at.describe(),
            not_counted=analysis.uncounted,
            targets=(*targets, *tolerance_row(results.decision.bisection)),
            verification=results.verification,
            latency=timing.latency,
            fidelity=evaluation.fidelity,
            quality=evaluation.quality,
            splits=self.splits.describe(),
            control=results.comparison.control,
            control_unrepaired=results.comparison.control_unrepaired,
            selection=results.decision.selection,
            bisection=results.decision.bisection,
            curve=results.comparison.curve,
            groups=group_rows(analysis, plan, asked_ratios(analysis, recipe.ratio)),
            layers=layers,
            graph=graph_rows(analysis),
            frozen=frozen_rows(analysis.frozen),
            sensitivity=sensitivity,
            operators=operator_rows(self.source, model),
            examples=evaluation.examples,
            data=self.splits.calibration.describe() if stages.used else "",
            decided_by=plan.decided_by,
            recipe=recipe.plain(),
            provenance=self.provenance,
            machine=timing.bench.get("machine", {}),
            quantization=results.quantization or None,
            stages=tuple(stages.done),
            warnings=tuple(text for _, text in warnings),
            warning_topics=tuple(topic for topic, _ in warnings),
            run_dir=str(stages.run.path) if stages.run else "",
        )
        steps = recommend(report, self.given, self.splits.calibration)
        return replace(report, verdicts=judge(report), next_steps=steps)

    def _warnings(
        self,
        targets: Sequence[TargetRow],
        layers: Sequence[LayerCost],
        model: Model,
        results: StageResults,
    ) -> Iterator[tuple[str, str]]:
        """Yield topic and text of all warnings of the run, those about its data first."""
        yield from self.notes
        yield from of_topic(
            INPUTS,
            data_warnings(self.splits, self.recipe, self.stages.used),
            verification_warnings(results.verification),
            results.evaluation.fidelity.warnings,
            tolerance_warning(self.recipe, results.decision),
            growth_warning(self.analysis.model, model, *results.costs),
            refit_warning(self.analysis, model, self.recipe),
            results.comparison.warnings,
            results.quantization.get("warnings", ()),
        )
        yield from of_topic(MACHINE, latency_warnings(self.recipe, targets))
        yield from timing_warnings(results.timing.bench, layers, model, self.recipe)

    def _write(self, result: Result, run_key: str, overwrite: bool) -> None:
        """Write the output, and plan, recipe and report into the run directory, all or nothing.

        The journal names the output before it replaces another one, see `check_same`.
        """
        run, facts, apart = self.stages.run, dict[str, Any](sha256=""), self.recipe.external_data
        with staging() as files:
            if self.output:
                save(result.model, self.output, apart, overwrite=overwrite, files=files)
                facts["sha256"] = files.sha256(self.output)
            if run:
                write_report(result, self.recipe, self.provenance, run, files)
                facts = {"output": str(self.output), "run": run_key, **facts}
                # both repeat the run
                facts["recipes"] = [hash_key(r.plain()) for r in (self.given, self.recipe)]
                run.record("report", self.stages.chain, 0.0, REPORT_FILES, facts, files)


def analyze_stage(model: Source, recipe: Recipe, stages: Stages) -> Analysis:
    """Analyze a model as a stage."""

    def work() -> Analysis:
        analysis = analyze_for(model, recipe)
        channels = sum(group.size for group in analysis.groups)
        groups = plural(len(analysis.groups), "group")
        stages.detail(f"{groups}, {plural(channels, 'channel')}")
        return analysis

    return stages.do("analyze", work)


def decide_stage(
    context: Context,
    scores: Scores,
    recipe: Recipe,
    stages: Stages,
    tuner: Tuner | None = None,
    chain: str = "",
) -> Plan:
    """Make the plan within a stage.

    Parameters
    ----------
    chain
        Key of the measurements of a search in the run directory; by default the stage's.
    """
    feeds = None
    if any(target.engine for target in recipe.target):
        feeds = next(context.required_data("a latency target").batches(1))
    path = stages.run.file(SEARCH) if stages.run else None
    journal = Journal(path, chain or stages.chain)
    inputs = PlanInputs(feeds, lambda text: stages.progress(None, text), journal, tuner)
    plan = decide(context, scores, recipe, inputs)
    analysis = context.analysis
    share = analysis.cost(plan.kept).macs / max(analysis.original.cost().macs, 1)
    stages.detail(f"{share:.1%} of the MACs remain at {analysis.counted_at.describe()}")
    return plan


def _tune_again(tuner: Tuner, chain: str) -> Model:
    """Return the final model of a search that tunes.

    A run that was stopped after the search repeats it, from its journal and checkpoints.
    """
    if tuner.model is None:
        decide_stage(tuner.context, {}, tuner.recipe, tuner.stages, tuner, chain)
    assert tuner.model is not None
    return tuner.model
