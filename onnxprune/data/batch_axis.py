"""The axis of each input that counts samples: given by the user, or derived.

Derived axes come from the names and sizes of the inputs' axes. Where these leave doubt and the
model is at hand, a trial decides: samples may not influence each other's outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from onnxprune.data.input_shapes import Shape, spell
from onnxprune.errors import UsageError, unknown
from onnxprune.ir.example_sizes import image_channel_axis, is_anonymous

NONE = "none"  # of an option: an input without a batch axis
EVERY = "*"  # of an option: all inputs
Axes = Mapping[str, int | None]
# whether samples along these axes are independent; None if a trial cannot tell
Trial = Callable[[Axes], bool | None]
# names that exporters and their users give to axes
_BATCH_NAME = re.compile(r"(n|b|bs|bsz|nb)$|.*batch", re.IGNORECASE)
_LENGTH_NAME = re.compile(
    r"(t|l|h|w|height|width|steps?|frames?|tokens?)$|.*(time|seq|len(gth)?$|num_(frames|steps))",
    re.IGNORECASE,
)


def find_batch_axes(
    shapes: Mapping[str, Shape],
    given: Mapping[str, int | str] | None = None,
    trial: Trial | None = None,
) -> tuple[int | None, dict[str, int | None]]:
    """Return (samples in a feed or None if any, batch axis per input or None).

    An input without a batch axis (scalars, thresholds, states) has one value for a whole feed. If
    no input has one, a feed is one sample.

    Parameters
    ----------
    given
        Input name, or "*" for all, -> its batch axis or "none".
    trial
        Decides where names and sizes leave doubt.

    Raises
    ------
    UsageError
        A given name is no input, or the input has no such axis.
    """
    if given:
        axes = _complete(shapes, _check_given(shapes, given))
        return _find_batch_size(shapes, axes), axes
    for candidate in _propose_axes(shapes):
        # a guess needs proof; the usual layout holds unless it is disproved
        accepted: bool | None = candidate.certain or (candidate.usual and trial is None)
        if not accepted and trial is not None:
            accepted = trial(candidate.axes)
            accepted = candidate.usual if accepted is None else accepted
        if accepted:
            return _find_batch_size(shapes, candidate.axes), dict(candidate.axes)
    return 1, dict.fromkeys(shapes)


@dataclass(frozen=True)
class _Candidate:
    """Possible batch axes.

    Attributes
    ----------
    axes
        Axis by input, None for inputs without one.
    certain
        Whether names or sizes alone are proof.
    usual
        Whether it is axis 0 of all inputs, which most models have.
    """

    axes: Axes
    certain: bool
    usual: bool = False


def _check_given(
    shapes: Mapping[str, Shape], given: Mapping[str, int | str]
) -> dict[str, int | None]:
    """Return the user's axes by input name."""
    axes: dict[str, int | None] = {}
    for name, axis in given.items():
        if name != EVERY and name not in shapes:
            raise unknown("input", name, shapes)
        for each in shapes if name == EVERY else [name]:
            rank = len(shapes[each])
            if axis != NONE and not (isinstance(axis, int) and 0 <= axis < rank):
                raise UsageError(
                    "batch-axis",
                    f"batch-axis {name}:{axis}: input {each!r} has rank {rank} "
                    f"({spell(shapes[each])}); give an axis below {rank}, or none",
                )
            axes[each] = axis if isinstance(axis, int) else None
    sizes = {s for n, a in axes.items() if a is not None and isinstance(s := shapes[n][a], int)}
    if len(sizes) > 1:
        listed = ", ".join(map(str, sorted(sizes)))
        raise UsageError(
            "batch-axis",
            f"batch-axis: the given axes have the fixed sizes {listed}; a feed has one batch size",
        )
    return axes


