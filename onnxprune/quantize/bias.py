"""Sequential bias correction: every layer's mean output becomes that of the float layer.

Rounding of weights and activations shifts the mean of a layer's output (Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction"). Layers are corrected in
order of execution, each on inputs that the corrected layers before it compute. Both graphs are run
in segments that end at a layer, so every node is executed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.quantize.graph import DQ, Q, initializers, producers
from onnxprune.quantize.ranges import Feeds

# of an Add only after a MatMul, whose bias it adds
_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "Add": -1}


class _Bias(NamedTuple):
    """Names of the initializers of a bias; without a scale it is float."""

    values: str
    scale: str = ""
    zero_point: str = ""

    def read(self, values: Mapping[str, TensorProto]) -> np.ndarray:
        """Return the bias in float64."""
        numbers = numpy_helper.to_array(values[self.values]).astype(np.float64)
        if self.zero_point:
            numbers -= numpy_helper.to_array(values[self.zero_point])
        if self.scale:
            numbers *= numpy_helper.to_array(values[self.scale])
        return np.asarray(numbers)


def correct_biases(
    original: ModelProto, quantized: ModelProto, feeds: Sequence[Feeds], products: bool = True
) -> int:
    """Correct the biases of a quantized graph in place; return how many.

    Parameters
    ----------
    original
        Float graph with the same names of nodes.
    feeds
        Inputs that gave no ranges.
    products
        Also correct biases that are added to a product.
    """
    if _has_subgraphs(quantized) or not feeds:
        return 0
    reference, corrected = _Runner(original, feeds), _Runner(quantized, feeds)
    outputs = {node.name: node.output[0] for node in original.graph.node}
    biases = _find_biases(quantized, products)
    count = 0
    for node in list(quantized.graph.node):
        if node.name not in biases or node.name not in outputs:
            continue
        axis = _CHANNEL_AXIS[node.op_type]
        expected = reference.means(outputs[node.name], axis)
        error = _shrink(expected - corrected.means(node.output[0], axis))
        shift = _shift_bias(quantized, biases[node.name], error)
        corrected.shift(node.output[0], axis, shift)
        count += 1
    return count


def carry_biases(pairs: ModelProto, operators: ModelProto) -> None:
    """Give QLinear operators, in place, the corrected biases of the same graph with pairs."""
    values, targets = initializers(pairs), initializers(operators)
    for bias in _find_biases(pairs, False).values():
        new, old = values[bias.values], targets.get(bias.values)
        if old is not None and (old.data_type, old.dims) == (new.data_type, new.dims):
            old.CopyFrom(new)


def _shrink(errors: np.ndarray) -> np.ndarray:
    """Return the mean error per channel from those per sample, less what may be chance.

    The mean of few samples is itself an estimate, whose error would be added to the bias: it is
    multiplied by 1 - (standard error / mean)^2, or 0.
    """
    mean = errors.mean(0)
    if len(errors) < 2:
        return np.asarray(mean)
    variance = errors.var(0, ddof=1) / len(errors)
    factor = 1 - np.divide(variance, mean**2, out=np.ones_like(mean), where=mean != 0)
    return np.asarray(mean * np.maximum(factor, 0.0))


def _has_subgraphs(proto: ModelProto) -> bool:
    """Return whether a node has a body, whose inputs segments would have to follow."""
    return any(a.type == AttributeProto.GRAPH for n in proto.graph.node for a in n.attribute)


def _find_biases(proto: ModelProto, products: bool) -> dict[str, _Bias]:
    """Return quantized layer -> its bias."""
    values, made = initializers(proto), producers(proto)
    uses = [name for node in proto.graph.node for name in node.input]
    biases = {}
    for node in proto.graph.node:
        layer, operand = node, ""
        if node.op_type == "Add" and products:
            layer, operand = _find_product(node, made)
        elif node.op_type in _CHANNEL_AXIS and len(node.input) > 2:
            operand = str(node.input[2])
        # excluded layers have a float weight
        weight = made.get(layer.input[1]) if operand else None
        if weight is None or weight.op_type != DQ:
            continue
        bias, computed = _Bias(operand), made.get(operand)
        if computed is not None and computed.op_type == DQ:
            bias = _Bias(*map(str, computed.input))
        # a bias that layers share cannot follow one of them, and a mask has a value per position
        vector = bias.values in values and len(values[bias.values].dims) == 1
        if vector and uses.count(bias.values) == 1:
            biases[node.name] = bias
    return biases


def _find_product(node: NodeProto, made: Mapping[str, NodeProto]) -> tuple[NodeProto, str]:
    """Return the MatMul whose result an Add has as operand, and the other one, "" without."""
    for slot in (0, 1):
        source = made.get(node.input[slot])
        # what engines fuse has no pair between
        while source is not None and source.op_type in (Q, DQ):
            source = made.get(source.input[0])
        if source is not None and source.op_type == "MatMul":
            return source, str(node.input[1 - slot])
    return node, ""


def _shift_bias(proto: ModelProto, bias: _Bias, error: np.ndarray) -> np.ndarray:
    """Add an error to a bias, and return what was added after rounding."""
    values = initializers(proto)
    before = bias.read(values)
    if before.ndim != 1 or before.shape != error.shape:
        return np.zeros(error.shape)
    old = numpy_helper.to_array(values[bias.values])
    new = old + error
    if bias.scale:
        scale = numpy_helper.to_array(values[bias.scale]).astype(np.float64)
        limits = np.iinfo(old.dtype)
        new = np.clip(np.rint(old + error / scale), limits.min, limits.max)
    values[bias.values].CopyFrom(numpy_helper.from_array(new.astype(old.dtype), bias.values))
    return bias.read(values) - before


class _Runner:
    """Execution of a graph in segments, on several feeds; keeps what later segments need."""

    def __init__(self, proto: ModelProto, feeds: Sequence[Feeds]) -> None:
        self.proto = proto
        self.values: list[dict[str, np.ndarray]] = [dict(feed) for feed in feeds]
        self.pending: list[NodeProto] = list(proto.graph.node)

    def means(self, tensor: str, axis: int) -> np.ndarray:
        """Return the means of a tensor per sample and channel, over all feeds."""
        self._run_to(tensor)
        parts = []
        for values in self.values:
            rows = np.moveaxis(values[tensor], axis, -1)
            # the first axis counts samples, or whatever else the layer treats alike
            rows = rows.reshape(len(rows), -1, rows.shape[-1])
            parts.append(rows.mean(1, dtype=np.float64))
        return np.concatenate(parts)

    def shift(self, tensor: str, axis: int, amount: np.ndarray) -> None:
        """Add an amount per channel to a tensor, as the changed bias does."""
        for values in self.values:
            moved = np.moveaxis(values[tensor], axis, -1) + amount
            values[tensor] = np.moveaxis(moved, -1, axis).astype(values[tensor].dtype)

    def _run_to(self, tensor: str) -> None:
        """Compute a tensor, and drop what no node that is left needs."""
        if tensor in self.values[0]:
            return
        constants = initializers(self.proto)
        segment = self._collect(tensor, constants)
        names = {id(node) for node in segment}
        self.pending = [node for node in self.pending if id(node) not in names]
        needed = {name for node in self.pending for name in node.input} | {tensor}
        outputs = [name for node in segment for name in node.output if name in needed]
        model = self._make_segment(segment, outputs, constants)
        session = Session(load(model), outputs, optimize=False)
        for values in self.values:
            values |= session.run({name: values[name] for name in session.inputs})
            for name in [n for n in values if n not in needed]:
                del values[name]

    def _collect(self, tensor: str, constants: Mapping[str, TensorProto]) -> list[NodeProto]:
        """Return the nodes that a tensor still needs, in order."""
        wanted, segment = {tensor}, []
        for node in reversed(self.pending):
            if wanted & set(node.output):
                segment.append(node)
                wanted |= {n for n in node.input if n not in self.values[0] and n not in constants}
        return segment[::-1]

    def _make_segment(
        self,
        nodes: Sequence[NodeProto],
        outputs: Sequence[str],
        constants: Mapping[str, TensorProto],
    ) -> ModelProto:
        """Return a model of some nodes."""
        used = list(dict.fromkeys(name for node in nodes for name in node.input if name))
        made = {name for node in nodes for name in node.output}
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(self.values[0][name].dtype), None
            )
            for name in used
            if name not in made and name not in constants
        ]
        graph = helper.make_graph(
            list(nodes),
            "segment",
            inputs,
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [constants[name] for name in used if name in constants],
        )
        return helper.make_model(
            graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )
