"""Kept lengths and costs of a model for any set of removed channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import TensorProto

from onnxprune.analysis.causes import Causes
from onnxprune.analysis.definitions import all_products
from onnxprune.analysis.folded import arrays_of
from onnxprune.analysis.products import Product
from onnxprune.analysis.sizes import Sizes
from onnxprune.analysis.state import Record
from onnxprune.ir.weights import bits
from onnxprune.types import Cost

_WEIGHT_TYPE_NAMES = [
    "FLOAT",
    "FLOAT16",
    "BFLOAT16",
    "DOUBLE",
    "INT8",
    "UINT8",
    "INT4",
    "UINT4",
    "FLOAT8E4M3FN",
    "FLOAT8E5M2",
]
# The 4-bit and 8-bit float types are missing in older versions of onnx
WEIGHT_TYPES = frozenset(
    getattr(TensorProto, name) for name in _WEIGHT_TYPE_NAMES if hasattr(TensorProto, name)
)


@dataclass(frozen=True)
class Axes:
    """Id arrays resolved to causes.

    Attributes
    ----------
    causes
        Number of causes, which is also the index that stands for a frozen position.
    """

    causes: int
    _tables: dict[int, np.ndarray] = field(repr=False)  # by id() of the array
    _numbers: dict[int, int] = field(repr=False)
    # per width of the tables: (all rows, first row per table, number per table)
    stacks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(repr=False)
    _alive: tuple[np.ndarray, ...] = field(repr=False)  # keeps the arrays, so id() stays theirs
    _of_tensors: np.ndarray = field(repr=False)  # per number: whether it is an axis of a tensor

    @staticmethod
    def build(causes: Causes, arrays: Sequence[np.ndarray], tensors: Sequence[np.ndarray]) -> Axes:
        """Resolve id arrays; equal arrays share a table.

        Parameters
        ----------
        causes
            Store of the causes.
        arrays
            Arrays in the order of their numbers.
        tensors
            Those of them that are axes of tensors; others only count positions, such as those
            before the start of a slice.
        """
        unique: dict[bytes, int] = {}
        by_id: dict[int, int] = {}
        first: list[np.ndarray] = []
        for array in arrays:
            # by identity first: most arrays are listed several times, and hashing takes time
            if id(array) not in by_id:
                key = array.tobytes()
                if key not in unique:
                    unique[key] = len(first)
                    first.append(array)
                by_id[id(array)] = unique[key]
        free, tables = causes.table(first)
        stacks = []
        # axes of one width in one array, so that all lengths are a few calls of numpy
        for width in sorted({t.shape[1] for t in tables}):
            numbers = [i for i, t in enumerate(tables) if t.shape[1] == width and len(t)]
            if numbers:
                rows = np.concatenate([tables[i] for i in numbers])
                lengths = [len(tables[i]) for i in numbers]
                stacks.append((rows, np.cumsum([0, *lengths[:-1]]), np.array(numbers)))
        by_array = {k: tables[v] for k, v in by_id.items()}
        of_tensors = np.zeros(len(first), bool)
        of_tensors[[by_id[id(a)] for a in tensors]] = True
        return Axes(len(free), by_array, by_id, stacks, tuple(arrays), of_tensors)

    def table(self, ids: np.ndarray) -> np.ndarray:
        """Return the (length, width) causes of each position, padded with `causes`."""
        return self._tables[id(ids)]

    def number(self, ids: np.ndarray) -> int:
        """Return the index of an axis in `lengths`."""
        return self._numbers[id(ids)]

    def live(self, ids: np.ndarray) -> bool:
        """Return whether any position of an axis can be cut."""
        return bool((self.table(ids) != self.causes).any())

    def lengths(self, removed: np.ndarray) -> np.ndarray:
        """Return the kept length of every axis, and a 1 at the end for products with fewer axes."""
        out = np.zeros(max(self._numbers.values(), default=-1) + 2)
        for rows, starts, numbers in self.stacks:
            kept = ~(removed[rows[:, 0]] if rows.shape[1] == 1 else removed[rows].any(1))
            out[numbers] = np.add.reduceat(kept.astype(np.int64), starts)
        out[-1] = 1
        return out

    def emptied(self, removed: np.ndarray) -> list[np.ndarray]:
        """Return the tables of the axes of tensors that keep no position."""
        tables = []
        for rows, starts, numbers in self.stacks:
            kept = np.add.reduceat((~removed[rows].any(1)).astype(np.int64), starts)
            ends = [*starts[1:], len(rows)]
            empty = np.flatnonzero((kept == 0) & self._of_tensors[numbers])
            tables += [rows[starts[i] : ends[i]] for i in empty]
        return tables


@dataclass(frozen=True)
class CostTable:
    """Costs as sums of products of axis lengths.

    Attributes
    ----------
    axes
        Axes of the model.
    terms
        "macs", "params", "bytes" and "activation_bytes" -> (factor (n,), index (n, width)); a
        product is the factor times the lengths of the axes in its row of the index.
    variants
        For each tensor that is used with several axes: row of the "params" and "bytes" terms ->
        number per axis (-1 if frozen). Uses that are cut alike are counted once.
    tables
        Causes per number of an axis.
    products
        Products of the "macs" terms.
    uncounted
        Nodes that may multiply and whose multiply-accumulates are not known.
    """

    axes: Axes
    terms: dict[str, tuple[np.ndarray, np.ndarray]]
    variants: tuple[dict[int, tuple[int, ...]], ...]
    tables: tuple[np.ndarray, ...]
    products: tuple[Product, ...] = ()
    uncounted: tuple[int, ...] = ()

    def values(self, what: str, removed: np.ndarray) -> np.ndarray:
        """Return the value of each product."""
        return self._compute_products(what, self.axes.lengths(removed))

    def macs(self, removed: np.ndarray) -> np.ndarray:
        """Return the multiply-accumulates of each product."""
        return self.values("macs", removed)

    def total(self, removed: np.ndarray) -> Cost:
        """Return all costs."""
        once, lengths = self._find_first_uses(removed), self.axes.lengths(removed)
        macs, params, size, activations = (
            self._compute_products(what, lengths)
            for what in ("macs", "params", "bytes", "activation_bytes")
        )
        return Cost(
            round(float(macs.sum())),
            round(float(params[once].sum())),
            round(float(size[once].sum())),
            round(float(activations.sum())),
        )

    def savings(self, what: str, removed: np.ndarray) -> np.ndarray:
        """Return the (causes + 1,) first-order saving of each cause."""
        index, lengths = self.terms[what][1], self.axes.lengths(removed)
        values = self._compute_products(what, lengths)
        if what in ("params", "bytes"):
            # a tensor that is used several times is stored once
            values = values * self._find_first_uses(removed)
        per_axis = np.zeros(len(lengths))
        for column in range(index.shape[1]):
            # a position of an axis is worth the product divided by the axis's length
            np.add.at(per_axis, index[:, column], values / np.maximum(lengths[index[:, column]], 1))
        out = np.zeros(self.axes.causes + 1)
        for rows, starts, numbers in self.axes.stacks:
            counts = np.diff([*starts, len(rows)])
            share = np.repeat(per_axis[numbers], counts)
            # a position is removed once, whichever of its causes does it
            alive = ~removed[rows].any(1)
            for column in range(rows.shape[1]):
                np.add.at(out, rows[alive, column], share[alive])
        out[-1] = 0
        return out

    def _compute_products(self, what: str, lengths: np.ndarray) -> np.ndarray:
        """Return the value of each product."""
        factor, index = self.terms[what]
        return factor * lengths[index].prod(1)

    def _find_first_uses(self, removed: np.ndarray) -> np.ndarray:
        """Return which rows count: the first of several uses of a tensor that are cut alike."""
        once = np.ones(len(self.terms["params"][0]), bool)
        for rows in self.variants:
            seen = set()
            for row, axes in rows.items():
                cuts = [
                    removed[self.tables[n]].any(1) if n >= 0 else np.zeros(0, bool) for n in axes
                ]
                # no cut is keyed like no axis, so that a use that loses nothing equals a frozen one
                key = tuple(c.tobytes() if c.any() else b"" for c in cuts)
                once[row] = key not in seen
                seen.add(key)
        return once


Terms = list[tuple[float, list[int]]]  # (factor, numbers of axes) per product


def cost_table(record: Record, axes: Axes, sizes: Sizes) -> CostTable:
    """Return the costs of an analyzed model.

    Parameters
    ----------
    record
        Record of the pass.
    axes
        All its axes.
    sizes
        Lengths of dynamic axes.
    """
    filler = max(axes._numbers.values(), default=-1) + 1
    products, uncounted = all_products(record, sizes)
    macs = [(_compute_fixed_factor(p, sizes), [axes.number(a) for a in p.axes]) for p in products]
    params, size_bytes, variants = _weight_terms(record, axes)
    tables: list[np.ndarray] = [np.zeros((0, 1), np.int64)] * filler
    for key_id, number in axes._numbers.items():
        tables[number] = axes._tables[key_id]
    terms = {
        "macs": _make_matrix(macs, filler),
        "params": _make_matrix(params, filler),
        "bytes": _make_matrix(size_bytes, filler),
        "activation_bytes": _make_matrix(_list_activation_terms(record, axes, sizes), filler),
    }
    return CostTable(axes, terms, variants, tuple(tables), products, uncounted)


def _compute_fixed_factor(product: Product, sizes: Sizes) -> float:
    """Return the factor of a product with its dynamic lengths and iterations."""
    dynamic = prod(sizes.length(places) for places in product.dynamic)
    iterations = prod(sizes.iterations(node) for node in product.loops)
    return float(product.factor * dynamic * iterations)


def _weight_terms(
    record: Record, axes: Axes
) -> tuple[Terms, Terms, tuple[dict[int, tuple[int, ...]], ...]]:
    """Return the terms of parameters and bytes, and the uses of tensors with several axes."""
    params: Terms = []
    sizes: Terms = []
    by_tensor: dict[str, dict[tuple[int, ...], int]] = {}  # numbers of axes -> row
    for use in record.uses:
        weight = record.model.weights[use.tensor]
        numbers = tuple(axes.number(a) if isinstance(a, np.ndarray) else -1 for a in use.axes)
        rows = by_tensor.setdefault(use.tensor, {})
        # a use of the same axes is cut alike whatever the plan
        if numbers in rows:
            continue
        rows[numbers] = len(params)
        index = [n for n in numbers if n >= 0]
        fixed = float(prod(d for d, n in zip(weight.shape, numbers, strict=True) if n < 0))
        # a scalar is a constant of a formula
        counts = weight.dtype in WEIGHT_TYPES and weight.shape
        params.append((fixed if counts else 0.0, index))
        sizes.append((fixed * bits(weight.dtype) / 8, index))
    several = [rows for rows in by_tensor.values() if len(rows) > 1]
    return params, sizes, tuple({row: n for n, row in rows.items()} for rows in several)


def _list_activation_terms(record: Record, axes: Axes, sizes: Sizes) -> Terms:
    """Return the terms of the bytes that all outputs of nodes take."""
    terms: Terms = []
    for node in record.nodes:
        for name in node.output:
            state, shape = record.tensors.get(name), record.shapes.shape(name)
            # what is computed from weights alone, such as dequantized ones, is no activation
            if state is None or state.constant or shape is None or len(shape) != len(state.axes):
                continue
            pairs = list(zip(sizes.at(name), state.axes, strict=True))
            # of a dynamic axis with factors, the positions of the factors are divided out
            fixed = prod(d // prod(map(len, arrays_of(a))) if d else 0 for d, a in pairs)
            index = [axes.number(ids) for _, a in pairs for ids in arrays_of(a)]
            terms.append((float(fixed) * bits(record.shapes.dtype(name)) / 8, index))
    return terms


def _make_matrix(rows: Terms, filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Return factors and a rectangular index; missing axes point to a length of 1."""
    width = max([len(index) for _, index in rows] + [1])
    matrix = np.full((len(rows), width), filler)
    for i, (_, index) in enumerate(rows):
        matrix[i, : len(index)] = index
    return np.array([f for f, _ in rows]), matrix
