"""Scores from the weights alone.

Li et al., Pruning Filters for Efficient ConvNets (2017), for l1; Liu et al., Network Slimming (2017), for the scale, here
always absolute: a channel with a large negative scale matters as much as one with a positive.
"""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from onnxprune.analysis.groups import Analysis, Member
from onnxprune.criteria.base import Context, per_channel
from onnxprune.errors import UsageError
from onnxprune.types import Scores


def l1(context: Context) -> Scores:
    """Sum of absolute weights over all filters that make a channel."""
    return _norms(context.analysis, 1)


def l2(context: Context) -> Scores:
    """Root of the sum of squared weights over all filters that make a channel."""
    return {name: np.sqrt(total) for name, total in _norms(context.analysis, 2).items()}


def largest_l1(context: Context) -> Scores:
    """l1 negated."""
    return {name: -scores for name, scores in l1(context).items()}


def largest_l2(context: Context) -> Scores:
    """l2 negated."""
    return {name: -scores for name, scores in l2(context).items()}


def bn_scale(context: Context) -> Scores:
    """|gamma| summed over the BatchNormalization nodes that a channel passes; groups without one are left out.

    Raises
    ------
    UsageError
        No group passes a BatchNormalization: the exporter folded them.
    """
    analysis = context.analysis

    def scale(member: Member) -> np.ndarray | None:
        use = analysis.record.uses[member.use]
        if analysis.record.nodes[use.node].op_type != "BatchNormalization" or use.slot != 1:
            return None
        return np.abs(analysis.model.weights[use.tensor].array().astype(np.float64))

    found = {
        g.name: scores
        for g in analysis.groups
        if (scores := per_channel(analysis, g.name, scale)) is not None
    }
    if not found:
        raise UsageError(
            "no-batchnorm",
            "bn_scale needs BatchNormalization in the graph, and it is folded here; use l2, or export without folding",
        )
    return found


def bn_scale_l1(context: Context) -> Scores:
    """bn_scale times l1."""
    norms = l1(context)
    return {
        name: scores * norms[name] for name, scores in bn_scale(context).items() if name in norms
    }


def position_norms(analysis: Analysis, use: int, axis: int, power: int) -> np.ndarray:
    """(length,) float64: sum of |w|**power over all other axes of a weight, quantized weights in real units."""
    weight = analysis.model.weights[analysis.record.uses[use].tensor].array()
    values = weight.astype(np.float32, copy=False)
    scale, zero = (
        _parameter(analysis, use, weight.shape, 1),
        _parameter(analysis, use, weight.shape, 2),
    )
    if zero is not None:
        values = values - zero
    if scale is not None:
        values = values * scale
    if power == 1:
        return np.abs(values).sum(
            tuple(i for i in range(weight.ndim) if i != axis), dtype=np.float64
        )
    axes = ascii_letters[: weight.ndim]
    return np.einsum(f"{axes},{axes}->{axes[axis]}", values, values).astype(np.float64)


def _parameter(
    analysis: Analysis, use: int, shape: tuple[int, ...], slot: int
) -> np.ndarray | None:
    """An initializer that DequantizeLinear reads beside the weight, broadcast along its axis."""
    entry = analysis.record.uses[use]
    node = analysis.record.nodes[entry.node]
    if (
        node.op_type != "DequantizeLinear"
        or entry.slot != 0
        or len(node.input) <= slot
        or node.input[slot] not in analysis.model.weights
    ):
        return None
    values = analysis.model.weights[node.input[slot]].array().astype(np.float32)
    if values.ndim == 0 or values.size == 1:
        return values.reshape((1,) * len(shape))
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1) % len(shape)
    return (
        values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        if values.ndim == 1 and len(values) == shape[axis]
        else None
    )


def _norms(analysis: Analysis, power: int) -> dict[str, np.ndarray]:
    """Sums over the weights that make the channels; where none is a filter, over those that read them."""
    found = {}
    for group in analysis.groups:
        for role in ("produces", "consumes", "carries"):

            def norms(member: Member, role: str = role) -> np.ndarray | None:
                if (
                    member.site.role != role
                    or role != "carries"
                    and len(analysis.model.weights[member.site.tensor].shape) < 2
                ):
                    return None
                return position_norms(analysis, member.use, member.site.axis, power)

            total = per_channel(analysis, group.name, norms)
            if total is not None:
                found[group.name] = total
                break
    return found
