"""Construction of int8 graphs, and what onnxruntime's optimizer makes of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, load_model, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.ir.edit import copy_message
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.quantize import PER_CHANNEL_OPSET
from onnxprune.quantize.forms import Form, list_ops
from onnxprune.quantize.ranges import quiet_logging
from onnxprune.scratch import Scratch

DQ, Q = "DequantizeLinear", "QuantizeLinear"
_INTEGER = {
    "QLinearConv": "Conv",
    "ConvInteger": "Conv",
    "QGemm": "Gemm",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
}
_FLOAT = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
_BIAS_STEPS = 2**30  # of an excluded layer's bias, far finer than float32 resolves


def build(proto: ModelProto, ranges: Any, form: Form, excluded: Iterable[str]) -> ModelProto:
    """Return the graph in a form.

    Parameters
    ----------
    proto
        Graph that `prepare` returned.
    ranges
        Of its activations.
    excluded
        Names of nodes that stay in float32.

    Raises
    ------
    ModelError
        onnxruntime's tool fails.
    """
    excluded = sorted(excluded)
    result = _quantize(proto, ranges, form, excluded, {})
    if form.power_of_two:
        # weights must be rounded on the final scales, so the tool runs again with them
        result = _quantize(proto, ranges, form, excluded, _round_scales(result))
        _snap_scales(result)
    if form.fuses_adds:
        result = _fuse_residual_adds(result)
    _protect(result, set(excluded))
    return result


def _quantize(
    proto: ModelProto, ranges: Any, form: Form, excluded: list[str], overrides: Mapping[str, Any]
) -> ModelProto:
    """Return the result of onnxruntime's quantizer."""
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    options = {"ActivationSymmetric": form.symmetric, "WeightSymmetric": True, **form.options}
    graph, per_channel = copy_message(proto), form.per_channel and opset >= PER_CHANNEL_OPSET
    types = QuantType.QInt8, QuantType.QInt8 if form.signed else QuantType.QUInt8
    rest: tuple[Any, ...] = ranges, [], excluded, list_ops(form)
    try:
        with quiet_logging():
            if form.operators:
                mode = QuantizationMode.QLinearOps
                quantizer = ONNXQuantizer(
                    graph, per_channel, False, mode, True, *types, *rest, options
                )
            else:
                options["TensorQuantOverrides"] = dict(overrides)
                quantizer = QDQQuantizer(graph, per_channel, False, *types, *rest, options)
            quantizer.quantize_model()
            # the tool appends its nodes at the end
            quantizer.model.topological_sort()
    except Exception as problem:  # its exceptions share no base class
        raise ModelError(
            "quantize-failed", f"onnxruntime cannot quantize the model: {problem}"
        ) from problem
    return copy_message(quantizer.model.model)


def initializers(proto: ModelProto) -> dict[str, TensorProto]:
    """Return the initializers by name."""
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def producers(proto: ModelProto) -> dict[str, NodeProto]:
    """Return tensor -> node that computes it."""
    return {name: node for node in proto.graph.node for name in node.output if name}


