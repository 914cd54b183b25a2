"""Sets of causes: what has to be removed for a position of an axis to go.

An axis is either an int, the reason why all of it is frozen, or an int64 array with one id a position. An id stands for
a set of causes: an atom (one cause), or a pair of ids (their union). Ids are bound to each other as the walk finds
equalities; a frozen id stands for the empty set and remembers why. A position is removed iff a cause of its set is.
Approximations only couple more or freeze more, so a cut is always a valid graph.
"""

from __future__ import annotations

import numpy as np

Axis = int | np.ndarray
UNKNOWN = 1  # the reason of what is frozen for none in particular
MOST_IDS = (
    1 << 23
)  # positions that are told apart in one model: a few hundred bytes of literals can ask for billions
_FIRST_CAPACITY = 1024
_MARK_FACTOR = 16  # a sort of n ids costs about as much as a pass over 16 n flags


class Causes:
    """The store of one analysis. Ids are positions in growing arrays; id 0 is not used."""

    def __init__(self) -> None:
        self._parent = np.arange(_FIRST_CAPACITY)
        self._left = np.zeros(_FIRST_CAPACITY, np.int64)  # 0 for an atom
        self._right = np.zeros(_FIRST_CAPACITY, np.int64)
        self._why = np.zeros(_FIRST_CAPACITY, np.int64)  # of a root: reason it is frozen, 0 = free
        self._inside = np.zeros(_FIRST_CAPACITY, bool)  # of a root: it is part of some pair
        self._count = 1
        self._frozen_ids: dict[int, int] = {}
        self._products: dict[tuple[bytes, bytes], np.ndarray] = {}

    # ------------------------------------------------------------ making

    def fresh(self, size: int, why_single: int) -> Axis:
        """New causes, one a position; an axis of length 1 cannot lose its only position and is frozen."""
        return why_single if size <= 1 else self.new(size)

    def frozen(self, why: int, size: int) -> np.ndarray:
        """An array form of a frozen axis, to stand beside others in a concatenation."""
        if why not in self._frozen_ids:
            self._frozen_ids[why] = int(self.new(1)[0])
            self._why[self._frozen_ids[why]] = why
        return np.full(size, self._frozen_ids[why])

    def merge(self, a: Axis, size_a: int, b: Axis, size_b: int) -> Axis:
        """Axis of the product: cell (i, j) holds a[i] | b[j]."""
        if isinstance(a, int) and isinstance(b, int):
            return a
        if isinstance(a, int):
            return np.tile(b, size_a)
        if isinstance(b, int):
            return np.repeat(a, size_b)
        key = (a.tobytes(), b.tobytes())
        if key not in self._products:
            self._products[key] = self._pairs(np.repeat(a, size_b), np.tile(b, size_a))
        return self._products[key]

    def split(self, x: Axis, rows: int, columns: int, why_single: int) -> tuple[Axis, Axis]:
        """The inverse of `merge`: (row axis, column axis) whose product is x, after binding where x is none."""
        if isinstance(x, int):
            return x, x
        if rows == 1 or columns == 1:
            return (why_single, x) if rows == 1 else (x, why_single)
        cells = self.find(x).reshape(rows, columns)
        free = self._why[cells] == 0
        if not free.any():
            why = int(self._why[cells[0, 0]])
            return why, why
        if (cells == cells[0]).all():
            return why_single, cells[0]
        if (cells == cells[:, :1]).all():
            return cells[:, 0], why_single
        left, right = self._left[cells], self._right[cells]
        if left.all() and (left == left[:, :1]).all() and (right == right[0]).all():
            return left[:, 0], right[0]
        if free.all() and not left.any() and len(np.unique(cells)) == cells.size:
            r, c = self.new(rows), self.new(columns)
            self.unify(cells.ravel(), self.merge(r, rows, c, columns))
            return r, c
        return self._split_sets(cells)

    # ------------------------------------------------------------ binding

    def unify(self, a: Axis, b: Axis) -> None:
        """Make the sets of two axes equal, position by position."""
        if isinstance(a, int) or isinstance(b, int):
            if isinstance(a, np.ndarray):
                self.freeze(a, b)  # type: ignore[arg-type]
            elif isinstance(b, np.ndarray):
                self.freeze(b, a)
            return
        while True:
            ra, rb = self.find(a), self.find(b)
            differ = ra != rb
            differ[differ] &= (self._why[ra[differ]] == 0) | (self._why[rb[differ]] == 0)
            if not differ.any():
                return
            pairs = np.unique(
                np.stack(
                    [np.minimum(ra[differ], rb[differ]), np.maximum(ra[differ], rb[differ])], 1
                ),
                axis=0,
            )
            compound = (self._left[pairs] != 0) & (self._why[pairs] == 0)
            plain = pairs[~compound.any(1)]
            if len(plain):
                self._hook(plain)
                continue
            if self._bind_new(pairs, compound):
                continue
            for x, y in pairs.tolist():
                self._equate(self.atoms(x), self.atoms(y), x, y)
            return

    def freeze(self, x: Axis, why: int) -> None:
        """Bind every cause of the axis to the empty set; the first reason is kept."""
        if isinstance(x, int):
            return
        roots = self._distinct(self.find(x))
        roots = roots[self._why[roots] == 0]
        compound = self._left[roots] != 0
        self._why[roots[~compound]] = why
        self._why[self._all_atoms(roots[compound])[1]] = why

    # ------------------------------------------------------------ asking

    def find(self, ids: np.ndarray) -> np.ndarray:
        """What each id is bound to at last."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                break
            roots = self._parent[above]
        self._parent[ids] = roots
        return roots

    def atoms(self, identity: int) -> frozenset[int]:
        """The free causes of an id."""
        stack, found, seen = [identity], set(), set()
        while stack:
            root = self._root(stack.pop())
            if root in seen or self._why[root]:
                continue
            seen.add(root)
            if self._left[root]:
                stack += [int(self._left[root]), int(self._right[root])]
            else:
                found.add(root)
        return frozenset(found)

    def table(self, axes: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Free causes of many axes at once.

        Returns
        -------
        causes : (n,) ids of the free causes, ascending
        tables : an int array (length, width) an axis: indices into `causes`, padded with n; n alone is a frozen position
        """
        roots = (
            self._distinct(self.find(self._distinct(np.concatenate(axes))))
            if axes
            else np.zeros(0, np.int64)
        )
        compound = roots[self._left[roots] != 0]
        single = roots[(self._left[roots] == 0) & (self._why[roots] == 0)]
        owner, atom = self._all_atoms(compound)
        causes = np.union1d(single, atom)
        index = np.full(self._count, len(causes))
        index[causes] = np.arange(len(causes))
        start = np.zeros(self._count + 1, np.int64)  # of the atoms of each root in `atom`
        count = np.ones(self._count, np.int64)
        start[compound], count[compound] = (
            np.searchsorted(owner, np.arange(len(compound))),
            np.bincount(owner, minlength=len(compound)),
        )
        return causes, [
            self._row_table(self.find(axis), index, index[atom], start, count) for axis in axes
        ]

    def _all_atoms(self, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index of the root, free atom of it) pairs of many compound roots, sorted."""
        owner, ids = np.arange(len(roots)), roots
        found = [np.zeros(0, np.int64)]
        while len(ids):
            ids = self.find(np.stack([self._left[ids], self._right[ids]], 1).ravel())
            owner = np.repeat(owner, 2)
            free = self._why[ids] == 0
            keys = np.unique(owner[free] * self._count + ids[free])
            owner, ids = np.divmod(keys, self._count)
            atomic = self._left[ids] == 0
            found.append(keys[atomic])
            owner, ids = owner[~atomic], ids[~atomic]
        return np.divmod(np.unique(np.concatenate(found)), self._count)

    def _row_table(
        self,
        roots: np.ndarray,
        index: np.ndarray,
        atoms: np.ndarray,
        start: np.ndarray,
        count: np.ndarray,
    ) -> np.ndarray:
        """Indices of the causes of each position, padded."""
        compound = self._left[roots] != 0
        if not compound.any():
            return index[roots][:, None]
        rows = np.full((len(roots), max(int(count[roots].max()), 1)), index[0])
        rows[~compound, 0] = index[roots[~compound]]
        for column in range(rows.shape[1]):
            more = np.flatnonzero(compound & (count[roots] > column))
            rows[more, column] = atoms[start[roots[more]] + column]
        return rows

    def reason(self, x: Axis) -> int:
        """Why an axis is frozen as a whole; 0 where some of it is free."""
        if isinstance(x, int):
            return x
        roots = self.find(x)
        whys = self._why[roots]
        if (whys != 0).all():
            return int(whys[0]) if len(whys) else 0
        for root in np.unique(roots[whys == 0]).tolist():
            if self.atoms(root):
                return 0
        return self._deep_reason(int(roots[0]))

    # ------------------------------------------------------------ inside

    def new(self, size: int) -> np.ndarray:
        """Causes for positions that may all go, one each."""
        end = self._count + int(size)  # a literal's int64 would wrap
        if size < 0 or end > MOST_IDS:
            raise ValueError(f"{size} more positions cannot be followed")
        if end > len(self._parent):
            capacity = max(end, 2 * len(self._parent))
            grown = np.arange(capacity)
            grown[: self._count] = self._parent[: self._count]
            self._parent = grown
            for name in ("_left", "_right", "_why", "_inside"):
                old = getattr(self, name)
                new = np.zeros(capacity, old.dtype)
                new[: self._count] = old[: self._count]
                setattr(self, name, new)
        ids = np.arange(self._count, end)
        self._count = end
        return ids

    def _distinct(self, ids: np.ndarray) -> np.ndarray:
        """Sorted ids without repetition; many at once by marking instead of sorting."""
        if len(ids) * _MARK_FACTOR < self._count:
            return np.unique(ids)
        marked = np.zeros(self._count, bool)
        marked[ids] = True
        return np.flatnonzero(marked)

    def _root(self, identity: int) -> int:
        """What one id is bound to at last."""
        above = int(self._parent[identity])
        while above != identity:
            identity, above = above, int(self._parent[above])
        return identity

    def _pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Ids of the unions of two columns of ids; where one is frozen it is the other."""
        ra, rb = self.find(a), self.find(b)
        out = np.where(self._why[ra] != 0, rb, ra)
        both = (self._why[ra] == 0) & (self._why[rb] == 0) & (ra != rb)
        ids = self.new(int(both.sum()))
        self._left[ids], self._right[ids] = ra[both], rb[both]
        self._inside[ra[both]] = self._inside[rb[both]] = True
        out[both] = ids
        return out

    def _hook(self, pairs: np.ndarray) -> None:
        """Bind atoms to atoms: the higher root of each pair to the least it meets; frozen wins whichever it is."""
        low, high = pairs[:, 0], pairs[:, 1]
        frozen_pair = (self._why[low] != 0) | (self._why[high] != 0)
        if frozen_pair.any():
            why = np.where(self._why[low] != 0, self._why[low], self._why[high])[frozen_pair]
            for side in (low[frozen_pair], high[frozen_pair]):
                free = self._why[side] == 0
                self._why[side[free]] = why[free]
        touched, first = np.unique(
            high, return_index=True
        )  # pairs are sorted: the first low is the least
        free = self._why[touched] == 0
        touched, target = touched[free], low[first][free]
        self._parent[touched] = target
        np.logical_or.at(self._inside, target, self._inside[touched])

    def _bind_new(self, pairs: np.ndarray, compound: np.ndarray) -> bool:
        """Bind atoms that are part of no pair to what they meet; whether there were any."""
        one = compound.sum(1) == 1
        atom = np.where(compound[:, 0], pairs[:, 1], pairs[:, 0])[one]
        other = np.where(compound[:, 0], pairs[:, 0], pairs[:, 1])[one]
        ok = ~self._inside[atom] & (self._why[atom] == 0)
        atom, first = np.unique(atom[ok], return_index=True)
        self._parent[atom] = other[ok][first]
        return bool(len(atom))

    def _equate(self, s: frozenset[int], t: frozenset[int], x: int, y: int) -> None:
        """The rule for two sets: bind a single cause to the other side, freeze a one-sided rest, else collapse."""
        a, b = s - t, t - s
        if not a and not b:
            return
        if not a or not b:
            why = self._deep_reason(y if a else x)
            for atom in a or b:
                self._why[atom] = why
        elif len(a) == 1 or len(b) == 1:
            single, rest = (a, b) if len(a) == 1 else (b, a)
            self._parent[next(iter(single))] = self._union(sorted(rest))
            self._mark(rest, next(iter(single)))
        else:
            cause = int(self.new(1)[0])
            self._inside[cause] = True
            for atom in a | b:
                self._parent[atom] = cause

    def _mark(self, rest: frozenset[int], single: int) -> None:
        """An atom that took the place of a part of a pair is such a part."""
        if len(rest) == 1:
            self._inside[next(iter(rest))] |= self._inside[single]

    def _union(self, atoms: list[int]) -> int:
        """One id for the union of atoms."""
        identity = atoms[0]
        for atom in atoms[1:]:
            identity = int(self._pairs(np.array([identity]), np.array([atom]))[0])
        return identity

    def _split_sets(self, cells: np.ndarray) -> tuple[Axis, Axis]:
        """Rows and columns by intersection; where their product is not the cells, fresh ones are bound to them."""
        memo = {c: self.atoms(c) for c in np.unique(cells).tolist()}
        sets = [[memo[c] for c in row] for row in cells.tolist()]
        found = _product(sets) or self._grid(sets)
        if found is not None:
            why = next((int(w) for w in self._why[cells].ravel() if w), 0)
            return self._from_sets(found[0], why), self._from_sets(found[1], why)
        lines = (
            _coupled_lines(cells) if (self._why[cells] == 0).all() else np.arange(sum(cells.shape))
        )
        ids = self.new(len(lines))[lines]
        r, c = ids[: len(cells)], ids[len(cells) :]
        self.unify(cells.ravel(), self.merge(r, len(r), c, len(c)))
        return r, c

    def _grid(
        self, sets: list[list[frozenset[int]]]
    ) -> tuple[list[frozenset[int]], list[frozenset[int]]] | None:
        """The product that is left when causes which fill a rectangle of the cells become a cause of its rows or one of its columns.

        So a grouped convolution passes a channel shuffle into the next. None where there is no such product.
        """
        places: dict[int, set[tuple[int, int]]] = {}
        for i, row in enumerate(sets):
            for j, cell in enumerate(row):
                for atom in cell:
                    places.setdefault(atom, set()).add((i, j))
        parts: dict[int, tuple[frozenset[int], frozenset[int]]] = {}
        for atom, cells in places.items():
            rows, columns = frozenset(i for i, _ in cells), frozenset(j for _, j in cells)
            if len(cells) != len(rows) * len(columns):
                return None
            if len(rows) < len(sets) and len(columns) < len(sets[0]):
                parts[atom] = rows, columns
        bands = dict.fromkeys(
            (side, band) for atom in sorted(parts) for side, band in enumerate(parts[atom])
        )
        names = {band: -1 - n for n, band in enumerate(bands)}
        changed = {
            atom: frozenset(names[side, band] for side, band in enumerate(both))
            for atom, both in parts.items()
        }
        product = _product(
            [
                [frozenset().union(*(changed.get(a, (a,)) for a in cell)) for cell in row]
                for row in sets
            ]
        )
        if product is None:
            return None
        ids = dict(zip(names.values(), self.new(len(names)).tolist(), strict=False))
        self._inside[list(ids.values())] = True
        for atom in sorted(changed):
            self._parent[atom] = self._union(sorted(ids[n] for n in changed[atom]))
        return tuple([frozenset(ids.get(a, a) for a in s) for s in side] for side in product)  # type: ignore[return-value]

    def _from_sets(self, sets: list[frozenset[int]], why: int) -> Axis:
        """An axis of given sets."""
        why = why or UNKNOWN
        if not any(sets):
            return why
        return np.array(
            [self._union(sorted(s)) if s else int(self.frozen(why, 1)[0]) for s in sets]
        )

    def _deep_reason(self, identity: int) -> int:
        """The reason of a frozen id or of the first frozen part of a pair."""
        stack = [identity]
        while stack:
            root = self._root(stack.pop())
            if self._why[root]:
                return int(self._why[root])
            if self._left[root]:
                stack += [int(self._right[root]), int(self._left[root])]
        return UNKNOWN


