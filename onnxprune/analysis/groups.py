"""Result of the analysis: groups of coupled channels, where they are, and what they cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.cost import Axes, CostTable, cost_table
from onnxprune.analysis.definitions import name_uncounted
from onnxprune.analysis.folded import Axis, Folded, KeptPositions
from onnxprune.analysis.frozen import frozen_axis, mixed_causes
from onnxprune.analysis.group_names import former_names
from onnxprune.analysis.sharing import shared_uses
from onnxprune.analysis.sizes import Sizes
from onnxprune.analysis.state import Mask, Record, Use
from onnxprune.analysis.summary import AnalysisSummary
from onnxprune.errors import MOST_NEAR, UsageError, unknown
from onnxprune.ir.io import Model, digest
from onnxprune.ir.nodes import label
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim
from onnxprune.types import Cost, Frozen, Group, Plan, Site

T = TypeVar("T")
Kept = Mapping[str, Sequence[int] | np.ndarray]  # group -> indices of its kept channels


@dataclass(frozen=True)
class Member:
    """A site of a group.

    Attributes
    ----------
    site
        Axis of an initializer.
    positions
        Positions of the axis that carry channels of the group.
    channels
        Channel per position.
    use
        Index in `Analysis.uses`.
    """

    site: Site
    positions: np.ndarray
    channels: np.ndarray
    use: int = -1


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node.

    Attributes
    ----------
    node
        Label of the node.
    op
        Its operator.
    macs
        Multiply-accumulates per inference.
    """

    node: str
    op: str
    macs: int


