"""A minimal plug-in of each kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.allocators.base import Ranking, WidthStep
from onnxprune.analysis.groups import Analysis, Member
from onnxprune.analysis.rules import Rule
from onnxprune.criteria.base import Context, per_channel
from onnxprune.data.inputs import Inputs
from onnxprune.engines.base import Compiled, EngineOptions, Source
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import Labels, Metric, Outputs
from onnxprune.metrics.base import Options as MetricOptions
from onnxprune.metrics.user import user_metric
from onnxprune.search.base import Search
from onnxprune.types import Plan, Scores

SAMPLE = Rule("... i j -> ... i j", freeze="i j")


def widest(context: Context) -> Scores:
    """Compute the range of the weights of a filter."""

    def weight_range(member: Member) -> np.ndarray | None:
        if member.site.role != "produces":
            return None
        weights = context.analysis.model.weights[member.site.tensor].array().astype(np.float64)
        rows = np.moveaxis(weights, member.site.axis, 0).reshape(
            weights.shape[member.site.axis], -1
        )
        return rows.max(1) - rows.min(1)

    scores = {
        group.name: per_channel(context.analysis, group.name, weight_range)
        for group in context.analysis.groups
    }
    return {name: values for name, values in scores.items() if values is not None}


def largest_first(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Narrow the widest groups first."""
    return Ranking(np.array([1.0 / s.width for s in steps]), False)


def halves(search: Search) -> Plan:
    """Keep the first half of every group."""
    analysis = search.analysis
    kept = {g.name: tuple(range((g.size + 1) // 2)) for g in analysis.groups}
    return Plan(
        analysis.digest,
        kept,
        {n: analysis.group(n).size for n in kept},
        {"method": "example-halves"},
        analysis.options,
    )


def nothing(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Return the pruned model."""
    return pruned


class SessionEngine:
    """The onnxruntime session of onnxprune."""

    name = "example-session"
    install = "pip install onnxruntime"

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return "1.0"

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        return _Compiled(source if isinstance(source, Model) else load(source))

    def limits(self) -> Mapping[str, str]:
        return {}

    def channel_multiple(self, dtype: str = "f32") -> int:
        return 1


class _Compiled(Compiled):
    def __init__(self, model: Model) -> None:
        self._session = Session(model)
        self.outputs = tuple(self._session.outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._session.run(feeds)


SESSION = SessionEngine()


def hits(options: MetricOptions) -> Metric:
    """Return the share of samples whose largest output is the label."""

    def is_correct(outputs: Outputs, labels: Labels) -> np.ndarray:
        (scores,) = outputs.values()
        return (scores.argmax(1) == labels["labels"]).astype(np.float64)

    return user_metric("example-hits", is_correct, options)


class Ramp:
    """Samples of values between 0 and 1 that grow along the sample and with its number."""

    sequential = False
    checked = True
    warning = None

    def __init__(self, inputs: Inputs, count: int) -> None:
        self.inputs, self.count = inputs, count

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
        for index in indices:
            yield (
                f"ramp {index}",
                {
                    n: self._values(tuple(int(d) for d in i.sample_shape()), index).astype(i.dtype)
                    for n, i in self.inputs.items.items()
                },
            )

    def describe(self) -> str:
        return "ramps"

    def digest(self, indices: Sequence[int]) -> str:
        return hashlib.sha256(str(list(indices)).encode()).hexdigest()

    def _values(self, shape: tuple[int, ...], index: int) -> np.ndarray:
        return (np.linspace(0, 1, int(np.prod(shape))) * (index + 1) / self.count).reshape(shape)


def ramp(location: str, inputs: Inputs, samples: int, seed: int) -> Ramp:
    """Return values that grow along a sample."""
    return Ramp(inputs, samples)
