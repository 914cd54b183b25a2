"""Gradients of Conv, ConvTranspose, Gemm, MatMul and Einsum with respect to their data operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.autodiff.step import BackwardStep, NoGradient
from onnxprune.autodiff.tape import Value
from onnxprune.autodiff.windows import Windows, windows


def conv(s: BackwardStep) -> list[Value | None]:
    """Differentiate Conv by a Conv with the flipped weight, or by a ConvTranspose.

    The first form needs stride 1 and runs in onnxruntime's blocked layout, which is faster.
    """
    s.only_first()
    weight, group = s.operand(1), s.attribute("group", 1)
    w = windows(s, weight.shape[2:], s.x.shape[2:], s.y.shape[2:])
    common = {"group": group, "dilations": list(w.dilations), "kernel_shape": list(w.kernel)}
    begin = [e - 1 - b for e, b in zip(w.extent, w.before, strict=True)]
    end = [e - 1 - r for e, r in zip(w.extent, w.rest, strict=True)]
    # the flipped weight is a constant of the backward graph
    values = s.known(1)
    # Conv takes no negative pads, which padding beyond the kernel would need
    if values is not None and set(w.strides) == {1} and min(begin + end, default=0) >= 0:
        flipped = s.tape.constant(_flip(values, group))
        attributes = common | {"pads": begin + end}
        return [s.tape.emit("Conv", [s.grad, flipped], s.x.shape, s.grad.dtype, attributes)]
    attributes = common | {
        "strides": list(w.strides),
        "pads": [*w.before, *(max(0, r) for r in w.rest)],
        # input after the last window was not read: its gradient is 0
        "output_padding": [max(0, -r) for r in w.rest],
    }
    return [s.tape.emit("ConvTranspose", [s.grad, weight], s.x.shape, s.grad.dtype, attributes)]


def conv_transpose(s: BackwardStep) -> list[Value | None]:
    """Differentiate ConvTranspose by a Conv with the same weight."""
    s.only_first()
    weight, group = s.operand(1), s.attribute("group", 1)
    w = _find_transposed_windows(s, weight.shape[2:])
    pads = [*w.before, *(max(0, r) for r in w.rest)]
    common = {
        "group": group,
        "dilations": list(w.dilations),
        "kernel_shape": list(w.kernel),
        "strides": list(w.strides),
        "pads": pads,
    }
    return [s.tape.emit("Conv", [s.grad, weight], s.x.shape, s.grad.dtype, common)]


def _find_transposed_windows(s: BackwardStep, kernel: Sequence[int]) -> Windows:
    """Return the windows of the Conv whose transpose this is; they read its output."""
    wide, narrow = s.y.shape[2:], s.x.shape[2:]
    if not s.attribute("output_shape") or s.attribute("auto_pad", "NOTSET").startswith("SAME"):
        return windows(s, kernel, wide, narrow)
    w = windows(s, kernel, wide, narrow)
    # output_shape determines the total padding; its larger half comes first
    extra = s.attribute("output_padding", [0] * len(kernel))
    totals = [
        max(0, stride * (n - 1) + extent + added - size)
        for stride, n, extent, added, size in zip(
            w.strides, narrow, w.extent, extra, wide, strict=True
        )
    ]
    return replace(w, before=tuple(t - t // 2 for t in totals))


def gemm(s: BackwardStep) -> list[Value | None]:
    """Differentiate Gemm, alpha A' B' + beta C, where ' may transpose."""
    a, b, alpha = s.x, s.operand(1), s.attribute("alpha", 1.0)
    flip_a, flip_b = s.attribute("transA", 0), s.attribute("transB", 0)
    g = s.grad if alpha == 1.0 else s.grad * alpha
    grads: list[Value | None] = [None] * len(s.inputs)
    if s.needs[0]:
        da = g.matmul(b if flip_b else b.swap_last())
        grads[0] = da.swap_last() if flip_a else da
    if s.needs[1]:
        db = (a if flip_a else a.swap_last()).matmul(g)
        grads[1] = db.swap_last() if flip_b else db
    if len(s.needs) > 2 and s.needs[2]:
        # the bias is not multiplied by alpha
        grads[2] = (s.grad * s.attribute("beta", 1.0)).sum_to(s.operand(2).shape)
    return grads


def matmul(s: BackwardStep) -> list[Value | None]:
    """Differentiate MatMul of any ranks by both operands."""
    a, b = s.x, s.operand(1)
    # a vector is one row on the left, one column on the right
    left = a.reshape([1, *a.shape]) if len(a.shape) == 1 else a
    right = b.reshape([*b.shape, 1]) if len(b.shape) == 1 else b
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    g = s.grad.reshape([*lead, left.shape[-2], right.shape[-1]])
    da = g.matmul(right.swap_last()).sum_to(left.shape).reshape(a.shape) if s.needs[0] else None
    db = left.swap_last().matmul(g).sum_to(right.shape).reshape(b.shape) if s.needs[1] else None
    return [da, db]


def einsum(s: BackwardStep) -> list[Value | None]:
    """Differentiate Einsum by each operand: an Einsum of the others and the output's gradient."""
    equation = s.attribute("equation")
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    # a repeated letter takes a diagonal, whose gradient is no Einsum
    repeats = any(len(set(term)) != len(term) for term in (*terms, out))
    if "." in left or not arrow or repeats:
        raise NoGradient(
            f"equation {equation!r}: only explicit letters, each once per term, are supported"
        )
    operands = [s.operand(i) for i in range(len(terms))]
    sizes: dict[str, int] = {}
    for term, value in zip(terms, operands, strict=True):
        sizes.update(zip(term, value.shape, strict=True))
    grads: list[Value | None] = []
    for i, (term, need) in enumerate(zip(terms, s.needs, strict=True)):
        if not need:
            grads.append(None)
            continue
        others = [j for j in range(len(terms)) if j != i]
        known = set(out).union(*(terms[j] for j in others))
        # a letter of this operand alone was summed over: its gradient is broadcast
        reached = "".join(letter for letter in term if letter in known)
        g = s.tape.emit(
            "Einsum",
            [s.grad, *(operands[j] for j in others)],
            [sizes[c] for c in reached],
            s.grad.dtype,
            {"equation": ",".join([out, *(terms[j] for j in others)]) + "->" + reached},
        )
        g = g.reshape([sizes[c] if c in known else 1 for c in term])
        grads.append(g.expand([sizes[c] for c in term]))
    return grads


def _flip(weight: np.ndarray, group: int) -> np.ndarray:
    """Return the weight of the adjoint at stride 1.

    (g o) c k... -> (g c) o k..., with every kernel axis reversed.
    """
    out, into, *kernel = weight.shape
    grouped = weight.reshape(group, out // group, into, *kernel)
    swapped = grouped.swapaxes(1, 2).reshape(group * into, out // group, *kernel)
    return np.ascontiguousarray(np.flip(swapped, tuple(range(2, weight.ndim))))