def _round_scales(proto: ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Return overrides of the tool that make every scale the next larger power of two."""
    values = initializers(proto)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in proto.graph.node:
        if node.op_type not in (Q, DQ) or node.input[1] not in values:
            continue
        source = node.input[0]
        # the quantized weight is named after the weight
        name = source.removesuffix("_quantized") if source in values else source
        name = name.removesuffix("_QuantizeLinear_Input")
        tensor = values.get(source)
        is_bias = tensor is not None and tensor.data_type == TensorProto.INT32
        if node.op_type == Q and source in values or is_bias:
            continue
        if node.op_type == DQ and tensor is None:
            continue
        scale = float(numpy_helper.to_array(values[node.input[1]]).reshape(-1)[0])
        # larger, so that nothing saturates
        exponent = math.ceil(math.log2(max(scale, 2.0**-40)) - 1e-6)
        overrides[name] = [
            {"scale": np.array(2.0**exponent, np.float32), "zero_point": np.array(0, np.int8)}
        ]
    return overrides


def _snap_scales(proto: ModelProto) -> None:
    """Remove rounding errors of float32 from scales that are powers of two."""
    values = initializers(proto)
    names = {n.input[1] for n in proto.graph.node if n.op_type in (Q, DQ)}
    for name in sorted(names & values.keys()):
        scale = numpy_helper.to_array(values[name])
        snapped = np.exp2(np.rint(np.log2(scale))).astype(np.float32)
        values[name].CopyFrom(numpy_helper.from_array(snapped, name))


def _fuse_residual_adds(proto: ModelProto) -> ModelProto:
    """Return the graph with one input of each residual Add in float, that of a layer before it.

    TensorRT fuses convolution and Add if only the other input is quantized, and a bias that is
    added to a product if it is float.
    """
    made, uses = producers(proto), count_uses(proto)
    constants = initializers(proto)
    for node in proto.graph.node:
        if node.op_type != "Add":
            continue
        for slot in (0, 1):
            pair = _trace_pair(made, node.input[slot])
            if pair in constants:
                node.input[slot] = pair
        # the last layer that is computed, whose output nothing else uses
        for slot in (1, 0):
            pair = _trace_pair(made, node.input[slot])
            source = made.get(pair) if pair else None
            if source is not None and source.op_type in LINEAR_OPS and uses[pair] == 1:
                node.input[slot] = pair
                break
    model = load(proto).edit()
    remove_dead(model)
    return ModelProto.FromString(to_bytes(model))


def _trace_pair(made: Mapping[str, NodeProto], name: str) -> str:
    """Return the float tensor before a pair whose result this is, "" if it is none."""
    outer = made.get(name)
    inner = made.get(outer.input[0]) if outer is not None and outer.op_type == DQ else None
    return str(inner.input[0]) if inner is not None and inner.op_type == Q else ""


def count_uses(proto: ModelProto) -> Counter[str]:
    """Return how often each tensor is an input of a node or an output of the graph."""
    uses = Counter(name for node in proto.graph.node for name in node.input if name)
    uses.update(output.name for output in proto.graph.output)
    return uses


def _protect(proto: ModelProto, excluded: set[str]) -> None:
    """Keep onnxruntime's optimizer from quantizing excluded layers.

    Its pass WeightBiasQuantization gives the weight of a layer between DequantizeLinear and
    QuantizeLinear one scale, unless its bias is computed. So the bias becomes an int32 constant
    with a very fine scale, which computes the same.
    """
    values, made = initializers(proto), producers(proto)
    added: list[tuple[NodeProto, NodeProto]] = []
    for node in proto.graph.node:
        if node.name not in excluded or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        source = made.get(node.input[0])
        if source is None or source.op_type != DQ or node.input[1] not in values:
            continue
        bias = values.get(node.input[2]) if len(node.input) > 2 else None
        if bias is None:
            continue
        numbers = numpy_helper.to_array(bias).astype(np.float64)
        scale = np.float32(max(float(np.abs(numbers).max(initial=0.0)), 1e-6) / _BIAS_STEPS)
        steps = np.rint(numbers / float(scale)).astype(np.int32)
        name = f"{node.name}_float_bias"
        proto.graph.initializer.extend(
            [
                numpy_helper.from_array(steps, f"{name}_steps"),
                numpy_helper.from_array(np.array(scale), f"{name}_scale"),
            ]
        )
        computed = helper.make_node(DQ, [f"{name}_steps", f"{name}_scale"], [name], name)
        node.input[2] = name
        added.append((node, computed))
    nodes = list(proto.graph.node)
    for node, computed in added:
        # before its consumer: nodes are in order of execution
        nodes.insert(next(i for i, n in enumerate(nodes) if n.name == node.name), computed)
    if added:
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)


def optimized(model: Model) -> ModelProto:
    """Return the graph that onnxruntime executes."""
    import onnxruntime

    with Scratch() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                to_bytes(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # its exceptions share no base class
            raise ModelError(
                "model-refused", f"onnxruntime rejects the quantized model: {problem}"
            ) from problem
        return load_model(str(path))


def count_integer(graph: ModelProto) -> dict[str, tuple[int, int]]:
    """Return operator -> (nodes that compute in integers, all nodes) of an optimized graph."""
    integer: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for node in graph.graph.node:
        op = _INTEGER.get(node.op_type, "")
        integer[op] += 1
        op = op or _FLOAT.get(node.op_type, node.op_type)
        if op in LINEAR_OPS:
            every[op] += 1
    return {op: (integer[op], every[op]) for op in LINEAR_OPS if every[op]}


def find_requantized(graph: ModelProto, excluded: Mapping[str, str]) -> list[str]:
    """Return the excluded nodes that an optimized graph computes in integers.

    Parameters
    ----------
    excluded
        Node -> name of its weight.
    """
    names = {
        name for node in graph.graph.node if node.op_type in _INTEGER for name in node.input if name
    }
    return [
        node
        for node, weight in excluded.items()
        if weight in names or f"{weight}_quantized" in names or f"{node}_weight_q" in names
    ]
