"""Making a model's weights sparse: score, choose, and refit what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import UsageError, unknown
from onnxprune.events import Event, silent
from onnxprune.ir.io import Model
from onnxprune.ir.passes.lift_weights import lift_weights
from onnxprune.ir.weights import Array, Weight
from onnxprune.sparsify.admm import selected
from onnxprune.sparsify.balance import balanced, whole
from onnxprune.sparsify.inputs import Batches, Reading, inverse_diagonal, read
from onnxprune.sparsify.layout import Target, targets
from onnxprune.sparsify.masks import choose
from onnxprune.sparsify.refit import refit_all
from onnxprune.sparsify.report import Sparsity, sparsity

METHODS = {
    "magnitude": "size of the weight",
    "activation": "size of the weight times the root mean square of what it multiplies (Wanda)",
    "obs": "squared weight over the inverse second moments' diagonal: the error that its removal leaves after a refit (optimal brain surgeon)",
    "admm": "zeros placed together with the values of the weights that are left, so that the tensor gives what it gave (ADMM); shared out by obs",
}
BY_PRODUCTS = ("obs", "admm")  # those that look at pairs of columns
SCORE_RIDGE = 1e-2  # of the mean diagonal, for the inverse
_TINY = np.finfo(np.float64).tiny
Feeds = list[dict[str, np.ndarray]]


BALANCED = "balanced"
PROBES = 4  # one batch of so many measures what each layer's zeros do to the outputs


@dataclass(frozen=True)
class Settings:
    """amount: fraction of weights to remove; method: of METHODS, or "auto": "admm" with data, "magnitude" without;
    scope: "tensor", "output", "global", "N:M", "balanced" (the amount goes where the outputs change least, measured layer by layer),
    or "auto": "balanced" with data, "tensor" without; ops: whose weights; refit: solve for the weights that are left, None = with data;
    batch_size, seed, threads: of the calibration pass.
    """

    amount: float = 0.5
    method: str = "auto"
    scope: str = "auto"
    ops: tuple[str, ...] = ("Conv",)
    refit: bool | None = None
    batch_size: int = 16
    seed: int = 0
    threads: int = 1

    def resolved(self, has_data: bool) -> Settings:
        """With a choice in place of "auto"; UsageError for a method that does not exist, or one that needs data where there are none."""
        method = ("admm" if has_data else "magnitude") if self.method == "auto" else self.method
        scope = (BALANCED if has_data else "tensor") if self.scope == "auto" else self.scope
        refit = has_data if self.refit is None else self.refit
        if method not in METHODS:
            raise unknown("method", method, ("auto", *METHODS))
        needs = (
            [f"method {method}"] * (method != "magnitude")
            + ["scope balanced"] * (scope == BALANCED)
            + ["the refit"] * refit
        )
        if needs and not has_data:
            raise UsageError("sparsity-data", f"{needs[0]} looks at real inputs; give --data")
        return replace(self, method=method, scope=scope, refit=refit)


@dataclass(frozen=True)
class Sparsified:
    """model: with zeros made permanent; masks: True where a weight stays, by tensor, in its shape; report: of the new model;
    not_refitted: tensors with too many inputs for a refit.
    """

    model: Model
    masks: Mapping[str, np.ndarray]
    report: Sparsity
    not_refitted: tuple[str, ...] = ()


def sparsify(
    model: Model,
    settings: Settings,
    data: Batches | None = None,
    on_event: Callable[[Event], None] = silent,
) -> Sparsified:
    """Set the least important weights to zero.

    Parameters
    ----------
    data
        Calibration data, for method "activation" and for the refit; unlabeled.

    Raises
    ------
    UsageError
        Unknown method, scope or operator, an amount outside [0, 1), or no data where they are needed.
    """
    settings = settings.resolved(data is not None)
    model = lift_weights(model)
    found = targets(model, settings.ops)
    if not found:
        raise UsageError(
            "sparsity-nothing", f"the model has no weights of {', '.join(settings.ops)}; see --ops"
        )
    feeds = list(data.batches(settings.batch_size)) if data is not None else []
    kept = _kept(model, found, settings, feeds, on_event)
    masks = {t.tensor: t.weight(kept[t.tensor], model.weights[t.tensor].shape) for t in found}
    left: tuple[str, ...] = ()
    sparse = masked(model, masks)
    if settings.refit:
        with _told("refit", on_event) as progress:
            sparse, left = refit_all(
                model,
                found,
                kept,
                feeds,
                seed=settings.seed,
                threads=settings.threads,
                progress=progress,
            )
    return Sparsified(sparse, masks, sparsity(sparse), left)


def masked(model: Model, masks: Mapping[str, np.ndarray]) -> Model:
    """The model with zeros where a mask is False."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, mask in masks.items():
        weights[name] = Array(
            weights[name].dtype,
            np.where(mask, weights[name].array(), 0).astype(weights[name].array().dtype),
        )
    return replace(model, weights=weights)


