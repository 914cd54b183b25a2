"""Torch implementations of operators that move, select and create data.

Shapes and indices are int64 tensors on the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import numpy_helper

from onnxprune.tune.call import Call, Row, Tensor, to_common_device, torch

F = torch.nn.functional
MAX_TRAINABLE = 64  # inputs of Concat that may be parameters


def _read_axes(c: Call, axes: Tensor | None) -> list[int]:
    """Return axes, an attribute in old opsets and an input in new ones."""
    return axes.tolist() if axes is not None else list(c.get("axes", []))


def _rebatch(c: Call, x: Tensor, target: list[int]) -> Tensor:
    """Reshape for the batch that runs; literals may hold the declared batch size.

    The batch is the axis of -1 if that had the declared batch size in the recorded run, else the
    outermost axis.
    """
    batch, shape = c.batch, c.batch.shapes.get(c.output)
    scales = bool(shape) and x.numel() * batch.declared == math.prod(shape or ()) * batch.actual
    if not batch.rebased or not shape or not scales:
        y = x.reshape(target)
        if batch.recording:
            batch.shapes[c.output] = tuple(y.shape)
        return y
    outermost = shape[0] == batch.declared and x.shape[0] == batch.actual
    inferred = -1 in target and shape[target.index(-1)] == batch.declared
    # -1 adapts by itself; a size that is no multiple of the batch cannot be scaled
    if (inferred and not outermost) or shape[0] * batch.actual % batch.declared:
        return x.reshape(target)
    return x.reshape((shape[0] * batch.actual // batch.declared, *shape[1:]))


def _reshape(c: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    target = [int(n) for n in (shape.tolist() if shape is not None else c.get("shape", []))]
    if not c.get("allowzero", 0):
        # 0 stands for the size of the input's axis
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return _rebatch(c, x, target)


def _flatten(c: Call, x: Tensor) -> Tensor:
    axis = c.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    # -1 would be ambiguous for an empty tensor
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(c: Call, x: Tensor) -> Tensor:
    return x.permute(c.get("perm", list(range(x.ndim))[::-1]))


def _squeeze(c: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _read_axes(c, axes)
    if not over and axes is None and "axes" not in c.attributes:
        return x.squeeze()
    # from the last, so that the numbers of the others stay valid
    for axis in sorted((a % x.ndim for a in over), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(c: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    new = _read_axes(c, axes)
    # ascending, as each number counts the new axes before it
    for axis in sorted(a % (x.ndim + len(new)) for a in new):
        x = x.unsqueeze(axis)
    return x


def _concat(c: Call, *xs: Tensor) -> Tensor:
    axis, xs = c.get("axis", 1), to_common_device(*xs)
    # a class token of the declared batch size is repeated for the samples of another
    if axis % xs[0].ndim and c.batch.rebased:
        rows = max(x.shape[0] for x in xs)
        xs = tuple(x.expand(rows, *x.shape[1:]) if x.shape[0] == 1 < rows else x for x in xs)
    return torch.cat(xs, axis)


def _split(c: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = c.get("axis", 0)
    parts = sizes.tolist() if sizes is not None else c.get("split", None)
    if parts is None:
        # rounded up: the last part may be shorter
        parts = -(-x.shape[axis] // c.get("num_outputs", c.outputs))
    return torch.split(x, parts, axis)


def _slice(
    c: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin = starts.tolist() if starts is not None else c.get("starts", [])
    end = ends.tolist() if ends is not None else c.get("ends", [])
    over = _read_axes(c, axes) or list(range(len(begin)))
    strides = steps.tolist() if steps is not None else [1] * len(begin)
    for a, b, e, s in zip(over, begin, end, strides, strict=True):
        axis = a % x.ndim
        # going backwards, an end before the first element includes it
        stop = None if s < 0 and e < -x.shape[axis] else e
        window = range(x.shape[axis])[slice(b, stop, s)]
        if s > 0:
            part = slice(window.start, max(window.stop, window.start), s)
            x = x[(slice(None),) * axis + (part,)]
        else:  # torch's slices have no negative step
            x = x.index_select(axis, torch.tensor(list(window), dtype=torch.int64, device=x.device))
    return x


def _wrap(indices: Tensor, size: int, x: Tensor) -> Tensor:
    """Return indices on the data's device; negative ones count from the end."""
    indices = indices.to(x.device, torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _gather(c: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = c.get("axis", 0) % x.ndim
    index = _wrap(indices, x.shape[axis], x)
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(c: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = c.get("axis", 0) % x.ndim
    return torch.gather(x, axis, _wrap(indices, x.shape[axis], x))


def _gather_nd(c: Call, x: Tensor, indices: Tensor) -> Tensor:
    leading = c.get("batch_dims", 0)
    # leading axes are batch axes: each selects its own row
    index = indices.to(x.device, torch.int64)
    rows = []
    for i, n in enumerate(x.shape[:leading]):
        shape = [1] * (index.ndim - 1)
        shape[i] = -1
        rows.append(torch.arange(n, device=x.device).reshape(shape))
    return x[(*rows, *index.unbind(-1))]


def _scatter_elements(c: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = c.get("axis", 0) % x.ndim, c.get("reduction", "none")
    index = _wrap(indices, x.shape[axis], x)
    if how == "none":
        return x.scatter(axis, index, updates.to(x.dtype))
    reduction = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return x.scatter_reduce(axis, index, updates.to(x.dtype), reduction)


def _scatter_nd(c: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how = c.get("reduction", "none")
    if how not in ("none", "add"):
        raise c.unsupported(f"reduction {how!r}")
    return x.index_put(
        indices.to(x.device, torch.int64).unbind(-1),
        updates.to(x.device, x.dtype),
        accumulate=how == "add",
    )


def _expand(c: Call, x: Tensor, shape: Tensor) -> Tensor:
    target, batch = [int(n) for n in shape.tolist()], c.batch
    rebatch = batch.rebased and len(target) == x.ndim
    if rebatch and target[0] == batch.declared and x.shape[0] == batch.actual:
        target[0] = batch.actual
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(target)))


def _shape(c: Call, x: Tensor) -> Tensor:
    start, end = c.get("start", 0), c.get("end", x.ndim)
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _constant(c: Call) -> Tensor:
    for name, kind in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in c.attributes:
            return torch.tensor(c.attributes[name], dtype=kind)
    if "value" not in c.attributes:
        raise c.unsupported("a constant of this kind")
    return tensor_of(c.attributes["value"])


def _constant_of_shape(c: Call, shape: Tensor) -> Tensor:
    value = tensor_of(c.attributes["value"]) if "value" in c.attributes else torch.zeros(1)
    # a copy, because expanded elements share memory
    return value.reshape(()).expand(*shape.tolist()).clone()


def _pad(
    c: Call,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    amounts = pads.tolist() if pads is not None else c.get("pads", c.get("paddings", []))
    over = [a % x.ndim for a in axes.tolist()] if axes is not None else list(range(x.ndim))
    before, after, mode = amounts[: len(over)], amounts[len(over) :], c.get("mode", "constant")
    if mode == "constant":
        # torch lists pads from the last axis to the first
        flat = [0] * (2 * x.ndim)
        for axis, b, e in zip(over, before, after, strict=True):
            last = 2 * (x.ndim - 1 - axis)
            flat[last], flat[last + 1] = b, e
        fill = float(value.item()) if value is not None else c.get("value", 0.0)
        return F.pad(x, flat, value=fill)
    for axis, b, e in zip(over, before, after, strict=True):
        if b or e:
            positions = np.arange(-b, x.shape[axis] + e)
            x = x.index_select(
                axis, _find_source_positions(positions, x.shape[axis], mode).to(x.device)
            )
    return x


def _find_source_positions(positions: np.ndarray, size: int, mode: str) -> Tensor:
    """Return the positions that a padded axis is filled from."""
    if mode == "edge":
        positions = positions.clip(0, size - 1)
    elif mode == "wrap":
        positions = positions % size
    else:  # reflect: 0 1 2 3 2 1 0 1 ...
        period = max(2 * (size - 1), 1)
        positions = positions % period
        positions = np.minimum(positions, period - positions) if size > 1 else positions * 0
    return torch.from_numpy(positions.astype(np.int64))


def _depth_to_space(c: Call, x: Tensor) -> Tensor:
    b, (n, ch, h, w) = c.get("blocksize", 1), x.shape
    if c.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, b, b, ch // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, ch // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, ch // b**2, h * b, w * b)


def _space_to_depth(c: Call, x: Tensor) -> Tensor:
    b, (n, ch, h, w) = c.get("blocksize", 1), x.shape
    blocks = x.reshape(n, ch, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, ch * b * b, h // b, w // b)


def _cumsum(c: Call, x: Tensor, axis: Tensor) -> Tensor:
    over, flip = int(axis.item()), bool(c.get("reverse", 0))
    x = x.flip(over) if flip else x
    total = x.cumsum(over) - (x if c.get("exclusive", 0) else 0)
    return total.flip(over) if flip else total


def _topk(c: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    count = int(k.item()) if k is not None else c.get("k", 1)
    values, indices = torch.topk(
        x, count, c.get("axis", -1), bool(c.get("largest", 1)), bool(c.get("sorted", 1))
    )
    return values, indices


def _one_hot(c: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size = int(depth.item())
    index = indices.to(torch.int64)
    # negative indices count from the end; those beyond either end have the off value everywhere
    inside = (index >= -size) & (index < size)
    hot = (F.one_hot(index % size, size) * inside.unsqueeze(-1)).to(values.dtype)
    axis = c.get("axis", -1)
    return (values[0] + (values[1] - values[0]) * hot).movedim(-1, axis)


def _col2im(c: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    pads = c.get("pads", [0, 0, 0, 0])
    if image.numel() != 2 or pads[:2] != pads[2:]:
        raise c.unsupported("anything but two spatial axes with symmetric pads")
    size, kernel = tuple(image.tolist()), tuple(block.tolist())
    return F.fold(x, size, kernel, c.get("dilations", 1), pads[:2], c.get("strides", 1))


def _trilu(c: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = int(k.item()) if k is not None else 0
    return torch.triu(x, diagonal) if c.get("upper", 1) else torch.tril(x, diagonal)


def tensor_of(proto: Any) -> Tensor:
    """Return a TensorProto's values in a type that torch computes with."""
    return from_numpy(numpy_helper.to_array(proto))


def from_numpy(values: np.ndarray) -> Tensor:
    """Return a tensor that owns its values, in a type that torch computes with.

    Half precision becomes float32, wide unsigned types the next wider signed one.
    """
    if values.dtype.kind not in "biuf" or values.dtype == np.float16:
        values = values.astype(np.float32)
    wider = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(values.dtype.name)
    return torch.from_numpy(np.array(values, dtype=wider or values.dtype, order="C", copy=True))


SHAPE: dict[str, Row] = {
    "Reshape": Row(_reshape, trainable=(0,)),
    "Flatten": Row(_flatten, trainable=(0,)),
    "Transpose": Row(_transpose, trainable=(0,)),
    "Squeeze": Row(_squeeze, trainable=(0,)),
    "Unsqueeze": Row(_unsqueeze, trainable=(0,)),
    "Concat": Row(_concat, trainable=tuple(range(MAX_TRAINABLE))),
    "Split": Row(_split, trainable=(0,)),
    "Slice": Row(_slice, trainable=(0,)),
    "Gather": Row(_gather, trainable=(0,)),
    "GatherElements": Row(_gather_elements, trainable=(0,)),
    "GatherND": Row(_gather_nd, trainable=(0,)),
    "ScatterElements": Row(_scatter_elements, trainable=(0, 2)),
    "ScatterND": Row(_scatter_nd, trainable=(0, 2)),
    "Expand": Row(_expand, trainable=(0,)),
    "Tile": Row(lambda c, x, n: x.repeat(*n.tolist()), trainable=(0,)),
    "Shape": Row(_shape),
    "Size": Row(lambda c, x: torch.tensor(x.numel())),
    "Constant": Row(_constant),
    "ConstantOfShape": Row(_constant_of_shape),
    "Range": Row(lambda c, a, b, s: torch.arange(a.item(), b.item(), s.item(), dtype=a.dtype)),
    "Pad": Row(_pad),
    "CumSum": Row(_cumsum),
    "DepthToSpace": Row(_depth_to_space),
    "SpaceToDepth": Row(_space_to_depth),
    "TopK": Row(_topk),
    "OneHot": Row(_one_hot),
    "Col2Im": Row(_col2im),
    "NonZero": Row(lambda c, x: torch.nonzero(x).T),
    "Trilu": Row(_trilu),
}
