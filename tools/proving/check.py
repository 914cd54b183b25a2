"""The proof of one world: every plan's cut equals the original with zeros."""

from __future__ import annotations

import itertools
import math
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import ModelProto, printer

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked
from onnxprune.types import Plan
from proving.evaluate import (
    FLOATS,
    ONNXRUNTIME,
    REFERENCE,
    TOLERANCE,
    EvaluationError,
    differs,
    evaluate,
)
from proving.table import spaces
from proving.worlds import COMPUTED, CONSTANT, OPSET, PROVED, SHARED, Graph, Space, World

FURTHER = ("", CONSTANT, SHARED)  # the worlds that every third combination has in addition
PLANS = 40  # of one world; more are sampled
_MOST_WIDTH = 9  # channels of a group whose subsets are listed

Kept = dict[str, tuple[int, ...]]


@dataclass
class Outcome:
    """What the worlds of a row gave.

    Attributes
    ----------
    worlds
        Graphs that were evaluated.
    choices
        Combinations of choices that there are; None unless some were left out.
    plans
        Cuts that were compared.
    exact
        Cuts that are equal to the bit.
    sampled
        Worlds with more plans than are compared.
    vacuous
        Worlds in which no plan changed an output.
    frozen_worlds
        Worlds in which no axis can be cut.
    frozen
        Reason -> number of worlds in which the operator froze an axis for it.
    unevaluated
        Worlds that no evaluator runs, by message.
    runtimes
        Worlds by evaluator.
    faults
        Graphs that were cut wrongly, or ended in an exception.
    seconds
        Processor time.
    """

    worlds: int = 0
    choices: int | None = None
    plans: int = 0
    exact: int = 0
    sampled: int = 0
    vacuous: int = 0
    frozen_worlds: int = 0
    frozen: Counter[str] = field(default_factory=Counter)
    unevaluated: Counter[str] = field(default_factory=Counter)
    runtimes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def prove_row(op: str, limit: int, plans: int) -> Outcome:
    """Check up to `limit` worlds of each space of an operator, with up to `plans` cuts each."""
    outcome, began = Outcome(), time.process_time()
    for space in spaces(op):
        _prove_space(op, space, limit, plans, outcome)
    outcome.seconds = time.process_time() - began
    return outcome


def _prove_space(op: str, space: Space, limit: int, plans: int, outcome: Outcome) -> None:
    """Check worlds of a space, and count them in `outcome`."""
    count = 0
    for choices in space.combinations(op, limit):
        if count == limit:
            outcome.choices = (outcome.choices or 0) + len(space)
            return
        further = FURTHER[count % len(FURTHER)]
        if _prove_choices(op, COMPUTED, space, choices, plans, outcome):
            count += 1
            if further:
                _prove_choices(op, further, space, choices, plans, outcome)


def _prove_choices(
    op: str, mode: str, space: Space, choices: SimpleNamespace, plans: int, outcome: Outcome
) -> bool:
    """Check the world of a combination; return whether there is one."""
    try:
        world = _make_world(op, mode, space, choices)
    except EvaluationError as problem:
        outcome.unevaluated[str(problem).splitlines()[0][:160]] += 1
        return False
    if world is not None:
        _prove_world(world, plans, outcome)
    return world is not None


def _make_world(op: str, mode: str, space: Space, choices: SimpleNamespace) -> World | None:
    """Build a graph and let its outputs be consumed.

    Forms that the reference evaluator does not have are built again for onnxruntime.

    Returns
    -------
    world
        None if the choices do not go together, or if there are no operands to share.
    """
    words = " ".join(f"{k}={v}" for k, v in vars(choices).items() if k != "op")
    words = f"{mode}: {words}"
    tolerance = 0.0 if op in space.exact else space.tolerances.get(op)
    runtimes = (REFERENCE, ONNXRUNTIME) if space.runtime == REFERENCE else (space.runtime,)
    problems = []
    for runtime in runtimes:
        graph = Graph(
            zlib.crc32(f"{op} {words}".encode()),
            FLOATS[runtime],
            getattr(choices, "opset", OPSET),
            mode,
        )
        outputs = space.build(graph, choices)
        if outputs is None or (mode == SHARED and not graph.shares):
            return None
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        try:
            values = evaluate(graph.model(names), runtime)
            if not all(v.size for v in values):
                return None
            for name, value in zip(names, values, strict=True):
                graph.consume(name, value)
            model = graph.model()
            original = evaluate(model, runtime)
        except EvaluationError as problem:
            problems.append(problem)
            continue
        return World(op, words, model, original, tolerance, runtime)
    raise problems[0]


