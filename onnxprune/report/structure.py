"""Rows of a report on the structure of the network: groups, layers, boxes, frozen axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.report.record import ReportRecord, omitted


@dataclass(frozen=True, eq=False)
class GroupRow(ReportRecord):
    """Width of one group before and after.

    Attributes
    ----------
    exact
        Whether removing a channel leaves the kept ones unchanged.
    macs_share
        MACs of the layers along the channels, which produce or read them, as a share of the
        original's; a layer between two groups counts for both.
    makers
        Layers that produce the channels.
    ratio
        Share of the channels that the user asked to remove; None without a ratio.
    """

    name: str
    before: int
    after: int
    exact: bool = True
    macs_share: float = 0.0
    makers: Sequence[str] = ()
    ratio: float | None = omitted(None)


@dataclass(frozen=True, eq=False)
class LayerCost(ReportRecord):
    """Cost of one layer: (before, after) of each quantity, None for those that are unknown.

    Attributes
    ----------
    bytes
        Bytes read and written.
    time_ms
        Time on the first engine that was measured.
    """

    node: str
    op: str
    macs: Sequence[int]
    bytes: Sequence[int] | None = omitted(None)
    time_ms: Sequence[float | None] | None = omitted(None)


@dataclass(frozen=True, eq=False)
class GraphBox(ReportRecord):
    """Node of the network's picture, see `collect.graph_rows`.

    Attributes
    ----------
    inputs
        Indices of earlier boxes.
    groups
        Groups whose channels the first output carries.
    role
        What the node is for, such as "query" or "MLP, first layer"; "" if that is not known.
    """

    node: str
    op: str
    inputs: Sequence[int]
    groups: Sequence[str]
    role: str = omitted("")


@dataclass(frozen=True, eq=False)
class FrozenAxis(ReportRecord):
    """An axis that cannot be pruned, with the operator and node that freeze it."""

    tensor: str
    axis: int
    op: str
    node: str
    reason: str
