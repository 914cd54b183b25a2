"""Losses of a network with channels masked, from the first node that a change touches on.

A network with 0/1 masks on what its nodes sum over computes what the cut one computes (the oracle of `surgery.verify`), and keeps its shapes: so the part
before a change is run once, and each trial costs a run of the part behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.repair.bias import unbiased
from onnxprune.search.refitted import Kept, without
from onnxprune.search.tasks import Losses
from onnxprune.statistics.segmented_run import Run

Bounds = Mapping[str, float]
Changed = Callable[[Kept], Model]
ROUNDING = 1e-9  # of a sum of shares, relative to the sum of all of them


class Suffix:
    """Losses with more channels of one group gone, on top of what is gone already.

    Parameters
    ----------
    batches
        Feeds of the gate data; kept in memory with the live activations.
    changed
        What is kept -> the network with the rest masked, and changed behind the masks alone; None = masked.
    """

    def __init__(
        self,
        analysis: Analysis,
        batches: list[dict[str, np.ndarray]],
        losses: Losses,
        threads: int = 1,
        changed: Changed | None = None,
    ) -> None:
        self.analysis, self.batches, self.losses, self.threads = analysis, batches, losses, threads
        self.changed = changed or (lambda kept: without(analysis, kept))
        self.outputs = [o.name for o in analysis.model.proto.graph.output]
        self.ran = 0  # batches run through a suffix
        least = [losses.least(number) for number in range(len(batches))]
        self._rest = [
            {t: sum(share[t] for share in least[k:]) for t in least[0]}
            for k in range(1, len(least) + 1)
        ]  # what the batches to come add at the least
        self._run: Run | None = None
        self._base: tuple[str, str] = ("", "")

    def __call__(
        self, base: Kept, group: str, kept: Sequence[int], bounds: Bounds | None = None
    ) -> dict[str, float] | None:
        """Losses by task with `group` reduced to `kept` on top of `base`; None as soon as one is certain to exceed its bound."""
        first = self._first(group)
        run = self._at(base, group, first)
        model = self.changed({**base, group: kept})
        nodes = list(model.proto.graph.node)
        nodes = nodes[_place(nodes, self._output(first)) :]
        given = set(run.state[0])
        wanted = [o for o in self.outputs if o not in given]
        session = (
            Session(
                extract(model, self.analysis.shapes, nodes, given, wanted), threads=self.threads
            )
            if wanted
            else None
        )
        sums: dict[str, float] = {}
        for number, state in enumerate(run.state):
            found = session.run({n: state[n] for n in session.inputs}) if session else {}
            found |= {o: state[o] for o in self.outputs if o in state}
            self.ran += 1
            for name, share in self.losses.batch(number, found).items():
                sums[name] = sums.get(name, 0.0) + share
            if bounds and any(
                sums[n] + self._rest[number][n] > bounds[n] * (1 + ROUNDING)
                for n in self._rest[number]
            ):
                return None
        return sums

    def _at(self, base: Kept, group: str, first: int | None) -> Run:
        """The activations before the first node that sees the group; other groups with the same place share them."""
        key = repr(sorted((n, tuple(k)) for n, k in base.items() if n != group)), str(first)
        if self._run is None or self._base != key:
            model = self.changed({n: k for n, k in base.items() if n != group})
            self._run = Run(
                model, self.batches, threads=self.threads, shapes=self.analysis.shapes
            )  # masks change no shape
            self._run.advance(_place(self._run.nodes, self._output(first)))
            self._base = key
        return self._run

    def _first(self, group: str) -> int | None:
        """Number of the first node of the main graph that sums over the group; None where a nested graph does."""
        causes = self.analysis.causes[group]
        inside = len(self.analysis.model.proto.graph.node)
        hit = [
            m.node
            for m in self.analysis.record.masks
            if np.isin(self.analysis.axes.table(m.ids), causes).any()
        ]
        return min(hit) if hit and max(hit) < inside else None

    def _output(self, first: int | None) -> str:
        return (
            ""
            if first is None
            else next(o for o in self.analysis.model.proto.graph.node[first].output if o)
        )


def _place(nodes: Sequence[NodeProto], output: str) -> int:
    """Index of the node that makes a tensor, before the masks on its own operands; 0 without a tensor."""
    at = next(
        (
            i
            for i, n in enumerate(nodes)
            if output and not {output, unbiased(output)}.isdisjoint(n.output)
        ),
        0,
    )
    while at and "_masked_" in nodes[at - 1].name:
        at -= 1
    return at
