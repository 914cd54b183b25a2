"""Example lengths of dynamic axes, for inputs that nothing else gives a shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from onnxprune.errors import UsageError
from onnxprune.ir.model import ModelView
from onnxprune.ir.shapes import dimension
from onnxprune.ir.values import Dim

SIDE = 128  # dynamic height and width of images: divisible by every common stride, and cheap
ONLY_INPUT = "*"  # in place of a name: the only input
LENGTH = 32  # any other dynamic size: sequences, points
IMAGE_CHANNELS = (1, 3, 4)  # gray, color, color with alpha: other channel counts are feature maps


def is_anonymous(symbol: str | None) -> bool:
    """Return whether the name of a dynamic size is generated: two such sizes may differ."""
    return symbol is None or symbol.startswith(("?", "unk__")) or not symbol


def image_channel_axis(shape: Sequence[Dim], layout: str = "auto") -> int | None:
    """Return the channel axis of an image input: 1 or 3; None if `shape` is not an image.

    Parameters
    ----------
    shape
        Shape of the input, batch axis included.
    layout
        "nchw", "nhwc", or "auto" for either.
    """
    if len(shape) != 4:
        return None
    for name, axis in (("nchw", 1), ("nhwc", 3)):
        # a dynamic channel axis may be that of an image
        fits = not isinstance(shape[axis], int) or shape[axis] in IMAGE_CHANNELS
        if layout in ("auto", name) and fits:
            return axis
    return None


def example_shapes(
    shapes: Mapping[str, Sequence[Dim]],
    channel_axes: Mapping[str, int | None],
    leading: int = 1,
) -> dict[str, tuple[int, ...]]:
    """Return a shape per input, with a size for every dynamic axis.

    Height and width of images are 128, channels 3, a leading axis 1, other sizes 32. A symbol has
    the same size everywhere; sums of symbols and numbers ("past + 1") are computed.

    Parameters
    ----------
    shapes
        Input name -> declared shape.
    channel_axes
        Input name -> channel axis of an image, None for other inputs.
    leading
        Size of a dynamic leading axis.
    """
    symbols: dict[str, int] = {}
    sizes: dict[str, list[int]] = {}
    caches = _find_caches(shapes)
    for name, shape in shapes.items():
        channels = None if name in caches else channel_axes.get(name)
        sizes[name] = [
            d if isinstance(d, int) else _choose_example_size(axis, channels, leading)
            for axis, d in enumerate(shape)
        ]
        for size, symbol in zip(sizes[name], shape, strict=True):
            if isinstance(symbol, str) and not is_anonymous(symbol):
                # axes of different kinds may share a symbol: the smallest size fits all
                symbols[symbol] = min(size, symbols.get(symbol, size))
    resolved = {s: _sum_size(s, symbols) for s in symbols}
    return {
        name: tuple(
            resolved.get(d, size) if isinstance(d, str) else size
            for d, size in zip(shape, sizes[name], strict=True)
        )
        for name, shape in shapes.items()
    }


def declared_shapes(model: ModelView) -> dict[str, tuple[Dim, ...]]:
    """Return the declared shape of every input that is a tensor of known rank."""
    return {
        info.name: tuple(dimension(d) for d in info.type.tensor_type.shape.dim)
        for info in model.proto.graph.input
        if info.name not in model.weights and info.type.tensor_type.HasField("shape")
    }


def name_shapes(
    shapes: Mapping[str, Sequence[int]], inputs: Collection[str]
) -> dict[str, Sequence[int]]:
    """Return shapes by input name; one that is given without a name is that of the only input.

    Raises
    ------
    UsageError
        A shape has no name, and is not the only one, or the model has several inputs.
    """
    named = dict(shapes)
    if ONLY_INPUT not in shapes or ONLY_INPUT in inputs:
        return named
    if len(inputs) != 1 or len(shapes) != 1:
        text = ",".join(map(str, shapes[ONLY_INPUT]))
        raise UsageError(
            "shape-override",
            f"shape {text} names no input, and the model has {', '.join(map(repr, inputs))}: write "
            f"--shape {next(iter(inputs), 'NAME')}:{text}, once per input",
        )
    return {next(iter(inputs)): named[ONLY_INPUT]}


def example_input_shapes(
    declared: Mapping[str, Sequence[Dim]],
    given: Mapping[str, Sequence[int]] | None = None,
    leading: int = 1,
) -> dict[str, tuple[int, ...]]:
    """Return a shape for every input.

    Parameters
    ----------
    declared
        Input name -> shape, as `declared_shapes` or `dictated.input_shapes` give it.
    given
        Input name -> shape; -1 leaves an axis as it is declared.
    leading
        Size of a dynamic leading axis.
    """
    declared = dict(declared)
    symbols: dict[str, int] = {}
    for name, sizes in (given or {}).items():
        shape = declared.get(name, (None,) * len(sizes))
        if len(shape) != len(sizes):
            continue
        merged = []
        for dim, size in zip(shape, sizes, strict=True):
            merged.append(dim if size < 0 else size)
            if isinstance(dim, str) and size >= 0:
                symbols.setdefault(dim, size)
        declared[name] = tuple(merged)
    for name, shape in declared.items():
        # a symbol that one input fixes is fixed for all
        declared[name] = tuple(symbols.get(d, d) if isinstance(d, str) else d for d in shape)
    axes = {name: image_channel_axis(shape) for name, shape in declared.items()}
    return example_shapes(declared, axes, leading)


def _find_caches(shapes: Mapping[str, Sequence[Dim]]) -> set[str]:
    """Return the inputs that hold keys or values of earlier positions: (batch, heads, past, size).

    With 1, 3 or 4 heads, their shape is that of an image of fixed width; but keys and values come
    in pairs of one shape.
    """
    forms = {
        name: tuple(map(str, shape))
        for name, shape in shapes.items()
        if len(shape) == 4 and isinstance(shape[3], int) and not isinstance(shape[2], int)
    }
    counts = Counter(forms.values())
    return {name for name, form in forms.items() if counts[form] > 1}


def _choose_example_size(axis: int, channels: int | None, leading: int) -> int:
    """Return a size for a dynamic axis by its position."""
    if axis == 0:
        return leading
    if channels is None:
        return LENGTH
    return 3 if axis == channels else SIDE


def _sum_size(symbol: str, symbols: Mapping[str, int]) -> int:
    """Return the size of "a + b + 1" if its symbols are known, else the symbol's own."""
    terms = [t.strip() for t in symbol.split("+")]
    if len(terms) > 1 and all(t.isdecimal() or t in symbols for t in terms):
        return sum(int(t) if t.isdecimal() else symbols[t] for t in terms)
    return symbols[symbol]
