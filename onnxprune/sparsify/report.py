"""How sparse a model is, and what that is worth."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.ir.io import Model
from onnxprune.sparsify.layout import OPS, targets

DENSE_ENGINES = (
    "Zeros inside dense tensors save nothing on dense engines (onnxruntime, OpenVINO, TensorRT, ncnn): they multiply them like other numbers, "
    "latency and memory stay. They help where weights are stored compressed, on engines with sparse kernels (2:4 on TensorRT), and where whole channels "
    "are zero: `onnxprune optimize` cuts those out."
)
GAP_BITS = (
    5  # relative index of Deep Compression's fully connected layers; 8 for convolutions there
)
CODEBOOK_BITS = 5


@dataclass(frozen=True)
class TensorSparsity:
    """zeros: of `size` values; dead_outputs: outputs whose weights are all zero, of `outputs`."""

    tensor: str
    op: str
    size: int
    zeros: int
    outputs: int
    dead_outputs: int


@dataclass(frozen=True)
class Sparsity:
    """weights, weight_zeros: of Conv, ConvTranspose, Gemm and MatMul; params, zeros: of all float initializers, biases and normalizations included."""

    tensors: Sequence[TensorSparsity]
    params: int
    zeros: int
    weights: int
    weight_zeros: int
    note: str = DENSE_ENGINES

    @property
    def of_params(self) -> float:
        """Zero share of all parameters."""
        return self.zeros / max(self.params, 1)

    @property
    def of_weights(self) -> float:
        """Zero share of the weights only."""
        return self.weight_zeros / max(self.weights, 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "of_params": self.of_params, "of_weights": self.of_weights}


def sparsity(model: Model) -> Sparsity:
    """Zeros of every weight and of the whole model."""
    rows = []
    for target in targets(model, OPS):
        value = target.rows(model.weights[target.tensor].array())
        dead = int((~value.any(-1)).sum())
        rows.append(
            TensorSparsity(
                target.tensor,
                target.op,
                value.size,
                int((value == 0).sum()),
                value.shape[0] * value.shape[1],
                dead,
            )
        )
    floats = [v for w in model.weights.values() if (v := w.array()).dtype.kind == "f"]
    zeros = sum(int((v == 0).sum()) for v in floats)
    return Sparsity(
        rows,
        sum(v.size for v in floats),
        zeros,
        sum(r.size for r in rows),
        sum(r.zeros for r in rows),
    )


@dataclass(frozen=True)
class Packed:
    """What a weight would take in a file as Deep Compression stores it: codebook of `codes` values, relative indices, both Huffman coded."""

    size_bytes: int
    dense_bytes: int
    codes: int


def packed(
    values: np.ndarray, codebook_bits: int = CODEBOOK_BITS, gap_bits: int = GAP_BITS
) -> Packed:
    """Size on disk, not speed. Source: Han et al. 2016, sections 2 to 4; the codebook is k-means from evenly spaced centers."""
    flat = np.asarray(values, np.float64).reshape(-1)
    at = np.flatnonzero(flat)
    if not len(at):
        return Packed(0, flat.size * 4, 0)
    gaps, longest = np.diff(at, prepend=-1) - 1, 2**gap_bits - 1
    fillers = int(
        (gaps // (longest + 1)).sum()
    )  # a gap that does not fit is bridged by stored zeros
    codes = _nearest(flat[at], _codebook(flat[at], 2**codebook_bits))
    symbols = np.concatenate([np.bincount(codes), [fillers]])
    spans = np.bincount(
        np.concatenate([gaps % (longest + 1), np.full(fillers, longest)]).astype(np.int64)
    )
    bits = _huffman_bits(symbols) + _huffman_bits(spans)
    used = int((symbols > 0).sum())
    return Packed(-(-bits // 8) + 4 * used, flat.size * 4, used)


def _codebook(values: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """Centers of one-dimensional k-means."""
    centers = np.linspace(values.min(), values.max(), count)
    for _ in range(rounds):
        codes = _nearest(values, centers)
        sums, counts = np.bincount(codes, values, count), np.bincount(codes, minlength=count)
        centers = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centers))
    return centers


def _nearest(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Index of the nearest of sorted centers."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values)


def _huffman_bits(counts: np.ndarray) -> int:
    """Length of the best prefix code's text: the sum of all merged counts; a lone symbol takes one bit each time."""
    heap = [int(c) for c in counts if c]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits
