"""Unstructured sparsity: score weights, select the zeros, refit the remaining weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import UsageError, unknown
from onnxprune.events import Event, silent
from onnxprune.ir.io import Model
from onnxprune.ir.passes.lift_weights import lift_weights
from onnxprune.ir.weights import ArrayWeight, Weight
from onnxprune.sparsify.admm import select_jointly
from onnxprune.sparsify.balance import balance, intact_tensors
from onnxprune.sparsify.inputs import Batches, InputStatistics, inverse_diagonal, measure_inputs
from onnxprune.sparsify.layout import LinearWeight, linear_weights
from onnxprune.sparsify.masks import choose
from onnxprune.sparsify.refit import refit_all
from onnxprune.sparsify.report import Sparsity, sparsity

METHODS = {
    "magnitude": "absolute value of the weight",
    "activation": "absolute value times the root mean square of its input (Wanda)",
    "obs": "error that the removal leaves after a refit (optimal brain surgeon): squared weight "
    "over the diagonal of the inverse second moments of the inputs",
    "admm": "zeros selected together with the remaining values so that the layer's output changes "
    "least (ADMM); obs distributes them over layers",
}
PAIRWISE_METHODS = ("obs", "admm")  # those that need products of pairs of columns
BALANCED = "balanced"
SCORE_RIDGE = 1e-2  # share of the mean diagonal, for the inverse of the second moments
PROBE_EVERY = 4  # one batch in four measures the effect of zeros, the others give statistics
_TINY = np.finfo(np.float64).tiny
Feeds = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class SparsifySettings:
    """Options of unstructured sparsity.

    Attributes
    ----------
    amount : float
        Fraction of weights to remove.
    method : str
        Key of METHODS, or "auto": "admm" with data, "magnitude" without.
    scope : str
        "tensor", "output", "global", "N:M", "balanced" (remove where the outputs change least,
        measured per layer), or "auto": "balanced" with data, "tensor" without.
    ops : tuple of str
        Operators whose weights become sparse.
    refit : bool or None
        Solve for the remaining weights; None = with data.
    batch_size, seed, threads : int
        Of the calibration pass.
    """

    amount: float = 0.5
    method: str = "auto"
    scope: str = "auto"
    ops: tuple[str, ...] = ("Conv",)
    refit: bool | None = None
    batch_size: int = 16
    seed: int = 0
    threads: int = 1

    @property
    def pairwise(self) -> bool:
        """True if products of pairs of input columns are needed."""
        return self.scope == BALANCED or self.method in PAIRWISE_METHODS

    def resolve(self, has_data: bool) -> SparsifySettings:
        """Return the settings with "auto" replaced.

        Raises
        ------
        UsageError
            Unknown method, or no data for a choice that needs them.
        """
        method, scope = self.method, self.scope
        if method == "auto":
            method = "admm" if has_data else "magnitude"
        if scope == "auto":
            scope = BALANCED if has_data else "tensor"
        refit = has_data if self.refit is None else self.refit
        if method not in METHODS:
            raise unknown("method", method, ("auto", *METHODS))
        needs = []
        if method != "magnitude":
            needs.append(f"method {method}")
        if scope == BALANCED:
            needs.append("scope balanced")
        if refit:
            needs.append("the refit")
        # after "auto" is resolved, which never needs data that are missing
        if needs and not has_data:
            raise UsageError("sparsity-data", f"{needs[0]} needs real inputs; give --data")
        return replace(self, method=method, scope=scope, refit=refit)


@dataclass(frozen=True)
class Sparsified:
    """Result of `sparsify`.

    Attributes
    ----------
    model : Model
        Model with zeros in its weights.
    masks : mapping of str to numpy.ndarray
        True = kept, in the shape of the tensor.
    report : Sparsity
        Zeros of the new model.
    not_refitted : tuple of str
        Tensors with too many inputs for a refit.
    """

    model: Model
    masks: Mapping[str, np.ndarray]
    report: Sparsity
    not_refitted: tuple[str, ...] = ()


def sparsify(
    model: Model,
    settings: SparsifySettings,
    data: Batches | None = None,
    on_event: Callable[[Event], None] = silent,
) -> Sparsified:
    """Set the least important weights to zero.

    Parameters
    ----------
    data
        Unlabeled calibration data; needed by every method but "magnitude", by the scope
        "balanced" and by the refit.
    on_event
        Receives the stages "balance", "select" and "refit".

    Raises
    ------
    UsageError
        Unknown method, scope or operator, an amount outside [0, 1), or no data where needed.
    """
    settings = settings.resolve(data is not None)
    # weights may also be Constant nodes, or inside functions
    model = lift_weights(model)
    targets = linear_weights(model, settings.ops)
    if not targets:
        raise UsageError(
            "sparsity-nothing", f"the model has no weights of {', '.join(settings.ops)}; see --ops"
        )
    feeds = list(data.batches(settings.batch_size)) if data is not None else []
    kept = _select(model, targets, settings, feeds, on_event)
    masks = {t.tensor: t.from_rows(kept[t.tensor], model.weights[t.tensor].shape) for t in targets}
    skipped: tuple[str, ...] = ()
    sparse = apply_masks(model, masks)
    if settings.refit:
        with _report_stage("refit", on_event) as progress:
            sparse, skipped = refit_all(
                model,
                targets,
                kept,
                feeds,
                seed=settings.seed,
                threads=settings.threads,
                progress=progress,
            )
    return Sparsified(sparse, masks, sparsity(sparse), skipped)


def apply_masks(model: Model, masks: Mapping[str, np.ndarray]) -> Model:
    """Return the model with zeros where a mask is False."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, mask in masks.items():
        values = weights[name].array()
        # unlike a product, this removes NaN and infinity too
        masked = np.where(mask, values, 0).astype(values.dtype)
        weights[name] = ArrayWeight(weights[name].dtype, masked)
    return replace(model, weights=weights)


