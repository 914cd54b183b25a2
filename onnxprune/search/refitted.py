"""A network without some channels whose consumers are refitted in closed form.

It approximates what a repair leaves of the network, without another pass over data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import inverse
from onnxprune.criteria.reconstruction import second_moments
from onnxprune.criteria.refit import refit_without
from onnxprune.ir.io import Model
from onnxprune.repair.bias import Parameters
from onnxprune.search.compose import Kept
from onnxprune.statistics.moments import InputMoments
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked

CACHE_BYTES = 400_000_000  # limit of each of the two caches: inverses and refitted weights


def without(analysis: Analysis, kept: Kept) -> Model:
    """Return the network with 0/1 masks in place of a cut."""
    return masked(analysis, analysis.plan(kept))


class _ArrayCache:
    """Arrays by key up to CACHE_BYTES, the oldest evicted first."""

    def __init__(self) -> None:
        self.known, self.bytes = dict[Hashable, tuple[np.ndarray, ...]](), 0

    def get(
        self, key: Hashable, compute: Callable[[], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        """Return the arrays of a key; compute and store them if they are not known."""
        if key not in self.known:
            arrays = compute()
            self.bytes += sum(a.nbytes for a in arrays)
            while self.known and self.bytes > CACHE_BYTES:
                oldest = self.known.pop(next(iter(self.known)))
                self.bytes -= sum(a.nbytes for a in oldest)
            self.known[key] = arrays
        return self.known[key]


@dataclass
class Refitted:
    """Networks in which each linear node that lost inputs is refitted from the remaining ones.

    The refit approximates the node's outputs in the original network. Outputs of nodes keep their
    names; that of a MatMul moves to an Add after it.

    Attributes
    ----------
    analysis
        Analysis of the original network.
    statistics
        Second moments of the nodes' inputs by node; see `collect_moments`.
    """

    analysis: Analysis
    statistics: Mapping[int, InputMoments]
    _inverses: _ArrayCache = field(default_factory=_ArrayCache)
    _weights: _ArrayCache = field(default_factory=_ArrayCache)

    @staticmethod
    def of(context: Context) -> Refitted:
        """Collect the statistics on the part of the context's data that is meant for them."""
        analysis = context.analysis
        statistics = second_moments(context)[0]
        if not analysis.options.get("untie"):
            # a refit per use would store a shared weight several times; it is left as it is cut
            shared = analysis.shared_weights
            statistics = {
                n: s for n, s in statistics.items() if s.linear.weight.tensor not in shared
            }
        return Refitted(analysis, statistics)

    def __call__(self, kept: Kept) -> Model:
        """Return the network that keeps these channels, the others masked."""
        model = without(self.analysis, kept).edit()
        parameters = Parameters(model)
        for item, values, shift in self._refit(self.analysis.removed(kept)):
            parameters.replace(item.linear.out, 1, values)
            parameters.add_bias(item.linear, shift)
        return model.freeze()

    def cut(self, kept: Kept) -> Model:
        """Return the network that keeps these channels, the others cut."""
        plan = self.analysis.plan(kept)
        model, removed = cut(self.analysis, plan).edit(), self.analysis.removed(plan.kept)
        parameters = Parameters(model)
        for item, values, shift in self._refit(removed):
            linear = item.linear
            if linear.out not in parameters.producers:  # the node was removed with its branch
                continue
            # the refit has the size of the original node; remove what the cut removed
            for axis, ids in enumerate(linear.weight.axes):
                if isinstance(ids, np.ndarray):
                    values = np.compress(self.analysis.keep(ids, removed), values, axis)
            if linear.out_ids is not None:
                shift = shift[self.analysis.keep(linear.out_ids, removed)]
            parameters.replace(linear.out, 1, values)
            parameters.add_bias(linear, shift)
        return model.freeze()

    def _refit(self, removed: np.ndarray) -> Iterator[tuple[InputMoments, np.ndarray, np.ndarray]]:
        """Yield nodes that lost some of their inputs, with refitted weights and bias shifts.

        Both have the size of the original node. A node that lost all inputs has nothing to refit.
        """
        for number, item in self.statistics.items():
            assert item.linear.ids is not None  # statistics are of linear nodes with known inputs
            lost = ~self.analysis.keep(item.linear.ids, removed)
            if lost.any() and not lost.all():
                yield item, *self.weight(number, lost)

    def weight(self, number: int, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a node's refitted weight and the shift of its bias.

        Parameters
        ----------
        number
            Key of the node in `statistics`.
        lost
            Inputs that are removed, (inputs,) bool.
        """
        values, shift = self._weights.get(
            (number, lost.tobytes()),
            lambda: refit_without(
                self.analysis, self.statistics[number], np.flatnonzero(lost), self._compute_inverse
            ),
        )
        return values, shift

    def _compute_inverse(self, item: InputMoments, g: int) -> np.ndarray:
        """Return the inverse second moments of one group of a node's inputs."""
        return self._inverses.get((item.linear.node, g), lambda: (inverse(item.xx[g]),))[0]
