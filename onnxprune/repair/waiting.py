"""Batches whose activations do not fit into memory yet, run from the inputs for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.data.dataset import Data, mirror, samples_of
from onnxprune.data.inputs import Batch as Feeds
from onnxprune.statistics.segmented_run import Batch, SegmentedRun

# Of runs from the inputs to the layers that large activations keep apart from most samples, in
# multiplications of all layers and samples together
STREAM_MULTIPLICATIONS = 1e12

Values = Mapping[str, np.ndarray]


@dataclass
class Waiting:
    """Batches that both runs do not hold; late layers hold them, early ones see them one by one.

    Attributes
    ----------
    batches
        Feeds. Admitted batches are removed.
    work
        Multiplications that all layers together may still take.
    """

    batches: list[Batch] = field(default_factory=list)
    work: float = field(default_factory=lambda: STREAM_MULTIPLICATIONS)

    def choose(self, per_sample: float) -> list[Batch]:
        """Return as many batches as the work allows, and take their work.

        Parameters
        ----------
        per_sample
            Multiplications from the inputs to a layer in both networks.
        """
        chosen: list[Batch] = []
        for batch in self.batches:
            work = per_sample * samples_of(batch)
            if work > self.work:
                break
            self.work -= work
            chosen.append(batch)
        return chosen


def values_of(
    run: SegmentedRun, batches: Sequence[Batch], names: Sequence[str]
) -> Iterator[Values]:
    """Yield tensors in front of a run's position, batch by batch.

    They are computed with the present weights and not kept.
    """
    inner = sorted({name for name in names if run.place(name) >= 0})
    session = run.open_prefix(inner) if inner and batches else None
    given = session.inputs if session else ()
    feeds = ({name: batch[name] for name in given} for batch in batches)
    results = session.run_each(feeds) if session else ((feed, {}) for feed in feeds)
    for batch, (_, values) in zip(batches, results, strict=True):
        yield {name: batch[name] for name in names if name in batch} | values


def arrange_views(data: Data, batches: Sequence[Batch]) -> list[Batch]:
    """Return the mirror images of batches; they share the memory of their images."""
    return [_mirror(batch, data) for batch in batches]


def _mirror(batch: Batch, data: Data) -> Batch:
    """Return the mirror images of a batch."""
    mirrored = mirror(batch, data.inputs)
    if isinstance(batch, Feeds):
        return Feeds(mirrored, batch.samples, batch.axes)
    return mirrored
