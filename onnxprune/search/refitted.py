"""A network without some channels and the weights that read them refitted: what a repair would leave of it, in closed form and without another pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from onnxprune.search.compose import Kept, bare
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import masked

MOST_KNOWN = 64  # inverses, and refitted weights, that are remembered


def without(analysis: Analysis, kept: Kept) -> Model:
    """The network with 0/1 masks in place of a cut."""
    return masked(analysis, bare(analysis, kept))


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
        """The network that keeps these channels, the others masked."""
        model = without(self.analysis, kept)
        parameters = Parameters(model)
        for item, values, shift in self._changed(self.analysis.removed(kept)):
            parameters.replace(item.linear.out, 1, values)
            parameters.add_bias(item.linear, shift)
        return model

    def cut(self, kept: Kept) -> Model:
        """The network that keeps these channels, the others cut."""
        plan = bare(self.analysis, kept)
        model, removed = cut(self.analysis, plan), self.analysis.removed(plan.kept)
        parameters = Parameters(model)
        for item, values, shift in self._changed(removed):
            linear = item.linear
            if linear.out not in parameters.maker:  # its branch is gone
                continue
            for axis, ids in enumerate(linear.weight.axes):
                if isinstance(ids, np.ndarray):
                    values = np.compress(self.analysis.keep(ids, removed), values, axis)
            parameters.replace(linear.out, 1, values)
            parameters.add_bias(linear, shift if linear.out_ids is None else shift[self.analysis.keep(linear.out_ids, removed)])
        return model

    def _changed(self, removed: np.ndarray) -> Iterator[tuple[Statistic, np.ndarray, np.ndarray]]:
        """Nodes that lost some inputs, with their weights and what is added to their biases, both of full size."""
        for number, item in self.statistics.items():
            gone = ~self.analysis.keep(item.linear.ids, removed)  # type: ignore[arg-type]  # linears of statistics have inputs
            if gone.any() and not gone.all():
                yield item, *self.weight(number, gone)

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
