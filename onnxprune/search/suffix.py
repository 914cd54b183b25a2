"""Losses of a network with channels masked, evaluated from the first affected node on.

A network with 0/1 masks in front of the nodes that sum over channels computes what the cut one
computes (the oracle of `surgery.verify`) and keeps all shapes. The nodes before the first affected
one therefore run once, and each trial costs a run of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.repair.bias import unbiased
from onnxprune.search.refitted import Kept, without
from onnxprune.search.tasks import Losses
from onnxprune.statistics.segmented_run import SegmentedRun

Bounds = Mapping[str, float]
Changed = Callable[[Kept], Model]
ROUNDING = 1e-9  # error of a sum of shares, relative to the sum


class Suffix:
    """Losses with more channels of one group removed, on top of an earlier cut.

    Parameters
    ----------
    batches
        Feeds of the gate data; kept in memory with the live activations.
    losses
        Losses of one batch after the other.
    changed
        Function of the kept channels that returns the network with the others masked; it may change
        nodes after the masks only. None = masks alone.
    outputs
        Tensors that the losses read; None = the model's outputs.

    Attributes
    ----------
    ran
        Number of batches run through a suffix so far.
    """

    def __init__(
        self,
        analysis: Analysis,
        batches: Sequence[dict[str, np.ndarray]],
        losses: Losses,
        threads: int = 1,
        changed: Changed | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self.analysis, self.batches, self.losses, self.threads = analysis, batches, losses, threads
        self.changed = changed or (lambda kept: without(analysis, kept))
        self.outputs = list(outputs or [o.name for o in analysis.model.proto.graph.output])
        self.ran = 0
        least = [losses.least(number) for number in range(len(batches))]
        # per batch, what the following batches add to each loss at the least
        self._rest = [_sum_shares(least[k:], least[0]) for k in range(1, len(least) + 1)]
        self._run: SegmentedRun | None = None
        self._base: tuple[str, str] = ("", "")

    def __call__(
        self, base: Kept, group: str, kept: Sequence[int], bounds: Bounds | None = None
    ) -> dict[str, float] | None:
        """Return the losses by task with `group` reduced to `kept` on top of `base`.

        None as soon as a loss is certain to exceed its bound.
        """
        first = self._find_first_affected(group)
        run = self._advance(base, group, first)
        session = self._session({**base, group: kept}, set(run.state[0]), first)
        sums: dict[str, float] = {}
        for number, state in enumerate(run.state):
            outputs = session.run({n: state[n] for n in session.inputs}) if session else {}
            # outputs of nodes before the first affected one
            outputs |= {o: state[o] for o in self.outputs if o in state}
            self.ran += 1
            for name, share in self.losses.batch(number, outputs).items():
                sums[name] = sums.get(name, 0.0) + share
            if bounds and self._exceeds(sums, number, bounds):
                return None
        return sums

    def _session(self, kept: Kept, given: set[str], first: int | None) -> Session | None:
        """Return a session of the nodes from `first` on; None if all outputs are given."""
        needed = [o for o in self.outputs if o not in given]
        if not needed:
            return None
        model = self.changed(kept)
        nodes = list(model.proto.graph.node)
        nodes = nodes[_find_start(nodes, self._name_output(first)) :]
        suffix = extract(model, self.analysis.shapes, nodes, given, needed)
        return Session(suffix, threads=self.threads)

    def _exceeds(self, sums: Mapping[str, float], number: int, bounds: Bounds) -> bool:
        """Return True if a loss will exceed its bound, given the sums up to batch `number`."""
        rest = self._rest[number]
        return any(sums[n] + rest[n] > bounds[n] * (1 + ROUNDING) for n in rest)

    def _advance(self, base: Kept, group: str, first: int | None) -> SegmentedRun:
        """Return a run advanced to the first node that sees the group.

        It is reused for other groups with the same first node.
        """
        others = {n: k for n, k in base.items() if n != group}
        key = repr(sorted((n, tuple(k)) for n, k in others.items())), str(first)
        if self._run is None or self._base != key:
            # masks change no shape, so the shapes of the original apply
            self._run = SegmentedRun(
                self.changed(others),
                self.batches,
                threads=self.threads,
                shapes=self.analysis.shapes,
            )
            # by name: masks inserted before it move the node
            start = _find_start(self._run.nodes, self._name_output(first))
            self._run.advance(start, keep=self.outputs)
            self._base = key
        return self._run

    def _find_first_affected(self, group: str) -> int | None:
        """Return the index of the first main-graph node that sums over the group.

        None if a node of a nested graph does, so that all nodes have to run.
        """
        causes = self.analysis.causes[group]
        main_nodes = len(self.analysis.model.proto.graph.node)
        hit = [
            m.node
            for m in self.analysis.masks
            if np.isin(self.analysis.axes.table(m.ids), causes).any()
        ]
        return min(hit) if hit and max(hit) < main_nodes else None

    def _name_output(self, first: int | None) -> str:
        """Return the first output of a node of the original; "" for None."""
        if first is None:
            return ""
        return next(o for o in self.analysis.model.proto.graph.node[first].output if o)


def _sum_shares(shares: Sequence[Mapping[str, float]], tasks: Iterable[str]) -> dict[str, float]:
    """Return the sum of the shares of batches, by task."""
    return {task: sum(share[task] for share in shares) for task in tasks}


def _find_start(nodes: Sequence[NodeProto], output: str) -> int:
    """Return the index of the node that makes `output`, or of the masks on its operands.

    0 if `output` is "".
    """
    start = 0
    for index, node in enumerate(nodes):
        if output and not {output, unbiased(output)}.isdisjoint(node.output):
            start = index
            break
    # masks come before the node that they belong to
    while start and "_masked_" in nodes[start - 1].name:
        start -= 1
    return start
