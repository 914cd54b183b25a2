"""Small models written as text, in ONNX's syntax: `inputs | weights | nodes`."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune.ir.inference import infer
from onnxprune.ir.io import load

IR_VERSION = 10


def net(text: str, *, opset: int = 17, ir_version: int = IR_VERSION) -> ModelProto:
    """Return the model that a text describes.

    Parameters
    ----------
    text
        "inputs | weights | nodes", nodes separated by ";", and after a further "|" the outputs
        unless they are just `y`. Weights without a value are random, seeded by the text; one whose
        name begins with v is positive (variances, scales).
    """
    parts = [p.strip() for p in text.split("|")]
    inputs, weights, nodes = parts[:3]
    outputs = parts[3] if len(parts) > 3 else "float[] y"
    imports = f'"": {opset}, "com.microsoft": 1, "custom": 1'
    body = nodes.replace(";", "\n")
    model = parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{imports}]> g ({inputs}) => ({outputs}) "
        f"<{weights}> {{ {body} }}"
    )
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    used = {d for n in model.graph.node for d in (n.domain,)} | {""}
    kept = [o for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for info in model.graph.value_info:
        model.graph.initializer.append(random_weight(rng, info))
    del model.graph.value_info[:]
    _give_output_shapes(model)
    return model


def random_weight(rng: np.random.Generator, info: onnx.ValueInfoProto) -> TensorProto:
    """Return values: of unit gain for floats, small for integers, positive for names with v."""
    kind = info.type.tensor_type
    shape = [d.dim_value for d in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.integer):
        values = rng.integers(0 if np.issubdtype(dtype, np.unsignedinteger) else -9, 10, shape)
    elif info.name.startswith("v"):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.standard_normal(shape) / np.sqrt(
            max(np.prod(shape[1:]), 1.0) if len(shape) > 1 else 1.0
        )
    return numpy_helper.from_array(np.asarray(values).astype(dtype), info.name)


def _give_output_shapes(model: ModelProto) -> None:
    """Declare the shapes of all outputs, which onnx's checker requires."""
    found = infer(load(model))
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape") and output.name in found.types:
            output.type.CopyFrom(found.types[output.name])