def _kept(
    model: Model,
    found: Sequence[Target],
    settings: Settings,
    feeds: Feeds,
    on_event: Callable[[Event], None],
) -> dict[str, np.ndarray]:
    """True where a weight stays, by tensor, (groups, outputs, columns)."""
    rows = {t.tensor: t.rows(model.weights[t.tensor].array()).astype(np.float64) for t in found}
    taps = {t.tensor: t.taps(model.weights[t.tensor].shape) for t in found}
    measured = settings.scope == BALANCED
    probes = feeds[::PROBES] if measured and len(feeds) > 1 else feeds
    readings: Mapping[str, Reading] = {}
    if measured or settings.method != "magnitude":
        seen = (
            [f for i, f in enumerate(feeds) if i % PROBES] if measured and len(feeds) > 1 else feeds
        )
        untouched = (
            whole({n: r.size for n, r in rows.items()}, settings.amount) if measured else set()
        )
        looked = [t for t in found if t.tensor not in untouched]
        readings = read(
            model,
            looked,
            seen,
            products=measured or settings.method in BY_PRODUCTS,
            seed=settings.seed,
            threads=settings.threads,
        )
    scores = {n: _scores(r, readings.get(n), settings.method) for n, r in rows.items()}
    if measured:
        with _told("balance", on_event) as progress:
            kept = balanced(
                model,
                found,
                scores,
                readings,
                probes,
                settings.amount,
                threads=settings.threads,
                progress=progress,
            )
    else:
        kept = choose(scores, settings.amount, settings.scope, taps)
    if settings.method == "admm":
        with _told("select", on_event) as progress:
            for i, target in enumerate(found):
                kept[target.tensor] = _selected(
                    model,
                    target,
                    rows[target.tensor],
                    kept[target.tensor],
                    readings.get(target.tensor),
                    settings,
                    taps,
                )
                progress((i + 1) / len(found))
    return kept


def _selected(
    model: Model,
    target: Target,
    rows: np.ndarray,
    kept: np.ndarray,
    reading: Reading | None,
    settings: Settings,
    taps: Mapping[str, int],
) -> np.ndarray:
    """As many zeros of one tensor as before, or in the same pattern, at the best places; as they are where products were not read."""
    if reading is None or reading.products is None or kept.all() or not kept.any():
        return kept
    shared = settings.scope in (BALANCED, "global")
    scope, amount = (
        ("tensor", 1 - float(kept.mean())) if shared else (settings.scope, settings.amount)
    )
    return selected(
        rows,
        reading.moments(),
        target.bias(model) is not None,
        lambda s: choose({target.tensor: s}, amount, scope, taps)[target.tensor],
    )


def _scores(rows: np.ndarray, reading: Reading | None, method: str) -> np.ndarray:
    """Score of each weight, higher = keep; where inputs were read, relative to the mean square of what the tensor gives, as if they were uncorrelated."""
    squares = np.square(rows)
    if reading is None or method == "magnitude":
        return squares if reading is None else squares / max(float(squares.sum()), _TINY)
    products = reading.products if method in BY_PRODUCTS else None
    worth = reading.squares if products is None else 1 / inverse_diagonal(products, SCORE_RIDGE)
    return (
        squares
        * worth[:, None, :]
        / max(float((squares * reading.squares[:, None, :]).sum()), _TINY)
    )


@contextmanager
def _told(stage: str, on_event: Callable[[Event], None]) -> Iterator[Callable[[float], None]]:
    """Events around a stage; gives what is told of its progress."""
    on_event(Event(stage, "begin"))
    yield lambda share: on_event(Event(stage, "progress", share=share))
    on_event(Event(stage, "end"))
