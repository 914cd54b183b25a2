"""Limits on what a model may ask for: small files can describe tensors and graphs of any size."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.extract import reads
from onnxprune.ir.nodes import label, nested, subgraphs
from onnxprune.ir.volumes import least_elements
from onnxprune.ir.weights import bits

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from onnxprune.ir.model import ModelView
    from onnxprune.ir.shapes import Shapes

# of the memory that one tensor may take: a node needs at least an input and an output
LARGEST_SHARE = 0.5
# Activations that are alive at the same time: beyond this size they may not exceed the bytes that a
# model holds and is fed by more than this factor. Networks stay below a few hundred; a file that is
# made to exhaust the memory expands single values.
MODEST_BYTES, LARGEST_EXPANSION = 1 << 28, 1000
MOST_ENDS = 4096  # inputs and outputs of the graph
# positions that are followed one by one; nodes that rearrange longer axes keep their channels
LONGEST_AXIS = 1 << 22
# nodes after inlining: the larger of a constant and a multiple of the nodes in the file
MOST_UNFOLDED, UNFOLDED_FACTOR = 20_000, 20
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Return the memory that this process may use, 0 if unknown.

    The minimum of the machine's memory and the limits of its container and shell.
    """
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if sys.platform != "win32":
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft = resource.getrlimit(limit)[0]
            if soft != resource.RLIM_INFINITY:
                sizes.append(soft)
    # a container without a limit says "max", which is not a number
    for place in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(Path(place).read_text(encoding="ascii")))
    return min((n for n in sizes if n > 0), default=0)


def check_sizes(shapes: Shapes) -> None:
    """Check that each tensor can exist; dynamic lengths count as 1.

    Raises
    ------
    ModelError
        A length is negative, or a tensor exceeds half of the memory.
    """
    limit = int(memory_bytes() * LARGEST_SHARE)
    for name in shapes.types:
        dims = shapes.shape(name) or ()
        known = [d for d in dims if isinstance(d, int)]
        size = bits(shapes.dtype(name)) // 8 or 1
        # Python's integers do not overflow
        for d in known:
            size *= d
        if min(known, default=0) < 0:
            raise ModelError(
                "model-invalid", f"tensor {name!r} has a negative length: {list(dims)}"
            )
        if limit and size > limit:
            raise ModelError(
                "tensor-too-large",
                f"tensor {name!r} of shape {list(dims)} takes {size / 1e9:.3g} GB; "
                f"the limit on this machine is {limit / 1e9:.3g} GB",
            )


def check_ends(graph: GraphProto) -> None:
    """Check the number of graph inputs and outputs, each of which costs time in every session.

    Raises
    ------
    ModelError
        There are more than MOST_ENDS.
    """
    names = {tensor.name for tensor in graph.initializer}
    inputs = sum(info.name not in names for info in graph.input)
    if inputs + len(graph.output) > MOST_ENDS:
        raise ModelError(
            "model-too-large",
            f"the graph has {inputs} inputs and {len(graph.output)} outputs; "
            f"the limit is {MOST_ENDS} in all",
        )


def check_expansion(model: ModelView, shapes: Shapes, held: int) -> None:
    """Check the memory of the activations against what the model holds and is fed.

    Parameters
    ----------
    held
        Bytes of the model before anything was computed from it.

    Raises
    ------
    ModelError
        A small file asks for much memory in sum, see LARGEST_EXPANSION.
    """
    graph = model.proto.graph
    given = held + sum(_count_bytes(info.name, shapes) for info in graph.input)
    constants = {*model.weights, *(tensor.name for tensor in graph.initializer)}
    needed, name = max(
        (_find_largest_live(g, shapes, constants) for g in nested(graph)),
        key=lambda pair: pair[0],
    )
    if needed > max(MODEST_BYTES, LARGEST_EXPANSION * given):
        raise ModelError(
            "tensor-too-large",
            f"the activations take {needed / 1e9:.3g} GB at node {name!r}, over "
            f"{LARGEST_EXPANSION} times the {given} bytes of all weights and inputs",
        )


def _find_largest_live(
    graph: GraphProto, shapes: Shapes, constants: Iterable[str]
) -> tuple[int, str]:
    """Return the largest sum of tensors of a graph that are alive at a node, and its label.

    Results of constants stay alive: onnxruntime computes all of them when it loads the model.
    """
    last: dict[str, int] = {}
    read = [reads(node) for node in graph.node]
    for i, names in enumerate(read):
        last.update(dict.fromkeys(names, i))
    kept = {info.name for info in graph.output}
    known = set(constants)
    live = largest = 0
    name = ""
    made: dict[str, int] = {}
    least = least_elements(graph, shapes)
    for i, node in enumerate(graph.node):
        results = [output for output in node.output if output]
        if known.issuperset(read[i]):
            known.update(results)
            kept.update(results)
        for output in results:
            size = least.get(output, 0) * bits(shapes.dtype(output)) // 8
            made[output] = max(size, _count_bytes(output, shapes))
            live += made[output]
        if live > largest:
            largest, name = live, label(node)
        unused = [output for output in results if last.get(output, i) <= i]
        for tensor in {*unused, *(t for t in read[i] if last[t] == i)} - kept:
            live -= made.pop(tensor, 0)
    return largest, name


def _count_bytes(name: str, shapes: Shapes) -> int:
    """Return the bytes of a tensor; dynamic lengths count as 1, unknown shapes as nothing."""
    dims = shapes.shape(name)
    if dims is None:
        return 0
    return prod(d for d in dims if isinstance(d, int)) * bits(shapes.dtype(name)) // 8


def check_functions(proto: ModelProto) -> None:
    """Check the graph that inlining of local functions would give.

    Raises
    ------
    ModelError
        Functions call themselves, or unfold to a graph out of proportion to the file.
    """
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}  # nodes that one call unfolds to
    nodes = len(proto.graph.node) + sum(len(f.node) for f in proto.functions)
    limit = max(MOST_UNFOLDED, UNFOLDED_FACTOR * nodes)

    def unfolded_size(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1 + sizes.get((node.domain, node.op_type), 0)
            if total > limit:
                raise ModelError(
                    "model-too-large", f"local functions unfold to more than {limit} nodes"
                )
        return total

    pending = dict(functions)
    while pending:
        # functions whose callees are all measured; calls in a circle never become ready
        ready = [key for key, f in pending.items() if _called(f).isdisjoint(pending)]
        if not ready:
            raise ModelError("model-invalid", f"local function {min(pending)[1]!r} calls itself")
        for key in ready:
            sizes[key] = unfolded_size(_walk_nodes(pending.pop(key).node))
    unfolded_size(_walk_nodes(proto.graph.node))


def _called(function: FunctionProto) -> set[tuple[str, str]]:
    """Return (domain, op) of the nodes of a function and of their bodies."""
    return {(n.domain, n.op_type) for n in _walk_nodes(function.node)}


def _walk_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes and those of their bodies."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for body in subgraphs(node):
            waiting.extend(body.node)
