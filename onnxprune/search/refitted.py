"""A network without some channels and the weights that read them refitted: what a repair would leave of it, in closed form and without another pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.allocators.divergence import refitted_without
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import inverse
from onnxprune.criteria.reconstruction import second_moments
from onnxprune.ir.io import Model
from onnxprune.repair.bias import Parameters
from onnxprune.search.compose import Kept
from onnxprune.statistics.moments import Statistic
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import masked

MOST_BYTES = 400_000_000  # of inverses, and of refitted weights, that are remembered


def without(analysis: Analysis, kept: Kept) -> Model:
    """The network with 0/1 masks in place of a cut."""
    return masked(analysis, analysis.plan(kept))


class _Recent:
    """Arrays by key, made once; the oldest go where there are too many."""

    def __init__(self) -> None:
        self.known, self.bytes = dict[Hashable, tuple[np.ndarray, ...]](), 0

    def get(
        self, key: Hashable, make: Callable[[], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        """What is known under a key, or made now."""
        if key not in self.known:
            made = make()
            self.bytes += sum(a.nbytes for a in made)
            while self.known and self.bytes > MOST_BYTES:
                self.bytes -= sum(a.nbytes for a in self.known.pop(next(iter(self.known))))
            self.known[key] = made
        return self.known[key]


@dataclass
class Refitted:
    """`without`, each linear node that lost inputs refitted to its outputs in the original network from the inputs that stay.

    statistics: of the nodes' inputs, see `collect_moments`; outputs of nodes keep their names, those of a MatMul move to an Add behind it.
    """

    analysis: Analysis
    statistics: Mapping[int, Statistic]
    _inverses: _Recent = field(default_factory=_Recent)
    _weights: _Recent = field(default_factory=_Recent)

    @staticmethod
    def of(context: Context) -> Refitted:
        """By the statistics part of the context's data."""
        return Refitted(context.analysis, second_moments(context)[0])

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
        plan = self.analysis.plan(kept)
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
            parameters.add_bias(
                linear,
                shift
                if linear.out_ids is None
                else shift[self.analysis.keep(linear.out_ids, removed)],
            )
        return model

    def _changed(self, removed: np.ndarray) -> Iterator[tuple[Statistic, np.ndarray, np.ndarray]]:
        """Nodes that lost some inputs, with their weights and what is added to their biases, both of full size."""
        for number, item in self.statistics.items():
            assert item.linear.ids is not None  # statistics are of linear nodes with known inputs
            gone = ~self.analysis.keep(item.linear.ids, removed)
            if gone.any() and not gone.all():
                yield item, *self.weight(number, gone)

    def weight(self, number: int, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(weight of a node, what is added to its bias) with these inputs gone, (inputs,) bool."""
        values, shift = self._weights.get(
            (number, gone.tobytes()),
            lambda: refitted_without(
                self.analysis, self.statistics[number], np.flatnonzero(gone), self._inverse
            ),
        )
        return values, shift

    def _inverse(self, item: Statistic, g: int) -> np.ndarray:
        return self._inverses.get((item.linear.node, g), lambda: (inverse(item.xx[g]),))[0]
