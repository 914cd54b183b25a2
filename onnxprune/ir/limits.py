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
MOST_NODES = 150_000  # with those of bodies and unfolded functions; a run takes 0.5 ms for each
NODES = "ONNXPRUNE_MAX_NODES"  # environment variable that replaces it
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


def check_nodes(proto: ModelProto) -> None:
    """Check the number of nodes, that of bodies and of unfolded local functions included.

    The time of a run grows with it, while a node takes few bytes of the file. The environment
    variable ONNXPRUNE_MAX_NODES overrides MOST_NODES.

    Raises
    ------
    ModelError
        There are more, or functions call themselves.
    """
    limit = _read_most_nodes()
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}  # nodes that one call unfolds to

    def count_unfolded(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1 + sizes.get((node.domain, node.op_type), 0)
            if total > limit:
                raise ModelError(
                    "model-too-large",
                    f"the graph has more than {limit} nodes, those of bodies and functions "
                    f"included; set {NODES} higher if you trust the file",
                )
        return total

    while functions:
        # functions whose callees are all measured; calls in a circle never become ready
        ready = [key for key, f in functions.items() if _called(f).isdisjoint(functions)]
        if not ready:
            raise ModelError("model-invalid", f"local function {min(functions)[1]!r} calls itself")
        for key in ready:
            sizes[key] = count_unfolded(_walk_nodes(functions.pop(key).node))
    count_unfolded(_walk_nodes(proto.graph.node))


def _read_most_nodes() -> int:
    """Return the largest number of nodes."""
    # an invalid setting must not make every run fail
    with contextlib.suppress(ValueError):
        return int(os.environ.get(NODES, MOST_NODES))
    return MOST_NODES


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
