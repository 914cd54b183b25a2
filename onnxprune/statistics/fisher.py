"""Fisher information of the linear nodes' outputs: second moments of output gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.autodiff import MOMENTS, Gradient, Loss, Place, feeds_of, gradient_model
from onnxprune.data.dataset import Data, samples_of
from onnxprune.errors import ModelError
from onnxprune.ir.runtime import Session
from onnxprune.parallel import ordered_map
from onnxprune.statistics.gradients import comparable, default_losses

# Number of samples: as many as MAX_MACS of forward passes allow, but at least MIN_SAMPLES.
MAX_MACS = 3e10
MIN_SAMPLES = 64
ACTIVATION_BYTES = 500_000_000  # per batch; the backward pass holds about twice as much
MAX_BATCH = 32


@dataclass(frozen=True)
class Fisher:
    """Second moments of the gradient g of the loss by one tensor.

    Attributes
    ----------
    products
        (channels, channels) mean of g g' over samples and positions, float64.
    positions
        Positions per sample.
    """

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
    """Compute the Fisher information of tensors.

    A small change D of a tensor's channels increases the Kullback-Leibler divergence of the model's
    output by `positions * tr(D' products D) / 2`, if positions are independent: `products` is the
    second Kronecker factor of K-FAC (Martens and Grosse 2015, arXiv 1503.05671, section 3). Labels
    are drawn from the model. A head without classes gets random signs, so that its divergence is
    half of its squared error.

    Parameters
    ----------
    data
        Its first samples are used: as many as `MAX_MACS` allows, at least `MIN_SAMPLES`.
    tensors
        (name, channel axis) of each tensor.

    Returns
    -------
    mapping or None
        Tensor name -> Fisher information. None if the gradient of any tensor is missing, zero or
        not finite, since a partial result could not be compared across layers.
    """
    enough = max(MIN_SAMPLES, int(MAX_MACS / max(analysis.cost().macs, 1)))
    try:
        losses = comparable(
            default_losses(analysis.model),
            analysis.model,
            _take_first(data, enough),
            batch_size=batch_size,
            threads=threads,
        )
    except ModelError:
        return None
    places = [Place(name, axis, form=MOMENTS) for name, axis in tensors]
    accumulator = _Accumulator(
        analysis, places, losses, threads, np.random.Generator(np.random.PCG64(seed))
    )
    # as many samples at once as fit into ACTIVATION_BYTES
    batch = ACTIVATION_BYTES // max(analysis.cost().activation_bytes, 1)
    batch = int(np.clip(batch, 1, min(batch_size, MAX_BATCH)))
    # draws labels batch by batch, before the batches run side by side
    parts = accumulator.prepare(data.batches(batch), enough)
    for part, values in ordered_map(_run_part, parts, threads):
        accumulator.add(part, values)
    return None if accumulator.blocked else accumulator.result()


class _Part(NamedTuple):
    """A batch that is ready to run: its backward graph, with all inputs."""

    gradient: Gradient
    session: Session
    feeds: Mapping[str, np.ndarray]


def _run_part(part: _Part) -> tuple[_Part, Mapping[str, np.ndarray]]:
    """Return the part with its outputs."""
    return part, part.session.run(part.feeds)


def _take_first(data: Data, samples: int) -> Data:
    """Return the first samples, as many as fill complete batches of a fixed size."""
    batch = data.inputs.batch or 1
    count = min(-(-samples // batch) * batch, len(data.chosen))
    return replace(data, chosen=data.chosen[:count])


@dataclass
class _Accumulator:
    """Gradient moments summed over batches.

    Attributes
    ----------
    sums
        Sum of g g' per tensor.
    counts
        Number of positions per tensor.
    samples
        Number of samples.
    blocked
        True if a tensor has no gradient.
    built
        Backward graphs by input shapes.
    """

    analysis: Analysis
    places: list[Place]
    losses: tuple[Loss, ...]
    threads: int
    generator: np.random.Generator
    sums: dict[Place, np.ndarray] = field(default_factory=dict)
    counts: dict[Place, float] = field(default_factory=dict)
    samples: int = 0
    blocked: bool = False
    built: dict[tuple[tuple[int, ...], ...], tuple[Gradient, Session]] = field(default_factory=dict)

    def prepare(self, batches: Iterable[Mapping[str, np.ndarray]], enough: int) -> Iterator[_Part]:
        """Yield what to run per batch, until there are enough samples or a gradient is missing."""
        for feeds in batches:
            built = self._build(feeds)
            if built is None:
                self.blocked = True
                return
            gradient, session = built
            self.samples += samples_of(feeds)
            drawn = feeds_of(gradient.feeds, self.generator, None)
            yield _Part(gradient, session, {**feeds, **drawn})
            if self.samples >= enough:
                return

    def add(self, part: _Part, values: Mapping[str, np.ndarray]) -> None:
        """Add the gradients of a batch."""
        gradient = part.gradient
        for place, output in gradient.outputs.items():
            rows = values[output]
            self.sums[place] = self.sums.get(place, 0.0) + rows.astype(np.float64)
            # elements per channel, over all samples of the batch
            self.counts[place] = self.counts.get(place, 0.0) + gradient.sizes[place] / len(rows)

    def _build(self, feeds: Mapping[str, np.ndarray]) -> tuple[Gradient, Session] | None:
        """Return the backward graph for feeds of these shapes; None if a gradient is missing."""
        key = tuple(a.shape for a in feeds.values())
        if key not in self.built:
            shapes = {name: a.shape for name, a in feeds.items()}
            try:
                gradient = gradient_model(
                    self.analysis.model, self.places, self.losses, shapes, samples_of(feeds)
                )
            except ModelError:
                return None
            if gradient.blocked:
                return None
            self.built[key] = gradient, Session(gradient.model, threads=self.threads, arena=True)
        return self.built[key]

    def result(self) -> Mapping[str, Fisher] | None:
        """Return the means by tensor name; None if any is zero or not finite."""
        if not all(np.isfinite(total).all() and total.any() for total in self.sums.values()):
            return None
        return {
            place.tensor: Fisher(
                total / max(self.counts[place], 1.0), self.counts[place] / max(self.samples, 1)
            )
            for place, total in self.sums.items()
        }
