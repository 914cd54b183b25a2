"""Rows of a report, computed from the results of the stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.sizes import sized_shapes
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import captured, label, nested
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import bits
from onnxprune.report.data import FrozenAxis, GraphBox, GroupRow, LatencyRow, LayerCost
from onnxprune.report.roles import find_roles
from onnxprune.report.shares import group_shares
from onnxprune.types import Frozen, Plan, Scores

_THREADED = ("onnxruntime", "openvino", "ncnn", "mnn")  # engines that compute on CPU threads
MOST_POINTS = 17  # per group's error curve


def group_rows(
    analysis: Analysis, plan: Plan, ratios: Mapping[str, float] | None = None
) -> tuple[GroupRow, ...]:
    """Return every group with its width before and after and its share of the MACs, as in inspect.

    Parameters
    ----------
    ratios
        Group -> share of its channels that the user asked to remove.
    """
    # before pruning: shares are those of the original
    shares = group_shares(analysis)
    rows = []
    for group in analysis.groups:
        # by producers alone: a layer counts with the group that it produces
        makers = {site.node for site in group.sites if site.role == "produces"}
        # a plan need not list the groups that stay unpruned
        after = len(plan.kept.get(group.name, range(group.size)))
        asked = (ratios or {}).get(group.name)
        share = shares[group.name]
        rows.append(
            GroupRow(
                group.name, group.size, after, group.exact, share, tuple(sorted(makers)), asked
            )
        )
    return tuple(rows)


def frozen_rows(frozen: Iterable[Frozen]) -> tuple[FrozenAxis, ...]:
    """Return the axes that cannot be pruned."""
    return tuple(FrozenAxis(f.tensor, f.axis, f.op, f.node, f.reason) for f in frozen)


def sensitivity_rows(scores: Scores, max_fraction: float) -> dict[str, list[list[float]]]:
    """Return group -> [[removed share, sum of the removed channels' scores], ...].

    With scores of criterion `reconstruction`, this is the group's error curve. It has at most
    MOST_POINTS points, up to a share of `max_fraction`.
    """
    rows = {}
    for name, values in scores.items():
        # a criterion may give negative scores; removing channels is never counted as a gain
        error = np.cumsum(np.sort(np.maximum(values, 0.0)))
        most = max(int(len(error) * max_fraction), 1)
        # few channels give fewer points than MOST_POINTS
        counts = np.unique(np.linspace(1, most, MOST_POINTS).round().astype(int))
        rows[name] = [
            [round(float(n / len(error)), 4), float(f"{error[n - 1]:.5g}")] for n in counts
        ]
    return rows


def measured_rows(records: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Return group -> [[removed share, quality lost], ...] from the records of a sweep.

    Parameters
    ----------
    records
        Records that `search.sensitivity` wrote; group "" is the unpruned model.

    Raises
    ------
    UsageError
        They are not from a sweep, or from several.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    sweeps = set()
    try:
        for record in records:
            # the file may hold records of other kinds
            if "group" not in record:
                continue
            # the key starts with the hash of the sweep's settings
            sweeps.add(str(record.get("key", "")).partition(":")[0])
            share = round(1 - record["kept"] / max(record["size"], 1), 4)
            points.setdefault(str(record["group"]), []).append((share, float(record["quality"])))
    except (KeyError, TypeError, ValueError) as problem:
        raise UsageError(
            "sensitivities-invalid",
            f"not the records of a sensitivity sweep: {type(problem).__name__} {problem}",
        ) from problem
    if len(sweeps) != 1 or "" not in points:
        raise UsageError(
            "sensitivities-mixed",
            f"expected one sweep with the quality of the unpruned model, got {len(sweeps)} "
            f"{'with' if '' in points else 'without'} it; write each sweep to a file of its own",
        )
    # the last one, as for every key that a journal repeats
    unpruned = points.pop("")[-1][1]
    lost = {}
    for name, rows in points.items():
        lost[name] = [[share, unpruned - quality] for share, quality in sorted(rows)]
    return lost


def latency_rows(bench: Mapping[str, Any]) -> dict[str, LatencyRow]:
    """Return engine -> latencies, from `BenchReport.as_dict()` of original and pruned model."""
    rows = {}
    for engine, ratios in bench.get("ratios", {}).items():
        # by engine: the same model has a time on each
        measured = {m["model"]: m for m in bench["measurements"] if m["engine"] == engine}
        for ratio in ratios:
            before, after = measured[ratio["base"]], measured[ratio["contender"]]
            # waiting for a CPU is no property of the model
            before_ms = before["median_ms"] if before.get("cpu_ms") is None else before["cpu_ms"]
            rows[engine] = LatencyRow(
                before_ms,
                # by the paired ratio: medians of the two models may be of different minutes
                before_ms / ratio["median"],
                ratio["median"],
                ratio["low"],
                ratio["high"],
                before.get("times_ms", ()),
                after.get("times_ms", ()),
                after.get("threads") if engine.partition(":")[0] in _THREADED else None,
            )
    return rows


def layer_rows(
    analysis: Analysis, plan: Plan, bench: Mapping[str, Any], pruned: Model | None = None
) -> tuple[LayerCost, ...]:
    """Return the cost of every node with MACs, before and after.

    Parameters
    ----------
    bench
        `BenchReport.as_dict()`; times are those of the first engine that reports layers.
    pruned
        The pruned model, for bytes read and written.
    """
    after = {cost.node: cost.macs for cost in analysis.node_costs(plan.kept)}
    moved_before: Mapping[str, int] = {}
    moved_after: Mapping[str, int] = {}
    if pruned is not None:
        # the pruned model at the same inputs, so that only its widths differ
        sizes = analysis.counted_at
        moved_before = traffic(analysis.original.model, analysis.original.counted_at.shapes)
        moved_after = traffic(pruned, sized_shapes(pruned, sizes.inputs))
    times: dict[str, list[float | None]] = {}
    for timed in bench.get("layers", ()):
        for node in timed["nodes"]:
            # layers of further engines come later and do not replace these
            times.setdefault(node, list(timed["times_ms"].values()))
    rows = []
    # a layer that was added by a rewrite costs nothing in the original
    before = {cost.node: cost.macs for cost in analysis.original.node_costs()}
    for cost in analysis.node_costs():
        node = cost.node
        moved = None
        if node in moved_before and node in moved_after:
            moved = [moved_before[node], moved_after[node]]
        rows.append(
            LayerCost(node, cost.op, [before.get(node, 0), after[node]], moved, times.get(node))
        )
    return tuple(rows)


def traffic(model: Model, shapes: Shapes) -> dict[str, int]:
    """Return node -> bytes of all tensors it reads and writes, each counted once.

    Nodes with a tensor of unknown shape are left out.
    """
    moved = {}
    for node in model.proto.graph.node:
        sizes = [_size(model, shapes, name) for name in {*node.input, *node.output} if name]
        if None not in sizes:
            moved[label(node)] = sum(size for size in sizes if size)
    return moved


def _size(model: Model, shapes: Shapes, name: str) -> int | None:
    """Return the bytes of a tensor, None if its shape is unknown."""
    shape: Sequence[int | str | None] | None
    weight = model.weights.get(name)
    if weight:
        shape, dtype = weight.shape, weight.dtype
    else:
        shape, dtype = shapes.shape(name), shapes.dtype(name)
    if shape is None or not dtype:
        return None
    # an axis that is still open counts as 1, as a batch does
    elements = prod(dim if isinstance(dim, int) else 1 for dim in shape)
    return (elements * bits(dtype) + 7) // 8  # types below 8 bits are packed


def graph_rows(analysis: Analysis) -> tuple[GraphBox, ...]:
    """Return the network as boxes, in graph order.

    Boxes are the inputs, the nodes with MACs, the nodes that join several tensors, and the
    outputs; the nodes in between are passed through.
    """
    graph = analysis.model.proto.graph
    groups_of = _map_carried_groups(analysis)
    roles = find_roles(analysis)
    products = {cost.node for cost in analysis.node_costs()}
    boxes: list[GraphBox] = []
    origins: dict[str, tuple[int, ...]] = {}  # tensor -> boxes that it comes from

    def add_box(
        name: str, op: str, inputs: tuple[int, ...], groups: Sequence[str] = ()
    ) -> tuple[int, ...]:
        boxes.append(GraphBox(name, op, list(inputs), list(groups), roles.get(name, "")))
        return (len(boxes) - 1,)

    for name in _list_input_names(graph, analysis.model):
        origins[name] = add_box(name, "input", ())
    for node in graph.node:
        # weights come from no box
        sources = {box for name in _read_tensors(node) for box in origins.get(name, ())}
        inputs = tuple(sorted(sources))
        name = label(node)
        # other nodes are left out: what they pass on comes from the boxes of their inputs
        if name in products or len(inputs) > 1:
            inputs = add_box(name, node.op_type, inputs, groups_of(node.output[0]))
        origins.update((output, inputs) for output in node.output)
    for output in graph.output:
        add_box(output.name, "output", origins.get(output.name, ()))
    return tuple(boxes)


def operator_rows(original: Model, pruned: Model) -> dict[str, list[int]]:
    """Return operator -> nodes of both models, those of subgraphs included."""
    before, after = (
        Counter(node.op_type for graph in nested(m.proto.graph) for node in graph.node)
        for m in (original, pruned)
    )
    return {op: [before[op], after[op]] for op in sorted(before.keys() | after.keys())}


def _map_carried_groups(analysis: Analysis) -> Callable[[str], list[str]]:
    """Return a function tensor -> groups whose channels it carries, in graph order."""
    # -1: channels of no group, which are frozen
    owner = np.full(analysis.axes.causes + 1, -1)
    for i, group in enumerate(analysis.groups):
        owner[analysis.causes[group.name]] = i

    def groups_of(tensor: str) -> list[str]:
        indices: set[int] = set()
        for ids in analysis.tensor_axes(tensor) or ():
            if ids is not None:
                indices.update(np.unique(owner[analysis.axes.table(ids)]).tolist())
        return [analysis.groups[i].name for i in sorted(indices) if i >= 0]

    return groups_of


def _list_input_names(graph: GraphProto, model: Model) -> list[str]:
    """Return the inputs of a graph without its weights."""
    return [info.name for info in graph.input if info.name not in model.weights]


def _read_tensors(node: NodeProto) -> set[str]:
    """Return the tensors that a node and its subgraphs read."""
    return {*node.input, *captured(node)}