def _product(
    sets: list[list[frozenset[int]]],
) -> tuple[list[frozenset[int]], list[frozenset[int]]] | None:
    """Row and column sets by intersection, where their product is the cells."""
    rows = [frozenset.intersection(*row) for row in sets]
    columns = [frozenset.intersection(*column) for column in zip(*sets, strict=False)]
    return (
        (rows, columns)
        if all(
            r | c == cell
            for r, row in zip(rows, sets, strict=False)
            for c, cell in zip(columns, row, strict=False)
        )
        else None
    )


def _coupled_lines(cells: np.ndarray) -> np.ndarray:
    """For each row, then each column, the line whose cause it takes because an id stands in several cells.

    With row i and column j as the set {i, j}, equal cells are equal sets, bound by the rule of `_equate`: what is left of both is one line each, and
    is one; else one pair of cells at a time collapses. `unify` would come to the same, over sets that grow with every step.
    """
    rows, columns = cells.shape
    _, first, where = np.unique(cells, return_index=True, return_inverse=True)
    first = first[where.ravel()]
    again = np.flatnonzero(first != np.arange(cells.size))
    places = [x for at in (again, first[again]) for x in (at // columns, rows + at % columns)]
    line = np.arange(rows + columns)
    while True:
        a, b, c, d = (line[x] for x in places)
        pair = (a != b) & (c != d)
        joined = [
            np.stack([p, q], 1)[pair & (s == t) & (p != q)]
            for s, t, p, q in ((a, c, b, d), (b, d, a, c), (a, d, b, c), (b, c, a, d))
        ]
        joined.append(np.stack([a, c], 1)[(a == b) & (c == d) & (a != c)])
        joins = np.concatenate(joined)
        if not len(joins):
            apart = np.flatnonzero(pair & (a != c) & (b != d) & (a != d) & (b != c))
            if not len(apart):
                return line
            joins = np.array([[a, b], [a, c], [a, d]])[:, :, apart[0]]
        for p, q in joins.tolist():
            line[line == line[q]] = line[p]
