"""How much the model's answer depends on what each linear node gives: second moments of output gradients, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.autodiff import MOMENTS, Gradient, Place, feeds_of, gradient_model
from onnxprune.data.dataset import Data, samples_of
from onnxprune.errors import ModelError
from onnxprune.ir.runtime import Session
from onnxprune.statistics.gradients import default_losses

LEAST_SAMPLES, MACS = (
    64,
    3e10,
)  # as many as these MACs of forward passes allow, and at least so many
ACTIVATION_BYTES = 500_000_000  # of a batch; the backward pass holds about twice as much
MOST_BATCH = 32


@dataclass(frozen=True)
class Fisher:
    """products: (outputs, outputs) mean of g g' over samples and positions; positions: a sample."""

    products: np.ndarray
    positions: float


def output_fisher(
    analysis: Analysis,
    data: Data,
    tensors: Iterable[tuple[str, int]],
    *,
    seed: int = 0,
    batch_size: int = 16,
    threads: int = 1,
) -> Mapping[str, Fisher] | None:
    """Fisher information of tensors, by name.

    Half of `positions * tr(D' products D)` is what a small change D of a tensor's channels costs in divergence of the model's answer, positions
    taken as independent (the second Kronecker factor of K-FAC, Martens and Grosse 2015, 1503.05671). Labels are drawn from the model; a
    head without classes gets random signs, so that the cost is half of its squared error.

    Parameters
    ----------
    data
        As many of its first samples are used as `MACS` allows, 64 at least.
    tensors
        With the channel axis of each.

    Returns
    -------
    None where no gradient comes to one of the tensors: figures of some alone could not be compared.
    """
    places = [Place(name, axis, form=MOMENTS) for name, axis in tensors]
    try:
        losses = default_losses(analysis.model)
    except ModelError:
        return None
    generator = np.random.Generator(np.random.PCG64(seed))
    batch = int(
        np.clip(
            ACTIVATION_BYTES // max(analysis.cost().activation_bytes, 1),
            1,
            min(batch_size, MOST_BATCH),
        )
    )
    built: dict[tuple[tuple[int, ...], ...], tuple[Gradient, Session]] = {}
    sums: dict[Place, np.ndarray] = {}
    counts: dict[Place, float] = {}
    seen, wanted = 0, max(LEAST_SAMPLES, int(MACS / max(analysis.cost().macs, 1)))
    for feeds in data.batches(batch):
        key = tuple(a.shape for a in feeds.values())
        if key not in built:
            try:
                gradient = gradient_model(
                    analysis.model,
                    places,
                    losses,
                    {n: a.shape for n, a in feeds.items()},
                    samples_of(feeds),
                )
            except ModelError:
                return None
            if gradient.blocked:
                return None
            built[key] = gradient, Session(gradient.model, threads=threads, arena=True)
        gradient, session = built[key]
        found = session.run({**feeds, **feeds_of(gradient.feeds, generator, None)})
        for place, output in gradient.outputs.items():
            sums[place] = sums.get(place, 0.0) + found[output].astype(np.float64)
            counts[place] = counts.get(place, 0.0) + gradient.sizes[place] / len(found[output])
        seen += samples_of(feeds)
        if seen >= wanted:
            break
    if not all(np.isfinite(total).all() and total.any() for total in sums.values()):
        return None
    return {
        p.tensor: Fisher(total / max(counts[p], 1.0), counts[p] / max(seen, 1))
        for p, total in sums.items()
    }
