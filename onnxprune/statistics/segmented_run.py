"""A network run piece by piece over all samples, so that weights can be changed between the pieces."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.data.dataset import samples_of
from onnxprune.ir.extract import extract, live_after, reads
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes

FLOAT_BYTES = 4


class Run:
    """The activations of one network at one place of its node list, for every batch.

    batches: feeds, a list of dicts; kept in memory with the live activations; counts: samples of each. `model` may be replaced between steps by one with
    the same nodes and other weights. feeds: of the first batch.
    """

    def __init__(
        self,
        model: Model,
        batches: list[dict[str, np.ndarray]],
        *,
        threads: int = 1,
        shapes: Shapes | None = None,
    ) -> None:
        self.model = model
        self.shapes = shapes or infer(model)
        self.nodes: list[NodeProto] = list(model.proto.graph.node)
        self.live = live_after(model)
        self.at = 0
        self.state = [dict(b) for b in batches]
        self.counts = [samples_of(b) for b in batches]
        self.feeds = batches[0] if batches else {}
        self.threads = threads
        self._place = {o: i for i, n in enumerate(self.nodes) for o in n.output}

    def place(self, tensor: str) -> int:
        """Index of the node that makes a tensor; -1 for inputs."""
        return self._place.get(tensor, -1)

    def advance(self, to: int, keep: Collection[str] = ()) -> None:
        """Run the nodes before `to`; tensors in `keep` stay available though nothing reads them later."""
        if to <= self.at:
            return
        part = self.nodes[self.at : to]
        held = set(self.state[0]) if self.state else set()
        wanted = self.live[to] | set(keep)
        made = {o for n in part for o in n.output if o}
        outs = sorted(wanted & made)
        if outs:
            needed = set().union(*map(reads, part))
            session = Session(
                extract(self.model, self.shapes, part, held, outs), threads=self.threads
            )
            names = [n for n in session.inputs if n in needed]
        for i, state in enumerate(self.state):
            fresh = session.run({n: state[n] for n in names}) if outs else {}
            self.state[i] = {n: v for n, v in state.items() if n in wanted} | fresh
        self.at = to

    def mark(self) -> tuple[int, list[dict[str, np.ndarray]]]:
        """Where the run is, for `rewind`; holds the activations that are alive here."""
        return self.at, list(self.state)

    def rewind(self, mark: tuple[int, list[dict[str, np.ndarray]]]) -> None:
        """Go back, to run on with other weights."""
        self.at, self.state = mark[0], list(mark[1])

    def join(self, batches: list[dict[str, np.ndarray]]) -> None:
        """Bring further batches to this place, one after the other."""
        held = set(self.state[0]) if self.state else set(self.live[self.at])
        made = {o for n in self.nodes[: self.at] for o in n.output} & held
        session = (
            Session(
                extract(
                    self.model, self.shapes, self.nodes[: self.at], set(self.feeds), sorted(made)
                ),
                threads=self.threads,
            )
            if made
            else None
        )
        for batch in batches:
            self.counts.append(samples_of(batch))
            fresh = session.run({n: batch[n] for n in session.inputs}) if session else {}
            self.state.append({n: v for n, v in batch.items() if n in held} | fresh)

    def bytes_from_here(self) -> int:
        """Most bytes a sample that live activations take from this place on; lengths that are not known count as one."""
        return int(self._most[self.at])

    @cached_property
    def _most(self) -> np.ndarray:
        return np.maximum.accumulate(self._sizes[::-1])[::-1]

    def bytes_at(self, place: int) -> int:
        """Bytes a sample of the activations that are alive at a place; lengths that are not known count as one."""
        return int(self._sizes[place])

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([sum(map(self._bytes, names)) for names in self.live], np.int64)

    def _bytes(self, tensor: str) -> int:
        lengths = [d for d in (self.shapes.shape(tensor) or ())[1:] if isinstance(d, int)]
        return FLOAT_BYTES * prod(lengths)

    def values(self, tensor: str) -> list[np.ndarray]:
        """A live tensor of every batch."""
        return [s[tensor] for s in self.state]

    def has(self, tensor: str) -> bool:
        """Whether a tensor is available now."""
        return bool(self.state) and tensor in self.state[0]