def _select(
    model: Model,
    targets: Sequence[LinearWeight],
    settings: SparsifySettings,
    feeds: Feeds,
    on_event: Callable[[Event], None],
) -> dict[str, np.ndarray]:
    """Return masks (True = kept) by tensor, (groups, outputs, columns)."""
    rows = {
        t.tensor: t.to_rows(model.weights[t.tensor].array()).astype(np.float64) for t in targets
    }
    taps = {t.tensor: t.taps(model.weights[t.tensor].shape) for t in targets}
    seen, probes = _split_feeds(feeds, settings)
    statistics = _measure(model, targets, rows, settings, seen)
    scores = {
        name: _score(row, statistics.get(name), settings.method) for name, row in rows.items()
    }
    if settings.scope == BALANCED:
        with _report_stage("balance", on_event) as progress:
            kept = balance(
                model,
                targets,
                scores,
                statistics,
                probes,
                settings.amount,
                threads=settings.threads,
                progress=progress,
            )
    else:
        kept = choose(scores, settings.amount, settings.scope, taps)
    if settings.method == "admm":
        with _report_stage("select", on_event) as progress:
            for i, target in enumerate(targets):
                name = target.tensor
                biased = target.private_bias(model) is not None
                kept[name] = _reselect(
                    name, rows[name], kept[name], statistics.get(name), biased, settings, taps
                )
                progress((i + 1) / len(targets))
    return kept


def _split_feeds(feeds: Feeds, settings: SparsifySettings) -> tuple[Feeds, Feeds]:
    """Return the feeds for statistics and those that measure damage; disjoint if possible."""
    # inputs that a refit has seen would underestimate the damage
    if settings.scope != BALANCED or len(feeds) < 2:
        return feeds, feeds
    return [f for i, f in enumerate(feeds) if i % PROBE_EVERY], feeds[::PROBE_EVERY]


def _measure(
    model: Model,
    targets: Sequence[LinearWeight],
    rows: Mapping[str, np.ndarray],
    settings: SparsifySettings,
    feeds: Feeds,
) -> Mapping[str, InputStatistics]:
    """Return the input statistics of the tensors whose scores need them."""
    # magnitudes need no inputs, except to compare the layers
    if settings.scope != BALANCED and settings.method == "magnitude":
        return {}
    if settings.scope == BALANCED:
        intact = intact_tensors({name: r.size for name, r in rows.items()}, settings.amount)
        # statistics of tensors that `balance` never cuts would be unused
        targets = [t for t in targets if t.tensor not in intact]
    return measure_inputs(
        model,
        targets,
        feeds,
        products=settings.pairwise,
        seed=settings.seed,
        threads=settings.threads,
    )


def _reselect(
    name: str,
    rows: np.ndarray,
    kept: np.ndarray,
    statistics: InputStatistics | None,
    biased: bool,
    settings: SparsifySettings,
    taps: Mapping[str, int],
) -> np.ndarray:
    """Return a better mask of one tensor with the same number or pattern of zeros.

    The mask itself is returned if there are no products of columns, or nothing to choose.
    """
    if statistics is None or statistics.products is None or kept.all() or not kept.any():
        return kept
    scope, amount = settings.scope, settings.amount
    # shared scopes have already decided how many weights of this tensor are kept
    if scope in (BALANCED, "global"):
        scope, amount = "tensor", 1 - float(kept.mean())
    return select_jointly(
        rows,
        statistics.moments(),
        biased,
        lambda scores: choose({name: scores}, amount, scope, taps)[name],
    )


def _score(rows: np.ndarray, statistics: InputStatistics | None, method: str) -> np.ndarray:
    """Return the score of each weight, higher = keep.

    With input statistics scores are relative to the mean square of the layer's output for
    uncorrelated inputs, so that they compare across layers.
    """
    squares = np.square(rows)
    if statistics is None:
        return squares
    if method == "magnitude":
        return squares / max(float(squares.sum()), _TINY)
    importance = statistics.squares
    if statistics.products is not None and method in PAIRWISE_METHODS:
        importance = 1 / inverse_diagonal(statistics.products, SCORE_RIDGE)
    output = float((squares * statistics.squares[:, None, :]).sum())
    return squares * importance[:, None, :] / max(output, _TINY)


@contextmanager
def _report_stage(
    stage: str, on_event: Callable[[Event], None]
) -> Iterator[Callable[[float], None]]:
    """Report begin and end of a stage; yield a function that reports its progress."""
    on_event(Event(stage, "begin"))
    yield lambda share: on_event(Event(stage, "progress", share=share))
    on_event(Event(stage, "end"))
