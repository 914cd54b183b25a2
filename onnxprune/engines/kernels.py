"""Map the kernels of an engine's profile to the nodes of the model.

Optimization fuses and renames nodes: onnxruntime names a blocked convolution after the output
tensor of one of its nodes, plus `_nchwc`. Tensor names survive, so that kernels are matched by
tensor: the optimized graph states which kernel computes which tensor, and every original node is
assigned to the kernel that computes it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto

from onnxprune.engines.base import LayerTime

CONTRACTIONS = frozenset(
    {
        *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"),
        *("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "Einsum"),
        *("GRU", "LSTM", "RNN"),
    }
)
_BLOCKED = "_nchwc"
_SUFFIX = "_kernel_time"
# optimized operator -> original operators that it is built around; an operator that is neither here
# nor in the original graph is a composite
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
    """Kernel of a profile.

    Attributes
    ----------
    name, op
        As in the profile.
    time_ms
        Interquartile mean over the inferences; the profile counts whole microseconds, which a
        median would keep.
    """

    name: str
    op: str
    time_ms: float


def kernel_times(path: Path, *, skip: int) -> list[Kernel]:
    """Return the kernels of onnxruntime's profile in the order they ran.

    Parameters
    ----------
    skip
        Leading inferences that are not counted.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    times: dict[tuple[int, str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        # the profile also holds sessions, and events before and after kernels
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        arguments = event.get("args", {})
        index, op = int(arguments.get("node_index", -1)), str(arguments.get("op_name", ""))
        # the index keeps nodes of equal names apart
        key = (index, name.removesuffix(_SUFFIX), op)
        times.setdefault(key, []).append(float(event["dur"]) / 1e3)
    # a kernel of a branch may have run less often than `skip`
    return [
        Kernel(name, op, interquartile_mean(ms[skip:] or ms)) for (_, name, op), ms in times.items()
    ]


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half: as robust as a median, finer than the clock's tick."""
    # outliers are interrupts, the clock ticks in microseconds
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def map_kernels(
    kernels: Sequence[Kernel], optimized: ModelProto, original: ModelProto
) -> tuple[LayerTime, ...]:
    """Return the kernels with the nodes they compute, in the order of the profile."""
    owners = _find_owners(optimized.graph.node, original.graph.node)
    by_name: dict[str, list[int]] = {}
    for position, node in enumerate(optimized.graph.node):
        by_name.setdefault(node.name, []).append(position)
    layers = []
    for kernel in kernels:
        indices = by_name.get(kernel.name, [])
        index = indices[0] if indices else -1
        # nodes of one name ran in the order of the graph
        if len(indices) > 1:
            indices.pop(0)
        nodes = _select_nodes(original.graph.node, owners, index)
        layers.append(layer_time(kernel.name, kernel.op, kernel.time_ms, nodes))
    return tuple(layers)


def assemble_layers(
    kernels: Iterable[tuple[str, str, float]],
    owners: Mapping[int, int],
    nodes: Sequence[NodeProto],
) -> tuple[LayerTime, ...]:
    """Return the times of kernels that are numbered in their order.

    Parameters
    ----------
    kernels
        (name, operator, milliseconds) of each.
    owners
        Index of a node -> its kernel, as `assign_nodes` returns.
    nodes
        Nodes of the model.
    """
    return tuple(
        layer_time(name, op, time_ms, _select_nodes(nodes, owners, index))
        for index, (name, op, time_ms) in enumerate(kernels)
    )


def _select_nodes(
    nodes: Sequence[NodeProto], owners: Mapping[int, int], kernel: int
) -> list[NodeProto]:
    """Return the nodes of one kernel in graph order."""
    # graph order is topological, which `layer_time` needs for the last tensor
    return [nodes[index] for index in sorted(i for i, owner in owners.items() if owner == kernel)]


def layer_time(name: str, op: str, time_ms: float, nodes: Sequence[NodeProto]) -> LayerTime:
    """Return the time of a kernel that computes `nodes` (in topological order)."""
    tensors = tuple(output for node in nodes for output in node.output if output)
    # fusion changes the last tensor of a kernel, not the contraction in it
    contraction = next((node.output[0] for node in nodes if node.op_type in CONTRACTIONS), None)
    key = contraction or (tensors[-1] if tensors else "")
    names = tuple(node.name or node.output[0] for node in nodes)
    return LayerTime(name, op, time_ms, names, tensors, key)


def _find_owners(optimized: Sequence[NodeProto], original: Sequence[NodeProto]) -> dict[int, int]:
    """Return index of an original node -> index of the optimized node that computes it."""
    producer = producers(original)
    named = {node.name: i for i, node in enumerate(original) if node.name}
    anchors, cores = {}, {}
    for index, node in enumerate(optimized):
        # an operator that was not rewritten is built around itself
        cores[index] = _CORES.get(node.op_type, (node.op_type,))
        anchor = _find_anchor(node, producer, named)
        if anchor is not None:
            anchors[index] = (anchor,)
    return assign_nodes(original, anchors, cores)


def producers(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """Return tensor -> index of the node that computes it."""
    return {output: i for i, node in enumerate(nodes) for output in node.output if output}


def assign_nodes(
    nodes: Sequence[NodeProto],
    anchors: Mapping[int, Sequence[int]],
    cores: Mapping[int, Sequence[str]],
) -> dict[int, int]:
    """Assign every node to one kernel.

    Parameters
    ----------
    nodes
        Nodes of the model, in topological order.
    anchors
        Kernel -> indices of nodes that it certainly computes. Kernels are numbered in the order
        they run.
    cores
        Kernel -> operators that it is built around. If none of its anchors is one of these, the
        nodes before them belong to it too, back to such an operator.

    Returns
    -------
    dict
        Index of a node -> kernel. Nodes that depend only on constants may be missing.
    """
    producer = producers(nodes)
    owners: dict[int, int] = {}
    # claims of all anchors before any walk, so that no walk takes a node that is certain elsewhere
    for kernel, certain in anchors.items():
        for anchor in certain:
            # of two kernels that claim a node, the first computes it
            owners.setdefault(anchor, kernel)
    for kernel, certain in anchors.items():
        # a kernel that lost all its anchors claims nothing
        own = [anchor for anchor in certain if owners[anchor] == kernel]
        if not any(nodes[anchor].op_type in cores[kernel] for anchor in own):
            _claim_inputs(kernel, own, cores[kernel], nodes, producer, owners)
    # a node without a kernel (activation, Add of a shortcut) was fused into that of its last input
    for i, node in enumerate(nodes):
        if i in owners:
            continue
        before = [owners[producer[t]] for t in node.input if producer.get(t) in owners]
        if before:
            # kernels are numbered in the order they run: the last input's has the highest number
            owners[i] = max(before)
    return owners


def _find_anchor(
    node: NodeProto, producer: Mapping[str, int], named: Mapping[str, int]
) -> int | None:
    """Return the original node that an optimized one certainly computes.

    It is found by an output tensor, or by the tensor or node in the optimized node's name.
    """
    # a layout change carries the name of the tensor that it copies
    if node.op_type.startswith("Reorder"):
        return None
    # outputs first: names of nodes are not unique in exported models
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
    """Assign the nodes before a kernel's anchors to it, back to the operator it is built around."""
    pending = list(anchors)
    while pending:
        at = pending.pop()
        # the walk ends at the operator that the kernel is built around
        if nodes[at].op_type in cores:
            continue
        for tensor in nodes[at].input:
            before = producer.get(tensor)
            # a node with an owner ends the walk: what is before it belongs to that kernel
            if before is not None and before not in owners:
                owners[before] = kernel
                pending.append(before)
