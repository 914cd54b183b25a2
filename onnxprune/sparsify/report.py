"""Sparsity of a model and its size under compressed storage."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.ir.io import Model
from onnxprune.sparsify.layout import OPS, linear_weights

DENSE_ENGINES = (
    "Zeros inside dense tensors save nothing on dense engines (onnxruntime, OpenVINO, TensorRT, "
    "ncnn): they multiply zeros like other numbers, so latency and memory stay the same. Zeros "
    "help if weights are stored compressed, on engines with sparse kernels (2:4 on TensorRT), and "
    "if whole channels are zero: `onnxprune optimize` removes those."
)
# Deep Compression uses 5 bits for the indices of fully connected layers, 8 for convolutions
GAP_BITS = 5
CODEBOOK_BITS = 5


@dataclass(frozen=True)
class TensorSparsity:
    """Zeros of one weight.

    Attributes
    ----------
    tensor : str
        Name of the weight.
    op : str
        Operator that reads it.
    size, zeros : int
        Number of values, and of zeros among them.
    outputs, dead_outputs : int
        Number of outputs, and of those whose weights are all zero.
    """

    tensor: str
    op: str
    size: int
    zeros: int
    outputs: int
    dead_outputs: int


@dataclass(frozen=True)
class Sparsity:
    """Zeros of a model.

    Attributes
    ----------
    tensors : sequence of TensorSparsity
        Zeros per weight.
    params, zeros : int
        Values, and zeros, of all float initializers including biases and normalizations.
    weights, weight_zeros : int
        Values, and zeros, of the weights of Conv, ConvTranspose, Gemm and MatMul.
    note : str
        What zeros save on dense engines.
    """

    tensors: Sequence[TensorSparsity]
    params: int
    zeros: int
    weights: int
    weight_zeros: int
    note: str = DENSE_ENGINES

    @property
    def of_params(self) -> float:
        """Share of zeros among all parameters."""
        return self.zeros / max(self.params, 1)

    @property
    def of_weights(self) -> float:
        """Share of zeros among the weights."""
        return self.weight_zeros / max(self.weights, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "of_params": self.of_params, "of_weights": self.of_weights}


def sparsity(model: Model) -> Sparsity:
    """Count the zeros of every weight and of the model."""
    rows = []
    for target in linear_weights(model, OPS):
        value = target.to_rows(model.weights[target.tensor].array())
        rows.append(
            TensorSparsity(
                target.tensor,
                target.op,
                size=value.size,
                zeros=int((value == 0).sum()),
                outputs=value.shape[0] * value.shape[1],
                dead_outputs=int((~value.any(-1)).sum()),
            )
        )
    floats = [v for w in model.weights.values() if (v := w.array()).dtype.kind == "f"]
    return Sparsity(
        rows,
        params=sum(v.size for v in floats),
        zeros=sum(int((v == 0).sum()) for v in floats),
        weights=sum(r.size for r in rows),
        weight_zeros=sum(r.zeros for r in rows),
    )


@dataclass(frozen=True)
class Packed:
    """Size of a weight as Deep Compression stores it.

    Values are replaced by codes of a codebook, positions by relative indices; both are Huffman
    coded.

    Attributes
    ----------
    size_bytes : int
        Compressed size, codebook included.
    dense_bytes : int
        Size in float32.
    codes : int
        Used entries of the codebook.
    """

    size_bytes: int
    dense_bytes: int
    codes: int


def packed(
    values: np.ndarray, codebook_bits: int = CODEBOOK_BITS, gap_bits: int = GAP_BITS
) -> Packed:
    """Return the size of a weight on disk after Deep Compression; it says nothing about speed.

    Source: Han et al. 2016, sections 2 to 4. The codebook is k-means from evenly spaced centers.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    at = np.flatnonzero(flat)
    if not len(at):
        return Packed(0, flat.size * 4, 0)
    gaps, longest = np.diff(at, prepend=-1) - 1, 2**gap_bits - 1
    # a gap that exceeds the index range is bridged by stored zeros
    fillers = int((gaps // (longest + 1)).sum())
    codes = _assign(flat[at], _fit_codebook(flat[at], 2**codebook_bits))
    symbols = np.concatenate([np.bincount(codes), [fillers]])
    indices = np.concatenate([gaps % (longest + 1), np.full(fillers, longest)])
    spans = np.bincount(indices.astype(np.int64))
    bits = _count_huffman_bits(symbols) + _count_huffman_bits(spans)
    # only entries of the codebook that occur are stored, in float32
    used = int((symbols > 0).sum())
    return Packed(-(-bits // 8) + 4 * used, flat.size * 4, used)


def _fit_codebook(values: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """Return the sorted centers of one-dimensional k-means."""
    centers = np.linspace(values.min(), values.max(), count)
    for _ in range(rounds):
        codes = _assign(values, centers)
        sums, counts = np.bincount(codes, values, count), np.bincount(codes, minlength=count)
        # an empty cluster keeps its center
        centers = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centers))
    return centers


def _assign(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of sorted centers."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values)


def _count_huffman_bits(counts: np.ndarray) -> int:
    """Return the length of a text in its best prefix code: the sum of all merged counts."""
    heap = [int(c) for c in counts if c]
    # a single symbol still takes one bit per occurrence
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits
