"""Samples of a block for its joint refit, divided into chunks that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.repair.problem import LayerProblem
from onnxprune.statistics.segmented_run import Batch, Mark, SegmentedRun

CHUNK_BYTES = 4_000_000  # of a node's columns at a time, about the size of a level-2 or -3 cache
EQUATIONS = 4  # output values of the block per unknown, at least
_FLOAT_BYTES = 4.0


@dataclass(frozen=True)
class BlockSamples:
    """Inputs and outputs of a block by tensor, in chunks of equally many samples.

    Attributes
    ----------
    inputs
        Activations at the start of the block, per chunk.
    targets
        The original's exits.
    outputs
        The pruned network's exits before the refit.
    count
        Samples per chunk.
    held_out
        Number of held-out chunks; they come last.
    """

    inputs: list[Batch]
    targets: list[Batch]
    outputs: list[Batch]
    count: int
    held_out: int

    @property
    def fitted(self) -> int:
        """Number of chunks that are fitted; they come first."""
        return len(self.inputs) - self.held_out

    @property
    def values(self) -> int:
        """Number of output values that are fitted."""
        return self.fitted * sum(v.size for v in self.targets[0].values()) if self.targets else 0

    @staticmethod
    def of(
        problems: Sequence[LayerProblem],
        begin: Mark,
        pruned: SegmentedRun,
        targets: Mapping[str, list[np.ndarray]],
        held_out: int,
        fixed: bool,
        rng: np.random.Generator,
    ) -> BlockSamples | None:
        """Divide the batches into chunks in random order.

        Parameters
        ----------
        problems
            Nodes of the block.
        begin
            The pruned network at the start of the block.
        pruned
            The pruned network at the end of the block.
        targets
            Exit -> values in the original per batch.
        held_out
            Number of leading batches that are held out.
        fixed
            True if batches cannot be divided.

        Returns
        -------
        BlockSamples or None
            None if there are too few samples for the unknowns.
        """
        widest = max(_FLOAT_BYTES * p.outputs * p.shape[0] * p.shape[1] for p in problems)
        most = pruned.counts[0]
        size = most if fixed else int(np.clip(CHUNK_BYTES / widest, 1, most))
        # (batch, first sample) of each chunk; a remainder is dropped
        chunks = [(i, s) for i, n in enumerate(pruned.counts) for s in range(0, n - size + 1, size)]
        held = [c for c in chunks if c[0] < held_out]
        shuffled = [chunks[i] for i in rng.permutation(len(chunks))]
        chunks = [c for c in shuffled if c[0] >= held_out] + held

        def take(tensors: Mapping[str, np.ndarray], i: int, s: int) -> Batch:
            return _take_samples(tensors, pruned.counts[i], s, size)

        samples = BlockSamples(
            [take(begin[1][i], i, s) for i, s in chunks],
            [take({e: v[i] for e, v in targets.items()}, i, s) for i, s in chunks],
            [take({e: pruned.state[i][e] for e in targets}, i, s) for i, s in chunks],
            size,
            len(held),
        )
        unknowns = sum(int(np.prod(p.shape)) for p in problems)
        if not held or samples.fitted <= 0 or samples.values < EQUATIONS * unknowns:
            return None
        return samples


def _take_samples(tensors: Mapping[str, np.ndarray], count: int, start: int, size: int) -> Batch:
    """Return `size` of the `count` samples in each tensor.

    Axis 0 may hold several rows per sample; a tensor without a batch axis is returned whole.
    """
    result = {}
    for name, values in tensors.items():
        rows = len(values) // count if values.ndim and len(values) % count == 0 else 0
        result[name] = values[start * rows : (start + size) * rows] if rows else values
    return result
