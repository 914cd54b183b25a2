"""Rows of a report from what the stages found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.errors import UsageError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import captured, label
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import bits
from onnxprune.report.data import GroupRow
from onnxprune.types import Frozen, Plan, Scores

MOST_POINTS = 17  # of a group's error curve


def group_rows(analysis: Analysis, plan: Plan) -> tuple[GroupRow, ...]:
    """Every group, with its width before and after and its share of the original's MACs."""
    macs = {c.node: c.macs for c in analysis.node_costs()}
    total = sum(macs.values()) or 1
    rows = []
    for group in analysis.groups:
        makers = {s.node for s in group.sites if s.role == "produces"}
        after = len(plan.kept.get(group.name, range(group.size)))
        rows.append(
            GroupRow(
                group.name,
                group.size,
                after,
                group.exact,
                sum(macs.get(n, 0) for n in makers) / total,
                tuple(sorted(makers)),
            )
        )
    return tuple(rows)


def frozen_rows(frozen: Iterable[Frozen]) -> tuple[dict[str, Any], ...]:
    """What cannot be cut, as plain data."""
    return tuple(
        {"tensor": f.tensor, "axis": f.axis, "op": f.op, "node": f.node, "reason": f.reason}
        for f in frozen
    )


def sensitivity_rows(scores: Scores, max_fraction: float) -> dict[str, list[list[float]]]:
    """Group -> [share removed, sum of the scores that went], up to the share that may go: of criterion `reconstruction`, the group's error curve."""
    rows = {}
    for name, values in scores.items():
        error = np.cumsum(np.sort(np.maximum(values, 0.0)))
        counts = np.unique(
            np.linspace(1, max(int(len(error) * max_fraction), 1), MOST_POINTS).round().astype(int)
        )
        rows[name] = [
            [round(float(n / len(error)), 4), float(f"{error[n - 1]:.5g}")] for n in counts
        ]
    return rows


