"""What the weights multiply, on calibration data: second moments of the columns of `layout`, by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxprune.calibrate.taps import Moments, columns, geometry, positions
from onnxprune.model.io import Model
from onnxprune.model.runtime import Session
from onnxprune.sparsify.layout import Target

MOST_COLUMNS = 2304  # 256 channels of 3 x 3 taps; a second-moment matrix beyond that costs more than it gives
MOST_POSITIONS = 256  # output positions that are looked at in a sample


class Batches(Protocol):
    """Calibration data."""

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds by input name."""


@dataclass
class Reading:
    """squares: mean square of each column, (groups, columns); moments: of each group with a last column of ones, None where there are too many."""

    squares: np.ndarray
    moments: list[Moments] | None


def read(
    model: Model, found: Sequence[Target], data: Batches, *, products: bool, batch_size: int = 16, seed: int = 0, threads: int = 1
) -> dict[str, Reading]:
    """One pass over the data. products: also the second-moment matrices that a refit needs."""
    given = {i.name for i in model.proto.graph.input}
    names = dict.fromkeys(name for t in found for n in t.nodes for name in (n.input[0], n.output[0]) if name not in given)
    session = Session(model, list(names), threads=threads)
    rng, counts = np.random.default_rng(seed), dict.fromkeys((t.tensor for t in found), 0)
    readings: dict[str, Reading] = {}
    for feeds in data.batches(batch_size):
        values = {**feeds, **session.run(feeds)}
        for target in found:
            for node in target.nodes:
                shape = model.weights[target.tensor].shape
                how = geometry(node, shape, values[node.input[0]].shape)
                at = positions(values[node.output[0]].shape, how.spatial, MOST_POSITIONS, rng)
                x = columns(values[node.input[0]], how, at)
                parts = x.reshape(target.groups, -1, x.shape[1])
                if target.tensor not in readings:
                    few = products and parts.shape[1] <= MOST_COLUMNS
                    empty = [Moments.zeros(parts.shape[1] + 1) for _ in parts] if few else None
                    readings[target.tensor] = Reading(np.zeros(parts.shape[:2]), empty)
                _add(readings[target.tensor], parts)
                counts[target.tensor] += x.shape[1]
    for name, reading in readings.items():
        reading.squares /= max(counts[name], 1)
    return readings


def _add(reading: Reading, parts: np.ndarray) -> None:
    """Sum one batch's columns, (groups, columns, positions)."""
    reading.squares += np.einsum("gkp,gkp->gk", parts, parts, dtype=np.float64)
    for moments, part in zip(reading.moments or (), parts):
        moments.add(np.concatenate([part, np.ones((1, part.shape[1]), part.dtype)]))