def _complete(shapes: Mapping[str, Shape], given: Axes) -> dict[str, int | None]:
    """Return the axes of all inputs: those not given have the size or symbol of the given ones."""
    axes: dict[str, int | None] = {}
    sizes = [(shapes[n][a], a) for n, a in given.items() if a is not None]
    for name, shape in shapes.items():
        axes[name] = given.get(name)
        if name in given or not sizes:
            continue
        size, axis = sizes[0]
        if _read_size_name(size) is None:
            # an unnamed size says nothing, so that the same position is taken
            fits = len(shape) > max(axis, 1) and _read_size_name(shape[axis]) is None
            axes[name] = axis if fits else None
        elif size in shape and (isinstance(size, str) or len(shape) > 1):
            axes[name] = shape.index(size)
    return axes


def _propose_axes(shapes: Mapping[str, Shape]) -> Iterator[_Candidate]:
    """Yield possible batch axes, the most likely first."""
    leading = _find_leading_axis(shapes)
    if leading is not None:
        sizes = [shapes[n][a] for n, a in leading.items() if a is not None]
        if not any(map(_is_length, sizes)):
            image = any(image_channel_axis(s) is not None for s in shapes.values())
            certain = image or 1 in sizes or any(map(_is_batch, sizes))
            yield _Candidate(leading, certain, usual=True)
    ranked = [s for s in shapes.values() if len(s) > 1]
    # a dynamic size that occurs once per input, such as that of time-major recurrent networks
    symbols = dict.fromkeys(d for s in shapes.values() for d in s if isinstance(d, str))
    for symbol in sorted(symbols, key=lambda d: not _is_batch(d)):
        if is_anonymous(symbol) or _is_length(symbol):
            continue
        if all(s.count(symbol) <= 1 for s in shapes.values()):
            axes = {n: s.index(symbol) if symbol in s else None for n, s in shapes.items()}
            yield _Candidate(axes, _is_batch(symbol) and all(symbol in s for s in ranked))
    # fixed sizes (channels, joints, heads) may be independent without being samples
    if {s[1] for s in ranked} == {None}:
        yield _Candidate({n: 1 if len(s) > 1 else None for n, s in shapes.items()}, False)


def _find_leading_axis(shapes: Mapping[str, Shape]) -> dict[str, int | None] | None:
    """Return axis 0 of all inputs, None if they do not agree on it.

    They do if all inputs of rank 2 or more have one number, one symbol, or anonymous dynamic sizes
    there, and the symbol is on no other axis. Scalars and vectors of another length (thresholds,
    sizes) have none.
    """
    # vectors count only if there is nothing else
    ranked = {n: s for n, s in shapes.items() if len(s) > 1}
    if not ranked:
        ranked = {n: s for n, s in shapes.items() if len(s) == 1}
    first = {_read_size_name(s[0]) for s in ranked.values()}
    # a symbol that is also an inner axis is a length, not a batch
    inner = {d for s in shapes.values() for d in s[1:] if isinstance(d, str)}
    size = next(iter(first), None)
    if len(first) != 1 or size in inner:
        return None
    return {
        n: 0 if n in ranked or (s and _read_size_name(s[0]) in (size, None)) else None
        for n, s in shapes.items()
    }


def _is_batch(size: int | str | None) -> bool:
    """Return whether a size has the name of a batch."""
    return isinstance(size, str) and _BATCH_NAME.match(size) is not None


def _is_length(size: int | str | None) -> bool:
    """Return whether a size has the name of a length: time, sequence, height."""
    return isinstance(size, str) and not _is_batch(size) and bool(_LENGTH_NAME.match(size))


def _find_batch_size(shapes: Mapping[str, Shape], axes: Axes) -> int | None:
    """Return the number of samples in a feed, None if it is free."""
    sizes = [shapes[n][a] for n, a in axes.items() if a is not None]
    fixed = [d for d in sizes if isinstance(d, int)]
    return 1 if not sizes else next(iter(fixed), None)


def _read_size_name(size: int | str | None) -> int | str | None:
    """Return the size, None if its name is generated."""
    return None if not isinstance(size, int) and is_anonymous(size) else size
