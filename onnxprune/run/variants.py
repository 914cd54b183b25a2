"""Other models that a run makes beside its own, from the same analysis, scores and data: to stay within a tolerance, to choose one by labels,
to show the trade-off, and as a control.

Scores, statistics and an allocator's ranking are computed once; each model costs a cut, a repair and a measurement. What was measured of each is
kept in the run directory, so that a run that was stopped goes on after the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.errors import OnnxpruneError, TargetError, UsageError
from onnxprune.ir.io import Model
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import plain
from onnxprune.repair import REPAIRS
from onnxprune.run.evaluation import Parts, compared, scored
from onnxprune.run.planning import dead, decide
from onnxprune.run.recipe import Recipe
from onnxprune.run.rundir import key
from onnxprune.run.stages import Stages, as_json
from onnxprune.search import ONE_SHOT
from onnxprune.search.base import keep_best
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores

# What "auto" tries beside the default, cheapest first; reconstruction with divergence is the default itself.
CANDIDATES = ("reconstruction+layer-error", "reconstruction+uniform", "activation*weight+knapsack")
CURVE = (0.8, 0.7, 0.6, 0.5, 0.4)  # shares of the MACs
CLOSE = 0.98  # of a tolerance: near enough to stop
WAY = 100  # the way from the whole model to the target (or to nothing) is bisected in so many parts
MOST_CONTROLS = 20
RELATIVE_ERROR = "relative output error"


@dataclass(frozen=True)
class Variants:
    """Makes and measures models for one run.

    scores: by criterion, as far as computed. made: the last repaired model, by `plan_key`, so that the one that is chosen is not made twice.
    """

    stages: Stages
    source: Model
    context: Context
    parts: Parts
    scores: dict[str, Scores] = field(default_factory=dict)
    made: dict[str, Model] = field(default_factory=dict)

    def scores_of(self, criterion: str) -> Scores:
        """Computed once."""
        if criterion not in self.scores:
            self.scores[criterion] = CRITERIA.get(criterion)(self.context)
        return self.scores[criterion]

    def planned(self, recipe: Recipe) -> Plan:
        """The plan of a recipe with counted targets."""
        return decide(self.context, self.scores_of(recipe.criterion), recipe)

    def repaired(self, recipe: Recipe, plan: Plan, smaller: Model | None = None) -> Model:
        """The model that a plan leaves, repaired; `smaller` is its cut where there is one already."""
        name = plan_key(recipe, plan)
        if name not in self.made:
            smaller = smaller or cut(self.context.analysis, plan)
            self.made.clear()
            if recipe.repair != "none":
                smaller = REPAIRS.get(recipe.repair)(
                    self.context.analysis, plan, smaller, self.context
                )
            self.made[name] = smaller
        return self.made[name]

    def within(self, recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
        """The recipe with the targets that keep its `max_divergence`, and what was measured on the way to them.

        The largest cut is bisected for, between the whole model and the recipe's targets, or the whole and nothing where it has none, to a hundredth of the
        way or two hundredths of the tolerance; divergence is interpolated between logarithms, which takes few steps.

        Raises
        ------
        TargetError
            Nothing can be cut.
        """
        allowed = recipe.max_divergence or 0.0
        rows: dict[int, dict[str, Any]] = {}

        def passes(place: int) -> bool:
            rows[place] = self._step(recipe, place, list(rows.values()))
            return _number(rows[place]["divergence"]) <= allowed

        low, high = 0, WAY
        moved: list[bool] = []
        if recipe.target and passes(WAY):
            low = WAY
        while high - low > 1 and not (low and _number(rows[low]["divergence"]) >= CLOSE * allowed):
            middle = (low + high) // 2
            place = (
                middle
                if moved[-2:] in ([True] * 2, [False] * 2)
                else _interpolated(rows, low, high, allowed)
            )
            moved.append(passes(place))
            low, high = (place, high) if moved[-1] else (low, place)
        if (not low and not passes(0)) or not rows[low]["cut"]:
            least = min(
                (r for r in rows.values() if r["cut"]),
                key=lambda r: _number(r["divergence"]),
                default=None,
            )
            found = (
                "the smallest cut that was tried "
                f"({', '.join(least['target'])}) diverges by {_number(least['divergence']):.3g}"
                if least
                else "no channel can be removed"
            )
            raise TargetError(
                "target-unreachable",
                f"max_divergence {allowed:g} cannot be met: {found}; raise it, or lower --round-to",
            )
        steps = [
            {k: row[k] for k in ("target", "macs", "divergence")}
            for row in rows.values()
            if row["macs"] is not None
        ]
        how = {
            "max_divergence": allowed,
            "reached": rows[low]["divergence"],
            "samples": self.parts.selection.samples if self.parts.selection else 0,
        }
        return recipe.but({"target": rows[low]["target"]}), {
            **how,
            "rows": sorted(steps, key=lambda row: float(row["macs"])),
        }

    def _step(self, recipe: Recipe, place: int, before: list[dict[str, Any]]) -> dict[str, Any]:
        """How far outputs are from the original's at a place on the way; a plan that was measured is not measured again."""
        here = recipe.but(
            {"target": _on_the_way(recipe, place, self.context.analysis.cost().as_dict())}
        )

        def work() -> Mapping[str, Any]:
            row: dict[str, Any] = {
                "target": [str(t) for t in here.target],
                "macs": None,
                "divergence": None,
                "cut": True,
                "plan": "",
            }
            try:
                plan = self.planned(here)
            except TargetError:
                self.stages.detail(f"{', '.join(row['target'])} is not reachable")
                return row
            row |= {"macs": self._macs(plan), "cut": bool(plan.kept), "plan": plan_key(here, plan)}
            known = [r["divergence"] for r in before if r["plan"] == row["plan"]]
            assert self.parts.selection is not None
            row["divergence"] = (
                known[0]
                if known
                else plain(
                    compared(
                        self.source, self.repaired(here, plan), self.parts.selection, here
                    ).divergence
                )
            )
            self.stages.detail(
                f"{', '.join(row['target'])}: divergence {_number(row['divergence']):.3g}"
            )
            return row

        number = len(before) + 1
        return self._kept(f"bisect {number}", work, _depends(here, "decoder"))

    def chosen(self, recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
        """The recipe with the criterion and allocator that the first metric prefers, and the figures of all candidates.

        Another than the recipe's own is taken where it is better by more than the larger of both standard errors.
        """
        assert self.parts.selection_labels is not None
        own = f"{recipe.criterion}+{recipe.allocate}"
        rows = [
            self._candidate(number, recipe, way)
            for number, way in enumerate(dict.fromkeys((own, *recipe.candidate)), 1)
        ]
        sign = 1 if find_metric(recipe.metric[0]).higher_is_better else -1

        def gain(row: Mapping[str, Any]) -> float:
            if row["value"] is None or rows[0]["value"] is None:
                return -math.inf if row["value"] is None else math.inf
            return sign * (row["value"] - rows[0]["value"]) - max(
                r["standard_error"] or 0.0 for r in (row, rows[0])
            )

        best = max(rows[1:], key=gain, default=rows[0])
        best = best if best is not rows[0] and gain(best) > 0 else rows[0]
        shown = [{**row, "chosen": row is best} for row in rows]
        found = {
            "metric": recipe.metric[0],
            "samples": self.parts.selection_labels.samples,
            "rows": shown,
        }
        return recipe.but({k: best[k] for k in ("criterion", "allocate")}), found

    def _candidate(self, number: int, recipe: Recipe, way: str) -> dict[str, Any]:
        """What one way to the target is worth on the labels that choose."""
        criterion, _, allocator = way.rpartition("+")
        here = recipe.but({"criterion": criterion, "allocate": allocator})
        labels = self.parts.selection_labels
        assert labels is not None
        row: dict[str, Any] = {
            "criterion": criterion,
            "allocate": allocator,
            "macs": None,
            "value": None,
            "standard_error": None,
            "problem": "",
        }

        def work() -> Mapping[str, Any]:
            try:
                plan = self.planned(here)
                score = scored(self.repaired(here, plan), labels, here)[0]
            except OnnxpruneError as problem:
                if number == 1:
                    raise
                self.stages.detail(f"{way} failed")
                return row | {"problem": problem.message.splitlines()[0]}
            self.stages.detail(f"{way}: {here.metric[0]} {score.value:.4g}")
            return row | {
                "macs": self._macs(plan),
                "value": plain(score.value),
                "standard_error": plain(score.standard_error),
            }

        depends = {
            **_depends(here, "decoder", "class_offset", "metric"),
            "labels": labels.fingerprint(),
        }
        return self._kept(f"candidate {number}", work, depends)

    def curve(
        self, recipe: Recipe, plan: Plan, own: Mapping[str, Any], whole: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Points of the trade-off by share of MACs, and what kept some from being made.

        plan, own: of the model that is written, with its figures; whole: the figures of the original.
        """
        rows, problems = [], []
        written = plan_key(recipe, plan)
        for share in CURVE:
            row = self._point(recipe.but({"target": f"macs={share:.0%}"}), share, written)
            if row["problem"]:
                problems.append(f"trade-off curve: {row['problem']}")
            elif row["plan"] != written:
                rows.append(
                    {
                        "label": f"macs={share:.0%}",
                        **{k: row[k] for k in ("macs", "relative_error", "agreement", "metrics")},
                    }
                )
        label = ", ".join(str(t) for t in recipe.target)
        rows.append({"label": label, "macs": self._macs(plan), **own, "chosen": True})
        rows.append({"label": "original", "macs": 1.0, **whole})
        for row in rows:
            metric = next(iter(row["metrics"]), None)
            row |= {
                "metric": metric or RELATIVE_ERROR,
                "quality": row["metrics"][metric]["value"] if metric else row["relative_error"],
            }
        return sorted(rows, key=lambda row: float(row["macs"])), problems

    def _point(self, here: Recipe, share: float, written: str) -> dict[str, Any]:
        """One model of the curve."""

        def work() -> Mapping[str, Any]:
            try:
                plan = self.planned(here)
            except TargetError as problem:
                return {"problem": problem.message.splitlines()[0], "plan": ""}
            row = {"problem": "", "plan": plan_key(here, plan), "macs": self._macs(plan)}
            return (
                row
                if row["plan"] == written
                else row | self._figures(self.repaired(here, plan), here)
            )

        depends = {
            **_depends(here, "decoder", "class_offset", "metric"),
            "labels": self._labels(),
            "written": written,
        }
        return self._kept(f"curve {share:.0%}", work, depends)

    def controls(self, recipe: Recipe, plan: Plan) -> list[dict[str, Any]]:
        """Figures of models with the plan's widths and random channels; the dead ones go first there too."""
        found = []
        for number in range(1, recipe.control + 1):

            def work(number: int = number) -> Mapping[str, Any]:
                return self._figures(
                    self.repaired(recipe, self._random(recipe, plan, number)), recipe
                )

            depends = {
                **_depends(recipe, "decoder", "class_offset", "metric"),
                "labels": self._labels(),
                "written": plan_key(recipe, plan),
            }
            found.append(self._kept(f"control {number}", work, depends))
        return found

    def _random(self, recipe: Recipe, plan: Plan, number: int) -> Plan:
        """The plan with other channels in place of its own."""
        scores = {
            name: np.array(values)
            for name, values in CRITERIA.get("random")(
                replace(self.context, seed=self.context.seed + number)
            ).items()
        }
        for name, index in dead(self.context, recipe).items():
            scores[name][index] = -1.0
        kept = {name: keep_best(scores[name], len(stay)) for name, stay in plan.kept.items()}
        return replace(plan, kept=kept, decided_by={"criterion": "random", "number": number})

    def _figures(self, model: Model, recipe: Recipe) -> dict[str, Any]:
        """What a model is worth on the inputs that only measure: relative error, agreement, metrics."""
        found: dict[str, Any] = {"relative_error": None, "agreement": None, "metrics": {}}
        if self.parts.report is not None:
            fidelity = compared(self.source, model, self.parts.report, recipe)
            found |= {
                "relative_error": plain(fidelity.relative_error),
                "agreement": plain(fidelity.agreement),
            }
        if self.parts.report_labels is not None:
            scores = scored(model, self.parts.report_labels, recipe)
            found["metrics"] = {
                name: {"value": plain(s.value), "standard_error": plain(s.standard_error)}
                for name, s in zip(recipe.metric, scores, strict=False)
            }
        told = [f"{name} {_number(row['value']):.4g}" for name, row in found["metrics"].items()]
        self.stages.detail(
            ", ".join(told) or f"relative output error {_number(found['relative_error']):.3g}"
        )
        return found

    def _kept(
        self, name: str, work: Callable[[], Mapping[str, Any]], depends: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What `work` finds, as a stage of that name whose file in the run directory is called alike."""
        found: Mapping[str, Any] = self.stages.do(
            name, work, depends, as_json(f"{name.replace(' ', '-').rstrip('%')}.json")
        )
        return dict(found)

    def _labels(self) -> str:
        return (
            self.parts.report_labels.fingerprint() if self.parts.report_labels is not None else ""
        )

    def _macs(self, plan: Plan) -> float:
        """Share of the original's."""
        analysis = self.context.analysis
        return analysis.cost(plan.kept).macs / max(analysis.cost().macs, 1)


def check_options(recipe: Recipe, has_data: bool) -> None:
    """Options that do not go together, or that have nothing to measure on, stop a run before it begins.

    Raises
    ------
    UsageError
        With the two options and what to do.
    """
    if recipe.control > MOST_CONTROLS:
        raise UsageError(
            "option-value",
            f"control: {recipe.control} is more than the limit of {MOST_CONTROLS} models",
        )
    asked = {
        "max_divergence": recipe.max_divergence is not None,
        "candidate": recipe.candidate not in ((), ("auto",)),
        "curve": recipe.curve,
        "control": recipe.control > 0,
    }
    one_shot = next(
        (name for name in ("max_divergence", "candidate", "curve") if asked[name]), None
    )
    if one_shot and recipe.method != ONE_SHOT:
        raise UsageError(
            "options-clash",
            f"{one_shot} needs method {ONE_SHOT}, which scores channels once; method "
            f"{recipe.method!r} does not",
        )
    timed = next((str(t) for t in recipe.target if t.engine), None)
    for name in ("max_divergence", "candidate"):
        if asked[name] and timed:
            raise UsageError(
                "options-clash",
                f"{name} supports only counted targets (macs, params, bytes), not {timed}: omit one "
                "of the two",
            )
    if asked["max_divergence"] and asked["candidate"]:
        raise UsageError(
            "options-clash",
            "candidates are compared at one target, which max_divergence does not have: omit one of "
            "the two",
        )
    if asked["max_divergence"] and not has_data:
        raise UsageError("data-missing", "max_divergence needs real inputs: pass --data PATH")
    if asked["candidate"] and not recipe.metric:
        raise UsageError(
            "labeled-missing",
            "candidates are compared by a metric: pass --metric NAME and --labeled PATH",
        )
    unmeasured = next((name for name in ("curve", "control") if asked[name]), None)
    if unmeasured and not has_data and not recipe.metric:
        raise UsageError(
            "data-missing",
            f"{unmeasured} needs inputs to evaluate models on: pass --data PATH, or --metric NAME "
            "and --labeled PATH",
        )


def plan_key(recipe: Recipe, plan: Plan) -> str:
    """The same for the same channels and repair."""
    return key(recipe.repair, {name: list(kept) for name, kept in plan.kept.items()})


def figures_of(worth: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Of the original ("before") or the written model ("after"), as `Variants` has them of others, from what `evaluated` found."""
    fidelity, quality = worth["fidelity"], worth["quality"]
    found: dict[str, Any] = {
        "relative_error": fidelity.get("relative_error"),
        "agreement": fidelity.get("agreement"),
    }
    if which == "before" and fidelity:
        found = {
            name: None if value is None else float(name == "agreement")
            for name, value in found.items()
        }
    metrics = {
        m: {
            "value": row[which],
            "standard_error": row["standard_error"] if which == "after" else None,
        }
        for m, row in quality.items()
    }
    return found | {"metrics": metrics}


def _depends(recipe: Recipe, *names: str) -> dict[str, Any]:
    """The options that a variant depends on beside what the stages before it do."""
    chosen = {**recipe.plain("plan"), **recipe.plain("repair"), "criterion": recipe.criterion}
    return chosen | {
        name: value for name, value in recipe.plain("evaluate").items() if name in names
    }


def _on_the_way(recipe: Recipe, place: int, original: Mapping[str, int]) -> list[str]:
    """Targets at a place between the whole model (0) and the recipe's (WAY)."""
    if place == WAY:
        return [str(t) for t in recipe.target]
    limits = {
        t.cost: min(t.ceiling(original[t.cost]) / max(original[t.cost], 1), 1.0)
        for t in recipe.target
    } or {"macs": 0.0}
    return [
        f"{cost}={100 * (1 - place / WAY * (1 - limit)):.6g}%" for cost, limit in limits.items()
    ]


def _interpolated(
    rows: Mapping[int, Mapping[str, Any]], low: int, high: int, allowed: float
) -> int:
    """Where the divergence would be as allowed, were its logarithm linear between two places; the middle where one of them has none."""
    ends = [_number(rows[place]["divergence"]) if place in rows else 0.0 for place in (low, high)]
    if not all(0 < d < math.inf for d in ends) or ends[0] >= ends[1]:
        return (low + high) // 2
    share = math.log(allowed / ends[0]) / math.log(ends[1] / ends[0])
    return min(max(low + round(share * (high - low)), low + 1), high - 1)


def _number(value: float | None) -> float:
    """A figure as JSON has it: none is not finite."""
    return math.inf if value is None else value
