"""Sets of causes: what must be removed for a position of an axis to be removed.

An axis is either an int, the number of the reason that all of it is frozen for, or an int64 array
with one id per position. An id stands for a set of causes: an atom (one cause), or a pair of ids
(their union). Ids are bound to each other as the pass finds equalities; a frozen id stands for the
empty set and remembers its reason. A position is removed if and only if a cause of its set is.
Approximations only couple or freeze more, so a cut is always a valid graph.
"""

from __future__ import annotations

from copy import copy

import numpy as np

from onnxprune.analysis.folded import Axis, Folded
from onnxprune.analysis.grids import Sets, coupled_lines, factor, factor_by_bands
from onnxprune.analysis.rule import Misfit

UNKNOWN = 1  # number of the reason of axes that are frozen for none in particular
MOST_IDS = 1 << 23  # per model: a few hundred bytes of literals can ask for billions of positions
_FIRST_CAPACITY = 1024
_MARK_FACTOR = 16  # sorting n ids costs about as much as a pass over 16 n flags


class Causes:
    """The causes of one analysis. Ids are positions in growing arrays; id 0 is not used."""

    def __init__(self) -> None:
        """Start without causes."""
        self._parent = np.arange(_FIRST_CAPACITY)
        self._left = np.zeros(_FIRST_CAPACITY, np.int64)  # 0 for an atom
        self._right = np.zeros(_FIRST_CAPACITY, np.int64)
        self._why = np.zeros(_FIRST_CAPACITY, np.int64)  # of a root: its reason, 0 if it is free
        self._inside = np.zeros(_FIRST_CAPACITY, bool)  # of a root: whether it is part of a pair
        self._count = 1
        self._frozen_ids: dict[int, int] = {}
        self._products: dict[tuple[bytes, bytes], np.ndarray] = {}

    def copy(self) -> Causes:
        """Return a copy whose bindings are its own; ids are the same in both."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray | dict):
                setattr(other, name, value.copy())
        return other

    # Creating axes

    def fresh(self, size: int, why_single: int) -> Axis:
        """Return an axis of new causes, one per position; frozen if its length is 1.

        An axis of length 1 cannot lose its only position.
        """
        return why_single if size <= 1 else self.new(size)

    def frozen(self, why: int, size: int) -> np.ndarray:
        """Return the ids of a frozen axis, for concatenations with other axes."""
        if why not in self._frozen_ids:
            self._frozen_ids[why] = int(self.new(1)[0])
            self._why[self._frozen_ids[why]] = why
        return np.full(size, self._frozen_ids[why])

    def merge(self, a: Axis, size_a: int, b: Axis, size_b: int) -> Axis:
        """Return the axis of a product: cell (i, j) holds the union of a[i] and b[j]."""
        if isinstance(a, int) and isinstance(b, int):
            return a
        if isinstance(a, int):
            return np.tile(b, size_a)
        if isinstance(b, int):
            return np.repeat(a, size_b)
        # the same product again gets the same ids: two paths to one tensor stay equal
        key = (a.tobytes(), b.tobytes())
        if key not in self._products:
            self._products[key] = self._unite_pairs(np.repeat(a, size_b), np.tile(b, size_a))
        return self._products[key]

    def split(self, x: Axis, rows: int, columns: int, why_single: int) -> tuple[Axis, Axis]:
        """Return the row and column axes whose product is x: the inverse of `merge`.

        If x is no product, its causes are bound until it is one.
        """
        if isinstance(x, int):
            return x, x
        if rows == 1 or columns == 1:
            return (why_single, x) if rows == 1 else (x, why_single)
        cells = self.find(x).reshape(rows, columns)
        free = self._why[cells] == 0
        if not free.any():
            why = int(self._why[cells[0, 0]])
            return why, why
        # equal rows do not depend on the row axis, equal columns not on the column axis
        if (cells == cells[0]).all():
            return why_single, cells[0]
        if (cells == cells[:, :1]).all():
            return cells[:, 0], why_single
        # the pairs of an earlier `merge`
        left, right = self._left[cells], self._right[cells]
        if left.all() and (left == left[:, :1]).all() and (right == right[0]).all():
            return left[:, 0], right[0]
        # distinct atoms, as of a weight: any product can be bound to them
        if free.all() and not left.any() and len(np.unique(cells)) == cells.size:
            r, c = self.new(rows), self.new(columns)
            self.unify(cells.ravel(), self.merge(r, rows, c, columns))
            return r, c
        return self._split_sets(cells)

    # Binding

    def unify(self, a: Axis, b: Axis) -> None:
        """Make the sets of two axes equal, position by position."""
        if isinstance(a, Folded) and isinstance(b, Folded) and a.matches(b):
            for x, y in zip(a.factors, b.factors, strict=True):
                self.unify(x, y)
            return
        if isinstance(a, int):
            self.freeze(a, int(a))
            self.freeze(b, int(a))
            return
        if isinstance(b, int):
            self.freeze(a, int(b))
            self.freeze(b, int(b))
            return
        while True:
            ra, rb = self.find(a), self.find(b)
            differ = ra != rb
            # two frozen ids are equal sets, whatever their reasons
            differ[differ] &= (self._why[ra[differ]] == 0) | (self._why[rb[differ]] == 0)
            if not differ.any():
                return
            pairs = np.unique(
                np.stack(
                    [np.minimum(ra[differ], rb[differ]), np.maximum(ra[differ], rb[differ])], 1
                ),
                axis=0,
            )
            # cheap bindings first, many at once: each may make further pairs equal
            compound = (self._left[pairs] != 0) & (self._why[pairs] == 0)
            plain = pairs[~compound.any(1)]
            if len(plain):
                self._bind_atoms(plain)
                continue
            if self._bind_new(pairs, compound):
                continue
            # what remains are pairs of which no side is a single unused atom
            for x, y in pairs.tolist():
                self._equate(self.atoms(x), self.atoms(y), x, y)
            return

    def freeze(self, x: Axis, why: int) -> None:
        """Bind every cause of the axis to the empty set; the first reason is kept."""
        if isinstance(x, int):
            for factor in x.arrays if isinstance(x, Folded) else ():
                self.freeze(factor, why)
            return
        roots = self._list_distinct(self.find(x))
        roots = roots[self._why[roots] == 0]
        # freezing a pair freezes its atoms, which other pairs may share
        compound = self._left[roots] != 0
        self._why[roots[~compound]] = why
        self._why[self._list_atoms(roots[compound])[1]] = why

    # Queries

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the root that each id is bound to."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                break
            roots = self._parent[above]
        self._parent[ids] = roots  # the next search is one step
        return roots

    def free(self, ids: np.ndarray) -> np.ndarray:
        """Return the distinct roots of ids that are not frozen."""
        roots = self._list_distinct(self.find(ids))
        return roots[self._why[roots] == 0]

    def differ(self, ids: np.ndarray, other: Causes) -> np.ndarray:
        """Return which ids may stand for another set in a copy of the causes, as all unions may."""
        here, there = self.find(ids), other.find(ids)
        freed = (self._why[here] == 0) != (other._why[there] == 0)
        compound = (self._left[here] != 0) | (other._left[there] != 0)
        return (here != there) | freed | compound

    def atoms(self, identity: int) -> frozenset[int]:
        """Return the free causes of an id."""
        stack, free, seen = [identity], set(), set()
        while stack:
            root = self._find_root(stack.pop())
            if root in seen or self._why[root]:
                continue
            seen.add(root)
            if self._left[root]:
                stack += [int(self._left[root]), int(self._right[root])]
            else:
                free.add(root)
        return frozenset(free)

    def table(self, axes: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the free causes of many axes at once.

        Returns
        -------
        causes : (n,) int64 array
            Ids of the free causes, ascending.
        tables : list of (length, width) int arrays
            Indices into `causes` per axis, padded with n; a row of n alone is a frozen position.
        """
        roots = np.zeros(0, np.int64)
        if axes:
            roots = self._list_distinct(self.find(self._list_distinct(np.concatenate(axes))))
        compound = roots[self._left[roots] != 0]
        single = roots[(self._left[roots] == 0) & (self._why[roots] == 0)]
        owner, atom = self._list_atoms(compound)
        causes = np.union1d(single, atom)
        index = np.full(self._count, len(causes))
        index[causes] = np.arange(len(causes))
        start = np.zeros(self._count + 1, np.int64)  # of the atoms of each root in `atom`
        count = np.ones(self._count, np.int64)
        start[compound] = np.searchsorted(owner, np.arange(len(compound)))
        count[compound] = np.bincount(owner, minlength=len(compound))
        return causes, [
            self._make_row_table(self.find(axis), index, index[atom], start, count) for axis in axes
        ]

    def _list_atoms(self, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted pairs (index of the root, one of its free atoms) of many compound roots."""
        owner, ids = np.arange(len(roots)), roots
        atoms = [np.zeros(0, np.int64)]
        while len(ids):
            # one level of pairs of all roots per round
            ids = self.find(np.stack([self._left[ids], self._right[ids]], 1).ravel())
            owner = np.repeat(owner, 2)
            free = self._why[ids] == 0
            keys = np.unique(owner[free] * self._count + ids[free])  # an atom counts once
            owner, ids = np.divmod(keys, self._count)
            atomic = self._left[ids] == 0
            atoms.append(keys[atomic])
            owner, ids = owner[~atomic], ids[~atomic]
        return np.divmod(np.unique(np.concatenate(atoms)), self._count)

    def _make_row_table(
        self,
        roots: np.ndarray,
        index: np.ndarray,
        atoms: np.ndarray,
        start: np.ndarray,
        count: np.ndarray,
    ) -> np.ndarray:
        """Return the indices of the causes of each position, padded."""
        compound = self._left[roots] != 0
        if not compound.any():  # by far the most axes
            return index[roots][:, None]
        rows = np.full((len(roots), max(int(count[roots].max()), 1)), index[0])
        rows[~compound, 0] = index[roots[~compound]]
        for column in range(rows.shape[1]):
            more = np.flatnonzero(compound & (count[roots] > column))
            rows[more, column] = atoms[start[roots[more]] + column]
        return rows

    def reason(self, x: Axis) -> int:
        """Return the number of the reason an axis is frozen for; 0 if some of it is free."""
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

    # Internals

    def new(self, size: int) -> np.ndarray:
        """Return ids of new causes, one per position, all of which may be removed.

        Raises
        ------
        Misfit
            The model has more positions than the analysis follows.
        """
        end = self._count + int(size)  # an int64 of a literal would overflow
        if size < 0 or end > MOST_IDS:
            raise Misfit(f"{size} more positions exceed the {MOST_IDS} that are followed")
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

    def _list_distinct(self, ids: np.ndarray) -> np.ndarray:
        """Return the distinct ids, sorted; many are marked instead of sorted, which is faster."""
        if len(ids) * _MARK_FACTOR < self._count:
            return np.unique(ids)
        marked = np.zeros(self._count, bool)
        marked[ids] = True
        return np.flatnonzero(marked)

    def _find_root(self, identity: int) -> int:
        """Return the root that one id is bound to."""
        above = int(self._parent[identity])
        while above != identity:
            identity, above = above, int(self._parent[above])
        return identity

    def _unite_pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the unions of two columns of ids; the union with a frozen id is the other id."""
        ra, rb = self.find(a), self.find(b)
        out = np.where(self._why[ra] != 0, rb, ra)
        both = (self._why[ra] == 0) & (self._why[rb] == 0) & (ra != rb)
        ids = self.new(int(both.sum()))
        self._left[ids], self._right[ids] = ra[both], rb[both]
        self._inside[ra[both]] = self._inside[rb[both]] = True
        out[both] = ids
        return out

    def _bind_atoms(self, pairs: np.ndarray) -> None:
        """Bind atoms to atoms: the higher root of each pair to the lowest that it is paired with.

        A pair with a frozen atom freezes the other.
        """
        low, high = pairs[:, 0], pairs[:, 1]
        frozen_pair = (self._why[low] != 0) | (self._why[high] != 0)
        if frozen_pair.any():
            why = np.where(self._why[low] != 0, self._why[low], self._why[high])[frozen_pair]
            for side in (low[frozen_pair], high[frozen_pair]):
                free = self._why[side] == 0
                self._why[side[free]] = why[free]
        # pairs are sorted: the first low of each high is the lowest
        touched, first = np.unique(high, return_index=True)
        free = self._why[touched] == 0
        touched, target = touched[free], low[first][free]
        self._parent[touched] = target
        np.logical_or.at(self._inside, target, self._inside[touched])

    def _bind_new(self, pairs: np.ndarray, compound: np.ndarray) -> bool:
        """Bind atoms that are part of no pair to what they are paired with; return if any was."""
        one = compound.sum(1) == 1
        atom = np.where(compound[:, 0], pairs[:, 1], pairs[:, 0])[one]
        other = np.where(compound[:, 0], pairs[:, 0], pairs[:, 1])[one]
        ok = ~self._inside[atom] & (self._why[atom] == 0)
        atom, first = np.unique(atom[ok], return_index=True)
        self._parent[atom] = other[ok][first]
        return bool(len(atom))

    def _equate(self, s: frozenset[int], t: frozenset[int], x: int, y: int) -> None:
        """Make two sets equal.

        A single cause is bound to the rest of the other side, a rest on one side only is frozen,
        and otherwise all causes of both rests become one.
        """
        a, b = s - t, t - s
        if not a and not b:
            return
        if not a or not b:
            # the other side has no cause for these positions, so none may be removed
            why = self._deep_reason(y if a else x)
            for atom in a or b:
                self._why[atom] = why
        elif len(a) == 1 or len(b) == 1:
            single, rest = (a, b) if len(a) == 1 else (b, a)
            self._parent[next(iter(single))] = self._union(sorted(rest))
            self._mark(rest, next(iter(single)))
        else:
            # several causes on both sides: coupling all of them is safe, if not the least
            cause = int(self.new(1)[0])
            self._inside[cause] = True
            for atom in a | b:
                self._parent[atom] = cause

    def _mark(self, rest: frozenset[int], single: int) -> None:
        """Mark an atom that replaced a part of a pair as such a part."""
        if len(rest) == 1:
            self._inside[next(iter(rest))] |= self._inside[single]

    def _union(self, atoms: list[int]) -> int:
        """Return one id for the union of atoms."""
        identity = atoms[0]
        for atom in atoms[1:]:
            identity = int(self._unite_pairs(np.array([identity]), np.array([atom]))[0])
        return identity

    def _split_sets(self, cells: np.ndarray) -> tuple[Axis, Axis]:
        """Return row and column axes by intersection.

        If their product does not equal the cells, fresh axes are bound to them.
        """
        memo = {c: self.atoms(c) for c in np.unique(cells).tolist()}
        sets = [[memo[c] for c in row] for row in cells.tolist()]
        product = factor(sets) or self._split_bands(sets)
        if product is not None:
            why = next((int(w) for w in self._why[cells].ravel() if w), 0)
            return self._make_from_sets(product[0], why), self._make_from_sets(product[1], why)
        free = (self._why[cells] == 0).all()
        lines = coupled_lines(cells) if free else np.arange(sum(cells.shape))
        ids = self.new(len(lines))[lines]
        r, c = ids[: len(cells)], ids[len(cells) :]
        self.unify(cells.ravel(), self.merge(r, len(r), c, len(c)))
        return r, c

    def _split_bands(self, sets: list[Sets]) -> tuple[Sets, Sets] | None:
        """Return the rows and columns of a product of bands, with new causes bound to them."""
        bands = factor_by_bands(sets)
        if bands is None:
            return None
        names = sorted({n for pair in bands.parts.values() for n in pair}, reverse=True)
        ids = dict(zip(names, self.new(len(names)).tolist(), strict=True))
        self._inside[list(ids.values())] = True
        for atom in sorted(bands.parts):
            self._parent[atom] = self._union(sorted(ids[n] for n in bands.parts[atom]))

        def rename(causes: frozenset[int]) -> frozenset[int]:
            return frozenset(ids.get(a, a) for a in causes)

        return list(map(rename, bands.product.rows)), list(map(rename, bands.product.columns))

    def _make_from_sets(self, sets: Sets, why: int) -> Axis:
        """Return the axis of given sets."""
        why = why or UNKNOWN
        if not any(sets):
            return why
        return np.array(
            [self._union(sorted(s)) if s else int(self.frozen(why, 1)[0]) for s in sets]
        )

    def _deep_reason(self, identity: int) -> int:
        """Return the reason of a frozen id, or of the first frozen part of a pair."""
        stack = [identity]
        while stack:
            root = self._find_root(stack.pop())
            if self._why[root]:
                return int(self._why[root])
            if self._left[root]:
                stack += [int(self._right[root]), int(self._left[root])]
        return UNKNOWN
