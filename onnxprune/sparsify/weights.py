"""Making a model's weights sparse: score, choose, and refit what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import UsageError, unknown
from onnxprune.events import Event, silent
from onnxprune.model.hidden import with_open_weights
from onnxprune.model.io import Model
from onnxprune.model.weights import Array, Weight
from onnxprune.sparsify.inputs import Batches, Reading, inverse_diagonal, read
from onnxprune.sparsify.layout import Target, targets
from onnxprune.sparsify.masks import choose
from onnxprune.sparsify.refit import refit_all
from onnxprune.sparsify.report import Sparsity, sparsity

METHODS = {
    "magnitude": "size of the weight",
    "activation": "size of the weight times the root mean square of what it multiplies (Wanda)",
    "obs": "squared weight over the inverse second moments' diagonal: the error that its removal leaves after a refit (optimal brain surgeon)",
}
SCORE_RIDGE = 1e-2  # of the mean diagonal, for the inverse


@dataclass(frozen=True)
class Settings:
    """amount: fraction of weights to remove; method: of METHODS; scope: "tensor", "output", "global" or "N:M".

    With data, "global" spends the amount where layers lose least of what they give. It saves networks with depthwise convolutions, of whose few
    weights a fixed share is too much, and takes much from a large classifier, where "tensor" is better: measure both.
    ops: whose weights; refit: solve for the weights that are left; batch_size, seed, threads: of the calibration pass.
    """

    amount: float = 0.5
    method: str = "magnitude"
    scope: str = "tensor"
    ops: tuple[str, ...] = ("Conv",)
    refit: bool = False
    batch_size: int = 16
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Sparsified:
    """model: with zeros made permanent; masks: True where a weight stays, by tensor, in its shape; report: of the new model;
    not_refitted: tensors with too many inputs for a refit."""

    model: Model
    masks: Mapping[str, np.ndarray]
    report: Sparsity
    not_refitted: tuple[str, ...] = ()


def sparsify(model: Model, settings: Settings, data: Batches | None = None, on_event: Callable[[Event], None] = silent) -> Sparsified:
    """Set the least important weights to zero.

    Parameters
    ----------
    data
        Calibration data, for method "activation" and for the refit; unlabelled.

    Raises
    ------
    UsageError
        Unknown method, scope or operator, an amount outside [0, 1), or no data where they are needed.
    """
    if settings.method not in METHODS:
        raise unknown("method", settings.method, METHODS)
    model = with_open_weights(model)
    found = targets(model, settings.ops)
    if not found:
        raise UsageError("sparsity-nothing", f"the model has no weights of {', '.join(settings.ops)}; see --ops")
    if data is None and (settings.method != "magnitude" or settings.refit):
        raise UsageError(
            "sparsity-data", f"method {settings.method}{' and the refit look' if settings.refit else ' looks'} at real inputs; give --data"
        )
    scores = _scores(model, found, settings, data)
    kept = choose(scores, settings.amount, settings.scope, {t.tensor: t.taps(model.weights[t.tensor].shape) for t in found})
    masks = {t.tensor: t.weight(kept[t.tensor], model.weights[t.tensor].shape) for t in found}
    if settings.refit and data is not None:
        on_event(Event("refit", "begin"))
        feeds = list(data.batches(settings.batch_size))
        sparse, left = refit_all(
            model,
            found,
            kept,
            feeds,
            seed=settings.seed,
            threads=settings.threads,
            progress=lambda share: on_event(Event("refit", "progress", share=share)),
        )
        on_event(Event("refit", "end"))
    else:
        sparse, left = masked(model, masks), ()
    return Sparsified(sparse, masks, sparsity(sparse), left)


def masked(model: Model, masks: Mapping[str, np.ndarray]) -> Model:
    """The model with zeros where a mask is False."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, mask in masks.items():
        weights[name] = Array(weights[name].dtype, np.where(mask, weights[name].array(), 0).astype(weights[name].array().dtype))
    return replace(model, weights=weights)


def _scores(model: Model, found: Sequence[Target], settings: Settings, data: Batches | None) -> dict[str, np.ndarray]:
    """Score of each weight, (groups, outputs, columns), higher = keep."""
    rows = {t.tensor: t.rows(model.weights[t.tensor].array()).astype(np.float64) for t in found}
    if settings.method == "magnitude" or data is None:
        return {n: np.abs(r) for n, r in rows.items()}
    exact = settings.method == "obs"
    readings = read(model, found, data, products=exact, batch_size=settings.batch_size, seed=settings.seed, threads=settings.threads)
    return {n: np.square(r) * _worth(readings[n], exact)[:, None, :] / _energy(r, readings[n]) for n, r in rows.items()}


def _energy(rows: np.ndarray, reading: Reading) -> float:
    """What the scores of one tensor are relative to, so that tensors compare: the mean square of its outputs, were its inputs uncorrelated."""
    return max(float((np.square(rows) * reading.squares[:, None, :]).sum()), np.finfo(np.float64).tiny)


def _worth(reading: Reading, exact: bool) -> np.ndarray:
    """What a squared weight is multiplied with, (groups, columns)."""
    if exact and reading.products is not None:
        return 1 / inverse_diagonal(reading.products, SCORE_RIDGE)
    return reading.squares
