"""Least squares of a weight that several nodes use: the normal equations of all uses are summed.

All inputs of the uses must be known when the weight is solved. The nodes of both networks are
therefore ordered so that the uses stand next to each other, after everything that they depend on.
Where one use depends on another (a layer that is applied twice in a row), that is impossible, and
the weight is left as it was cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.ir.extract import reads
from onnxprune.ir.model import EditableModel
from onnxprune.repair.fits import Fit, set_values
from onnxprune.repair.normal_equations import NormalEquations
from onnxprune.repair.problem import LAST_RIDGE, MIN_SCALE, RIDGE, LayerProblem
from onnxprune.statistics.im2col import Moments


def tied_outputs(fits: Iterable[Fit]) -> list[list[str]]:
    """Return the outputs of the nodes of each weight that has several fits."""
    by_weight: dict[str, list[str]] = {}
    for fit in fits:
        by_weight.setdefault(fit.weight, []).append(fit.node)
    return [outs for outs in by_weight.values() if len(outs) > 1]


def adjacent_order(nodes: Sequence[NodeProto], classes: Sequence[Sequence[str]]) -> list[int]:
    """Return a topological order in which the nodes of each class are consecutive.

    Parameters
    ----------
    nodes
        In topological order.
    classes
        Outputs of the nodes of each class. A class of which one node depends on another, itself or
        through another class, is not kept together.

    Returns
    -------
    list of int
        Indices of `nodes`. The original order is kept where the classes allow.
    """
    producers = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    members = [[producers[o] for o in outs if o in producers] for outs in classes]
    while True:
        unit = list(range(len(nodes)))  # of each node: the first node of its class
        for indices in members:
            for i in indices:
                unit[i] = min(indices)
        order = _sort_units(nodes, producers, unit)
        if len(order) == len(nodes):
            return order
        done = set(order)
        # one class on a cycle at a time: the others may fit without it
        members.remove(next(indices for indices in members if not done.issuperset(indices)))


def _sort_units(
    nodes: Sequence[NodeProto], producers: dict[str, int], unit: Sequence[int]
) -> list[int]:
    """Return the order of Kahn's algorithm on units of nodes; it is incomplete on a cycle."""
    inside: dict[int, list[int]] = {}
    for i, first in enumerate(unit):
        inside.setdefault(first, []).append(i)
    depends: dict[int, set[int]] = {first: set() for first in inside}
    for i, node in enumerate(nodes):
        depends[unit[i]] |= {unit[producers[name]] for name in reads(node) if name in producers}
    followers: dict[int, list[int]] = {first: [] for first in inside}
    for first, others in depends.items():
        for other in others:
            followers[other].append(first)  # a unit that depends on itself is never ready
    waiting = {first: len(others) for first, others in depends.items()}
    ready = [first for first, count in waiting.items() if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        # the smallest index first keeps the original order where possible
        first = heapq.heappop(ready)
        order += inside[first]
        for follower in followers[first]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, follower)
    return order


def reorder(model: EditableModel, order: Sequence[int]) -> None:
    """Put the nodes of the main graph into an order. `model` is changed."""
    graph = model.proto.graph
    # copies, because the list is cleared before it is filled again
    nodes = [NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def solve_tied(problems: Sequence[LayerProblem], model: EditableModel) -> None:
    """Refit a shared weight to all its uses, with the biases of the uses."""
    first = problems[0]
    # uses with one bias and scale are one problem with more samples
    one_bias = all(
        p.fit.bias == first.fit.bias and np.array_equal(p.fit.scale, first.fit.scale)
        for p in problems
    )
    if one_bias:
        first.solve(model, problems[1:])
    else:
        _solve_with_own_biases(problems, model)
    for problem in problems:
        problem.systems = []  # the joint refit of a block must not change the weight for one use


def _solve_with_own_biases(problems: Sequence[LayerProblem], model: EditableModel) -> None:
    """Solve for a weight before the scale and shift that each use has of its own.

    Each use is centered on its own means, which its shift follows.
    """
    first = problems[0]
    g, k, o = first.shape
    weight = first.rows(model)
    uses = [_undo_scale(problem) for problem in problems]
    ridge = LAST_RIDGE if all(p.fit.last for p in problems) else RIDGE
    solved = np.empty_like(weight)
    for group in range(g):
        total = Moments.zeros(k, o)
        for problem, moments in zip(problems, uses, strict=True):
            part = moments[group]
            xx, yx = part.centered() if problem.fit.bias else (part.xx, part.yx)
            total.xx += xx
            total.yx = yx if total.yx is None or yx is None else total.yx + yx
            total.count += part.count
        system = NormalEquations(total, weight[group], ridge, constant=False)
        system.solve()
        solved[group] = system.weight
    # the weight as it was cut is better than a failed solution
    if not np.isfinite(solved).all():
        return
    set_values(model, first.fit.weight, first.stored(model, solved))
    for problem, moments in zip(problems, uses, strict=True):
        if problem.fit.bias:
            shifts = [
                (m.y - w @ m.x) / max(m.count, 1) for m, w in zip(moments, solved, strict=True)
            ]
            problem.set_bias(model, np.concatenate(shifts) * problem.scale.ravel())


def _undo_scale(problem: LayerProblem) -> list[Moments]:
    """Return the moments per group of a use, with targets divided by the scale that follows."""
    g, k, o = problem.shape
    # division by infinity: channels that are scaled by 0 have the target 0
    scale = np.where(np.abs(problem.scale) > MIN_SCALE, problem.scale, np.inf)
    sums = [Moments.zeros(k, o) for _ in range(g)]
    for xs, ys, _ in problem.batches(problem.node.input[0])():
        for part, x, y, s in zip(sums, np.split(xs, g), np.split(ys, g), scale, strict=True):
            part.add(x, y / s[:, None])
    for part in sums:
        part.flush()
    return sums
