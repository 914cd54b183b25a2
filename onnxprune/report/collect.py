"""Rows of a report from what the stages found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnxprune.analysis.groups import Analysis
from onnxprune.report.data import GroupRow
from onnxprune.types import Frozen, Plan


def group_rows(analysis: Analysis, plan: Plan) -> tuple[GroupRow, ...]:
    """Every group, with its width before and after and its share of the original's MACs."""
    macs = {c.node: c.macs for c in analysis.node_costs()}
    total = sum(macs.values()) or 1
    rows = []
    for group in analysis.groups:
        makers = {s.node for s in group.sites if s.role == "produces"}
        after = len(plan.kept.get(group.name, range(group.size)))
        rows.append(GroupRow(group.name, group.size, after, group.exact, sum(macs.get(n, 0) for n in makers) / total))
    return tuple(rows)


def frozen_rows(frozen: Iterable[Frozen]) -> tuple[dict[str, Any], ...]:
    """What cannot be cut, as plain data."""
    return tuple({"tensor": f.tensor, "axis": f.axis, "op": f.op, "node": f.node, "reason": f.reason} for f in frozen)


def latency_rows(bench: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Engine -> before_ms, after_ms, speedup with its interval, from `Bench.as_dict()` of the original and the pruned model."""
    rows = {}
    for engine, ratios in bench.get("ratios", {}).items():
        times = {m["model"]: m["median_ms"] for m in bench["measurements"] if m["engine"] == engine}
        for r in ratios:
            rows[engine] = {
                "before_ms": times[r["base"]], "after_ms": times[r["contender"]], "speedup": r["median"], "low": r["low"], "high": r["high"],
            }  # fmt: skip
    return rows


def layer_rows(analysis: Analysis, plan: Plan, bench: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """MACs of each node that multiplies, before and after, and its time where the engine tells it (the first engine measured)."""
    after = {c.node: c.macs for c in analysis.node_costs(plan.kept)}
    times: dict[str, list[float | None]] = {}
    for timed in bench.get("layers", ()):
        for node in timed["nodes"]:
            times.setdefault(node, list(timed["times_ms"].values()))
    rows = []
    for cost in analysis.node_costs():
        row: dict[str, Any] = {"node": cost.node, "op": cost.op, "macs": [cost.macs, after[cost.node]]}
        rows.append({**row, "time_ms": times[cost.node]} if cost.node in times else row)
    return tuple(rows)
