"""Torch implementations of operators that contract, pool, normalize and resample."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.tune.call import Call, Row, Tensor, to_common_device, torch
from onnxprune.tune.ops_shape import from_numpy

F = torch.nn.functional


def _read_window(
    c: Call, x: Tensor, kernel: list[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return strides, dilations, pads before and pads after of a window over the spatial axes."""
    rank = len(kernel)
    strides, dilations = c.get("strides", [1] * rank), c.get("dilations", [1] * rank)
    auto = c.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        if auto == "SAME_UPPER":
            return strides, dilations, small, large
        return strides, dilations, large, small
    pads = c.get("pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
    return strides, dilations, pads[:rank], pads[rank:]


def _pad_spatial(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    """Pad the spatial axes of `x`."""
    # torch lists pads from the last axis to the first
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(c: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    strides, dilations, before, after = _read_window(c, x, list(w.shape[2:]))
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[w.ndim - 2]
    # torch's convolution pads both sides alike
    if before != after:
        x, before = _pad_spatial(x, before, after), [0] * len(before)
    return function(x, w, b, strides, before, dilations, c.get("group", 1))


def _conv_transpose(c: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = w.ndim - 2
    strides, dilations = c.get("strides", [1] * rank), c.get("dilations", [1] * rank)
    extra, pads = list(c.get("output_padding", [0] * rank)), list(c.get("pads", [0] * 2 * rank))
    auto, sizes = c.get("auto_pad", "NOTSET"), c.get("output_shape", None)
    # output sizes before pads crop them
    full = [
        s * (n - 1) + e + d * (k - 1) + 1
        for s, n, e, d, k in zip(strides, x.shape[2:], extra, dilations, w.shape[2:], strict=True)
    ]
    if sizes is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if sizes is not None:
        total = [n - size for n, size in zip(full, sizes[-rank:], strict=True)]
        half = [t // 2 for t in total] if auto == "SAME_UPPER" else [t - t // 2 for t in total]
        pads = half + [t - h for t, h in zip(total, half, strict=True)]
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    y = function(x, w, b, strides, 0, 0, c.get("group", 1), dilations)
    # the border that output_padding adds holds only the bias; pads crop it again from the end
    grow = [n - have for n, have in zip(full, y.shape[2:], strict=True)]
    if any(grow):
        shift = torch.zeros(()) if b is None else b.reshape(-1, *[1] * rank)
        y = _pad_spatial(y - shift, [0] * rank, grow) + shift
    return _pad_spatial(y, [-p for p in pads[:rank]], [-p for p in pads[rank:]])


def _gemm(c: Call, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    alpha, beta = c.get("alpha", 1.0), c.get("beta", 1.0)
    y = (a.T if c.get("transA", 0) else a) @ (b.T if c.get("transB", 0) else b)
    if alpha != 1:
        y = y * alpha
    if bias is None:
        return y
    return y + (bias * beta if beta != 1 else bias)


def _einsum(c: Call, *xs: Tensor) -> Tensor:
    return torch.einsum(c.get("equation", "").replace(" ", ""), *to_common_device(*xs))


def _max_pool(c: Call, x: Tensor) -> Tensor:
    if c.outputs > 1:
        raise c.unsupported("the Indices output")
    kernel = c.get("kernel_shape", [])
    strides, dilations, before, after = _read_window(c, x, kernel)
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    # torch's pool pads both sides alike, by at most half of the kernel
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        x, before = _pad_spatial(x, before, after, -math.inf), [0] * len(before)
    return function(x, kernel, strides, before, dilations, bool(c.get("ceil_mode", 0)))


def _average_pool(c: Call, x: Tensor) -> Tensor:
    """Divide the sum of a window by the number of positions it covers, for any padding."""
    kernel = c.get("kernel_shape", [])
    strides, dilations, before, after = _read_window(c, x, kernel)
    if any(d != 1 for d in dilations) or len(kernel) > 3:
        raise c.unsupported("a dilated window")
    flat = len(kernel) == 1
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    x = _pad_spatial(x, before, after)
    ones = _pad_spatial(ones, before, after, float(c.get("count_include_pad", 0)))
    # torch's one-dimensional pool has no divisor
    if flat:
        x, ones, kernel, strides = x.unsqueeze(2), ones.unsqueeze(2), [1, *kernel], [1, *strides]
    pool = functools.partial(
        F.avg_pool3d if len(kernel) == 3 else F.avg_pool2d,
        kernel_size=kernel,
        stride=strides,
        divisor_override=1,
    )
    ceil = bool(c.get("ceil_mode", 0))
    y = pool(x, ceil_mode=ceil) / pool(ones, ceil_mode=ceil)
    return y.squeeze(2) if flat else y


def _global(name: str) -> Row:
    """Return the row of a pool over all spatial axes."""
    return Row(lambda c, x: getattr(x, name)(list(range(2, x.ndim)), keepdim=True))


def _batch_norm(
    c: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """Normalize by running statistics, or in training by those of the batch."""
    # ONNX's momentum is the weight of the old statistics, torch's that of the new ones
    momentum = 1.0 - c.get("momentum", 0.9)
    learns = c.training and not c.get("fixed_statistics", False)
    return F.batch_norm(x, mean, var, scale, bias, learns, momentum, c.get("epsilon", 1e-5))


def _layer_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if c.outputs > 1:
        raise c.unsupported("the Mean output")
    # ONNX broadcasts the scale, torch's function does not
    y = F.layer_norm(x, x.shape[c.get("axis", -1) % x.ndim :], eps=c.get("epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


def _rms_norm(c: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(c.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + c.get("epsilon", 1e-5)) * scale


def _instance_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=c.get("epsilon", 1e-5))


def _group_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, channels = c.get("num_groups", 1), x.shape[1]
    if scale.numel() != channels:  # before opset 21: one scale per group
        scale, bias = (v.repeat_interleave(channels // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, c.get("epsilon", 1e-5))


def _lp_norm(c: Call, x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, c.get("p", 2), c.get("axis", -1), keepdim=True)
    return x / length.clamp_min(1e-12)


def _lrn(c: Call, x: Tensor) -> Tensor:
    return F.local_response_norm(
        x, c.get("size", 1), c.get("alpha", 1e-4), c.get("beta", 0.75), c.get("bias", 1.0)
    )


def _resize(
    c: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resample one axis after the other."""
    # the second input is `scales` in these versions, not `roi`
    if c.op == "Upsample" or (c.op == "Resize" and c.opset < 11):
        scales = roi if scales is None else scales
    usual = "half_pixel" if c.opset >= 11 and c.op == "Resize" else "asymmetric"
    mode, how = c.get("mode", "nearest"), c.get("coordinate_transformation_mode", usual)
    if (
        how == "tf_crop_and_resize"
        or c.get("antialias", 0)
        or c.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise c.unsupported("cropping, antialiasing or aspect policy")
    axes = [a % x.ndim for a in c.get("axes", range(x.ndim))]
    if sizes is not None and sizes.numel():
        targets = [int(n) for n in sizes.tolist()]
        ratios = [n / x.shape[a] for n, a in zip(targets, axes, strict=True)]
    else:
        factors = scales.tolist() if scales is not None else c.get("scales", [])
        ratios = [float(s) for s in factors]
        targets = [math.floor(x.shape[a] * r) for a, r in zip(axes, ratios, strict=True)]
    for axis, ratio, target in zip(axes, ratios, targets, strict=True):
        # a literal size of the batch axis stands for the batch that runs
        if axis == 0 and c.batch.rebased and target == c.batch.declared:
            continue
        if target != x.shape[axis] or ratio != 1:
            at = _find_source_coordinates(how, target, x.shape[axis], ratio)
            x = _resample(c, x, axis, at, mode)
    return x


def _find_source_coordinates(how: str, target: int, size: int, ratio: float) -> np.ndarray:
    """Return the fractional input position of each output position of an axis."""
    at = np.arange(target, dtype=np.float64)
    if how == "asymmetric":
        return at / ratio
    if how == "align_corners":
        return at * (size - 1) / (target - 1) if target > 1 else at * 0
    # with a single position left, torch reads the first
    if how == "pytorch_half_pixel" and target <= 1:
        return at * 0
    if how == "half_pixel_symmetric":
        adjust = target / (ratio * size)
        return size / 2 * (1 - adjust) + (at + 0.5) / ratio - 0.5
    return (at + 0.5) / ratio - 0.5


def _resample(c: Call, x: Tensor, axis: int, at: np.ndarray, mode: str) -> Tensor:
    """Interpolate an axis at fractional positions: a weighted sum of neighbors."""
    size = x.shape[axis]
    if mode == "nearest":
        default = "round_prefer_floor" if c.opset >= 11 and c.op == "Resize" else "floor"
        nearest = _ROUNDINGS[c.get("nearest_mode", default)](at)
        return x.index_select(axis, _clip_index(nearest, size).to(x.device))
    base = np.floor(at)
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    coefficient = c.get("cubic_coeff_a", -0.75)
    weights = np.stack([_interpolation_weight(mode, at - base - o, coefficient) for o in offsets])
    neighbors = np.stack([base + o for o in offsets])
    if c.get("exclude_outside", 0):
        weights = weights * ((neighbors >= 0) & (neighbors < size))
        # those of the neighbors inside sum to 1 again
        weights = weights / weights.sum(0)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    terms = []
    for position, weight in zip(neighbors, weights, strict=True):
        factor = from_numpy(weight).to(x.device, x.dtype).reshape(shape)
        terms.append(x.index_select(axis, _clip_index(position, size).to(x.device)) * factor)
    return functools.reduce(torch.add, terms)


_ROUNDINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _clip_index(positions: np.ndarray, size: int) -> Tensor:
    """Return positions clipped to an axis of this size, as indices."""
    return from_numpy(positions.clip(0, size - 1).astype(np.int64))


def _interpolation_weight(mode: str, distance: np.ndarray, a: float) -> np.ndarray:
    """Return the weight at a signed distance: linear, or Keys' cubic with coefficient `a`."""
    d = np.abs(distance)
    if mode == "linear":
        return np.clip(1 - d, 0, 1)
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _grid_sample(c: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = c.get("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding, align = c.get("padding_mode", "zeros"), bool(c.get("align_corners", 0))
    return F.grid_sample(x, grid, mode, padding, align)


NN: dict[str, Row] = {
    "Conv": Row(_conv, trainable=(1, 2)),
    "ConvTranspose": Row(_conv_transpose, trainable=(1, 2)),
    "Gemm": Row(_gemm, trainable=(0, 1, 2)),
    "MatMul": Row(lambda c, a, b: a @ b, trainable=(0, 1)),
    "Einsum": Row(_einsum, trainable=(0, 1, 2)),
    "MaxPool": Row(_max_pool),
    "AveragePool": Row(_average_pool),
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("amax"),
    "BatchNormalization": Row(_batch_norm, trainable=(1, 2)),
    "LayerNormalization": Row(_layer_norm, trainable=(1, 2)),
    "RMSNormalization": Row(_rms_norm, trainable=(1,)),
    "SimplifiedLayerNormalization": Row(_rms_norm, trainable=(1,)),
    "InstanceNormalization": Row(_instance_norm, trainable=(1, 2)),
    "GroupNormalization": Row(_group_norm, trainable=(1, 2)),
    "LpNormalization": Row(_lp_norm),
    "LRN": Row(_lrn),
    "Resize": Row(_resize),
    "Upsample": Row(_resize),
    "GridSample": Row(_grid_sample),
}
