"""Shares of the MACs: per group, per reason of frozen axes, and per prefix of names of nodes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.analysis.folded import arrays_of
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.running_cost import branch_costs
from onnxprune.analysis.stored import count_params, stored_tensors
from onnxprune.ir.model import Model
from onnxprune.ir.nodes import label, nested
from onnxprune.report.roles import KEY, MLP_IN, QUERY, VALUE, spell_roles
from onnxprune.types import Group

_ADDING = ("Add", "Sum", "Sub", "QLinearAdd", "SkipLayerNormalization")
_SEPARATOR = re.compile(r"[/.]")


@dataclass
class Branch:
    """Nodes whose names begin alike.

    Attributes
    ----------
    name
        Last part of the prefix.
    macs, params
        Their costs; a weight counts where it is used first.
    prunable
        MACs of those that have an axis that can be cut.
    branches
        Branches by the next part of the names.
    """

    name: str
    macs: int = 0
    params: int = 0
    prunable: int = 0
    branches: dict[str, Branch] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the branch as plain data."""
        values = {"name": self.name, "macs": self.macs, "params": self.params}
        branches = [branch.to_json() for branch in self.branches.values()]
        return {**values, "prunable_macs": self.prunable, "branches": branches}


def describe_role(analysis: Analysis, group: Group, roles: Mapping[str, str]) -> str:
    """Return what the channels of a group are, "" if that is not known.

    Parameters
    ----------
    roles
        Layer -> role, see `find_roles`.
    """
    weights = analysis.model.weights
    writers = [
        site.node
        for site in group.sites
        if site.role == "produces" and len(weights[site.tensor].shape) > 1
    ]
    written = {roles.get(name, "") for name in writers}
    if {QUERY, KEY, VALUE} <= written:
        return "heads (q, k, v)"
    if written == {MLP_IN}:
        return "MLP hidden"
    # several layers that add to the same channels, and are not compared with each other
    several = len(set(writers)) > 1 and not written & {QUERY, KEY, VALUE}
    if several and _is_added(analysis, group, set(writers)):
        return "residual stream"
    return spell_roles(roles, writers)


def _is_added(analysis: Analysis, group: Group, writers: Collection[str]) -> bool:
    """Return whether a node adds, along the channels of a group, what different layers write."""
    channels = np.zeros(analysis.axes.causes + 1, bool)
    channels[analysis.causes[group.name]] = True
    tensors = analysis.record.tensors
    layers: dict[str, frozenset[str]] = {}  # activation with the channels -> who has written it
    for node in analysis.nodes:
        operands = [layers[name] for name in node.input if name in layers]
        if node.op_type in _ADDING and len(set(operands)) > 1:
            return True
        written = (
            frozenset([label(node)]) if label(node) in writers else frozenset().union(*operands)
        )
        for name in node.output if written else ():
            axes = tensors[name].axes if name in tensors else ()
            arrays = [ids for axis in axes for ids in arrays_of(axis)]
            if any(channels[analysis.axes.table(ids)].any() for ids in arrays):
                layers[name] = written
    return False


def group_shares(analysis: Analysis) -> dict[str, float]:
    """Return group -> share of the MACs in nodes along its channels, all of which go with them.

    Nodes between two groups count for both, and a node with a group on both of its axes, such as
    the recurrence of a GRU, counts once.
    """
    total = max(analysis.cost().macs, 1)
    alone = {group.name: (group.name,) for group in analysis.groups}
    saved = branch_costs(analysis, "macs", {}, alone)
    return {name: macs / total for name, macs in saved.items()}


def frozen_shares(analysis: Analysis) -> dict[tuple[str, str], float]:
    """Return (operator, reason) -> share of the MACs in nodes with axes frozen for it.

    It is what can be freed at most by opening these axes.
    """
    macs = _macs_by_label(analysis)
    users: dict[str, set[str]] = {}
    for use in analysis.uses:
        users.setdefault(use.tensor, set()).add(label(analysis.nodes[use.node]))
    held: dict[tuple[str, str], set[str]] = {}
    for frozen in analysis.frozen:
        held.setdefault((frozen.op, frozen.reason), set()).update(users.get(frozen.tensor, ()))
    total = max(analysis.cost().macs, 1)
    return {why: sum(macs.get(name, 0) for name in names) / total for why, names in held.items()}


def make_tree(analysis: Analysis, source: Model) -> Branch:
    """Return the costs by the prefixes of the names of nodes, parted at / and dots.

    Parameters
    ----------
    source
        The model as its file stores it. Weights that no node uses count for the root alone.
    """
    macs, params = _macs_by_label(analysis), _params_by_label(source)
    unused = params.pop("", 0)
    live = {
        label(analysis.nodes[product.node])
        for product in analysis.record.products
        if any(map(analysis.axes.live, product.axes))
    }
    root = Branch("model")
    for name in {**macs, **params}:
        branch = root
        for part in ("", *filter(None, _SEPARATOR.split(name))):
            branch = branch.branches.setdefault(part, Branch(part)) if part else branch
            branch.macs += macs.get(name, 0)
            branch.params += params.get(name, 0)
            branch.prunable += macs.get(name, 0) if name in live else 0
    root.params += unused
    return root


def _params_by_label(source: Model) -> dict[str, int]:
    """Return label of the first node that uses a stored tensor -> parameters; "" for the rest."""
    # bodies may name their constants alike
    stored: dict[str, int] = {}
    for tensor, shape in stored_tensors(source):
        stored[tensor] = stored.get(tensor, 0) + count_params(shape)
    params: dict[str, int] = {}
    for graph in nested(source.proto.graph):
        for node in graph.node:
            for name in node.input:
                if size := stored.pop(name, 0):
                    params[label(node)] = params.get(label(node), 0) + size
    params[""] = sum(stored.values())
    return params


def _macs_by_label(analysis: Analysis) -> dict[str, int]:
    """Return label -> MACs; nodes of one label are added."""
    macs: dict[str, int] = {}
    for cost in analysis.node_costs():
        macs[cost.node] = macs.get(cost.node, 0) + cost.macs
    return macs
