"""Forecast of the stages of a run and of their times, before any of them has begun.

Times are seconds of one thread of the machine on which the factors below were fitted, on ResNet-20
and -56, MobileNetV2, MobileNetV1 and a vision transformer with 256 inputs. Who shows the time left
corrects them by the stages that have ended, see `cli/time_left.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import plural
from onnxprune.events import Expected
from onnxprune.run.adapter import engines_of
from onnxprune.run.comparison import CURVE
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import Splits
from onnxprune.search import ONE_SHOT

# Seconds per 10^9 multiply-accumulates of the original, per pass
FORWARD_S, MOMENTS_S, FISHER_S = 0.02, 0.09, 0.11
# Seconds per group of the elimination, and of the measurement of its damage
ELIMINATION_S, DAMAGE_S = 0.045, 0.01
FIT_S = 0.03  # per refitted group of channels and consumer
# Multiply-accumulates of the joint refits per one of the original, their limit, and the original's
# above which the budget allows none
JOINT_RUNS, JOINT_MOST, JOINT_NONE = 5568, 3e12, 4.5e9
JOINT_S, LOCKSTEP_S = 0.0195, 0.14
DAMAGE_MOST, DAMAGE_SAMPLES = 4e12, 32  # as in allocators/divergence.py
GATE_SHARE = 0.25  # of the samples, which measure damage and are not in the statistics
STAGE_S = 0.03  # of what depends on nothing else
ENGINE_S, MEASURE_FACTOR = 1.2, 1.1  # start of an engine; warm-up over the time asked for
LONG_S = 60.0  # runs of a few candidates below this are not announced


@dataclass(frozen=True)
class _Work:
    """Expected seconds of the parts of a run.

    Attributes
    ----------
    gmacs
        10^9 multiply-accumulates of the original per sample.
    groups
        Number of prunable groups.
    samples
        Number of calibration inputs.
    """

    gmacs: float
    groups: int
    samples: int

    @classmethod
    def of(cls, analysis: Analysis, samples: int) -> _Work:
        """Return the work of a run."""
        gmacs = analysis.cost().macs / 1e9
        return cls(gmacs, len(analysis.groups), samples)

    def score(self, criterion: str) -> tuple[float, ...]:
        """Return the phases of a criterion."""
        passed = self.samples * (1 - GATE_SHARE) * self.gmacs
        if criterion == "reconstruction":
            return MOMENTS_S * passed, FISHER_S * passed, ELIMINATION_S * self.groups
        # magnitudes read no data; one pass is the most that the others have in common
        return (STAGE_S if criterion.startswith(("l1", "l2")) else FISHER_S * passed,)

    def allocate(self, allocator: str) -> float:
        """Return the seconds of an allocator."""
        if allocator != "divergence":
            return STAGE_S
        each = self.gmacs * self.groups
        samples = max(min(self.samples * GATE_SHARE, DAMAGE_MOST / 1e9 / max(each, 1e-9)), 0)
        samples = max(samples, min(DAMAGE_SAMPLES, self.samples * GATE_SHARE))
        return 1.25 * FORWARD_S * each * samples + DAMAGE_S * self.groups

    def repair(self, name: str) -> float:
        """Return the seconds of a repair."""
        passed = self.samples * self.gmacs
        if name != "least-squares":
            return STAGE_S if name == "none" else MOMENTS_S * passed
        joint = min(JOINT_RUNS * self.gmacs, JOINT_MOST / 1e9)
        if self.gmacs * 1e9 > JOINT_NONE:
            joint = 0.0
        return JOINT_S * joint + LOCKSTEP_S * passed + 2 * FIT_S * self.groups

    def evaluate(self, samples: int, models: float = 1.5) -> float:
        """Return the seconds of running models, in units of the original, on samples."""
        return FORWARD_S * samples * models * self.gmacs + STAGE_S


def forecast(
    analysis: Analysis, recipe: Recipe, splits: Splits
) -> tuple[dict[str, Expected], dict[str, Sequence[float]]]:
    """Return the stages of a run in order, and the phases of those that have several."""
    work = _Work.of(analysis, splits.calibration.samples)
    expected, phases = forecast_plan(analysis, recipe, splits.calibration.samples)
    plan = expected.pop("plan").seconds
    if recipe.low_rank:
        # how many layers are tried depends on the data
        expected = {"factor": Expected(None), **expected}
    stages: dict[str, float | None] = {}
    if recipe.max_divergence is not None:
        # how many models it takes is not known before
        stages["bisect"] = None
        plan = STAGE_S
    elif splits.selection_labels is not None or splits.selection is not None:
        stages |= _candidates(work, recipe, splits.selection_labels or splits.selection)
        plan = STAGE_S
    stages |= {"plan": plan, "cut": STAGE_S, "verify": STAGE_S + 0.1 * work.gmacs}
    if recipe.repair != "none":
        # the pass over the data only reads them
        phases["repair"] = (0.02, 0.98)
        stages["repair"] = work.repair(recipe.repair)
    tested = _tested(splits)
    if tested:
        stages["evaluate"] = work.evaluate(tested)
    expected |= {name: Expected(seconds) for name, seconds in stages.items()}
    engines = len(engines_of(recipe))
    if engines:
        timed = MEASURE_FACTOR * 2 * engines * recipe.seconds
        expected["measure"] = Expected(ENGINE_S * engines, timed)
    other = Expected(work.repair(recipe.repair) + work.evaluate(tested, 0.5))
    expected |= {f"control {number + 1}": other for number in range(recipe.control)}
    if recipe.curve:
        expected |= {f"curve {share:.0%}": other for share in CURVE}
    return expected, phases


def forecast_plan(
    analysis: Analysis, recipe: Recipe, samples: int
) -> tuple[dict[str, Expected], dict[str, Sequence[float]]]:
    """Return the stages up to the plan, and their phases."""
    work = _Work.of(analysis, samples)
    # searches and measured latencies take as many steps as it takes
    if recipe.method != ONE_SHOT:
        return {"plan": Expected(None)}, {}
    score = work.score(recipe.criterion)
    is_counted = not any(target.engine for target in recipe.target)
    plan = work.allocate(recipe.allocate) if is_counted else None
    return {"score": Expected(sum(score)), "plan": Expected(plan)}, {"score": score}


def _candidates(work: _Work, recipe: Recipe, inputs: LabeledData | Data | None) -> dict[str, float]:
    """Return the stages of the candidates."""
    own = f"{recipe.criterion}+{recipe.allocate}"
    stages = {}
    scored = {recipe.criterion}
    for number, name in enumerate(dict.fromkeys((own, *recipe.candidate)), 1):
        criterion, _, allocator = name.rpartition("+")
        seconds = work.allocate(allocator) + work.repair(recipe.repair)
        # the scores of a criterion are computed once
        if criterion not in scored:
            seconds += sum(work.score(criterion))
            scored.add(criterion)
        stages[f"candidate {number}"] = seconds + work.evaluate(
            inputs.samples if inputs else 0, 0.5
        )
    return stages


def _tested(splits: Splits) -> int:
    """Return the number of inputs that both models run on for the report."""
    parts = (splits.report, splits.report_labels)
    return sum(part.samples for part in parts if part is not None)


def announce(analysis: Analysis, recipe: Recipe, splits: Splits) -> Iterator[str]:
    """Yield what makes the run long, with the option that makes it short."""
    expected, _ = forecast(analysis, recipe, splits)
    known = [row.seconds or 0.0 for row in expected.values()]
    for kind, option in (
        ("candidate", "--candidate none for one"),
        ("control", "--control 0 for none"),
        ("curve", "without --curve for one"),
    ):
        rows = {n: row.seconds or 0.0 for n, row in expected.items() if n.startswith(f"{kind} ")}
        if rows and sum(known) >= LONG_S:
            mean = sum(rows.values()) / len(rows)
            noun = {"curve": "model"}.get(kind, kind)
            count = plural(len(rows), f"{noun}", f"{noun}s")
            yield f"{count} of about {_round(mean)} each; {option}"


def _round(seconds: float) -> str:
    """Return a time that is known to a factor of two or so."""
    return f"{max(round(seconds, -1), 10):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
