"""Making a model's weights sparse: score, choose, and refit what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import UsageError, unknown
from onnxprune.events import Event, silent
from onnxprune.model.io import Model
from onnxprune.model.weights import Array, Weight
from onnxprune.sparsify.inputs import Batches, Reading, read
from onnxprune.sparsify.layout import Target, targets
from onnxprune.sparsify.masks import choose
from onnxprune.sparsify.refit import refit
from onnxprune.sparsify.report import Sparsity, sparsity

METHODS = {"magnitude": "size of the weight", "activation": "size of the weight times the root mean square of what it multiplies (Wanda)"}


@dataclass(frozen=True)
class Settings:
    """amount: fraction of weights to remove; method: of METHODS; scope: "tensor", "output", "global" or "N:M";
    ops: whose weights; refit: solve for the weights that are left; batch_size, seed, threads: of the calibration pass."""

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
    found = targets(model, settings.ops)
    if not found:
        raise UsageError("sparsity-nothing", f"the model has no weights of {', '.join(settings.ops)}; see --ops")
    readings: dict[str, Reading] = {}
    if settings.method == "activation" or settings.refit:
        if data is None:
            raise UsageError("sparsity-data", "method activation and the refit look at real inputs; give --data")
        on_event(Event("calibrate", "begin"))
        readings = read(model, found, data, products=settings.refit, batch_size=settings.batch_size, seed=settings.seed, threads=settings.threads)
        on_event(Event("calibrate", "end"))
    rows = {t.tensor: t.rows(model.weights[t.tensor].array()) for t in found}
    scores = {n: np.abs(r.astype(np.float64)) for n, r in rows.items()}
    if settings.method == "activation":
        scores = {n: s * np.sqrt(readings[n].squares)[:, None, :] for n, s in scores.items()}
    kept = choose(scores, settings.amount, settings.scope, {t.tensor: t.taps(model.weights[t.tensor].shape) for t in found})
    weights: dict[str, Weight] = dict(model.weights)
    left = tuple(t.tensor for t in found if not _apply(model, t, rows[t.tensor], kept[t.tensor], readings.get(t.tensor), settings.refit, weights))
    sparse = replace(model, weights=weights)
    masks = {t.tensor: t.weight(kept[t.tensor], model.weights[t.tensor].shape) for t in found}
    return Sparsified(sparse, masks, sparsity(sparse), left)


def _apply(model: Model, target: Target, rows: np.ndarray, kept: np.ndarray, reading: Reading | None, fit: bool, weights: dict[str, Weight]) -> bool:
    """Put one tensor's new values into `weights`; False where a refit was wanted and could not be made."""
    old, values, name = model.weights[target.tensor], np.where(kept, rows, 0), target.bias(model)
    done = not fit or (reading is not None and reading.moments is not None)
    if fit and reading is not None and reading.moments is not None:
        bias = model.weights[name].array().reshape(target.groups, -1) if name else None
        parts = [refit(rows[g], kept[g], m, bias[g] if bias is not None else None) for g, m in enumerate(reading.moments)]
        values = np.stack([p[0] for p in parts])
        if name:
            shift = np.concatenate([p[1] for p in parts if p[1] is not None])
            weights[name] = Array(model.weights[name].dtype, shift.astype(model.weights[name].array().dtype))
    weights[target.tensor] = Array(old.dtype, target.weight(values, old.shape).astype(old.array().dtype))
    return done