def _prove_world(world: World, most: int, outcome: Outcome) -> None:
    """Compare every plan of a world."""
    outcome.worlds += 1
    outcome.runtimes[world.runtime] += 1
    try:
        analysis = analyze(load(world.model))
    except Exception as problem:
        _record_fault(world, outcome, f"analysis: {type(problem).__name__}: {problem}")
        return
    canonical = _compare(evaluate(_proto(analysis.model), world.runtime), world.original, world)
    if canonical:
        _record_fault(world, outcome, f"canonical form: {canonical}")
        return
    outcome.frozen.update(_frozen_by_op(analysis))
    plans, sampled = plans_of(analysis, most)
    outcome.sampled += sampled
    outcome.frozen_worlds += not plans
    seen = not plans
    for plan in plans:
        outcome.plans += 1
        try:
            pruned = cut(analysis, plan)
            expected = evaluate(_proto(masked(analysis, plan)), world.runtime)
            actual = evaluate(_proto(pruned), world.runtime)
        except Exception as problem:
            _record_fault(world, outcome, f"{plan.kept}: {type(problem).__name__}: {problem}")
            return
        difference = _compare(actual, expected, world)
        if difference:
            _record_fault(world, outcome, f"{dict(plan.kept)}: {difference}")
            return
        outcome.exact += all(map(np.array_equal, actual, expected))
        seen = seen or not all(map(np.array_equal, world.original, expected))
    outcome.vacuous += not seen


def _compare(actual: list[np.ndarray], expected: list[np.ndarray], world: World) -> str:
    """Return how the first output that differs does; "" if none does."""
    pairs = zip(actual, expected, strict=True)
    tolerance = TOLERANCE[world.runtime] if world.tolerance is None else world.tolerance
    texts = (differs(a, e, tolerance) for a, e in pairs)
    return next(filter(None, texts), "")


def plans_of(analysis: Analysis, most: int) -> tuple[list[Plan], bool]:
    """Return plans that keep a channel of every group, and whether some were left out.

    All subsets of all groups together if they are at most `most`; otherwise those of each group
    alone come first, then random ones.
    """
    subsets = {g.name: _subsets(g.size) for g in analysis.groups if 1 < g.size <= _MOST_WIDTH}
    total = math.prod(len(s) + 1 for s in subsets.values()) - 1
    listed: list[Kept] = []
    if total <= most:
        for combination in itertools.product(*[[None, *s] for s in subsets.values()]):
            kept = zip(subsets, combination, strict=True)
            listed.append({name: subset for name, subset in kept if subset is not None})
    else:
        draw = random.Random(total)
        alone = [{name: s} for name, listed_ in subsets.items() for s in listed_]
        single = most * 3 // 4
        listed += alone if len(alone) <= single else draw.sample(alone, single)
        while len(listed) < most:
            listed.append({n: draw.choice(s) for n, s in subsets.items() if draw.random() < 0.7})
    plans: dict[str, Plan] = {}
    for kept in listed:
        plan = analysis.plan(kept)  # keeps a position of every axis
        if plan.kept:
            plans.setdefault(repr(sorted(plan.kept.items())), plan)
    return list(plans.values()), total > most


def _subsets(size: int) -> list[tuple[int, ...]]:
    """Return the proper subsets of channels that may be kept."""
    return [s for n in range(1, size) for s in itertools.combinations(range(size), n)]


def _frozen_by_op(analysis: Analysis) -> set[str]:
    """Return the reasons for which the operator under proof froze an axis of more than one."""
    return {
        f.reason
        for f in analysis.frozen
        if f.node.startswith(PROVED) and analysis.model.weights[f.tensor].shape[f.axis] > 1
    }


def _proto(model: Model) -> ModelProto:
    """Return a model with its weights."""
    return onnx.load_from_string(to_bytes(model))


def _record_fault(world: World, outcome: Outcome, text: str) -> None:
    """Add a fault with the graph that has it, as text."""
    graph = printer.to_text(world.model)
    outcome.faults.append(f"{world.op} {world.choices}\n  {text}\n{graph}")
