"""Lengths and costs of every axis at once, for any set of removed channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxprune.analysis.causes import Causes
from onnxprune.analysis.state import Record
from onnxprune.ir.weights import bits
from onnxprune.types import Cost


@dataclass(frozen=True)
class Axes:
    """Id arrays resolved to causes. causes: how many there are; index `causes` is a position that stays."""

    causes: int
    _tables: dict[int, np.ndarray] = field(repr=False)
    _numbers: dict[int, int] = field(repr=False)
    _stacks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(
        repr=False
    )  # (rows, starts, numbers) a table width
    _alive: tuple[np.ndarray, ...] = field(repr=False)

    @staticmethod
    def build(causes: Causes, arrays: Sequence[np.ndarray]) -> Axes:
        """Resolve all arrays; equal ones share a table."""
        unique: dict[bytes, int] = {}
        by_id: dict[int, int] = {}
        first: list[np.ndarray] = []
        for array in arrays:
            if id(array) not in by_id:
                key = array.tobytes()
                if key not in unique:
                    unique[key] = len(first)
                    first.append(array)
                by_id[id(array)] = unique[key]
        found, tables = causes.table(first)
        stacks = []
        for width in sorted({t.shape[1] for t in tables}):
            numbers = [i for i, t in enumerate(tables) if t.shape[1] == width and len(t)]
            if numbers:
                lengths = [len(tables[i]) for i in numbers]
                stacks.append(
                    (
                        np.concatenate([tables[i] for i in numbers]),
                        np.cumsum([0, *lengths[:-1]]),
                        np.array(numbers),
                    )
                )
        return Axes(
            len(found), {k: tables[v] for k, v in by_id.items()}, by_id, stacks, tuple(arrays)
        )

    def table(self, ids: np.ndarray) -> np.ndarray:
        """(length, width) causes of each position, padded with `causes`."""
        return self._tables[id(ids)]

    def known(self, ids: np.ndarray) -> bool:
        """Whether `table` has the axis."""
        return id(ids) in self._tables

    def number(self, ids: np.ndarray) -> int:
        """Index of an axis in `lengths`."""
        return self._numbers[id(ids)]

    def live(self, ids: np.ndarray) -> bool:
        """Whether any position can be cut."""
        return bool((self.table(ids) != self.causes).any())

    def lengths(self, removed: np.ndarray) -> np.ndarray:
        """Kept length of every axis; one more at the end, of 1, for products with fewer axes."""
        out = np.zeros(max(self._numbers.values(), default=-1) + 2)
        for rows, starts, numbers in self._stacks:
            kept = ~(removed[rows[:, 0]] if rows.shape[1] == 1 else removed[rows].any(1))
            out[numbers] = np.add.reduceat(kept.astype(np.int64), starts)
        out[-1] = 1
        return out


@dataclass(frozen=True)
class CostTable:
    """Products of axis lengths: factor times the lengths of `index`, a row each."""

    axes: Axes
    terms: dict[str, tuple[np.ndarray, np.ndarray]]  # what -> (factor (n,), index (n, width))
    variants: tuple[
        dict[int, tuple[int, ...]], ...
    ]  # uses of one tensor: row of the params/bytes terms -> axes (-1: none); counted once where equally cut
    tables: tuple[np.ndarray, ...]

    def values(self, what: str, removed: np.ndarray) -> np.ndarray:
        """Value of each term."""
        return self._products(what, self.axes.lengths(removed))

    def macs(self, removed: np.ndarray) -> np.ndarray:
        """Multiply-accumulates of each product."""
        return self.values("macs", removed)

    def total(self, removed: np.ndarray) -> Cost:
        """All costs."""
        once, lengths = self._once(removed), self.axes.lengths(removed)
        macs, params, size, activations = (
            self._products(what, lengths)
            for what in ("macs", "params", "bytes", "activation_bytes")
        )
        return Cost(
            round(float(macs.sum())),
            round(float(params[once].sum())),
            round(float(size[once].sum())),
            round(float(activations.sum())),
        )

    def savings(self, what: str, removed: np.ndarray) -> np.ndarray:
        """(causes + 1,) first-order saving of each cause."""
        index, lengths = self.terms[what][1], self.axes.lengths(removed)
        values = self._products(what, lengths)
        if what in ("params", "bytes"):
            values = values * self._once(removed)
        per_axis = np.zeros(len(lengths))
        for column in range(index.shape[1]):
            np.add.at(per_axis, index[:, column], values / np.maximum(lengths[index[:, column]], 1))
        out = np.zeros(self.axes.causes + 1)
        for rows, starts, numbers in self.axes._stacks:
            counts = np.diff([*starts, len(rows)])
            share = np.repeat(per_axis[numbers], counts)
            alive = ~removed[rows].any(1)
            for column in range(rows.shape[1]):
                np.add.at(out, rows[alive, column], share[alive])
        out[-1] = 0
        return out

    def _products(self, what: str, lengths: np.ndarray) -> np.ndarray:
        factor, index = self.terms[what]
        return factor * lengths[index].prod(1)

    def _once(self, removed: np.ndarray) -> np.ndarray:
        """Which rows count: of several uses of a tensor that are cut alike, the first."""
        once = np.ones(len(self.terms["params"][0]), bool)
        for rows in self.variants:
            seen = set()
            for row, axes in rows.items():
                gone = [
                    removed[self.tables[n]].any(1) if n >= 0 else np.zeros(0, bool) for n in axes
                ]
                key = tuple(g.tobytes() if g.any() else b"" for g in gone)
                once[row] = key not in seen
                seen.add(key)
        return once


def cost_table(record: Record, axes: Axes, weight_types: frozenset[int]) -> CostTable:
    """The cost of a walk, as products."""
    filler = max(axes._numbers.values(), default=-1) + 1
    macs = [(float(p.factor), [axes.number(a) for a in p.axes]) for p in record.products]
    params: list[tuple[float, list[int]]] = []
    sizes: list[tuple[float, list[int]]] = []
    rows_of: dict[tuple[str, tuple[int, ...]], int] = {}
    for use in record.uses:
        weight = record.model.weights[use.tensor]
        index = [axes.number(a) for a in use.axes if isinstance(a, np.ndarray)]
        key = (
            use.tensor,
            tuple(-1 if not isinstance(a, np.ndarray) else axes.number(a) for a in use.axes),
        )
        if key in rows_of:
            continue
        rows_of[key] = len(params)
        fixed = float(
            prod(
                n
                for n, a in zip(weight.shape, use.axes, strict=False)
                if not isinstance(a, np.ndarray)
            )
        )
        params.append(
            (fixed if weight.dtype in weight_types and weight.shape else 0.0, index)
        )  # a scalar is a constant of a formula
        sizes.append((fixed * bits(weight.dtype) / 8, index))
    by_tensor: dict[str, dict[int, tuple[int, ...]]] = {}
    for (tensor, numbers), r in rows_of.items():
        by_tensor.setdefault(tensor, {})[r] = numbers
    activations = []
    for node in record.nodes:
        for name in node.output:
            state, shape = record.tensors.get(name), record.shapes.shape(name)
            if state is None or shape is None or len(shape) != len(state.axes):
                continue
            fixed = float(
                prod(
                    d
                    for d, a in zip(shape, state.axes, strict=False)
                    if isinstance(d, int) and not isinstance(a, np.ndarray)
                )
            )
            activations.append(
                (
                    fixed * bits(record.shapes.dtype(name)) / 8,
                    [axes.number(a) for a in state.axes if isinstance(a, np.ndarray)],
                )
            )
    tables: list[np.ndarray] = [np.zeros((0, 1), np.int64)] * filler
    for key_id, number in axes._numbers.items():
        tables[number] = axes._tables[key_id]
    terms = {
        "macs": _matrix(macs, filler),
        "params": _matrix(params, filler),
        "bytes": _matrix(sizes, filler),
        "activation_bytes": _matrix(activations, filler),
    }
    return CostTable(axes, terms, tuple(r for r in by_tensor.values() if len(r) > 1), tuple(tables))


def _matrix(rows: list[tuple[float, list[int]]], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and a rectangular index; missing axes point to a length of 1."""
    width = max([len(index) for _, index in rows] + [1])
    index = np.full((len(rows), width), filler)
    for i, (_, found) in enumerate(rows):
        index[i, : len(found)] = found
    return np.array([f for f, _ in rows]), index
