"""Operators of onnxruntime without a CPU kernel, for onnx's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import _conv_implementation

Array = np.ndarray


def _gelu(x: Array) -> Array:
    """Return Gelu by its tanh formula."""
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def _softmax(x: Array) -> Array:
    """Return the softmax of the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Attend on (..., positions, heads, size); return (..., positions, heads times size)."""
    scores = np.einsum("...shd,...thd->...hst", q, k) * (scale or q.shape[-1] ** -0.5)
    out = np.einsum("...hst,...thd->...shd", _softmax(scores), v)
    return out.reshape(*out.shape[:-2], -1).astype(q.dtype)


def _sequences(q: Array, k: Array, v: Array, ends: Array, scale: float) -> tuple[Array]:
    """Attend within each sequence of packed tokens."""
    parts = zip(ends, ends[1:], strict=False)
    return (np.concatenate([_attend(q[a:b], k[a:b], v[a:b], scale) for a, b in parts]),)


class _Op(OpRun):
    """An operator of onnxruntime."""

    op_domain = "com.microsoft"


class NhwcConv(_Op):
    def _run(self, x: Array, w: Array, b: Any = None, z: Any = None, **given: Any) -> tuple:
        y = _conv_implementation(
            x.transpose(0, 3, 1, 2),
            w,
            b,
            auto_pad=None,
            dilations=None,
            group=given.get("group") or 1,
            kernel_shape=list(w.shape[2:]),
            pads=given.get("pads") or [0] * 4,
            strides=given.get("strides") or [1, 1],
        ).transpose(0, 2, 3, 1)
        y = y if z is None else y + z
        return (np.maximum(y, 0) if given.get("activation") == "Relu" else y,)


class NhwcFusedConv(NhwcConv):
    pass


class GroupNorm(_Op):
    def _run(self, x: Array, scale: Array, bias: Array, **given: Any) -> tuple:
        first = given.get("channels_last") == 0
        y = x if first else np.moveaxis(x, -1, 1)
        groups = y.reshape(len(y), given["groups"], -1)
        mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
        y = ((groups - mean) / np.sqrt(variance + (given.get("epsilon") or 1e-5))).reshape(y.shape)
        y = y * scale[:, None, None] + bias[:, None, None]
        if given.get("activation"):
            y = y / (1 + np.exp(-y))
        return (y if first else np.moveaxis(y, 1, -1),)


class SkipGroupNorm(GroupNorm):
    def _run(
        self, x: Array, scale: Array, bias: Array, skip: Array, extra: Array, **given: Any
    ) -> tuple:
        total = x + (skip[:, None, None] if skip.ndim == 2 else skip) + extra
        return (*super()._run(total, scale, bias, **given), total)


class BiasSplitGelu(_Op):
    def _run(self, x: Array, bias: Array) -> tuple:
        left, right = np.split(x + bias, 2, axis=-1)
        return (left * _gelu(right),)


class BiasAdd(_Op):
    def _run(self, x: Array, bias: Array, skip: Array) -> tuple:
        return (x + bias + skip,)


class BiasDropout(_Op):
    def _run(self, x: Array, bias: Array, residual: Any = None) -> tuple:
        y = x + bias + (0 if residual is None else residual)
        return (y, np.ones(y.shape, bool))


class BitmaskDropout(_Op):
    def _run(self, x: Array) -> tuple:
        return (x,)


class BitmaskBiasDropout(_Op):
    def _run(self, x: Array, bias: Array) -> tuple:
        return (x + bias,)


class BiasSoftmax(_Op):
    def _run(self, x: Array, bias: Array, **given: Any) -> tuple:
        flat = (x + bias).reshape(*x.shape[: given["axis"]], -1)
        return (_softmax(flat).reshape(x.shape),)


class GemmFastGelu(_Op):
    def _run(self, x: Array, w: Array, bias: Array) -> tuple:
        return (_gelu(x @ w + bias),)


class FusedMatMulActivation(_Op):
    def _run(self, a: Array, b: Array, **given: Any) -> tuple:
        b = b.swapaxes(-1, -2) if given.get("transB") else b
        return (np.maximum(a @ b, 0),)


class QLinearReduceMean(_Op):
    def _run(
        self, x: Array, scale: Array, zero: Array, to: Array, new_zero: Array, **given: Any
    ) -> tuple:
        values = (x.astype(np.float32) - zero) * scale
        mean = values.mean(tuple(given["axes"]), keepdims=True)
        return (np.clip(np.rint(mean / to) + new_zero, 0, 255).astype(x.dtype),)


class PackedAttention(_Op):
    def _run(
        self, x: Array, w: Array, bias: Array, offset: Array, ends: Array, **given: Any
    ) -> tuple:
        projected = (x @ w + bias).reshape(len(x), 3, given["num_heads"], -1)
        return _sequences(*projected.swapaxes(0, 1), ends, given.get("scale") or 0.0)


class PackedMultiHeadAttention(_Op):
    def _run(
        self, q: Array, k: Any, v: Any, bias: Any, offset: Array, ends: Array, **given: Any
    ) -> tuple:
        if k is None:
            parts = q.transpose(2, 0, 1, 3)
        else:
            joined = np.stack([q, k, v]) + bias.reshape(3, 1, -1)
            parts = joined.reshape(3, len(q), given["num_heads"], -1)
        return _sequences(*parts, ends, given.get("scale") or 0.0)


class MultiHeadAttention(_Op):
    def _run(self, q: Array, kv: Any = None, **given: Any) -> tuple:
        if kv is None:
            parts = np.moveaxis(q, 3, 0)
        else:
            heads = q.reshape(*q.shape[:2], given["num_heads"], -1)
            parts = (heads, kv[..., 0, :], kv[..., 1, :])
        return (_attend(*parts, given.get("scale") or 0.0),)


OPERATORS = [
    NhwcConv,
    NhwcFusedConv,
    GroupNorm,
    SkipGroupNorm,
    BiasSplitGelu,
    BiasAdd,
    BiasDropout,
    BitmaskDropout,
    BitmaskBiasDropout,
    BiasSoftmax,
    GemmFastGelu,
    FusedMatMulActivation,
    QLinearReduceMean,
    PackedAttention,
    PackedMultiHeadAttention,
    MultiHeadAttention,
]
