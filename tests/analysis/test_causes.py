"""The algebra of causes against its definition, and against an implementation with Python sets."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.analysis.causes import Axis, Causes

WHY, SINGLE = 7, 9
fast = settings(max_examples=300, deadline=None)
MOST = 7  # free causes of which every subset is tried


def sets(causes: Causes, axis: Axis, size: int) -> list[frozenset[int]]:
    """Return the free causes of each position."""
    return [frozenset()] * size if isinstance(axis, int) else [causes.atoms(int(i)) for i in axis]


class Naive:
    """The operations by definition: one set of atoms per position.

    When an atom is bound, all sets are rewritten.
    """

    def __init__(self) -> None:
        self.count = 0
        self.bound: dict[int, frozenset[int]] = {}

    def fresh(self, size: int) -> list[frozenset[int]]:
        self.count += size
        return [frozenset([self.count - size + i]) for i in range(size)]

    def now(self, atoms: frozenset[int]) -> frozenset[int]:
        """Return what a set is bound to."""
        out: frozenset[int] = frozenset()
        for atom in atoms:
            out |= self.now(self.bound[atom]) if atom in self.bound else frozenset([atom])
        return out

    def equal(self, a: frozenset[int], b: frozenset[int]) -> None:
        a, b = self.now(a), self.now(b)
        left, right = a - b, b - a
        if len(left) == 1 and right:
            self.bound[next(iter(left))] = right
        elif len(right) == 1 and left:
            self.bound[next(iter(right))] = left
        elif not left or not right:
            self.bound |= dict.fromkeys(left | right, frozenset())
        else:
            (cause,) = self.fresh(1)
            self.bound |= dict.fromkeys(left | right, cause)

    def unify(self, a: list[frozenset[int]], b: list[frozenset[int]]) -> None:
        for x, y in zip(a, b, strict=False):
            self.equal(x, y)

    def freeze(self, a: list[frozenset[int]]) -> None:
        for x in a:
            self.bound |= dict.fromkeys(self.now(x), frozenset())


@st.composite
def programs(draw: st.DrawFn, approximate: bool = True) -> list[tuple]:
    """Sequences of operations on axes of equal or of product length, by index of the axis."""
    steps: list[tuple] = [("fresh", 2), ("fresh", 3)]
    lengths = [2, 3]
    for _ in range(draw(st.integers(1, 9))):
        op = draw(
            st.sampled_from(
                [
                    "fresh",
                    "unify",
                    "unify",
                    "merge",
                    "merge",
                    "freeze",
                    "join",
                    *["split", "pick"] * approximate,
                ]
            )
        )
        a = draw(st.integers(0, len(lengths) - 1))
        if op == "fresh":
            steps.append((op, draw(st.sampled_from([2, 3, 4, 6]))))
            lengths.append(steps[-1][1])
        elif op == "unify":
            like = [i for i, n in enumerate(lengths) if n == lengths[a]]
            steps.append((op, a, draw(st.sampled_from(like))))
        elif op == "merge":
            b = draw(st.integers(0, len(lengths) - 1))
            if lengths[a] * lengths[b] <= 12:
                steps.append((op, a, b))
                lengths.append(lengths[a] * lengths[b])
        elif op == "split":
            rows = [d for d in range(1, lengths[a] + 1) if lengths[a] % d == 0]
            steps.append((op, a, draw(st.sampled_from(rows))))
            lengths += [steps[-1][2], lengths[a] // steps[-1][2]]
        elif op == "freeze":
            steps.append((op, a))
        elif op == "pick":
            index = draw(st.lists(st.integers(0, lengths[a] - 1), min_size=1, max_size=6))
            steps.append((op, a, tuple(index)))
            lengths.append(len(index))
        else:
            b = draw(st.integers(0, len(lengths) - 1))
            steps.append((op, a, b))
            lengths.append(lengths[a] + lengths[b])
    return steps


def run(steps: list[tuple]) -> tuple[Causes, list[Axis], list[int], list[tuple]]:
    """Run a program; return the store, axes, lengths, and the relations that must hold."""
    causes, axes, lengths, relations = Causes(), [], [], []

    def push(axis: Axis, size: int) -> int:
        axes.append(axis)
        lengths.append(size)
        return len(axes) - 1

    def array(i: int) -> np.ndarray:
        return axes[i] if isinstance(axes[i], np.ndarray) else causes.frozen(axes[i], lengths[i])

    for op, *rest in steps:
        if op == "fresh":
            push(causes.fresh(rest[0], SINGLE), rest[0])
        elif op == "unify":
            causes.unify(axes[rest[0]], axes[rest[1]])
            relations.append((op, *rest))
        elif op == "merge":
            a, b = rest
            relations.append(
                (
                    op,
                    a,
                    b,
                    push(
                        causes.merge(axes[a], lengths[a], axes[b], lengths[b]),
                        lengths[a] * lengths[b],
                    ),
                )
            )
        elif op == "split":
            a, rows = rest
            r, c = causes.split(axes[a], rows, lengths[a] // rows, SINGLE)
            relations.append(("merge", push(r, rows), push(c, lengths[a] // rows), a))
        elif op == "freeze":
            causes.freeze(axes[rest[0]], WHY)
            relations.append((op, rest[0]))
        elif op == "pick":
            push(array(rest[0])[list(rest[1])], len(rest[1]))
        else:
            push(
                np.concatenate([array(rest[0]), array(rest[1])]),
                lengths[rest[0]] + lengths[rest[1]],
            )
    return causes, axes, lengths, relations


@fast
@given(programs())
def test_every_relation_holds_for_every_removal(steps: list[tuple]) -> None:
    """For every set of removed causes, each relation holds for the removed positions.

    Unified axes lose the same positions, a product loses rows and columns, frozen axes lose none.
    """
    causes, axes, lengths, relations = run(steps)
    found = [sets(causes, a, n) for a, n in zip(axes, lengths, strict=False)]
    free = sorted(frozenset().union(*(s for axis in found for s in axis)))
    for chosen in product([False, True], repeat=min(len(free), MOST)):
        gone = {c for c, yes in zip(free, chosen, strict=False) if yes}
        mask = [[bool(s & gone) for s in axis] for axis in found]
        for op, a, *rest in relations:
            if op == "unify":
                assert mask[a] == mask[rest[0]]
            elif op == "freeze":
                assert not any(mask[a])
            else:
                assert [x or y for x in mask[a] for y in mask[rest[0]]] == mask[rest[1]]


def naive(steps: list[tuple]) -> list[list[frozenset[int]]]:
    """Return the sets of all axes by definition, for programs whose result is order-independent."""
    store, axes = Naive(), []
    for op, *rest in steps:
        if op == "fresh":
            axes.append(store.fresh(rest[0]))
        elif op == "unify":
            store.unify(axes[rest[0]], axes[rest[1]])
        elif op == "merge":
            axes.append([x | y for x in axes[rest[0]] for y in axes[rest[1]]])
        elif op == "freeze":
            store.freeze(axes[rest[0]])
        else:
            axes.append(axes[rest[0]] + axes[rest[1]])
    return [[store.now(s) for s in axis] for axis in axes]


def footprints(axes: list[list[frozenset[int]]]) -> set[frozenset[tuple[int, int]]]:
    """Return the positions that each cause is at, without its name."""
    places: dict[int, set[tuple[int, int]]] = {}
    for i, axis in enumerate(axes):
        for j, s in enumerate(axis):
            for cause in s:
                places.setdefault(cause, set()).add((i, j))
    return {frozenset(p) for p in places.values()}


@fast
@given(programs(approximate=False))
def test_equal_to_sets(steps: list[tuple]) -> None:
    """Causes are at the same positions as with Python sets."""
    causes, axes, lengths, _ = run(steps)
    assert footprints(
        [sets(causes, a, n) for a, n in zip(axes, lengths, strict=False)]
    ) == footprints(naive(steps))


@fast
@given(programs())
def test_table_is_atoms(steps: list[tuple]) -> None:
    """`table` of many axes equals `atoms` of each position."""
    causes, axes, _, _ = run(steps)
    arrays = [a for a in axes if isinstance(a, np.ndarray)]
    names, tables = causes.table(arrays)
    for array, table in zip(arrays, tables, strict=False):
        assert [
            frozenset(names[[i for i in row if i < len(names)]].tolist()) for row in table.tolist()
        ] == [causes.atoms(int(i)) for i in array]


@fast
@given(st.integers(2, 5), st.integers(2, 5))
def test_split_undoes_merge(rows: int, columns: int) -> None:
    causes = Causes()
    a, b = causes.fresh(rows, SINGLE), causes.fresh(columns, SINGLE)
    r, c = causes.split(causes.merge(a, rows, b, columns), rows, columns, SINGLE)
    assert sets(causes, r, rows) == sets(causes, a, rows)
    assert sets(causes, c, columns) == sets(causes, b, columns)


def test_fresh_positions_become_rows_and_columns() -> None:
    causes = Causes()
    x = causes.fresh(6, SINGLE)
    r, c = causes.split(x, 2, 3, SINGLE)
    cells = [a | b for a in sets(causes, r, 2) for b in sets(causes, c, 3)]
    assert sets(causes, x, 6) == cells
    assert len(frozenset().union(*cells)) == 5


def test_the_first_reason_is_kept() -> None:
    causes = Causes()
    x = causes.fresh(3, SINGLE)
    causes.freeze(x, 4)
    causes.freeze(x, 5)
    assert causes.reason(x) == 4
    assert causes.reason(causes.fresh(1, SINGLE)) == SINGLE
    assert causes.reason(causes.fresh(2, SINGLE)) == 0


def test_freezing_reaches_what_is_bound() -> None:
    causes = Causes()
    x, y, z = (causes.fresh(4, SINGLE) for _ in range(3))
    causes.unify(x, y)
    causes.unify(y, z)
    causes.freeze(z[1:2], WHY)
    assert [bool(s) for s in sets(causes, x, 4)] == [True, False, True, True]


def test_unify_with_a_frozen_axis_freezes() -> None:
    causes = Causes()
    x = causes.fresh(3, SINGLE)
    causes.unify(WHY, x)
    assert causes.reason(x) == WHY


def test_many_positions_cost_one_call() -> None:
    """A chain of 60 unifications of 10,000 positions is fast, as axes are unified in one call."""
    causes = Causes()
    first = causes.fresh(10_000, SINGLE)
    for _ in range(60):
        causes.unify(first, causes.fresh(10_000, SINGLE))
    assert causes.table([first])[0].size == 10_000


def test_a_table_looked_up_by_distance_is_split_at_once() -> None:
    """Relative positions of a 12 x 12 window: 529 rows at 20,736 places.

    All lines are coupled; binding cell by cell takes minutes.
    """
    causes, side = Causes(), 12
    y, x = np.divmod(np.arange(side**2), side)
    place = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    table = causes.fresh((2 * side - 1) ** 2, SINGLE)
    r, c = causes.split(table[place.ravel()], side**2, side**2, SINGLE)
    assert (
        len(
            {*sets(causes, table, len(table)), *sets(causes, r, side**2), *sets(causes, c, side**2)}
        )
        == 1
    )


def test_repeated_columns_are_one() -> None:
    causes = Causes()
    x = causes.fresh(6, SINGLE)
    r, c = causes.split(x[[0, 1, 0, 2, 3, 2, 4, 5, 4]], 3, 3, SINGLE)
    rows, columns = sets(causes, r, 3), sets(causes, c, 3)
    assert columns[0] == columns[2] and len(frozenset().union(*rows, *columns)) == 5
    assert [row | column for row in rows for column in columns[:2]] == sets(causes, x, 6)
