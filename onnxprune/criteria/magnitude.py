"""Scores from the weights alone."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from onnxprune.analysis.groups import Analysis, Member
from onnxprune.criteria.base import Context, per_channel
from onnxprune.errors import UsageError
from onnxprune.ir.nodes import attribute
from onnxprune.types import Scores


def l1(context: Context) -> Scores:
    """Compute the sum of abs(w) over all filters that produce a channel.

    Li et al. 2017, Pruning Filters for Efficient ConvNets (arXiv 1608.08710, section 3.1).
    """
    return _compute_norms(context.analysis, 1)


def l2(context: Context) -> Scores:
    """Compute sqrt(sum of w**2) over all filters that produce a channel."""
    return {name: np.sqrt(total) for name, total in _compute_norms(context.analysis, 2).items()}


def largest_l1(context: Context) -> Scores:
    """Compute the negated l1 norm, so that the largest filters are removed first."""
    return {name: -scores for name, scores in l1(context).items()}


def largest_l2(context: Context) -> Scores:
    """Compute the negated l2 norm, so that the largest filters are removed first."""
    return {name: -scores for name, scores in l2(context).items()}


def bn_scale(context: Context) -> Scores:
    """Compute the sum of abs(gamma) over the BatchNormalization nodes that a channel passes.

    Liu et al. 2017, Network Slimming (arXiv 1708.06519). The absolute value is taken because a
    large negative scale matters as much as a positive one. Groups that pass no
    BatchNormalization are left out.

    Raises
    ------
    UsageError
        No group passes a BatchNormalization: the exporter folded them.
    """
    analysis = context.analysis

    def scale(member: Member) -> np.ndarray | None:
        use = analysis.uses[member.use]
        # slot 1 is gamma
        if analysis.nodes[use.node].op_type != "BatchNormalization" or use.slot != 1:
            return None
        return np.abs(analysis.model.weights[use.tensor].array().astype(np.float64))

    result = {}
    for group in analysis.groups:
        scores = per_channel(analysis, group.name, scale)
        if scores is not None:
            result[group.name] = scores
    if not result:
        raise UsageError(
            "no-batchnorm",
            "bn_scale needs BatchNormalization in the graph, and it is folded here; use l2, or "
            "export without folding",
        )
    return result


def bn_scale_l1(context: Context) -> Scores:
    """Compute bn_scale times l1."""
    norms = l1(context)
    return {
        name: scores * norms[name] for name, scores in bn_scale(context).items() if name in norms
    }


def position_norms(analysis: Analysis, use: int, axis: int, power: int) -> np.ndarray:
    """Compute the sum of abs(w)**power over all other axes of a weight.

    Quantized weights are dequantized first.

    Parameters
    ----------
    use
        Index of the weight in `analysis.uses`.
    axis
        Axis to keep.
    power
        1 or 2.

    Returns
    -------
    np.ndarray
        (length of the axis,) float64.
    """
    weight = analysis.model.weights[analysis.uses[use].tensor].array()
    # before the zero point is subtracted: 8-bit integers would overflow
    values = weight.astype(np.float32, copy=False)
    scale = _read_quantization_parameter(analysis, use, weight.shape, 1)
    zero_point = _read_quantization_parameter(analysis, use, weight.shape, 2)
    if zero_point is not None:
        values = values - zero_point
    if scale is not None:
        values = values * scale
    if power == 1:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        return np.abs(values).sum(others, dtype=np.float64)
    axes = ascii_letters[: weight.ndim]
    # einsum squares and sums without a temporary of the weight's size
    return np.einsum(f"{axes},{axes}->{axes[axis]}", values, values).astype(np.float64)


def _read_quantization_parameter(
    analysis: Analysis, use: int, shape: tuple[int, ...], slot: int
) -> np.ndarray | None:
    """Return the scale (slot 1) or zero point (slot 2) of a weight, broadcastable to it.

    None if the weight is not dequantized, or the parameter is computed or blocked.
    """
    entry = analysis.uses[use]
    node = analysis.nodes[entry.node]
    if node.op_type != "DequantizeLinear" or entry.slot != 0 or len(node.input) <= slot:
        return None
    if node.input[slot] not in analysis.model.weights:
        return None
    values = analysis.model.weights[node.input[slot]].array().astype(np.float32)
    if values.ndim == 0 or values.size == 1:
        return values.reshape((1,) * len(shape))
    axis = attribute(node, "axis", 1) % len(shape)
    # one scale per block varies along two axes
    if values.ndim != 1 or len(values) != shape[axis]:
        return None
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _compute_norms(analysis: Analysis, power: int) -> dict[str, np.ndarray]:
    """Return sums of abs(w)**power over the filters that produce each channel.

    A group without such filters gets the sums over the weights that consume it, or else over the
    parameters that carry it.
    """
    result = {}
    for group in analysis.groups:
        for role in ("produces", "consumes", "carries"):
            total = _role_norms(analysis, group.name, role, power)
            if total is not None:
                result[group.name] = total
                break
    return result


def _role_norms(analysis: Analysis, group: str, role: str, power: int) -> np.ndarray | None:
    """Return sums over the sites of a group that have this role; None if there are none."""

    def norms(member: Member) -> np.ndarray | None:
        if member.site.role != role:
            return None
        # a vector that produces or consumes a channel is no filter
        if role != "carries" and len(analysis.model.weights[member.site.tensor].shape) < 2:
            return None
        return position_norms(analysis, member.use, member.site.axis, power)

    return per_channel(analysis, group, norms)
