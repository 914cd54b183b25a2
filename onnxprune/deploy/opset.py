"""Convert a model to another operator set, if the graph means the same in it."""

from __future__ import annotations

import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto

from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label, nested, set_attribute
from onnxprune.ir.passes.canonicalize import canonicalize

# attributes that later versions added, with the value that means what older versions compute;
# None = every value does
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
REDUCTIONS = (
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
AXES_AS_INPUT = 18  # opset in which REDUCTIONS take their axes as an input


def convert_opset(model: Model, opset: int) -> Model:
    """Return the model in that operator set.

    Going up is left to onnx's converter, which goes down for hardly any graph. Going down only
    changes the stated version if every node is valid in it: newer attributes are removed where they
    have the old meaning, newer inputs become attributes.

    Raises
    ------
    ModelError
        A node has no equivalent in that operator set.
    """
    if model.opset < opset:
        return _raise_opset(model, opset)
    copy = model.edit()
    # bodies of If and Loop have nodes too
    for graph in nested(copy.proto.graph):
        for node in graph.node:
            if node.domain in STANDARD_DOMAINS:
                _lower(copy, node, opset)
    for stated in copy.proto.opset_import:
        if stated.domain in STANDARD_DOMAINS:
            stated.version = opset
    return copy.freeze()


def _raise_opset(model: Model, opset: int) -> Model:
    """Convert upwards by onnx's converter."""
    try:
        proto = onnx.version_converter.convert_version(
            ModelProto.FromString(to_bytes(model)), opset
        )
        converted = canonicalize(load(proto))
    # errors of load and canonicalize have their own code and message
    except OnnxpruneError:
        raise
    except Exception as problem:  # onnx's C++ errors have no common type
        reason = str(problem).strip().splitlines()[0][:200]
        raise ModelError("opset-conversion", f"onnx's converter fails: {reason}") from problem
    if converted.opset != opset:
        raise ModelError(
            "opset-conversion",
            f"onnx's converter stops at opset {converted.opset}; {opset} is needed",
        )
    return converted


def _lower(model: EditableModel, node: NodeProto, opset: int) -> None:
    """Rewrite one node in place; ModelError if it has no older equivalent."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise ModelError(
            "opset-conversion", f"opset {opset} has no {node.op_type} (node {label(node)!r})"
        ) from None
    # ReduceSum takes its axes as an input since opset 13, which every target reads
    if node.op_type in REDUCTIONS and opset < AXES_AS_INPUT <= model.opset:
        _move_axes_to_attribute(model, node)
    for name, neutral in ADDED.items():
        value = attribute(node, name)
        if value is not None and name not in schema.attributes and neutral in (value, None):
            _drop_attribute(node, name)
    # after the removal of neutral ones: what is left changes the result
    newer = [a.name for a in node.attribute if a.name not in schema.attributes]
    if newer or len(node.input) > schema.max_input or len(node.output) > schema.max_output:
        what = f"{len(node.input)} inputs and {len(node.output)} outputs"
        if newer:
            what = f"attribute {newer[0]!r}"
        raise ModelError(
            "opset-conversion",
            f"{node.op_type} cannot have {what} in opset {opset} (node {label(node)!r})",
        )


def _drop_attribute(node: NodeProto, name: str) -> None:
    """Remove an attribute in place."""
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _move_axes_to_attribute(model: EditableModel, node: NodeProto) -> None:
    """Store the axes of a reduction as an attribute, as before opset 18, in place."""
    # no axes means all of them, as input and as attribute
    if len(node.input) < 2 or not node.input[1]:
        return
    if attribute(node, "noop_with_empty_axes", 0) or node.input[1] not in model.weights:
        raise ModelError(
            "opset-conversion", f"the axes of {node.op_type} are computed (node {label(node)!r})"
        )
    set_attribute(node, "axes", [int(a) for a in model.weights[node.input[1]].array().reshape(-1)])
    del node.input[1:]
    _drop_attribute(node, "noop_with_empty_axes")
