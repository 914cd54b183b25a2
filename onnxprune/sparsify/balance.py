"""What making each layer sparse does to the model's outputs, so that the amount is spent where they change least.

One layer at a time loses its least weights, up to a small error, and the rest of the network runs behind it. The damage that is measured is shared out among
the weights that went, by their scores: a weight's score becomes the divergence that its removal costs, and weights of all layers compare. (Measured at the
share that is asked for, damage saturates: at 85 % of the demo's weights that keeps 87 % top-1, this 94 %.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.allocate.divergence import divergence_behind
from onnxprune.calibrate.lockstep import Run
from onnxprune.calibrate.taps import Moments
from onnxprune.model.io import Model
from onnxprune.model.runtime import Session
from onnxprune.model.weights import Array
from onnxprune.sparsify.inputs import Reading
from onnxprune.sparsify.layout import Target
from onnxprune.sparsify.masks import Rows
from onnxprune.sparsify.refit import refit

ERROR = 0.003  # of what a tensor gives: so small that damage grows with it, so large that it is no rounding
_TINY = np.finfo(np.float64).tiny


def balanced(
    model: Model,
    found: Sequence[Target],
    scores: Rows,
    readings: Mapping[str, Reading],
    batches: list[dict[str, np.ndarray]],
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, np.ndarray]:
    """Scores in the unit of the outputs' divergence.

    Parameters
    ----------
    scores
        tensor -> (groups, outputs, columns), relative to what the tensor gives.
    batches
        Feeds that the readings have not seen; kept in memory with the activations of one place.
    """
    session = Session(model, threads=threads)
    expected = [session.run(b) for b in batches]
    run = Run(model, batches, threads=threads)
    out = {}
    for i, target in enumerate(sorted(found, key=lambda t: min(run.place(n.output[0]) for n in t.nodes))):
        name, mask = target.tensor, _probed(scores[target.tensor])
        run.advance(min(run.place(n.output[0]) for n in target.nodes))
        changed = replace(model, weights={**model.weights, name: _alone(model, target, mask, readings[name])})
        damage = divergence_behind(run, changed, run.nodes[run.at :], expected)
        out[name] = scores[name] * (damage / max(float(scores[name][~mask].sum()), _TINY))
        progress((i + 1) / len(found))
    return {t.tensor: out[t.tensor] for t in found}


def _probed(scores: np.ndarray) -> np.ndarray:
    """True where a weight stays in the measurement."""
    order = np.argsort(scores, axis=None, kind="stable")
    kept = np.ones(scores.size, bool)
    kept[order[: 1 + int(np.searchsorted(np.cumsum(scores.reshape(-1)[order]), ERROR))]] = False
    return kept.reshape(scores.shape)


def _alone(model: Model, target: Target, mask: np.ndarray, reading: Reading) -> Array:
    """One weight made sparse, refitted to the readings where they have products."""
    old = model.weights[target.tensor]
    rows = target.rows(old.array()).astype(np.float64)
    new = np.where(mask, rows, 0)
    if reading.products is not None:
        new = np.stack([refit(r, m, Moments(p, np.zeros(len(p)), count=1), None)[0] for r, m, p in zip(rows, mask, reading.products)])
    return Array(old.dtype, target.weight(new, old.shape).astype(old.array().dtype))
