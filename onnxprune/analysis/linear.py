"""Linear layers: nodes that multiply an activation by a constant weight.

Repair and reconstruction work on these; which operator a layer is, and how it stores its weight,
is known to `ir.linear.WeightLayout` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import Use
from onnxprune.ir.linear import LINEAR_OPS, WeightLayout
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Attributes
    ----------
    node
        Index of the node in `Analysis.nodes`.
    name
        Label of the node.
    data
        Activation that it reads.
    out
        Activation that it computes.
    weight
        Use of its weight.
    bias
        Name of its bias; "" if it has none.
    layout
        Layout of its weight.
    axis
        Channel axis of the activation that it reads.
    out_axis
        Channel axis of the activation that it computes.
    ids
        Ids of the channels that it sums over; None if they are frozen.
    out_ids
        Ids of its output channels; None if they are frozen.
    """

    node: int
    name: str
    data: str
    out: str
    weight: Use
    bias: str
    layout: WeightLayout
    axis: int
    out_axis: int
    ids: np.ndarray | None
    out_ids: np.ndarray | None

    @property
    def op(self) -> str:
        """Operator of the node."""
        return self.layout.op

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for other operators."""
        return self.layout.groups


def linears(analysis: Analysis, *, inside: bool = False) -> list[Linear]:
    """Return the linear layers in graph order.

    Parameters
    ----------
    analysis
        Analysis of the model.
    inside
        Whether to include layers in bodies, whose activations a run cannot output.
    """
    weights = {(u.node, u.slot): u for u in analysis.uses}
    layers = []
    for index, node in enumerate(analysis.nodes):
        if node.op_type not in LINEAR_OPS or node.domain not in STANDARD_DOMAINS:
            continue
        use = weights.get((index, 1))
        # a product of constants is a weight, not a layer
        constant_data = (index, 0) in weights
        if use is None or constant_data or not (inside or analysis.outermost(index)):
            continue
        layer = _match_linear(analysis, index, node, use)
        if layer is not None:
            layers.append(layer)
    return layers


def _match_linear(analysis: Analysis, index: int, node: NodeProto, use: Use) -> Linear | None:
    """Return the linear layer that a node is; None if it is in another form."""
    shape = analysis.model.weights[use.tensor].shape
    # a weight per sample, and data with its channels in front, have no layout of `WeightLayout`
    batched = node.op_type == "MatMul" and len(shape) != 2
    if len(shape) < 2 or 0 in shape or batched or attribute(node, "transA", 0):
        return None
    data, out = analysis.tensor_axes(node.input[0]), analysis.tensor_axes(node.output[0])
    layout = WeightLayout.of(node)
    if data is None or out is None or layout.groups < 1 or shape[0] % layout.groups:
        return None
    # the last axis of a product and axis 1 of a feature map hold the channels
    axis, out_axis = (1, 1) if layout.convolution else (len(data) - 1, len(out) - 1)
    if not (0 <= axis < len(data) and 0 <= out_axis < len(out)):
        return None
    ids, out_ids = data[axis], out[out_axis]
    if ids is not None and len(ids) != layout.inputs(shape):
        return None  # the pass froze the node: it is not valid
    if out_ids is not None and len(out_ids) != layout.outputs(shape):
        return None
    slot = layout.bias_slot
    return Linear(
        index,
        label(node),
        node.input[0],
        node.output[0],
        use,
        node.input[slot] if slot is not None and slot < len(node.input) else "",
        layout,
        axis,
        out_axis,
        ids,
        out_ids,
    )
