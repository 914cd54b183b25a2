"""Gradients of the ops that sum over channels: Conv, ConvTranspose, Gemm, MatMul, Einsum. Data operands only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.autodiff.step import NoGradient, Step
from onnxprune.autodiff.tape import Value


@dataclass(frozen=True)
class Windows:
    """How a sliding window reads its input, an entry a spatial axis. before: zeros padded in front; extent: kernel with dilation."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=False))

    @property
    def rest(self) -> tuple[int, ...]:
        """What the windows reach beyond the end of the input; negative where they end before it."""
        spans = (
            (o - 1) * s + e
            for o, s, e in zip(self.outputs, self.strides, self.extent, strict=False)
        )
        return tuple(
            span - b - n for span, b, n in zip(spans, self.before, self.inputs, strict=False)
        )


def windows(s: Step, kernel: Sequence[int], wide: Sequence[int], narrow: Sequence[int]) -> Windows:
    """Windows that read an axis of length `wide` and give `narrow`; auto_pad resolved by the lengths themselves."""
    ones = [1] * len(kernel)
    strides, dilations = s.attribute("strides", ones), s.attribute("dilations", ones)
    auto = s.attribute("auto_pad", "NOTSET")
    before = list(s.attribute("pads", [0] * 2 * len(kernel)))[: len(kernel)]
    if auto.startswith("SAME"):
        spans = (
            (n - 1) * st + (k - 1) * d + 1
            for n, st, k, d in zip(narrow, strides, kernel, dilations, strict=False)
        )
        extra = [max(0, span - w) for span, w in zip(spans, wide, strict=False)]
        before = [e // 2 if auto == "SAME_UPPER" else e - e // 2 for e in extra]
    elif auto == "VALID":
        before = [0] * len(kernel)
    return Windows(
        tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(wide), tuple(narrow)
    )


def conv(s: Step) -> list[Value | None]:
    """Conv: a Conv with the flipped weight at stride 1, which runs in onnxruntime's blocked layout; else ConvTranspose with the same weight."""
    s.only_first()
    weight, group = s.operand(1), s.attribute("group", 1)
    w = windows(s, weight.shape[2:], s.x.shape[2:], s.y.shape[2:])
    common = {"group": group, "dilations": list(w.dilations), "kernel_shape": list(w.kernel)}
    begin = [e - 1 - b for e, b in zip(w.extent, w.before, strict=False)]
    end = [e - 1 - r for e, r in zip(w.extent, w.rest, strict=False)]
    values = s.known(1)
    if values is not None and set(w.strides) == {1} and min(begin + end, default=0) >= 0:
        flipped = s.tape.constant(_flipped(values, group))
        return [
            s.tape.emit(
                "Conv", [s.grad, flipped], s.x.shape, s.grad.dtype, common | {"pads": begin + end}
            )
        ]
    pads = [*w.before, *(max(0, r) for r in w.rest)]
    more = {
        "strides": list(w.strides),
        "pads": pads,
        "output_padding": [max(0, -r) for r in w.rest],
    }
    return [s.tape.emit("ConvTranspose", [s.grad, weight], s.x.shape, s.grad.dtype, common | more)]


def conv_transpose(s: Step) -> list[Value | None]:
    """ConvTranspose: Conv with the same weight."""
    s.only_first()
    weight, group = s.operand(1), s.attribute("group", 1)
    w = _transposed_windows(s, weight.shape[2:])
    pads = [*w.before, *(max(0, r) for r in w.rest)]
    common = {
        "group": group,
        "dilations": list(w.dilations),
        "kernel_shape": list(w.kernel),
        "strides": list(w.strides),
        "pads": pads,
    }
    return [s.tape.emit("Conv", [s.grad, weight], s.x.shape, s.grad.dtype, common)]


def _transposed_windows(s: Step, kernel: Sequence[int]) -> Windows:
    """The windows of the Conv that ConvTranspose is the transpose of: wide is its output."""
    wide, narrow = s.y.shape[2:], s.x.shape[2:]
    if not s.attribute("output_shape") or s.attribute("auto_pad", "NOTSET").startswith("SAME"):
        return windows(s, kernel, wide, narrow)
    w = windows(s, kernel, wide, narrow)
    extra = s.attribute("output_padding", [0] * len(kernel))
    totals = [
        max(0, st * (n - 1) + e + o - m)
        for st, n, e, o, m in zip(w.strides, narrow, w.extent, extra, wide, strict=False)
    ]
    return Windows(
        w.kernel, w.strides, w.dilations, tuple(t - t // 2 for t in totals), w.inputs, w.outputs
    )


def gemm(s: Step) -> list[Value | None]:
    """Gemm: alpha A' B' + beta C, where ' may transpose."""
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
        grads[2] = (s.grad * s.attribute("beta", 1.0)).sum_to(s.operand(2).shape)
    return grads


def matmul(s: Step) -> list[Value | None]:
    """MatMul of any ranks, both operands."""
    a, b = s.x, s.operand(1)
    left = a.reshape([1, *a.shape]) if len(a.shape) == 1 else a
    right = b.reshape([*b.shape, 1]) if len(b.shape) == 1 else b
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    g = s.grad.reshape([*lead, left.shape[-2], right.shape[-1]])
    da = g.matmul(right.swap_last()).sum_to(left.shape).reshape(a.shape) if s.needs[0] else None
    db = left.swap_last().matmul(g).sum_to(right.shape).reshape(b.shape) if s.needs[1] else None
    return [da, db]


def einsum(s: Step) -> list[Value | None]:
    """Einsum: the gradient of an operand is an Einsum of the others with the output's gradient."""
    left, _, out = s.attribute("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if (
        "." in left
        or "->" not in s.attribute("equation")
        or any(len(set(t)) != len(t) for t in (*terms, out))
    ):
        raise NoGradient(
            f"equation {s.attribute('equation')!r}: only explicit letters, each once a term, are supported"
        )
    operands = [s.operand(i) for i in range(len(terms))]
    sizes = {
        letter: n
        for term, value in zip(terms, operands, strict=False)
        for letter, n in zip(term, value.shape, strict=False)
    }
    grads: list[Value | None] = []
    for i, (term, need) in enumerate(zip(terms, s.needs, strict=False)):
        others = [j for j in range(len(terms)) if j != i]
        met = set(out).union(*(terms[j] for j in others))
        reached = "".join(letter for letter in term if letter in met)
        equation = ",".join([out, *(terms[j] for j in others)]) + "->" + reached
        if not need:
            grads.append(None)
            continue
        g = s.tape.emit(
            "Einsum",
            [s.grad, *(operands[j] for j in others)],
            [sizes[c] for c in reached],
            s.grad.dtype,
            {"equation": equation},
        )
        grads.append(
            g.reshape([sizes[c] if c in met else 1 for c in term]).expand([sizes[c] for c in term])
        )
    return grads


def _flipped(weight: np.ndarray, group: int) -> np.ndarray:
    """(g o) c k... -> (g c) o k... with every kernel axis reversed: the weight of the adjoint at stride 1."""
    out, into, *kernel = weight.shape
    swapped = (
        weight.reshape(group, out // group, into, *kernel)
        .swapaxes(1, 2)
        .reshape(group * into, out // group, *kernel)
    )
    return np.ascontiguousarray(
        swapped[(slice(None), slice(None), *(slice(None, None, -1) for _ in kernel))]
    )
