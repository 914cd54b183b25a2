"""Activations that an accelerator lacks, replaced by ones that it has; tune afterwards.

Recognized as one activation, however an exporter wrote it: the operator itself, x * Sigmoid(x) (SiLU), x * HardSigmoid(x) and x * Clip(x + 3, 0, 6) / 6
(HardSwish), x * Tanh(Softplus(x)) (Mish), and GELU: x * 0.5 * (1 + Erf(x / sqrt 2)) in any order of its factors, its approximation by
Tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) in place of Erf, and the one by x * Sigmoid(1.702 x).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from onnxprune.errors import UsageError, unknown
from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, captured
from onnxprune.ir.passes.remove_unused import remove_dead

SOURCES = ("leakyrelu", "silu", "hardswish", "gelu", "prelu", "elu", "mish")
TARGETS = ("relu", "relu6", "hardswish", "leakyrelu")
SLOPE = 26 / 256  # of LeakyRelu as fixed-point accelerators have it (DPU)
_RTOL = 1e-3  # constants of formulas, as exporters round them


@dataclass(frozen=True)
class Found:
    """One activation: kind of SOURCES, the tensors it maps, the nodes that compute it."""

    kind: str
    input: str
    output: str
    nodes: tuple[NodeProto, ...]


@dataclass(frozen=True)
class Rewritten:
    """model: with the new activations; replaced: kind -> how many; left: kind -> how many of these were found and not asked for."""

    model: Model
    replaced: Mapping[str, int]
    left: Mapping[str, int]


def rewrite_activations(
    model: Model, target: str, sources: Collection[str] = ("leakyrelu", "silu", "hardswish", "gelu")
) -> Rewritten:
    """Replace activations. Tensors keep their names; a node's name goes to the node that replaces it.

    Parameters
    ----------
    target
        "relu", "relu6" (Clip 0..6), "hardswish" (x * HardSigmoid(x) before opset 14) or "leakyrelu" (slope 26/256).
    sources
        Which to replace, of SOURCES; the target itself is left alone.

    Raises
    ------
    UsageError
        An unknown name, or nothing to replace.
    """
    for name, known in ((target, TARGETS), *((s, SOURCES) for s in sources)):
        if name not in known:
            raise unknown("activation", name, known)
    every = [f for f in find_activations(model) if f.kind != target]
    chosen = [f for f in every if f.kind in sources]
    if not chosen:
        have = ", ".join(
            f"{n} {k}" for k, n in Counter(f.kind for f in every).items()
        ) or "none of " + ", ".join(SOURCES)
        raise UsageError(
            "rewrite-nothing",
            f"no {' or '.join(sources)} to replace by {target}; the model has {have}",
        )
    copy = model.edit()
    gone = {n.output[0] for f in chosen for n in f.nodes}
    last = {f.nodes[-1].output[0]: f for f in chosen}
    limits = _limits(copy, chosen[0].input) if target == "relu6" and model.opset >= 11 else []
    nodes: list[NodeProto] = []
    for node in copy.proto.graph.node:
        if node.output and node.output[0] in last:
            nodes += _made(last[node.output[0]], target, model.opset, limits)
        elif not node.output or node.output[0] not in gone:
            nodes.append(node)
    replace_nodes(copy.proto.graph, nodes)
    remove_dead(copy)
    return Rewritten(
        copy, Counter(f.kind for f in chosen), Counter(f.kind for f in every if f not in chosen)
    )


def find_activations(model: Model) -> list[Found]:
    """All activations of the main graph in graph order. A pattern whose inner tensors are read elsewhere, or are outputs, is none."""
    graph = _Graph(model)
    found: list[Found] = []
    taken: set[str] = set()
    for node in model.proto.graph.node:
        match = next((m for matcher in _MATCHERS if (m := matcher(graph, node)) is not None), None)
        if match is None or taken & {n.output[0] for n in match.nodes} or not graph.private(match):
            continue
        taken |= {n.output[0] for n in match.nodes}
        found.append(match)
    inner = {n.output[0] for f in found for n in f.nodes[:-1]}
    return [f for f in found if f.output not in inner]


class _Graph:
    """Producers, readers and constants."""

    def __init__(self, model: Model) -> None:
        nodes = model.proto.graph.node
        self.producers = {o: n for n in nodes for o in n.output}
        self.order = {o: i for i, n in enumerate(nodes) for o in n.output}
        self.reads = Counter(i for n in nodes for i in (*n.input, *captured(n)))
        self.reads.update(o.name for o in model.proto.graph.output)
        self.model = model

    def op(self, tensor: str, kind: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of that kind."""
        node = self.producers.get(tensor)
        return (
            node
            if node is not None and node.op_type == kind and node.domain in ("", "ai.onnx")
            else None
        )

    def scalar(self, tensor: str) -> float | None:
        """The one value of a constant."""
        weight, node = self.model.weights.get(tensor), self.op(tensor, "Constant")
        value = weight.array() if weight is not None and math.prod(weight.shape) == 1 else None
        if node is not None and attribute(node, "value") is not None:
            value = numpy_helper.to_array(attribute(node, "value"))
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def private(self, match: Found) -> bool:
        """Whether what the pattern makes on the way is read by the pattern alone."""
        inside = Counter(i for n in match.nodes for i in n.input)
        return all(
            self.reads[n.output[0]] == inside[n.output[0]]
            for n in match.nodes
            if n.output[0] != match.output
        )

    def sorted(self, nodes: Sequence[NodeProto]) -> tuple[NodeProto, ...]:
        """In graph order."""
        return tuple(sorted(nodes, key=lambda n: self.order[n.output[0]]))


