"""A network with channels masked and the weights that read them refitted: what a repair would leave of it, in closed form and without another pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.allocate.divergence import refitted_without
from onnxprune.analysis.groups import Analysis
from onnxprune.calibrate.moments import Statistic
from onnxprune.model.io import Model
from onnxprune.repair.bias import Parameters
from onnxprune.saliency.base import Context
from onnxprune.saliency.elimination import inverse
from onnxprune.saliency.reconstruction import moments
from onnxprune.surgery.verify import masked
from onnxprune.types import Plan

Kept = Mapping[str, Sequence[int]]
MOST_KNOWN = 64  # inverses, and refitted weights, that are remembered


def without(analysis: Analysis, kept: Kept) -> Model:
    """The network with 0/1 masks in place of a cut."""
    less = {n: tuple(k) for n, k in kept.items() if len(k) < analysis.group(n).size}
    return masked(analysis, Plan(analysis.digest, less, {n: analysis.group(n).size for n in less}))


@dataclass
class Refitted:
    """`without`, each linear node that lost inputs refitted to its outputs in the original network from the inputs that stay.

    statistics: of the nodes' inputs, see `collect_moments`; outputs of nodes keep their names, those of a MatMul move to an Add behind it.
    """

    analysis: Analysis
    statistics: Mapping[int, Statistic]
    _inverses: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _weights: dict[tuple[int, bytes], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @staticmethod
    def of(context: Context) -> Refitted:
        """By the statistics part of the context's data, of which the criterion took them too."""
        return Refitted(context.analysis, moments(context)[0])

    def __call__(self, kept: Kept) -> Model:
        """The network that keeps these channels."""
        model = without(self.analysis, kept)
        parameters = Parameters(model)
        removed = self.analysis.removed({n: tuple(k) for n, k in kept.items()})
        for number, item in self.statistics.items():
            gone = ~self.analysis.keep(item.linear.ids, removed)  # type: ignore[arg-type]  # linears of statistics have inputs
            if not gone.any() or gone.all():
                continue
            values, shift = self.weight(number, gone)
            parameters.replace(item.linear.out, 1, values)
            parameters.add_bias(item.linear, shift)
        return model

    def weight(self, number: int, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(weight of a node, what is added to its bias) with these inputs gone, (inputs,) bool."""
        key = number, gone.tobytes()
        if key not in self._weights:
            if len(self._weights) >= MOST_KNOWN:
                self._weights.clear()
            self._weights[key] = refitted_without(self.analysis, self.statistics[number], np.flatnonzero(gone), self._inverse)
        return self._weights[key]

    def _inverse(self, item: Statistic, g: int) -> np.ndarray:
        key = item.linear.node, g
        if key not in self._inverses:
            if len(self._inverses) >= MOST_KNOWN:
                self._inverses.clear()
            self._inverses[key] = inverse(item.xx[g])
        return self._inverses[key]
