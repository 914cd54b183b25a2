"""Sequential bias correction: every layer's mean output becomes that of the float layer.

Rounding of weights and activations shifts the mean of a layer's output (Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction"). Layers are corrected in
order of execution, each on inputs that the corrected layers before it compute. Both graphs are run
in segments that end at a layer, so every node is executed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.quantize.graph import DQ, initializers, producers
from onnxprune.quantize.ranges import Feeds

_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1}
_MOST_STEPS = 2**31 - 1


def correct_biases(original: ModelProto, quantized: ModelProto, feeds: Sequence[Feeds]) -> int:
    """Correct the biases of a quantized graph in place; return how many.

    Parameters
    ----------
    original
        Float graph with the same names of nodes.
    feeds
        Inputs that gave no ranges.
    """
    if _has_subgraphs(quantized) or not feeds:
        return 0
    reference, corrected = _Runner(original, feeds), _Runner(quantized, feeds)
    outputs = {node.name: node.output[0] for node in original.graph.node}
    biases = _find_biases(quantized)
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


def carry_biases(quantized: ModelProto, original: ModelProto) -> None:
    """Give the layers of a float graph the corrected biases of a quantized one, in place."""
    values, floats = initializers(quantized), initializers(original)
    biases = _find_biases(quantized)
    for node in original.graph.node:
        name, scale_name = biases.get(node.name, ("", ""))
        if name not in values or len(node.input) < 3 or node.input[2] not in floats:
            continue
        bias = numpy_helper.to_array(values[name]).astype(np.float64)
        if scale_name:
            bias *= numpy_helper.to_array(values[scale_name])
        target = floats[node.input[2]]
        target.CopyFrom(numpy_helper.from_array(bias.astype(np.float32), target.name))


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


def _find_biases(proto: ModelProto) -> dict[str, tuple[str, str]]:
    """Return quantized layer -> initializers of its bias and its scale ("" of a float bias)."""
    values, made = initializers(proto), producers(proto)
    uses = [name for node in proto.graph.node for name in node.input]
    biases = {}
    for node in proto.graph.node:
        if node.op_type not in _CHANNEL_AXIS or len(node.input) < 3:
            continue
        weight = made.get(node.input[1])
        # excluded layers have a float weight
        if weight is None or weight.op_type != DQ:
            continue
        name, scale = str(node.input[2]), ""
        computed = made.get(name)
        if computed is not None and computed.op_type == DQ:
            name, scale = str(computed.input[0]), str(computed.input[1])
        # a bias that layers share cannot follow one of them
        if name in values and uses.count(name) == 1:
            biases[node.name] = name, scale
    return biases


def _shift_bias(proto: ModelProto, bias: tuple[str, str], error: np.ndarray) -> np.ndarray:
    """Add an error to a bias, and return what was added after rounding."""
    values = initializers(proto)
    name, scale_name = bias
    old = numpy_helper.to_array(values[name])
    if old.ndim != 1 or old.shape != error.shape:
        return np.zeros(error.shape)
    if not scale_name:
        new = (old + error).astype(old.dtype)
        values[name].CopyFrom(numpy_helper.from_array(new, name))
        return np.asarray(new, np.float64) - old
    scale = numpy_helper.to_array(values[scale_name]).astype(np.float64)
    steps = np.clip(np.rint(old + error / scale), -_MOST_STEPS, _MOST_STEPS).astype(np.int32)
    values[name].CopyFrom(numpy_helper.from_array(steps, name))
    return (steps.astype(np.float64) - old) * scale


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
