"""MaxPool with its second output, and MaxUnpool: positions in a flattened tensor.

An index counts elements of all channels before its own, so it changes with the number of channels.
Where every consumer unpools to the very size that was pooled, both nodes count alike and channels
can be cut from both; all other consumers would see other values.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.literals import Axes, axes_of, freeze_axes, record_literal, stop
from onnxprune.analysis.state import Node, Record
from onnxprune.ir.nodes import nested
from onnxprune.ir.values import is_static

_SPATIAL = 2  # axes before the spatial ones
_INDICES = 1  # slot of MaxUnpool, and output of MaxPool


def max_pool(node: Node) -> list[Axes]:
    """Pool each channel; freeze it if its indices are read as numbers."""
    axes = _freeze_spatial(node, axes_of(node))
    indices = node.proto.output[_INDICES]
    record = node.record
    readers = [n for n in record.nodes if indices in n.input]
    inner = list(nested(record.model.proto.graph))[1:]
    # a body that yields the indices hands them to consumers that are not seen here
    escapes = any(o.name == indices for graph in inner for o in graph.output)
    if escapes or not all(_inverts(record, n, node.proto) for n in readers):
        axes = freeze_axes(node, axes, None, "its second output holds positions among all channels")
    return [axes, list(axes)]


def max_unpool(node: Node) -> list[Axes]:
    """Write each value to the position that it was pooled from."""
    axes = axes_of(node)
    for a, b in zip(axes, axes_of(node, _INDICES), strict=True):
        node.record.causes.unify(a, b)
    axes = _freeze_spatial(node, axes)
    pools = [n for n in node.record.nodes if node.names[_INDICES] in n.output]
    if not pools or not _inverts(node.record, node.proto, pools[0]):
        axes = freeze_axes(node, axes, None, "its indices are positions in another tensor")
    if node.inputs > _SPATIAL:
        record_literal(node, ("input", 2), [*axes[:_SPATIAL], *[None] * len(axes[_SPATIAL:])])
    return [axes]


def _freeze_spatial(node: Node, axes: Axes) -> Axes:
    """Return the axes with the spatial ones frozen."""
    return [
        stop(node, a, "spatial axis") if i >= _SPATIAL or not isinstance(a, np.ndarray) else a
        for i, a in enumerate(axes)
    ]


def _inverts(record: Record, unpool: NodeProto, pool: NodeProto) -> bool:
    """Return whether a node restores the size that another pooled, from its indices."""
    if pool.op_type != "MaxPool" or unpool.op_type != "MaxUnpool":
        return False
    if list(pool.output)[_INDICES:] != [unpool.input[_INDICES]]:
        return False
    # the indices may serve the unpooling alone, not as values or as its size
    if pool.output[_INDICES] in (unpool.input[0], *unpool.input[2:]):
        return False
    before, after = record.shapes.shape(pool.input[0]), record.shapes.shape(unpool.output[0])
    if before is None or after is None or len(before) != len(after):
        return False
    # a dynamic size could differ from run to run
    return is_static(before[_SPATIAL:]) and before[_SPATIAL:] == after[_SPATIAL:]
