"""Dynamic sizes after convolutions, pooling and resizing, where they are multiples or equal."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto, TypeProto, helper

from onnxprune.ir.nodes import attribute
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim, is_static, product, truncated_quotient

WINDOWED = frozenset("Conv ConvTranspose MaxPool AveragePool LpPool Resize Upsample".split())
_OUTER = 2  # axes before the spatial ones: batch and channels


def windowed_type(node: NodeProto, known: Shapes) -> TypeProto | None:
    """Return the output type with the spatial sizes that follow from symbols of the input.

    None if onnx's inference, which follows no symbols here, leaves no size open.
    """
    after = known.shape(node.output[0])
    # most models have a dynamic batch at most: nothing else is computed for them
    if after is None or is_static(after[_OUTER:]):
        return None
    before = known.shape(node.input[0])
    if before is None or len(before) != len(after):
        return None
    if node.op_type in ("Resize", "Upsample"):
        sizes = _compute_resized(node, known, before)
    else:
        sizes = [*after[:_OUTER], *_compute_windowed(node, known, before[_OUTER:])]
    dims = [b if isinstance(b, int) or a is None else a for a, b in zip(sizes, after, strict=False)]
    if len(dims) != len(after) or tuple(dims) == after:
        return None
    return helper.make_tensor_type_proto(known.dtype(node.output[0]), dims)


def _compute_windowed(node: NodeProto, known: Shapes, sizes: Sequence[Dim]) -> list[Dim]:
    """Return the sizes after a convolution or pooling; None where no product gives them."""
    weight = known.shape(node.input[1]) if len(node.input) > 1 else None
    kernel = attribute(node, "kernel_shape") or (weight or ())[_OUTER:]
    count = len(sizes)
    strides, dilations = (attribute(node, k) or [1] * count for k in ("strides", "dilations"))
    pads = attribute(node, "pads") or [0] * (2 * count)
    extra = attribute(node, "output_padding") or [0] * count
    mode = attribute(node, "auto_pad", "NOTSET")
    # a given output shape replaces the formula, and a kernel of another rank is invalid
    if len(kernel) != count or not is_static(kernel) or attribute(node, "output_shape"):
        return [None] * count
    out: list[Dim] = []
    for axis, size in enumerate(sizes):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        padded = 0 if mode == "VALID" else pads[axis] + pads[axis + count]
        stride = strides[axis]
        if mode.startswith("SAME"):
            # as much as keeps the size, or its multiple
            padded = reach - stride if node.op_type == "ConvTranspose" else reach - 1
        if size is None or (mode.startswith("SAME") and stride > 1):
            out.append(None)
        elif node.op_type == "ConvTranspose":
            exact = extra[axis] + reach - padded == stride
            out.append(product([size, stride]) if exact else None)
        elif stride == 1:
            out.append(size if padded == reach - 1 else None)
        else:
            # windows side by side, as of a patch embedding
            tiles = reach == stride and not padded and not attribute(node, "ceil_mode", 0)
            out.append(truncated_quotient(size, stride) if tiles else None)
    return out


def _compute_resized(node: NodeProto, known: Shapes, sizes: Sequence[Dim]) -> list[Dim]:
    """Return the sizes after scaling by whole numbers; None for other scales."""
    slot = len(node.input) - 1  # before opset 11 and without sizes, the scales are the last input
    scales = known.value(node.input[min(slot, 2)]) if slot and slot <= 2 else None
    if scales is None or scales.dtype.kind != "f" or len(scales) != len(sizes):
        return [None] * len(sizes)
    return [
        product([size, int(scale)]) if size is not None and scale == int(scale) else None
        for size, scale in zip(sizes, scales.tolist(), strict=True)
    ]
