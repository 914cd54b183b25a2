"""Run a network segment by segment over all samples, so that weights can change in between."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.rule_shapes import shapes_by_rule
from onnxprune.data.dataset import samples_of
from onnxprune.ir.extract import extract, live_after, reads
from onnxprune.ir.inference import infer
from onnxprune.ir.model import ModelView
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes

FLOAT_BYTES = 4

Batch = dict[str, np.ndarray]
Mark = tuple[int, list[Batch]]


class SegmentedRun:
    """Live activations of one network at one position of its node list, for every batch.

    Parameters
    ----------
    model
        Network to run. May be replaced between calls by one with the same nodes and other weights.
    batches
        Feeds by input name, kept in memory together with the live activations.
    threads
        Batches that run at a time.
    shapes
        Inferred shapes of `model`; computed if None.

    Attributes
    ----------
    nodes
        Nodes of the network in execution order.
    live
        For each position in `nodes`: activations that are available there and read there or later.
    at
        Position reached: nodes before it have run.
    state
        Values of the live activations per batch.
    counts
        Number of samples per batch.
    feeds
        Feeds of the first batch.
    """

    def __init__(
        self,
        model: ModelView,
        batches: Sequence[Batch],
        *,
        threads: int = 1,
        shapes: Shapes | None = None,
    ) -> None:
        self.model = model
        self.shapes = shapes or infer(model, shapes_by_rule(model))
        self.nodes: list[NodeProto] = list(model.proto.graph.node)
        self.live = live_after(model)
        self.at = 0
        self.state = [dict(b) for b in batches]
        self.counts = [samples_of(b) for b in batches]
        self.feeds = batches[0] if batches else {}
        self.threads = threads
        self._producers = {o: i for i, n in enumerate(self.nodes) for o in n.output}

    def place(self, tensor: str) -> int:
        """Return the index of the node that produces a tensor; -1 for graph inputs."""
        return self._producers.get(tensor, -1)

    def advance(self, to: int, keep: Collection[str] = ()) -> None:
        """Run the nodes before position `to`.

        Parameters
        ----------
        to
            Position to reach; nothing happens if it is already reached.
        keep
            Activations to retain although no later node reads them.
        """
        if to <= self.at:
            return
        segment = self.nodes[self.at : to]
        available = set(self.state[0]) if self.state else set()
        retained = self.live[to] | set(keep)
        produced = {o for n in segment for o in n.output if o}
        outs = sorted(retained & produced)
        # a segment of nodes that nothing later reads need not run
        if outs:
            needed = set().union(*map(reads, segment))
            session = Session(
                extract(self.model, self.shapes, segment, available, outs), threads=self.threads
            )
            names = [n for n in session.inputs if n in needed]
            results = session.run_each({n: state[n] for n in names} for state in self.state)
        # one batch after the other, so that old and new activations of only a few coexist
        for i, state in enumerate(self.state):
            fresh = next(results)[1] if outs else {}
            self.state[i] = {n: v for n, v in state.items() if n in retained} | fresh
        self.at = to

    def mark(self) -> Mark:
        """Return the current position and live activations, for `rewind`."""
        # `advance` makes new dicts, so that a copy of the list suffices
        return self.at, list(self.state)

    def rewind(self, mark: Mark) -> None:
        """Return to a marked position, to run on from there with other weights."""
        self.at, self.state = mark[0], list(mark[1])

    def join(self, batches: Sequence[Batch]) -> None:
        """Run further batches up to the current position and append them."""
        # only what the other batches still hold, so that all batches have the same activations
        available = set(self.state[0]) if self.state else set(self.live[self.at])
        produced = {o for n in self.nodes[: self.at] for o in n.output} & available
        session = self.open_prefix(sorted(produced)) if produced else None
        if session:
            results = session.run_each({n: batch[n] for n in session.inputs} for batch in batches)
        for batch in batches:
            self.counts.append(samples_of(batch))
            fresh = next(results)[1] if session else {}
            self.state.append({n: v for n, v in batch.items() if n in available} | fresh)

    def open_prefix(self, outputs: list[str]) -> Session:
        """Open a session on all nodes before the current position."""
        prefix = extract(self.model, self.shapes, self.nodes[: self.at], set(self.feeds), outputs)
        return Session(prefix, threads=self.threads)

    def bytes_from_here(self) -> int:
        """Return the peak bytes of live activations from here on, per sample.

        Unknown lengths count as 1.
        """
        return int(self._peaks[self.at])

    @cached_property
    def _peaks(self) -> np.ndarray:
        """For each position, the largest of `_sizes` from there on."""
        return np.maximum.accumulate(self._sizes[::-1])[::-1]

    def bytes_at(self, position: int) -> int:
        """Return the bytes of activations live at a position, per sample.

        Unknown lengths count as 1.
        """
        return int(self._sizes[position])

    @cached_property
    def _sizes(self) -> np.ndarray:
        """For each position, bytes of the live activations per sample."""
        return np.array([sum(map(self._count_bytes, names)) for names in self.live], np.int64)

    def _count_bytes(self, tensor: str) -> int:
        """Return the bytes of one activation per sample."""
        # axis 0 counts samples
        lengths = [d for d in (self.shapes.shape(tensor) or ())[1:] if isinstance(d, int)]
        return FLOAT_BYTES * prod(lengths)

    def values(self, tensor: str) -> list[np.ndarray]:
        """Return a live activation, one array per batch."""
        return [s[tensor] for s in self.state]

    def has(self, tensor: str) -> bool:
        """Return True if an activation is available at the current position."""
        return bool(self.state) and tensor in self.state[0]