def _single(graph: _Graph, node: NodeProto) -> Found | None:
    """An activation that is one operator."""
    kinds = {
        "LeakyRelu": "leakyrelu",
        "HardSwish": "hardswish",
        "Gelu": "gelu",
        "PRelu": "prelu",
        "Elu": "elu",
        "Mish": "mish",
    }
    kind = kinds.get(node.op_type)
    if node.op_type == "Swish" and attribute(node, "alpha", 1.0) == 1:
        kind = "silu"
    return Found(kind, node.input[0], node.output[0], (node,)) if kind else None


def _gated(graph: _Graph, node: NodeProto) -> Found | None:
    """X * gate(x)."""
    if node.op_type != "Mul":
        return None
    for x, gate in (node.input, reversed(node.input)):
        for match in (_sigmoid(graph, gate, x), _softplus(graph, gate, x)):
            if match is not None:
                return Found(match[0], x, node.output[0], graph.sorted((*match[1], node)))
    return None


def _sigmoid(graph: _Graph, gate: str, x: str) -> tuple[str, list[NodeProto]] | None:
    """(kind, nodes) of a gate that is a Sigmoid of x or of 1.702 x, or a HardSigmoid."""
    inner = graph.op(gate, "Sigmoid") or graph.op(gate, "HardSigmoid")
    if inner is None:
        return None
    if inner.input[0] == x:
        plain = inner.op_type == "Sigmoid"
        return (
            ("silu" if plain else "hardswish", [inner])
            if plain or _near(attribute(inner, "alpha", 0.2), 1 / 6)
            else None
        )
    more = _times(graph, inner.input[0], [x], 1.702) if inner.op_type == "Sigmoid" else None
    return ("gelu", [inner, *more]) if more else None


def _softplus(graph: _Graph, gate: str, x: str) -> tuple[str, list[NodeProto]] | None:
    """(kind, nodes) of a gate that is Tanh(Softplus(x))."""
    tanh = graph.op(gate, "Tanh")
    inner = graph.op(tanh.input[0], "Softplus") if tanh is not None else None
    return (
        ("mish", [tanh, inner])
        if tanh is not None and inner is not None and inner.input[0] == x
        else None
    )


def _clipped(graph: _Graph, node: NodeProto) -> Found | None:
    """X * Clip(x + 3, 0, 6) / 6, divided before or after the product, by Div or Mul."""
    if node.op_type not in ("Mul", "Div"):
        return None
    factors, nodes, constant = _product(graph, node)
    for i, name in enumerate(factors):
        clip = graph.op(name, "Clip")
        rest = factors[:i] + factors[i + 1 :]
        if (
            clip is None
            or len(rest) != 1
            or not _near(constant, 1 / 6)
            or not _between(graph, clip, 0, 6)
        ):
            continue
        add = graph.op(clip.input[0], "Add")
        if (
            add is not None
            and rest[0] in add.input
            and any(_near(graph.scalar(n), 3) for n in add.input)
        ):
            return Found("hardswish", rest[0], node.output[0], graph.sorted((*nodes, clip, add)))
    return None


def _written_gelu(graph: _Graph, node: NodeProto) -> Found | None:
    """0.5 x (1 + Erf(..)) or 0.5 x (1 + Tanh(..)), factors in any order."""
    if node.op_type not in ("Mul", "Div"):
        return None
    factors, nodes, constant = _product(graph, node)
    for i, name in enumerate(factors):
        add, rest = graph.op(name, "Add"), factors[:i] + factors[i + 1 :]
        if (
            add is None
            or len(rest) != 1
            or not rest[0]
            or not _near(constant, 0.5)
            or not any(_near(graph.scalar(n), 1) for n in add.input)
        ):
            continue
        for tensor in add.input:
            erf, tanh = graph.op(tensor, "Erf"), graph.op(tensor, "Tanh")
            more = (
                _times(graph, erf.input[0], rest, math.sqrt(0.5))
                if erf is not None
                else _cubic(graph, tanh.input[0], rest[0])
                if tanh is not None
                else None
            )
            if more:
                return Found(
                    "gelu",
                    rest[0],
                    node.output[0],
                    graph.sorted((*nodes, add, graph.producers[tensor], *more)),
                )
    return None


