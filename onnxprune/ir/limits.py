"""How much a model may ask for: small files can describe tensors and graphs that no machine holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import FunctionProto, ModelProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.ir.nodes import subgraphs
from onnxprune.ir.weights import bits

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from onnxprune.ir.shapes import Shapes

LARGEST_SHARE = (
    0.5  # of the memory that one tensor may take: a node needs an input and an output at least
)
LONGEST_AXIS = (
    1 << 22
)  # positions that are followed one by one; what rearranges more of them is frozen
MOST_UNFOLDED, UNFOLDED_FACTOR = (
    20_000,
    100,
)  # nodes that calls of local functions may unfold to, and times the nodes of the file where those are many
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less by a limit of its container or shell; 0 where the system does not tell."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        pass
    if sys.platform != "win32":
        softs = (
            resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        )
        found += [soft for soft in softs if soft != resource.RLIM_INFINITY]
    for place in _CGROUP_LIMITS:
        try:
            found.append(int(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return min((n for n in found if n > 0), default=0)


def check_sizes(shapes: Shapes) -> None:
    """ModelError where a tensor cannot exist: a negative length, or more bytes than this machine can hold; dynamic lengths count as 1."""
    allowed = int(memory_bytes() * LARGEST_SHARE)
    for name in shapes.types:
        dims = shapes.shape(name) or ()
        size, known = bits(shapes.dtype(name)) // 8 or 1, [d for d in dims if isinstance(d, int)]
        for d in known:
            size *= d
        if min(known, default=0) < 0:
            raise ModelError(
                "model-invalid", f"tensor {name!r} has a negative length: {list(dims)}"
            )
        if allowed and size > allowed:
            raise ModelError(
                "tensor-too-large",
                f"tensor {name!r} of shape {list(dims)} takes {size / 1e9:.3g} GB; more than {allowed / 1e9:.3g} GB do not fit this machine",
            )


def check_functions(proto: ModelProto) -> None:
    """ModelError where local functions call themselves, or unfold to a graph out of proportion to the file."""
    functions: Mapping[tuple[str, str], FunctionProto] = {
        (f.domain, f.name): f for f in proto.functions
    }
    sizes: dict[tuple[str, str], int] = {}

    def unfolded(nodes: Iterator[NodeProto]) -> int:
        total = 0
        for node in nodes:
            called = node.domain, node.op_type
            total += 1 + (sizes.get(called, 0) if called in functions else 0)
            if total > allowed:
                raise ModelError(
                    "model-too-large", f"local functions unfold to more than {allowed} nodes"
                )
        return total

    allowed = max(
        MOST_UNFOLDED,
        UNFOLDED_FACTOR * (len(proto.graph.node) + sum(len(f.node) for f in proto.functions)),
    )
    left = dict(functions)
    while left:
        ready = [
            key
            for key, f in left.items()
            if not any((n.domain, n.op_type) in left for n in _inside(f.node))
        ]
        if not ready:
            raise ModelError("model-invalid", f"local function {min(left)[1]!r} calls itself")
        for key in ready:
            sizes[key] = unfolded(_inside(left.pop(key).node))
    unfolded(_inside(proto.graph.node))


def _inside(nodes: object) -> Iterator[NodeProto]:
    """Nodes and those of their bodies."""
    waiting = list(nodes)  # type: ignore[call-overload]
    while waiting:
        node = waiting.pop()
        yield node
        for body in subgraphs(node):
            waiting.extend(body.node)
