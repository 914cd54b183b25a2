"""Trial runs that tell whether an axis of the inputs counts samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.data.input_shapes import Shape
from onnxprune.errors import ModelError
from onnxprune.ir.example_sizes import example_shapes
from onnxprune.ir.model import ModelView
from onnxprune.ir.runtime import Session, example_feeds

# samples per trial: few, then more for models that need a length (a convolution over time)
COUNTS = (3, 17, 64)
LARGEST_MODEL_BYTES = 2_000_000_000  # of weights; a trial would take longer than it may save
_LEAK = 1e-3  # largest change of other samples' outputs, relative to that of the own


def is_separable(
    model: ModelView, shapes: Mapping[str, Shape], axes: Mapping[str, int | None]
) -> bool | None:
    """Return whether samples along some axes of the inputs leave each other's outputs alone.

    The first and then the last sample is replaced: outputs may change in that position only.

    Parameters
    ----------
    shapes
        Shapes of the inputs.
    axes
        Axis by input, None for an input without samples.

    Returns
    -------
    bool or None
        None if the model does not run on random inputs, or its outputs do not depend on them.
    """
    sizes = [shapes[n][a] for n, a in axes.items() if a is not None]
    fixed = next((d for d in sizes if isinstance(d, int)), None)
    if model.size_bytes() > LARGEST_MODEL_BYTES or fixed == 1:
        return None
    try:
        session = Session(model, optimize=False)
    except ModelError:
        return None
    for count in COUNTS if fixed is None else (fixed,):
        try:
            return _try(session, model, _fill_in_samples(shapes, axes, count), axes, count)
        except ModelError:  # too few samples for this model, or inputs that do not fit
            continue
    return None


def _try(
    session: Session,
    model: ModelView,
    shapes: Mapping[str, Sequence[int]],
    axes: Mapping[str, int | None],
    count: int,
) -> bool | None:
    """Run with some samples, and with the first and the last replaced."""
    feeds, other = (example_feeds(model, seed, shapes) for seed in (0, 1))
    before = session.run(feeds)
    verdicts: list[bool] = []
    for sample in (0, count - 1):
        changed = {}
        for name, array in feeds.items():
            changed[name] = array.copy()
            axis = axes[name]
            if axis is not None:
                row: tuple[slice | int, ...] = (*[slice(None)] * axis, sample)
                changed[name][row] = other[name][row]
        after = session.run(changed)
        pairs = [(before[n], after[n]) for n in before]
        if any(not isinstance(a, np.ndarray) or a.shape != np.shape(b) for a, b in pairs):
            return None  # sequences, or rows that depend on the data
        verdicts += [
            verdict for a, b in pairs if (verdict := _is_local(a, b, sample, count)) is not None
        ]
    return all(verdicts) if verdicts else None


def _is_local(before: np.ndarray, after: np.ndarray, sample: int, count: int) -> bool | None:
    """Return whether an output changes only where a sample is; None if it does not change."""
    if before.dtype.kind not in "fiub":
        return None
    change = np.nan_to_num(np.abs(after.astype(np.float64) - before.astype(np.float64)))
    if not change.any():
        return None
    for axis, length in enumerate(change.shape):
        if length % count:
            continue
        # samples may be merged with an axis that follows
        rows = np.moveaxis(change, axis, 0).reshape(count, -1)
        own = rows[sample].max()
        if np.delete(rows, sample, 0).max(initial=0.0) <= _LEAK * own:
            return True
    return False


def _fill_in_samples(
    shapes: Mapping[str, Shape], axes: Mapping[str, int | None], count: int
) -> dict[str, tuple[int, ...]]:
    """Return example shapes with this number of samples."""
    sized: dict[str, Shape] = {}
    for name, shape in shapes.items():
        axis = axes[name]
        sized[name] = shape if axis is None else (*shape[:axis], count, *shape[axis + 1 :])
    return example_shapes(sized, dict.fromkeys(shapes))