def measured_rows(records: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Group -> [share removed, quality lost against the whole model], from the records of a sweep (see `search.sensitivity`).

    Raises
    ------
    UsageError
        They are of no sweep, or of several.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    sweeps = set()
    try:
        for r in (r for r in records if "group" in r):
            sweeps.add(str(r.get("key", "")).partition(":")[0])
            rows.setdefault(str(r["group"]), []).append(
                (round(1 - r["kept"] / max(r["size"], 1), 4), float(r["quality"]))
            )
    except (KeyError, TypeError, ValueError) as problem:
        raise UsageError(
            "sensitivities-invalid",
            f"not the records of a sensitivity sweep: {type(problem).__name__} {problem}",
        ) from problem
    if len(sweeps) != 1 or "" not in rows:
        raise UsageError(
            "sensitivities-mixed",
            f"expected one sweep with the quality of the unpruned model, got {len(sweeps)} "
            f"{'with' if '' in rows else 'without'} it; write each sweep to a file of its own",
        )
    whole = rows.pop("")[-1][1]
    return {
        name: [[share, whole - quality] for share, quality in sorted(points)]
        for name, points in rows.items()
    }


def latency_rows(bench: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Engine -> before_ms, after_ms, speedup with its interval, from `Bench.as_dict()` of the original and the pruned model."""
    rows = {}
    for engine, ratios in bench.get("ratios", {}).items():
        times = {m["model"]: m["median_ms"] for m in bench["measurements"] if m["engine"] == engine}
        for r in ratios:
            rows[engine] = {
                "before_ms": times[r["base"]],
                "after_ms": times[r["contender"]],
                "speedup": r["median"],
                "low": r["low"],
                "high": r["high"],
            }
    return rows


def layer_rows(
    analysis: Analysis, plan: Plan, bench: Mapping[str, Any], pruned: Model | None = None
) -> tuple[dict[str, Any], ...]:
    """MACs of each node that multiplies, before and after, its time where the engine tells it (the first engine measured), and the bytes that it reads
    and writes where the pruned model is given.
    """
    after = {c.node: c.macs for c in analysis.node_costs(plan.kept)}
    moved = (
        (traffic(analysis.model, analysis.shapes), traffic(pruned, infer(pruned)))
        if pruned
        else ({}, {})
    )
    times: dict[str, list[float | None]] = {}
    for timed in bench.get("layers", ()):
        for node in timed["nodes"]:
            times.setdefault(node, list(timed["times_ms"].values()))
    rows = []
    for cost in analysis.node_costs():
        row: dict[str, Any] = {
            "node": cost.node,
            "op": cost.op,
            "macs": [cost.macs, after[cost.node]],
        }
        if all(cost.node in m for m in moved):
            row["bytes"] = [m[cost.node] for m in moved]
        rows.append({**row, "time_ms": times[cost.node]} if cost.node in times else row)
    return tuple(rows)


def traffic(model: Model, shapes: Shapes) -> dict[str, int]:
    """Node -> bytes of all tensors that it reads and writes, each once, dynamic axes counted as 1; nodes with a tensor of unknown shape are left out."""
    found = {}
    for node in model.proto.graph.node:
        sizes = [_size(model, shapes, name) for name in {*node.input, *node.output} if name]
        if None not in sizes:
            found[label(node)] = sum(s for s in sizes if s)
    return found


def _size(model: Model, shapes: Shapes, name: str) -> int | None:
    """Bytes of a tensor."""
    weight = model.weights.get(name)
    shape, dtype = (
        (weight.shape, weight.dtype) if weight else (shapes.shape(name), shapes.dtype(name))
    )
    if shape is None or not dtype:
        return None
    return (prod(d if isinstance(d, int) else 1 for d in shape) * bits(dtype) + 7) // 8


def graph_rows(analysis: Analysis) -> tuple[dict[str, Any], ...]:
    """The network as a reader thinks of it: its inputs, the nodes that multiply or join several tensors, its outputs; what lies between is passed through.

    A mapping a box, in graph order: "node", "op", "inputs" (indices of earlier boxes), "groups" (whose channels its first output carries).
    """
    graph = analysis.model.proto.graph
    groups = _carried(analysis)
    products = {c.node for c in analysis.node_costs()}
    rows: list[dict[str, Any]] = []
    behind: dict[str, tuple[int, ...]] = {}  # tensor -> boxes that it comes from

    def box(
        name: str, op: str, inputs: tuple[int, ...], made: Sequence[str] = ()
    ) -> tuple[int, ...]:
        rows.append({"node": name, "op": op, "inputs": list(inputs), "groups": list(made)})
        return (len(rows) - 1,)

    for entry in _inputs(graph, analysis.model):
        behind[entry] = box(entry, "input", ())
    for node in graph.node:
        sources = tuple(sorted({i for name in _read(node) for i in behind.get(name, ())}))
        name = label(node)
        if name in products or len(sources) > 1:
            sources = box(name, node.op_type, sources, groups(node.output[0]))
        behind.update((output, sources) for output in node.output)
    for output in graph.output:
        box(output.name, "output", behind.get(output.name, ()))
    return tuple(rows)


def _carried(analysis: Analysis) -> Callable[[str], list[str]]:
    """Groups whose channels a tensor carries, in graph order."""
    owner = np.full(analysis.axes.causes + 1, -1)
    for i, group in enumerate(analysis.groups):
        owner[analysis.causes[group.name]] = i

    def groups(tensor: str) -> list[str]:
        state = analysis.record.tensors.get(tensor)
        axes = [
            a
            for a in (state.axes or () if state else ())
            if isinstance(a, np.ndarray) and analysis.axes.known(a)
        ]
        found = {int(i) for a in axes for i in np.unique(owner[analysis.axes.table(a)]) if i >= 0}
        return [analysis.groups[i].name for i in sorted(found)]

    return groups


def _inputs(graph: GraphProto, model: Model) -> list[str]:
    return [i.name for i in graph.input if i.name not in model.weights]


def _read(node: NodeProto) -> set[str]:
    """Tensors that a node reads, its bodies included."""
    return {*node.input, *captured(node)}
