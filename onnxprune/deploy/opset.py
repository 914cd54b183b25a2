"""Another operator set version for a target's reader, where the graph means the same in it."""

from __future__ import annotations

import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto

from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label, nested, set_attribute
from onnxprune.ir.passes.canonicalize import canonicalize

# attributes that later versions added, with the value under which the node is what it was before
ADDED = {
    "allowzero": 0,
    "training_mode": 0,
    "antialias": 0,
    "keep_aspect_ratio_policy": "stretch",
    "layout": 0,
    "reduction": "none",
    "num_outputs": None,
    "start": 0,
    "stash_type": None,
    "output_dtype": 0,
    "block_size": 0,
    "saturate": 1,
}
REDUCED = (
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
AXES_AS_INPUT = 18  # opset in which the operators of REDUCED take their axes as an input


def convert_opset(model: Model, opset: int) -> Model:
    """The model in that operator set.

    Going up is left to onnx's converter. It goes down for hardly any graph, so here a version is written down instead, where every node is
    valid in it: operators, attributes and inputs that came later are taken back where they say what was meant before.

    Raises
    ------
    ModelError
        Something of the graph has no such form; says what.
    """
    if model.opset < opset:
        return _raised(model, opset)
    copy = model.edit()
    for graph in nested(copy.proto.graph):
        for node in graph.node:
            if node.domain in STANDARD_DOMAINS:
                _lower(copy, node, opset)
    for stated in copy.proto.opset_import:
        if stated.domain in STANDARD_DOMAINS:
            stated.version = opset
    return copy


def _raised(model: Model, opset: int) -> Model:
    """By onnx's converter."""
    try:
        proto = onnx.version_converter.convert_version(
            ModelProto.FromString(to_bytes(model)), opset
        )
        made = canonicalize(load(proto))
    except OnnxpruneError:
        raise
    except Exception as problem:  # onnx's C++ errors have no common type
        raise ModelError(
            "opset-conversion",
            f"onnx's converter fails: {str(problem).strip().splitlines()[0][:200]}",
        ) from problem
    if made.opset != opset:
        raise ModelError("opset-conversion", f"onnx's converter leaves it at {made.opset}")
    return made


def _lower(model: Model, node: NodeProto, opset: int) -> None:
    """Rewrite one node, in place; ModelError where it has no older form."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise ModelError(
            "opset-conversion", f"operator set {opset} has no {node.op_type} (node {label(node)!r})"
        ) from None
    if node.op_type in REDUCED and opset < AXES_AS_INPUT <= model.opset:
        _axes_to_attribute(model, node)
    for name, neutral in ADDED.items():
        value = attribute(node, name)
        if value is not None and name not in schema.attributes and neutral in (value, None):
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend(kept)
    later = [a.name for a in node.attribute if a.name not in schema.attributes]
    if later or len(node.input) > schema.max_input or len(node.output) > schema.max_output:
        what = (
            f"attribute {later[0]!r}"
            if later
            else f"{len(node.input)} inputs and {len(node.output)} outputs"
        )
        raise ModelError(
            "opset-conversion",
            f"{node.op_type} has no {what} in operator set {opset} (node {label(node)!r})",
        )


def _axes_to_attribute(model: Model, node: NodeProto) -> None:
    """The axes of a reduction where they stood before opset 18."""
    if len(node.input) < 2 or not node.input[1]:
        return
    if attribute(node, "noop_with_empty_axes", 0) or node.input[1] not in model.weights:
        raise ModelError(
            "opset-conversion", f"the axes of {node.op_type} are computed (node {label(node)!r})"
        )
    set_attribute(node, "axes", [int(a) for a in model.weights[node.input[1]].array().reshape(-1)])
    del node.input[1:]
    kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