def _times(
    graph: _Graph, tensor: str, factors: list[str], constant: float
) -> list[NodeProto] | None:
    """The nodes that make a tensor, if it is the product of these factors and this constant."""
    node = graph.producers.get(tensor)
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    found, nodes, scale = _product(graph, node)
    return nodes if found == factors and _near(scale, constant) else None


def _cubic(graph: _Graph, tensor: str, x: str) -> list[NodeProto] | None:
    """The nodes of sqrt(2 / pi) * (x + 0.044715 x^3)."""
    node = graph.producers.get(tensor)
    inner = _product(graph, node)[0] if node is not None and node.op_type in ("Mul", "Div") else []
    outer = _times(graph, tensor, inner, math.sqrt(2 / math.pi))
    add = graph.op(inner[0], "Add") if len(inner) == 1 else None
    if outer is None or add is None or x not in add.input:
        return None
    other = add.input[1] if add.input[0] == x else add.input[0]
    cubed = _times(graph, other, [x, x, x], 0.044715)
    if cubed is None and (scaled := graph.producers.get(other)) is not None:
        power = next(
            (
                p
                for n in scaled.input
                if (p := graph.op(n, "Pow")) is not None
                and p.input[0] == x
                and _near(graph.scalar(p.input[1]), 3)
            ),
            None,
        )
        nodes = _times(graph, other, [power.output[0]], 0.044715) if power is not None else None
        cubed = [*nodes, power] if nodes and power is not None else None
    return [*outer, add, *cubed] if cubed else None


_MATCHERS: tuple[Callable[[_Graph, NodeProto], Found | None], ...] = (
    _single,
    _gated,
    _clipped,
    _written_gelu,
)


def _product(graph: _Graph, node: NodeProto) -> tuple[list[str], list[NodeProto], float]:
    """(factors that are no constants, the nodes of the product, the product of its constants); nested products are opened where one alone reads them."""
    factors: list[str] = []
    nodes, constant = [node], 1.0
    for i, name in enumerate(node.input):
        value, inner = graph.scalar(name), graph.producers.get(name)
        if value is not None:
            constant = constant / value if node.op_type == "Div" and i else constant * value
        elif (
            inner is not None
            and inner.op_type in ("Mul", "Div")
            and graph.reads[name] == 1
            and not (node.op_type == "Div" and i)
        ):
            more, below, factor = _product(graph, inner)
            factors, nodes, constant = factors + more, nodes + below, constant * factor
        else:
            factors.append(name if not (node.op_type == "Div" and i) else "")
    return factors, nodes, constant


def _between(graph: _Graph, clip: NodeProto, low: float, high: float) -> bool:
    """Whether a Clip has these limits."""
    given = (
        [graph.scalar(n) for n in clip.input[1:3]]
        if len(clip.input) > 1
        else [attribute(clip, "min"), attribute(clip, "max")]
    )
    return len(given) == 2 and _near(given[0], low) and _near(given[1], high)


def _near(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=_RTOL, abs_tol=_RTOL * _RTOL)


def _made(found: Found, target: str, opset: int, limits: Sequence[str]) -> list[NodeProto]:
    """The nodes of the new activation. limits: names of the constants 0 and 6 where Clip takes them as inputs."""
    name, given, output = found.nodes[-1].name, found.input, found.output
    if target == "relu":
        return [helper.make_node("Relu", [given], [output], name)]
    if target == "leakyrelu":
        return [helper.make_node("LeakyRelu", [given], [output], name, alpha=SLOPE)]
    if target == "relu6":
        if limits:
            return [helper.make_node("Clip", [given, *limits], [output], name)]
        return [helper.make_node("Clip", [given], [output], name, min=0.0, max=6.0)]
    if opset >= 14:
        return [helper.make_node("HardSwish", [given], [output], name)]
    gate = f"{output}/gate"
    sigmoid = helper.make_node(
        "HardSigmoid", [given], [gate], f"{name}/gate" if name else "", alpha=1 / 6, beta=0.5
    )
    return [sigmoid, helper.make_node("Mul", [given, gate], [output], name)]


def _limits(model: Model, tensor: str) -> list[str]:
    """Names of the constants 0 and 6, added to `model` in the type of a tensor."""
    kind = infer(model).dtype(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(np.float32)
    return [add_initializer(model, f"relu6/{value}", np.array(value, dtype)) for value in (0, 6)]
