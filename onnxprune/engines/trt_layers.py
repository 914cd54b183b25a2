"""Join TensorRT's layer information with times and with the nodes of the model.

The information is the JSON of EngineInspector.get_engine_information and trtexec --exportLayerInfo.
With detailed verbosity each layer is an object with `Name`, `LayerType`, `Outputs` and, since 8.6,
`Metadata` such as "[ONNX Layer: /conv1/Conv]", joined by the character 0x1e; without it, a layer is
its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto

from onnxprune.engines.base import LayerTime
from onnxprune.engines.kernels import layer_time, producers
from onnxprune.errors import EngineError

_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMAT = ("Reformat", "NoOp")


def layer_times(
    information: str, times: Mapping[str, float], model: ModelProto
) -> tuple[LayerTime, ...]:
    """Return the layers that have a time, in the order of the engine.

    Parameters
    ----------
    information
        The engine's JSON.
    times
        Layer -> milliseconds, from a profiler or trtexec --exportProfile.
    model
        Model that the engine was built from.

    Raises
    ------
    EngineError
        `information` is not such JSON.
    """
    # times and information are joined by the layer's name
    described = {layer["Name"]: layer for layer in _parse_layers(information)}
    nodes = model.graph.node
    positions = {node.name: i for i, node in enumerate(nodes) if node.name}
    outputs = producers(nodes)
    layers = []
    for name, time_ms in times.items():
        # a profile may time layers that the information omits; their names may still hold nodes
        layer = described.get(name, {"Name": name})
        kind = str(layer.get("LayerType", ""))
        owned: Sequence[int] = ()
        # a reformat copies a tensor and computes no node
        if kind not in _REFORMAT and not name.startswith("Reformatting CopyNode"):
            owned = _find_nodes(layer, positions, outputs)
        layers.append(layer_time(name, kind, time_ms, [nodes[i] for i in owned]))
    return tuple(layers)


def _parse_layers(information: str) -> list[dict[str, Any]]:
    """Return each layer as an object with at least a Name."""
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as problem:
        raise EngineError(
            "layers-invalid", f"not TensorRT's layer information: {problem}"
        ) from problem
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def _find_nodes(
    layer: Mapping[str, Any], positions: Mapping[str, int], outputs: Mapping[str, int]
) -> Sequence[int]:
    """Return the indices of a layer's nodes.

    They are found by its metadata, else by node names in its name, else by its output tensors.
    """
    names = _ONNX.findall(str(layer.get("Metadata", ""))) or _split_name(str(layer["Name"]))
    nodes = {positions[name] for name in names if name in positions}
    # fusion may change names, output tensors keep theirs
    if not nodes:
        tensors = [str(o.get("Name", "")) for o in layer.get("Outputs", []) if isinstance(o, dict)]
        nodes = {outputs[tensor] for tensor in tensors if tensor in outputs}
    return sorted(nodes)


def _split_name(name: str) -> list[str]:
    """Return the names in that of a fused layer: "a + b", "PWN(PWN(a), b)"."""
    # PWN: pointwise network, into which TensorRT fuses activations
    inner = name.replace("PWN(", "").rstrip(")") if name.startswith("PWN(") else name
    return [part.strip().rstrip(")") for part in re.split(r" \+ |, ", inner)]
