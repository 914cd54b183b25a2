"""Worlds of pooling, resizing and rearrangements of blocks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)


@space(
    "AveragePool LpPool MaxPool",
    exact="MaxPool",
    opset=(11, 22),
    n=_TWO,
    c=LENGTHS,
    h=shapes(1, 2),
    kernel=(1, 2, 3),
    pad=(0, 1),
    stride=_TWO,
    dilation=_TWO,
    ceil_mode=(0, 1),
    count_pad=(0, 1),
)
def pool(g: Graph, c: SimpleNamespace) -> str | None:
    """One and two spatial axes, padded, strided and dilated."""
    rank = len(c.h)
    if any(h + 2 * c.pad < (c.kernel - 1) * c.dilation + 1 for h in c.h) or c.pad >= c.kernel:
        return None
    average = c.op == "AveragePool"
    if c.opset < 18 and c.op == "LpPool" and (c.ceil_mode or c.dilation > 1):
        return None
    if (c.opset < 19 and average and c.dilation > 1) or (c.count_pad and not average):
        return None
    # onnx's evaluator leaves positions of these without a value, and gives them another shape
    if c.op == "MaxPool" and c.ceil_mode and c.pad and c.stride == c.dilation == 1:
        return None
    return g.node(
        c.op,
        g.free((c.n, c.c, *c.h)),
        kernel_shape=[c.kernel] * rank,
        pads=[c.pad] * 2 * rank,
        strides=[c.stride] * rank,
        dilations=[c.dilation] * rank if c.dilation > 1 else None,
        ceil_mode=c.ceil_mode or None,
        count_include_pad=c.count_pad or None,
    )


@space("MaxPool", exact=True, kernel=_TWO, order=(0, 1), shape=shapes(3, 4))
def max_pool_indices(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """The second output: flat indices into the tensor."""
    rank = len(c.shape) - 2
    if any(h < c.kernel for h in c.shape[2:]):
        return None
    kernel = [c.kernel] * rank
    return g.node_of(2, "MaxPool", g.free(c.shape), kernel_shape=kernel, storage_order=c.order)


@space(
    "GlobalAveragePool GlobalMaxPool GlobalLpPool",
    exact="GlobalMaxPool",
    shape=shapes(3, 4),
)
def global_pool(g: Graph, c: SimpleNamespace) -> str:
    """All spatial axes."""
    return g.node(c.op, g.free(c.shape))


_MODES = ("nearest", "linear", "cubic")
_COORDINATES = ("half_pixel", "asymmetric", "align_corners")


@space(
    "Resize",
    opset=(11, 19),
    scales=((1, 1, 2), (1, 1, 0.5), (1, 2, 1), (2, 1, 1), (1, 1, 1), (1, 2, 2), (1, 1, 1.5)),
    mode=_MODES,
    coordinates=_COORDINATES,
    shape=shapes(3),
)
def resize_by_scales(g: Graph, c: SimpleNamespace) -> str | None:
    """Scales of any axis."""
    if any(int(n * s) < 1 for n, s in zip(c.shape, c.scales, strict=True)):
        return None
    roi, scales = g.constant([], np.float32), g.constant(c.scales, np.float32)
    return g.node(
        "Resize",
        g.free(c.shape),
        roi,
        scales,
        mode=c.mode,
        coordinate_transformation_mode=c.coordinates,
    )


@space(
    "Resize",
    opset=(11, 19),
    sizes=(None, *shapes(3)),
    axes=(None, [2], [1], [1, 2], [2, 1], [0]),
    by=("sizes", "scales"),
    policy=("stretch", "not_larger", "not_smaller"),
    mode=("nearest", "linear"),
    shape=shapes(3),
)
def resize_by_sizes(g: Graph, c: SimpleNamespace) -> str | None:
    """Sizes, also of some axes only and under a policy of the aspect ratio."""
    if c.opset < 18 and (c.axes or c.policy != "stretch"):
        return None
    sizes = c.shape if c.sizes is None else c.sizes
    axes = range(3) if c.axes is None else c.axes
    if c.by == "scales" and (c.axes is None or c.policy != "stretch"):
        return None
    listed = [sizes[a] for a in axes]
    if c.by == "scales":
        ratio = [sizes[a] / c.shape[a] for a in axes]
        operands = ["", g.constant(ratio, np.float32)]
    else:
        operands = ["", "", g.integers(*listed)]
    policy = None if c.policy == "stretch" else c.policy
    return g.node(
        "Resize",
        g.free(c.shape),
        *operands,
        mode=c.mode,
        axes=c.axes,
        keep_aspect_ratio_policy=policy,
    )


@space(
    "Upsample",
    opset=(7, 9),
    scales=((1, 1, 2), (1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 3)),
    mode=("nearest", "linear"),
    shape=shapes(3),
)
def upsample(g: Graph, c: SimpleNamespace) -> str:
    """Scales as an attribute (opset 7) and as an input (opset 9)."""
    if c.opset < 9:
        return g.node("Upsample", g.free(c.shape), scales=list(map(float, c.scales)), mode=c.mode)
    return g.node("Upsample", g.free(c.shape), g.constant(c.scales, np.float32), mode=c.mode)


@space(
    "GridSample",
    opset=(16, 20),
    n=_TWO,
    c=LENGTHS,
    size=shapes(2, 3),
    out=((1, 1), (2, 1), (1, 3), (1, 1, 1), (2, 1, 2)),
    mode=("nearest", "linear", "cubic"),
    padding=("zeros", "border", "reflection"),
    corners=(0, 1),
)
def grid_sample(g: Graph, c: SimpleNamespace) -> str | None:
    """Two and three spatial axes."""
    if len(c.size) != len(c.out) or (c.opset < 20 and (len(c.size) == 3 or c.mode != "nearest")):
        return None
    if len(c.size) == 3 and c.mode == "cubic":
        return None
    grid = g.free((c.n, *c.out, len(c.size)), -1, 2, 0.125)
    attributes = {"mode": c.mode, "padding_mode": c.padding, "align_corners": c.corners}
    return g.node("GridSample", g.free((c.n, c.c, *c.size)), grid, **attributes)


@space(
    "RoiAlign",
    opset=(10, 16),
    c=LENGTHS,
    size=shapes(2),
    boxes=LENGTHS,
    out=shapes(2, lengths=_TWO),
    mode=("avg", "max"),
    ratio=(0, 2),
)
def roi_align(g: Graph, c: SimpleNamespace) -> str:
    """Boxes of one image."""
    corners = [[0, 0, 1 + i, 2] for i in range(c.boxes)]
    boxes, batch = g.constant(corners), g.constant([0] * c.boxes, np.int64)
    return g.node(
        "RoiAlign",
        g.free((1, c.c, *c.size)),
        boxes,
        batch,
        mode=c.mode,
        sampling_ratio=c.ratio,
        output_height=c.out[0],
        output_width=c.out[1],
    )


@space(
    "Col2Im",
    exact=True,
    n=_TWO,
    c=LENGTHS,
    block=shapes(2, lengths=_TWO),
    size=shapes(2),
    stride=_TWO,
    pad=(0, 1),
)
def col2im(g: Graph, c: SimpleNamespace) -> str | None:
    """Blocks of two spatial axes."""
    steps = [(h + 2 * c.pad - b) // c.stride + 1 for h, b in zip(c.size, c.block, strict=True)]
    if min(steps) < 1:
        return None
    data = g.free((c.n, c.c * c.block[0] * c.block[1], steps[0] * steps[1]))
    return g.node(
        "Col2Im",
        data,
        g.integers(*c.size),
        g.integers(*c.block),
        strides=[c.stride] * 2,
        pads=[c.pad] * 4,
    )


@space(
    "DepthToSpace SpaceToDepth",
    exact=True,
    opset=(11, 13),
    n=_TWO,
    c=LENGTHS,
    h=LENGTHS,
    w=LENGTHS,
    block=LENGTHS,
    mode=(None, "DCR", "CRD"),
)
def depth_and_space(g: Graph, c: SimpleNamespace) -> str | None:
    """Both orders of the channels."""
    if c.op == "SpaceToDepth":
        if c.mode is not None:  # an attribute of newer operator sets only
            return None
        shape = (c.n, c.c, c.h * c.block, c.w * c.block)
    else:
        shape = (c.n, c.c * c.block**2, c.h, c.w)
    return g.node(c.op, g.free(shape), blocksize=c.block, mode=c.mode)
