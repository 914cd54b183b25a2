"""Products of sets: given the set of every cell of a grid, the sets of its rows and columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Sets = list[frozenset[int]]


class RowsAndColumns(NamedTuple):
    """Sets of rows and columns; a cell is the union of its row's and its column's set."""

    rows: Sets
    columns: Sets


class Bands(NamedTuple):
    """A product after causes were replaced.

    Attributes
    ----------
    product
        Sets of rows and columns; new causes are negative.
    parts
        Cause that was replaced -> the two causes whose union replaces it.
    """

    product: RowsAndColumns
    parts: dict[int, tuple[int, int]]


def factor(cells: list[Sets]) -> RowsAndColumns | None:
    """Return the product that the cells are, by intersection; None if they are none."""
    # the largest sets of any product: if these give other cells, there is no product
    rows = [frozenset.intersection(*row) for row in cells]
    columns = [frozenset.intersection(*column) for column in zip(*cells, strict=True)]
    for row, line in zip(rows, cells, strict=True):
        if any(row | column != cell for column, cell in zip(columns, line, strict=True)):
            return None
    return RowsAndColumns(rows, columns)


def factor_by_bands(cells: list[Sets]) -> Bands | None:
    """Return the product left after causes of rectangles become causes of rows or columns.

    A cause that fills a rectangle of the cells is replaced by one of its rows and one of its
    columns, so that a grouped convolution passes through a channel shuffle into the next one.

    Returns
    -------
    bands
        The product; None if there is none.
    """
    places: dict[int, set[tuple[int, int]]] = {}
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            for atom in cell:
                places.setdefault(atom, set()).add((i, j))
    parts: dict[int, tuple[frozenset[int], frozenset[int]]] = {}
    for atom, where in places.items():
        rows, columns = frozenset(i for i, _ in where), frozenset(j for _, j in where)
        # no rectangle: it cannot be the union of a band of rows and one of columns
        if len(where) != len(rows) * len(columns):
            return None
        # one that spans all rows is a cause of columns already, and the other way round
        if len(rows) < len(cells) and len(columns) < len(cells[0]):
            parts[atom] = rows, columns
    # rectangles of the same rows share the cause of that band; sorted, so that runs are alike
    bands = dict.fromkeys(
        (side, band) for atom in sorted(parts) for side, band in enumerate(parts[atom])
    )
    # negative, so that they differ from all ids
    names = {band: -1 - n for n, band in enumerate(bands)}
    changed = {atom: (names[0, rows], names[1, columns]) for atom, (rows, columns) in parts.items()}

    def replace(cell: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(changed.get(a, (a,)) for a in cell))

    product = factor([[replace(cell) for cell in row] for row in cells])
    return None if product is None else Bands(product, changed)


def coupled_lines(cells: np.ndarray) -> np.ndarray:
    """Return which rows and columns must share a cause because ids repeat among the cells.

    With the set {i, j} for the cell of row i and column j, equal cells are equal sets, bound by
    the rule of `Causes`: if one line remains on each side of two sets, the two lines become one;
    otherwise one pair of cells at a time collapses. `Causes.unify` would give the same result,
    over sets that grow with every step.

    Returns
    -------
    lines : (rows + columns,) int array
        For each row, then each column, the line whose cause it takes.
    """
    rows, columns = cells.shape
    _, first, where = np.unique(cells, return_index=True, return_inverse=True)
    # numpy 2 returns it in the shape of the cells, numpy 1 flat
    first = first[where.ravel()]
    repeated = np.flatnonzero(first != np.arange(cells.size))
    # row and column of each repeated cell, then of the first cell with its id
    ends = [x for at in (repeated, first[repeated]) for x in (at // columns, rows + at % columns)]
    line = np.arange(rows + columns)
    while True:
        a, b, c, d = (line[x] for x in ends)
        pair = (a != b) & (c != d)
        # {p, s} = {q, s}: p and q become one
        joined = [
            np.stack([p, q], 1)[pair & (s == t) & (p != q)]
            for s, t, p, q in ((a, c, b, d), (b, d, a, c), (a, d, b, c), (b, c, a, d))
        ]
        # {a} = {c}, where a row and a column have become one line before
        joined.append(np.stack([a, c], 1)[(a == b) & (c == d) & (a != c)])
        joins = np.concatenate(joined)
        if not len(joins):
            # no line in common: all four become one; only one pair of sets at a time,
            # because others may have a line in common then
            apart = np.flatnonzero(pair & (a != c) & (b != d) & (a != d) & (b != c))
            if not len(apart):
                return line
            joins = np.array([[a, b], [a, c], [a, d]])[:, :, apart[0]]
        for p, q in joins.tolist():
            line[line == line[q]] = line[p]
