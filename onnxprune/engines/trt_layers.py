"""TensorRT's account of its layers, joined with their times and with the nodes of the model.

The account is the JSON of EngineInspector.get_engine_information and of trtexec --exportLayerInfo. With detailed verbosity each layer is an object with
`Name`, `LayerType`, `Outputs` and, since 8.6, `Metadata` such as "[ONNX Layer: /conv1/Conv]" joined by the character 0x1e; without, it is its name alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto

from onnxprune.engines.base import LayerTime
from onnxprune.engines.kernels import layer_time
from onnxprune.errors import EngineError

_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMAT = ("Reformat", "NoOp")


def layer_times(
    information: str, times: Mapping[str, float], model: ModelProto
) -> tuple[LayerTime, ...]:
    """The layers that have a time, in the order of the engine.

    Parameters
    ----------
    information
        The engine's JSON.
    times
        Milliseconds by the layer's name, from a profiler or trtexec --exportProfile.
    model
        What the engine was built from.

    Raises
    ------
    EngineError
        `information` is not such JSON.
    """
    described = {layer["Name"]: layer for layer in _layers(information)}
    positions = {
        name: i for i, node in enumerate(model.graph.node) for name in (node.name,) if name
    }
    outputs = {
        tensor: i for i, node in enumerate(model.graph.node) for tensor in node.output if tensor
    }
    found = []
    for name, time_ms in times.items():
        layer = described.get(name, {"Name": name})
        kind = str(layer.get("LayerType", ""))
        owned = (
            []
            if kind in _REFORMAT or name.startswith("Reformatting CopyNode")
            else _nodes(layer, positions, outputs)
        )
        found.append(layer_time(name, kind, time_ms, [model.graph.node[i] for i in owned]))
    return tuple(found)


def _layers(information: str) -> list[dict[str, Any]]:
    """Each layer as an object with at least a Name."""
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as problem:
        raise EngineError(
            "layers-invalid", f"not TensorRT's layer information: {problem}"
        ) from problem
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def _nodes(
    layer: Mapping[str, Any], positions: Mapping[str, int], outputs: Mapping[str, int]
) -> Sequence[int]:
    """Indices of the nodes of a layer: by its metadata, else by the node names in its own name, else by its output tensors."""
    named = _ONNX.findall(str(layer.get("Metadata", ""))) or _parts(str(layer["Name"]))
    found = {positions[name] for name in named if name in positions}
    if not found:
        tensors = [str(o.get("Name", "")) for o in layer.get("Outputs", []) if isinstance(o, dict)]
        found = {outputs[t] for t in tensors if t in outputs}
    return sorted(found)


def _parts(name: str) -> list[str]:
    """The names in a fused layer's: "a + b", "PWN(PWN(a), b)"."""
    inner = name.replace("PWN(", "").rstrip(")") if name.startswith("PWN(") else name
    return [part.strip().rstrip(")") for part in re.split(r" \+ |, ", inner)]