@dataclass(frozen=True, repr=False)
class Analysis(AnalysisSummary):
    """Channels that can be cut from a model.

    Attributes
    ----------
    model
        Canonical form of the model, which plans refer to.
    groups
        Groups of channels in graph order.
    frozen
        Axes of weights that cannot be cut, with reasons.
    options
        Options of the analysis.
    record
        Records of the pass; callers outside of `analysis` use the properties below.
    axes
        Id arrays resolved to causes.
    causes
        Group -> index of the cause of each of its channels.
    sizes
        Lengths at which costs are counted; None = example lengths, see `counted_at`.
    origin
        Analysis of the model that this one was rewritten from; None if it was not.
    """

    model: Model
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    options: Mapping[str, Any]
    record: Record = field(repr=False)
    axes: Axes = field(repr=False)
    causes: Mapping[str, np.ndarray] = field(repr=False)
    _members: Mapping[str, tuple[Member, ...]] = field(repr=False)
    sizes: Sizes | None = None
    origin: Analysis | None = None

    @property
    def original(self) -> Analysis:
        """Analysis of the model of whose costs targets are shares."""
        return self.origin or self

    @property
    def defects(self) -> tuple[str, ...]:
        """Rules that failed on valid nodes, to be reported to the authors of the rules."""
        return tuple(self.record.defects)

    @property
    def copies(self) -> Mapping[str, tuple[str, ...]]:
        """Weight -> further initializers of the file with equal bytes, which it replaces."""
        return self.record.copies

    @property
    def shapes(self) -> Shapes:
        """Shapes and types of all tensors."""
        return self.record.shapes

    def at(self, shapes: Mapping[str, Sequence[int]], origin: str = "") -> Analysis:
        """Return the analysis with costs counted at these shapes of the inputs.

        Parameters
        ----------
        shapes
            Input name -> shape; -1 and inputs that are not listed take example lengths for
            dynamic axes.
        origin
            Where the shapes come from, for reports.
        """
        before = self.origin.at(shapes, origin) if self.origin else None
        return replace(self, sizes=Sizes(self.record, dict(shapes), origin), origin=before)

    @cached_property
    def counted_at(self) -> Sizes:
        """Shapes at which costs are counted."""
        return self.sizes or Sizes(self.record)

    @cached_property
    def costs(self) -> CostTable:
        """Costs as functions of the kept lengths."""
        return cost_table(self.record, self.axes, self.counted_at)

    @cached_property
    def uncounted(self) -> str:
        """Nodes whose multiply-accumulates are not in the costs: "2 nodes of com.microsoft.X"."""
        return name_uncounted([self.nodes[i] for i in self.costs.uncounted])

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """All nodes of the model, those of bodies included, in the order that indices refer to."""
        return self.record.nodes

    @property
    def uses(self) -> Sequence[Use]:
        """Uses of initializers by nodes."""
        return self.record.uses

    @cached_property
    def masks(self) -> Sequence[Mask]:
        """Operands of nodes that sum over an axis that can be cut."""
        return [mask for mask in self.record.masks if not mask.added]

    @property
    def all_masks(self) -> Sequence[Mask]:
        """The same, and the constants that are added to such operands: what a cut removes."""
        return self.record.masks

    @cached_property
    def shared_weights(self) -> frozenset[str]:
        """Names of the weights that several nodes use as a layer."""
        return frozenset(shared_uses(self.record))

    def outermost(self, node: int) -> bool:
        """Return whether a node is in the main graph, whose tensors a run can output."""
        return self.record.outermost(node)

    def measurable(self, mask: Mask) -> bool:
        """Return whether a run can output the operand of a mask: no weight, and in no body."""
        return not mask.recurrent and self.outermost(mask.node)

    def prunable(self, node: int) -> bool:
        """Return whether a node multiplies along an axis that can be cut."""
        products = [p for p in self.record.products if p.node == node]
        return any(self.axes.live(a) for p in products for a in p.axes)

    @property
    def tensors(self) -> Collection[str]:
        """Names of all activations, those of bodies included."""
        return self.record.tensors.keys()

    def tensor_axes(self, tensor: str) -> tuple[np.ndarray | None, ...] | None:
        """Return the ids per axis of an activation, None for a frozen axis or no such tensor."""
        state = self.record.tensors.get(tensor)
        return None if state is None else tuple(map(self.record.array, state.axes))

    @cached_property
    def mixed(self) -> np.ndarray:
        """(number of causes + 1,) bool: causes whose removal also changes kept channels."""
        return mixed_causes(self.record, self.axes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical model; reads every weight once."""
        return digest(self.model)

    def group(self, name: str) -> Group:
        """Return the group of a name.

        Raises
        ------
        UsageError
            There is none; the message names the nearest.
        """
        group = self._by_name.get(name)
        if group is None:
            raise unknown("group", name, self._by_name, most=MOST_NEAR)
        return group

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        own = {g.name: g for g in self.groups}
        return former_names(self.groups, self.model.weights) | own

    def members(self, name: str) -> tuple[Member, ...]:
        """Return where the channels of a group are in the initializers, one entry per site."""
        return self._members[self.group(name).name]

    def removed(self, kept: Kept) -> np.ndarray:
        """Return which causes are removed.

        Returns
        -------
        removed : (number of causes + 1,) bool array
            The last entry, that of frozen positions, is always False.

        Raises
        ------
        UsageError
            A group or a channel does not exist.
        """
        removed = np.zeros(self.axes.causes + 1, bool)
        for name, indices in kept.items():
            group = self.group(name)
            size = group.size
            index = np.asarray(indices, np.int64)
            if len(index) and (index.min() < 0 or index.max() >= size):
                raise UsageError(
                    "plan-indices",
                    f"group {name!r} has channels 0 to {size - 1}, but the plan keeps channels "
                    f"{index.min()} to {index.max()}",
                )
            mask = np.ones(size, bool)
            mask[index] = False
            removed[self.causes[group.name][mask]] = True
        return removed

    def keep(self, ids: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Return which positions of an axis are kept, as (length,) bool array."""
        # with several causes per position, any that is removed takes it along
        return ~removed[self.axes.table(ids)].any(1)

    def keep_values(self, tensor: str, values: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Return values of an activation at the positions that are kept on all its axes.

        They are copied only where an axis becomes shorter.
        """
        for axis, kept in self.kept_positions(tensor, removed).items():
            values = np.take(values, kept.positions(values.shape[axis]), axis)
        return values

    def kept_positions(self, tensor: str, removed: np.ndarray) -> dict[int, KeptPositions]:
        """Return the kept positions of each axis of an activation that loses some."""
        state = self.record.tensors.get(tensor)
        result = {}
        for i, axis in enumerate(state.axes if state else ()):
            # of dynamic length, an axis has no mask of its own, but its factors have
            if isinstance(axis, Folded):
                pairs = zip(axis.factors, axis.lengths, strict=True)
                masks = [self._keep_factor(factor, length, removed) for factor, length in pairs]
            else:
                masks = [self._keep_factor(axis, None, removed)]
            if any(mask is not None and not mask.all() for mask in masks):
                result[i] = KeptPositions(tuple(masks))
        return result

    def _keep_factor(
        self, axis: Axis | None, length: Dim, removed: np.ndarray
    ) -> np.ndarray | None:
        """Return which positions of a factor are kept; None if it is dynamic."""
        if isinstance(axis, np.ndarray):
            return self.keep(axis, removed)
        return np.ones(length, bool) if isinstance(length, int) else None

    def cost(self, kept: Kept | None = None) -> Cost:
        """Return the cost of the model with only the kept channels.

        If a branch is removed, the constant that replaces it counts as the parameters and the
        output of the nodes that it replaces.
        """
        return self.costs.total(self.removed(kept or {}))

    def node_costs(self, kept: Kept | None = None) -> list[NodeCost]:
        """Return the cost of every node that multiplies, in graph order."""
        macs = self.costs.macs(self.removed(kept or {}))
        by_node: dict[int, int] = {}
        for product, value in zip(self.costs.products, macs.tolist(), strict=True):
            by_node[product.node] = by_node.get(product.node, 0) + int(value)
        return [
            NodeCost(label(self.nodes[n]), self.nodes[n].op_type, v) for n, v in by_node.items()
        ]

    def savings(self, what: str, kept: Kept | None = None) -> dict[str, np.ndarray]:
        """Return what each channel saves to first order, at the given widths.

        Parameters
        ----------
        what
            "macs", "params" or "bytes".
        kept
            Kept channels; None for all.

        Returns
        -------
        savings : dict of (size,) float64 arrays
            Saving per channel of each group.
        """
        per_cause = self.costs.savings(what, self.removed(kept or {}))
        return {name: per_cause[index] for name, index in self.causes.items()}

    def prunable_macs(self) -> float:
        """Return the share of the MACs in nodes with at least one axis that can be cut."""
        macs = self.costs.macs(self.removed({}))
        live = [any(self.axes.live(a) for a in p.axes) for p in self.costs.products]
        # at least 1, because products with an empty axis may be all that there are
        return float(macs[np.array(live, bool)].sum() / max(macs.sum(), 1)) if live else 0.0

    def why(self, tensor: str) -> list[Frozen]:
        """Return why axes of a weight or an activation are frozen; empty if all can be cut."""
        uses = [(u.tensor, u.axes) for u in self.uses if u.tensor == tensor]
        state = self.record.tensors.get(tensor)
        if state is not None:
            uses.append((tensor, state.axes))
        if not uses:
            names = {u.tensor for u in self.uses} | set(self.record.tensors)
            raise unknown("tensor", tensor, names, most=MOST_NEAR)
        reasons = {}
        for name, axes in uses:
            for i, axis in enumerate(axes):
                number = self.record.causes.reason(axis) if axis is not None else 0
                if number:
                    reasons[name, i] = frozen_axis(self.record, name, i, number)
        return list(reasons.values())

    def plan(self, kept: Mapping[str, Sequence[int]], **decided_by: Any) -> Plan:
        """Return the plan that keeps these channels; unpruned groups are not listed in it.

        Where the groups together would leave an axis without a position, the channels of one
        position are kept as well.
        """
        kept = self._rename(kept)
        for table in self.emptied_axes(kept):
            kept = self._restore_position(kept, table)
        pruned = {n: tuple(map(int, k)) for n, k in kept.items() if len(k) < self.group(n).size}
        sizes = {n: self.group(n).size for n in pruned}
        return Plan(self.digest, pruned, sizes, decided_by, self.options)

    def emptied_axes(self, kept: Kept) -> list[np.ndarray]:
        """Return the axes of which groups that keep channels would leave no position.

        Positions picked from a grouped axis depend on two groups each: both may keep channels, and
        no position keep all of its own. A group without channels takes its branch along instead.

        Returns
        -------
        list of (positions, width) causes
        """
        emptied = self.axes.emptied(self.removed(kept))
        if not emptied:
            return []
        with_branch = np.zeros(self.axes.causes + 1, bool)
        for name, indices in kept.items():
            # a group without channels is removed with its branch, not by emptying an axis
            if not len(indices):
                with_branch[self.causes[name]] = True
        return [table for table in emptied if not with_branch[table].any()]

    def _restore_position(self, kept: Kept, table: np.ndarray) -> dict[str, tuple[int, ...]]:
        """Return the kept channels with those of one position of an axis added.

        The position is the one that lacks the fewest channels, which is the first of several.
        """
        lacking = self.removed(kept)[table]
        causes = set(table[int(np.argmin(lacking.sum(1)))].tolist())
        result = {name: tuple(map(int, indices)) for name, indices in kept.items()}
        for name, indices in result.items():
            channels = np.flatnonzero(np.isin(self.causes[name], list(causes))).tolist()
            result[name] = tuple(sorted({*indices, *channels}))
        return result

    def _rename(self, values: Mapping[str, T]) -> dict[str, T]:
        """Return values by group under the names of this version."""
        return {self.group(name).name: value for name, value in values.items()}

    def check(self, plan: Plan) -> Plan:
        """Check that a plan is for this model and this analysis; return it with current names.

        Raises
        ------
        UsageError
            It is for another one.
        """
        if plan.source != self.digest:
            low_rank = plan.decided_by.get("low_rank")
            hint = "; pass factored.onnx of the plan's run directory" if low_rank else ""
            raise UsageError(
                "plan-model",
                f"the plan is for another model: its source has SHA-256 {plan.source[:12]}..., "
                f"this model has {self.digest[:12]}...{hint}",
            )
        for name, size in plan.sizes.items():
            if self.group(name).size != size:
                raise UsageError(
                    "plan-model",
                    f"group {name!r} has {self.group(name).size} channels in this analysis and "
                    f"{size} in the plan; use the options of the analysis that made the plan",
                )
        kept = self._rename(plan.kept)
        for table in self.emptied_axes(kept):
            names = [n for n in kept if np.isin(self.causes[n], table).any()]
            raise UsageError(
                "plan-empties-axis",
                f"the plan leaves an axis of {len(table)} positions without any: it depends on "
                f"groups {', '.join(map(repr, names))} together; keep more of their channels",
            )
        return replace(plan, kept=kept, sizes=self._rename(plan.sizes))
