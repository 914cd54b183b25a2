"""From a finished walk to groups of channels, their members, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.analysis.cost import Axes, CostTable, cost_table
from onnxprune.analysis.state import Record, Use
from onnxprune.errors import UsageError, unknown
from onnxprune.ir.io import Model, digest
from onnxprune.ir.nodes import label
from onnxprune.ir.shapes import Shapes
from onnxprune.types import Cost, Frozen, Group, Plan, Site

WEIGHT_TYPES = frozenset(
    getattr(TensorProto, n)
    for n in (
        "FLOAT",
        "FLOAT16",
        "BFLOAT16",
        "DOUBLE",
        "INT8",
        "UINT8",
        "INT4",
        "UINT4",
        "FLOAT8E4M3FN",
        "FLOAT8E5M2",
    )
    if hasattr(TensorProto, n)
)


@dataclass(frozen=True)
class Member:
    """A site of a group: position positions[i] of the site's axis carries channel channels[i]. use: index in record.uses."""

    site: Site
    positions: np.ndarray
    channels: np.ndarray
    use: int = -1


@dataclass(frozen=True)
class NodeCost:
    """What one node costs. macs: multiply-accumulates an inference."""

    node: str
    op: str
    macs: int


@dataclass(frozen=True)
class Analysis:
    """What can be cut from a model.

    model: the canonical form, of which plans speak; groups: in graph order; frozen: axes of weights that stay, with reasons;
    options: what the analysis was asked for.
    """

    model: Model
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    options: Mapping[str, Any]
    record: Record = field(repr=False)
    axes: Axes = field(repr=False)
    causes: Mapping[str, np.ndarray] = field(
        repr=False
    )  # group -> index of the cause of each channel
    _members: Mapping[str, tuple[Member, ...]] = field(repr=False)
    _costs: CostTable = field(repr=False)

    @property
    def shapes(self) -> Shapes:
        """Shapes and types of every tensor."""
        return self.record.shapes

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical model; reads every weight once."""
        return digest(self.model)

    def group(self, name: str) -> Group:
        """The group of that name; UsageError with the nearest where there is none."""
        found = self._by_name.get(name)
        if found is None:
            raise unknown("group", name, self._by_name)
        return found

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {g.name: g for g in self.groups}

    def members(self, name: str) -> tuple[Member, ...]:
        """Where the channels of a group lie in the initializers, a site at a time."""
        return self._members[self.group(name).name]

    def removed(self, kept: Mapping[str, Sequence[int] | np.ndarray]) -> np.ndarray:
        """Which causes go: (number of causes + 1,) bool; the last one, of frozen positions, never."""
        gone = np.zeros(self.axes.causes + 1, bool)
        for name, indices in kept.items():
            size = self.group(name).size
            index = np.asarray(indices, np.int64)
            if len(index) and (index.min() < 0 or index.max() >= size):
                raise UsageError(
                    "plan-indices",
                    f"group {name!r} has {size} channels; kept {index.min()} to {index.max()}",
                )
            mask = np.ones(size, bool)
            mask[index] = False
            gone[self.causes[name][mask]] = True
        return gone

    def keep(self, ids: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """(length,) bool: which positions of an axis stay."""
        return ~removed[self.axes.table(ids)].any(1)

    def cost(self, kept: Mapping[str, Sequence[int] | np.ndarray] | None = None) -> Cost:
        """Cost of the model when only the kept channels are left. Where a branch goes whole, its constant counts as the parameters and the output of the nodes that it replaces."""
        return self._costs.total(self.removed(kept or {}))

    def node_costs(
        self, kept: Mapping[str, Sequence[int] | np.ndarray] | None = None
    ) -> list[NodeCost]:
        """Cost of every node that multiplies, in graph order."""
        macs = self._costs.macs(self.removed(kept or {}))
        out: dict[int, int] = {}
        for product, value in zip(self.record.products, macs.tolist(), strict=False):
            out[product.node] = out.get(product.node, 0) + int(value)
        return [
            NodeCost(label(self.record.nodes[n]), self.record.nodes[n].op_type, v)
            for n, v in out.items()
        ]

    def savings(
        self, what: str, kept: Mapping[str, Sequence[int] | np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """First-order saving of each channel on "macs", "params" or "bytes" at the given widths: group -> float64 (size,)."""
        per_cause = self._costs.savings(what, self.removed(kept or {}))
        return {name: per_cause[index] for name, index in self.causes.items()}

    def prunable_macs(self) -> float:
        """Share of the MACs that lie in nodes with at least one axis that can be cut."""
        macs = self._costs.macs(self.removed({}))
        live = [any(self.axes.live(a) for a in p.axes) for p in self.record.products]
        return float(macs[np.array(live, bool)].sum() / max(macs.sum(), 1)) if live else 0.0

    def why(self, tensor: str) -> list[Frozen]:
        """Reasons for the frozen axes of a tensor, a weight or an activation; empty where all of it can be cut."""
        uses = [(u.tensor, u.axes) for u in self.record.uses if u.tensor == tensor]
        state = self.record.tensors.get(tensor)
        if state is not None:
            uses.append((tensor, state.axes))
        if not uses:
            raise unknown(
                "tensor", tensor, {u.tensor for u in self.record.uses} | set(self.record.tensors)
            )
        found = {}
        for name, axes in uses:
            for i, axis in enumerate(axes):
                number = self.record.causes.reason(axis) if axis is not None else 0
                if number:
                    found[name, i] = _frozen(self.record, name, i, number)
        return list(found.values())

    def plan(self, kept: Mapping[str, Sequence[int]], **decided_by: Any) -> Plan:
        """The plan that keeps these channels; groups left whole are not listed in it."""
        less = {n: tuple(map(int, k)) for n, k in kept.items() if len(k) < self.group(n).size}
        return Plan(
            self.digest, less, {n: self.group(n).size for n in less}, decided_by, self.options
        )

    def check(self, plan: Plan) -> None:
        """UsageError where a plan was made for another model or another analysis."""
        if plan.source != self.digest:
            raise UsageError(
                "plan-model",
                f"the plan was made for another model (sha256 {plan.source[:12]}..., this one is {self.digest[:12]}...)",
            )
        for name, size in plan.sizes.items():
            if self.group(name).size != size:
                raise UsageError(
                    "plan-model",
                    f"group {name!r} has {self.group(name).size} channels here and {size} in the plan",
                )


def collect(record: Record, options: Mapping[str, Any]) -> Analysis:
    """Groups of a finished walk."""
    _roles(record)
    sites = [
        (u, i, a) for u in record.uses for i, a in enumerate(u.axes) if isinstance(a, np.ndarray)
    ]
    arrays = [a for _, _, a in sites] + _other_arrays(record)
    axes = Axes.build(record.causes, arrays)
    tables = [axes.table(a) for _, _, a in sites]
    through = {
        axes.number(a): axes.table(a)
        for t in record.tensors.values()
        for a in t.axes
        if isinstance(a, np.ndarray)
    }
    order, bounds = _partition(
        tables, [u.roles[i] == "produces" for u, i, _ in sites], list(through.values()), axes.causes
    )
    where = np.full(axes.causes + 1, -1)
    channel = np.zeros(axes.causes + 1, np.int64)
    for g, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        where[order[start:end]] = g
        channel[order[start:end]] = np.arange(end - start)
    members = _member_lists(record, sites, tables, where, channel, len(bounds) - 1)
    inexact = mixed_causes(record, axes)
    names = _names(record, members)
    causes = {n: order[s:e] for n, s, e in zip(names, bounds, bounds[1:], strict=False)}
    groups = tuple(
        Group(n, len(causes[n]), tuple(m.site for m in ms), not inexact[causes[n]].any())
        for n, ms in zip(names, members, strict=False)
    )
    return Analysis(
        record.model,
        groups,
        _frozen_axes(record),
        dict(options),
        record,
        axes,
        causes,
        dict(zip(names, map(tuple, members), strict=False)),
        cost_table(record, axes, WEIGHT_TYPES),
    )


def _other_arrays(record: Record) -> list[np.ndarray]:
    """Every id array whose length or content is asked for after the walk."""
    found = (
        [m.ids for m in record.masks]
        + [s.source for s in record.selects]
        + [a for p in record.products for a in p.axes]
    )
    found += (
        [a for r in (*record.literals,) for a in (*r.entries, *r.watch) if a is not None]
        + [a for r in record.restores for a in r.axes if a is not None]
        + [a for m in record.averages for a in m.axes]
    )
    return (
        found
        + [a for t in record.tensors.values() for a in t.axes if isinstance(a, np.ndarray)]
        + record.mixed
    )


def _roles(record: Record) -> None:
    """Give the axes of initializers the role that the node which reads them, or what is computed from them, knows."""
    for use, ids, role in record.hints:
        target = record.uses[use]
        roots = None
        for i, axis in enumerate(target.axes):
            if not isinstance(axis, np.ndarray):
                continue
            if axis is not ids:
                if len(axis) != len(ids):
                    continue
                roots = record.causes.find(ids) if roots is None else roots
                if not np.array_equal(record.causes.find(axis), roots):
                    continue
            if target.roles[i] == "carries":
                target.roles[i] = role
            break


def _partition(
    tables: list[np.ndarray], produces: list[bool], through: list[np.ndarray], count: int
) -> tuple[np.ndarray, list[int]]:
    """Causes with the same sites together: (causes in order, bounds of the groups). Causes without a site are left out.

    The axes of activations that they pass (`through`) count too: as long as a group keeps one, no axis of any tensor runs empty.
    """
    keys = (
        np.random.Generator(np.random.PCG64(0))
        .integers(1, 2**63 - 1, len(tables) + len(through), dtype=np.int64)
        .astype(np.uint64)
    )
    signature = np.zeros(count + 1, np.uint64)
    first = np.full((count + 1, 2), np.iinfo(np.int64).max)
    for k in sorted(range(len(tables)), key=lambda k: (not produces[k], k)):
        table = tables[k]
        np.add.at(signature, table.ravel(), keys[k])
        cause, position = np.unique(table, return_index=True)
        new = first[cause, 0] == np.iinfo(np.int64).max
        first[cause[new], 0], first[cause[new], 1] = k, position[new] // table.shape[1]
    used = np.flatnonzero(signature[:count])
    for key, table in zip(keys[len(tables) :], through, strict=False):
        np.add.at(signature, table.ravel(), key)
    _, group = np.unique(signature[used], return_inverse=True)
    lead = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(lead, group, first[used, 0])
    order = np.lexsort((first[used, 1], first[used, 0], group, lead[group]))
    sorted_group = group[order]
    bounds = (
        [0, *(np.flatnonzero(np.diff(sorted_group)) + 1).tolist(), len(used)] if len(used) else [0]
    )
    return used[order], bounds


def _member_lists(
    record: Record,
    sites: list[tuple[Use, int, np.ndarray]],
    tables: list[np.ndarray],
    where: np.ndarray,
    channel: np.ndarray,
    count: int,
) -> list[list[Member]]:
    members: list[list[Member]] = [[] for _ in range(count)]
    number = {id(u): i for i, u in enumerate(record.uses)}
    for (use, axis, _), table in zip(sites, tables, strict=False):
        position, column = np.nonzero(where[table] >= 0)
        cause = table[position, column]
        owner = where[cause]
        site = Site(use.tensor, axis, label(record.nodes[use.node]), use.roles[axis])
        for g in np.unique(owner).tolist():
            here = owner == g
            members[g].append(Member(site, position[here], channel[cause[here]], number[id(use)]))
    return members


def mixed_causes(record: Record, axes: Axes) -> np.ndarray:
    """(number of causes + 1,) bool: along which of them an opened op mixes."""
    flags = np.zeros(axes.causes + 1, bool)
    for ids in record.mixed:
        flags[axes.table(ids).ravel()] = True
    flags[-1] = False
    return flags


def _names(record: Record, members: list[list[Member]]) -> list[str]:
    """A unique name a group: that of the node of its first producer."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for sites in members:
        lead = next(
            (
                m
                for m in sites
                if m.site.role == "produces" and len(record.model.weights[m.site.tensor].shape) > 1
            ),
            sites[0],
        )
        base = lead.site.node
        seen[base] = seen.get(base, 0) + 1
        names.append(base if seen[base] == 1 else f"{base}#{seen[base]}")
    return names


def _frozen_axes(record: Record) -> tuple[Frozen, ...]:
    """Reasons for weight axes that make or sum channels and cannot be cut."""
    found = {}
    for use in record.uses:
        weight = record.model.weights[use.tensor]
        if len(weight.shape) < 2 or weight.dtype not in WEIGHT_TYPES:
            continue
        for i, axis in enumerate(use.axes):
            number = record.causes.reason(axis) if axis is not None else 0
            if number and weight.shape[i] > 1 and record.why(number).text != "kernel position":
                found[use.tensor, i] = _frozen(record, use.tensor, i, number)
    return tuple(found.values())


def _frozen(record: Record, tensor: str, axis: int, number: int) -> Frozen:
    reason = record.why(number)
    at = reason.node or reason.tensor
    return Frozen(tensor, axis, reason.op, at, reason.text)
