"""From onnxruntime's profile back to the nodes of the model.

Optimization fuses and renames: a blocked convolution is called after the output tensor of one of the nodes that went into it, plus `_nchwc`.
Tensor names survive, so kernels are found by tensor: the optimized graph says which kernel makes which tensor, and every original node is given to
the kernel that computes it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto

from onnxprune.engines.base import LayerTime

CONTRACTIONS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "Einsum",
        "Gemm",
        "GRU",
        "LSTM",
        "MatMul",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    }
)
_BLOCKED = "_nchwc"
_SUFFIX = "_kernel_time"
# optimized operator -> original operators it is made around; an operator that is not here and not in the original is a composite
_CORES = {
    "FusedConv": ("Conv",),
    "NhwcFusedConv": ("Conv",),
    "QLinearConv": ("Conv",),
    "Gemm": ("Gemm", "MatMul"),
    "FusedGemm": ("Gemm", "MatMul"),
    "FusedMatMul": ("MatMul",),
    "QLinearMatMul": ("MatMul",),
    "MatMulInteger": ("MatMul",),
    "QGemm": ("Gemm",),
}


@dataclass(frozen=True)
class Kernel:
    """name, op: as in the profile; time_ms: interquartile mean over inferences (the profile counts whole microseconds, a median would too)."""

    name: str
    op: str
    time_ms: float


def kernel_times(path: Path, *, skip: int) -> list[Kernel]:
    """The kernels of a profile file in the order they ran, without the first `skip` inferences."""
    events = json.loads(path.read_text(encoding="utf-8"))
    times: dict[tuple[int, str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        arguments = event.get("args", {})
        key = (
            int(arguments.get("node_index", -1)),
            name.removesuffix(_SUFFIX),
            str(arguments.get("op_name", "")),
        )
        times.setdefault(key, []).append(float(event["dur"]) / 1e3)
    return [Kernel(name, op, middle_mean(ms[skip:] or ms)) for (_, name, op), ms in times.items()]


def middle_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: as robust as a median, and finer than the clock's tick."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def map_kernels(
    kernels: Sequence[Kernel], optimized: ModelProto, original: ModelProto
) -> tuple[LayerTime, ...]:
    """Kernels with the nodes they compute, in the order of the profile."""
    owners = _owners(optimized.graph.node, original.graph.node)
    by_name: dict[str, list[int]] = {}
    for position, node in enumerate(optimized.graph.node):
        by_name.setdefault(node.name, []).append(position)
    layers = []
    for kernel in kernels:
        indices = by_name.get(kernel.name, [])
        index = indices.pop(0) if len(indices) > 1 else indices[0] if indices else -1
        nodes = [
            original.graph.node[i]
            for i in sorted(i for i, owner in owners.items() if owner == index)
        ]
        layers.append(layer_time(kernel.name, kernel.op, kernel.time_ms, nodes))
    return tuple(layers)


def layer_time(name: str, op: str, time_ms: float, nodes: Sequence[NodeProto]) -> LayerTime:
    """A kernel that computes `nodes` (in topological order)."""
    tensors = tuple(output for node in nodes for output in node.output if output)
    contraction = next((node.output[0] for node in nodes if node.op_type in CONTRACTIONS), None)
    key = contraction or (tensors[-1] if tensors else "")
    return LayerTime(
        name, op, time_ms, tuple(node.name or node.output[0] for node in nodes), tensors, key
    )


def _owners(optimized: Sequence[NodeProto], original: Sequence[NodeProto]) -> dict[int, int]:
    """Original node index -> optimized node index."""
    producer = producers(original)
    named = {node.name: i for i, node in enumerate(original) if node.name}
    anchors = {
        index: (anchor,)
        for index, node in enumerate(optimized)
        if (anchor := _anchor(node, producer, named)) is not None
    }
    return share(
        original,
        anchors,
        {index: _CORES.get(node.op_type, (node.op_type,)) for index, node in enumerate(optimized)},
    )


def producers(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """Tensor -> index of the node that makes it."""
    return {output: i for i, node in enumerate(nodes) for output in node.output if output}


def share(
    nodes: Sequence[NodeProto],
    anchors: Mapping[int, Sequence[int]],
    cores: Mapping[int, Sequence[str]],
) -> dict[int, int]:
    """Give every node to one kernel.

    Parameters
    ----------
    nodes
        Of the model, in topological order.
    anchors
        Kernel -> indices of nodes that it certainly computes. Kernels are numbered in the order they run.
    cores
        Kernel -> operators it is made around: without one of these among its anchors, the nodes before them are its own back to one.

    Returns
    -------
    dict
        Node index -> kernel. Nodes that only follow from constants may be missing.
    """
    producer = producers(nodes)
    owners: dict[int, int] = {}
    for kernel, certain in anchors.items():
        for anchor in certain:
            owners.setdefault(anchor, kernel)
    for kernel, certain in anchors.items():
        own = [anchor for anchor in certain if owners[anchor] == kernel]
        if not any(nodes[anchor].op_type in cores[kernel] for anchor in own):
            _claim_inputs(kernel, own, cores[kernel], nodes, producer, owners)
    for i, node in enumerate(
        nodes
    ):  # what is left was fused into the kernel that makes its input: an activation, a shortcut's Add
        if i not in owners and (
            found := [owners[producer[t]] for t in node.input if producer.get(t) in owners]
        ):
            owners[i] = max(found)
    return owners


def _anchor(node: NodeProto, producer: Mapping[str, int], named: Mapping[str, int]) -> int | None:
    """The original node that an optimized one certainly computes: by an output tensor, by the tensor or the node in its name."""
    if node.op_type.startswith("Reorder"):
        return None
    for name in (*node.output, node.name.removesuffix(_BLOCKED)):
        if name in producer:
            return producer[name]
    return named.get(node.name, named.get(node.name.rpartition("/")[0]))


def _claim_inputs(
    kernel: int,
    anchors: Sequence[int],
    cores: Sequence[str],
    nodes: Sequence[NodeProto],
    producer: Mapping[str, int],
    owners: dict[int, int],
) -> None:
    """Give a kernel the nodes before its anchors that were fused into it, back to the one it is made around."""
    pending = list(anchors)
    while pending:
        at = pending.pop()
        if nodes[at].op_type in cores:
            continue
        for tensor in nodes[at].input:
            before = producer.get(tensor)
            if before is not None and before not in owners:
                owners[before] = kernel
                pending.append(before)
