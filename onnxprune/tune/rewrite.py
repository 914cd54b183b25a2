"""Replacement of activations that an accelerator does not support; tune afterwards.

Each is recognized in all forms that exporters write:

- the operator itself
- SiLU: x * Sigmoid(x)
- HardSwish: x * HardSigmoid(x), and x * Clip(x + 3, 0, 6) / 6
- Mish: x * Tanh(Softplus(x))
- GELU: x * 0.5 * (1 + Erf(x / sqrt 2)) with its factors in any order, the approximation by
  Tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) in place of Erf, and x * Sigmoid(1.702 x)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from onnxprune.errors import UsageError, unknown
from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute, captured
from onnxprune.ir.passes.remove_unused import remove_dead

SOURCES = ("leakyrelu", "silu", "hardswish", "gelu", "prelu", "elu", "mish")
TARGETS = ("relu", "relu6", "hardswish", "leakyrelu")
SLOPE = 26 / 256  # of LeakyRelu on fixed-point accelerators (DPU)
_RTOL = 1e-3  # exporters round the constants of formulas
_OPERATORS = {
    "LeakyRelu": "leakyrelu",
    "HardSwish": "hardswish",
    "Gelu": "gelu",
    "PRelu": "prelu",
    "Elu": "elu",
    "Mish": "mish",
}


@dataclass(frozen=True)
class Activation:
    """One activation of the graph.

    Attributes
    ----------
    kind : str
        One of SOURCES.
    input, output : str
        Tensors that it maps.
    nodes : tuple of NodeProto
        Nodes that compute it, in graph order.
    """

    kind: str
    input: str
    output: str
    nodes: tuple[NodeProto, ...]


@dataclass(frozen=True)
class Rewritten:
    """Result of `rewrite_activations`.

    Attributes
    ----------
    model : Model
        Model with the new activations.
    replaced, left : mapping of str to int
        Number of replaced and of kept activations by kind.
    """

    model: Model
    replaced: Mapping[str, int]
    left: Mapping[str, int]


def rewrite_activations(
    model: Model, target: str, sources: Collection[str] = ("leakyrelu", "silu", "hardswish", "gelu")
) -> Rewritten:
    """Replace activations.

    Tensors keep their names, and the replacing node takes the name of the replaced one.

    Parameters
    ----------
    target
        "relu", "relu6" (Clip 0..6), "hardswish" (x * HardSigmoid(x) before opset 14) or
        "leakyrelu" (slope 26/256).
    sources
        Kinds to replace, of SOURCES; activations that are the target already are kept.

    Raises
    ------
    UsageError
        An unknown name, or nothing to replace.
    """
    for name, known in ((target, TARGETS), *((s, SOURCES) for s in sources)):
        if name not in known:
            raise unknown("activation", name, known)
    every = [a for a in find_activations(model) if a.kind != target]
    chosen = [a for a in every if a.kind in sources]
    if not chosen:
        counts = Counter(a.kind for a in every)
        present = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise UsageError(
            "rewrite-nothing",
            f"no {' or '.join(sources)} to replace by {target}; "
            f"the model has {present or 'none of ' + ', '.join(SOURCES)}",
        )
    copy = model.edit()
    removed = {n.output[0] for a in chosen for n in a.nodes}
    by_output = {a.output: a for a in chosen}
    # Clip takes its bounds as attributes before opset 11
    limits = _add_limits(copy, chosen[0].input) if target == "relu6" and model.opset >= 11 else []
    nodes: list[NodeProto] = []
    for node in copy.proto.graph.node:
        if node.output and node.output[0] in by_output:
            nodes += _build(by_output[node.output[0]], target, model.opset, limits)
        elif not node.output or node.output[0] not in removed:
            nodes.append(node)
    replace_nodes(copy.proto.graph, nodes)
    # constants of the replaced patterns have lost their consumers
    remove_dead(copy)
    return Rewritten(
        copy.freeze(),
        replaced=Counter(a.kind for a in chosen),
        left=Counter(a.kind for a in every if a not in chosen),
    )


def find_activations(model: Model) -> list[Activation]:
    """Return all activations of the main graph in graph order.

    A pattern is ignored if its inner tensors are outputs or have other consumers.
    """
    graph = _Graph(model)
    result: list[Activation] = []
    taken: set[str] = set()
    for node in model.proto.graph.node:
        match = _match(graph, node)
        # replacing a pattern removes its inner tensors, which nothing else may read
        if match is None or not graph.is_private(match):
            continue
        outputs = {n.output[0] for n in match.nodes}
        # of patterns that overlap, the first in graph order is kept
        if taken & outputs:
            continue
        taken |= outputs
        result.append(match)
    # a pattern may be part of a longer one that is matched later
    inner = {n.output[0] for a in result for n in a.nodes[:-1]}
    return [a for a in result if a.output not in inner]


class _Graph:
    """Producers, consumers and constants of a model."""

    def __init__(self, model: Model) -> None:
        nodes = model.proto.graph.node
        self.producers = {o: n for n in nodes for o in n.output}
        self.order = {o: i for i, n in enumerate(nodes) for o in n.output}
        self.reads = Counter(i for n in nodes for i in (*n.input, *captured(n)))
        # an output counts as a consumer, because its tensor must remain
        self.reads.update(o.name for o in model.proto.graph.output)
        self.model = model

    def op(self, tensor: str, kind: str) -> NodeProto | None:
        """Return the producer of a tensor if it is of this operator, else None."""
        node = self.producers.get(tensor)
        if node is None or node.op_type != kind or node.domain not in ("", "ai.onnx"):
            return None
        return node

    def scalar(self, tensor: str) -> float | None:
        """Return the value of a constant of one element, else None."""
        weight, node = self.model.weights.get(tensor), self.op(tensor, "Constant")
        value = weight.array() if weight is not None and math.prod(weight.shape) == 1 else None
        if node is not None and attribute(node, "value") is not None:
            value = numpy_helper.to_array(attribute(node, "value"))
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def is_private(self, match: Activation) -> bool:
        """Return True if only the pattern's own nodes read its inner tensors."""
        inside = Counter(i for n in match.nodes for i in n.input)
        return all(
            self.reads[n.output[0]] == inside[n.output[0]]
            for n in match.nodes
            if n.output[0] != match.output
        )

    def sorted(self, nodes: Sequence[NodeProto]) -> tuple[NodeProto, ...]:
        """Return the nodes in graph order."""
        return tuple(sorted(nodes, key=lambda n: self.order[n.output[0]]))


def _match(graph: _Graph, node: NodeProto) -> Activation | None:
    """Return the activation whose last node this is, else None."""
    for matcher in (_match_operator, _match_gate, _match_clip, _match_gelu):
        match = matcher(graph, node)
        if match is not None:
            return match
    return None


def _match_operator(graph: _Graph, node: NodeProto) -> Activation | None:
    """Match an activation that is one operator."""
    kind = _OPERATORS.get(node.op_type)
    if node.op_type == "Swish" and attribute(node, "alpha", 1.0) == 1:
        kind = "silu"
    return Activation(kind, node.input[0], node.output[0], (node,)) if kind else None


def _match_gate(graph: _Graph, node: NodeProto) -> Activation | None:
    """Match x * gate(x)."""
    if node.op_type != "Mul":
        return None
    # either operand may be the gate
    for x, gate in (node.input, reversed(node.input)):
        match = _match_sigmoid(graph, gate, x) or _match_softplus(graph, gate, x)
        if match is not None:
            kind, nodes = match
            return Activation(kind, x, node.output[0], graph.sorted((*nodes, node)))
    return None


def _match_sigmoid(graph: _Graph, gate: str, x: str) -> tuple[str, list[NodeProto]] | None:
    """Return kind and nodes of a gate Sigmoid(x), Sigmoid(1.702 x) or HardSigmoid(x)."""
    sigmoid = graph.op(gate, "Sigmoid")
    if sigmoid is not None:
        if sigmoid.input[0] == x:
            return "silu", [sigmoid]
        nodes = _match_product(graph, sigmoid.input[0], [x], 1.702)
        return ("gelu", [sigmoid, *nodes]) if nodes else None
    hard = graph.op(gate, "HardSigmoid")
    # HardSwish scales by 1/6, HardSigmoid by 0.2 unless an attribute differs
    if hard is None or hard.input[0] != x or not _is_near(attribute(hard, "alpha", 0.2), 1 / 6):
        return None
    return "hardswish", [hard]


def _match_softplus(graph: _Graph, gate: str, x: str) -> tuple[str, list[NodeProto]] | None:
    """Return kind and nodes of a gate Tanh(Softplus(x))."""
    tanh = graph.op(gate, "Tanh")
    softplus = graph.op(tanh.input[0], "Softplus") if tanh is not None else None
    if tanh is None or softplus is None or softplus.input[0] != x:
        return None
    return "mish", [tanh, softplus]


def _match_clip(graph: _Graph, node: NodeProto) -> Activation | None:
    """Match x * Clip(x + 3, 0, 6) / 6, divided before or after the product, by Div or Mul."""
    if node.op_type not in ("Mul", "Div"):
        return None
    factors, nodes, constant = _open_product(graph, node)
    if len(factors) != 2 or not _is_near(constant, 1 / 6):
        return None
    for clipped, x in (factors, reversed(factors)):
        clip = graph.op(clipped, "Clip")
        if clip is None or not _has_limits(graph, clip, 0, 6):
            continue
        add = graph.op(clip.input[0], "Add")
        if add is None or x not in add.input:
            continue
        if any(_is_near(graph.scalar(n), 3) for n in add.input):
            return Activation("hardswish", x, node.output[0], graph.sorted((*nodes, clip, add)))
    return None


def _match_gelu(graph: _Graph, node: NodeProto) -> Activation | None:
    """Match 0.5 x (1 + Erf(..)) or 0.5 x (1 + Tanh(..)), factors in any order."""
    if node.op_type not in ("Mul", "Div"):
        return None
    factors, nodes, constant = _open_product(graph, node)
    if len(factors) != 2 or not _is_near(constant, 0.5):
        return None
    for outer, x in (factors, reversed(factors)):
        add = graph.op(outer, "Add")
        if add is None or not x or not any(_is_near(graph.scalar(n), 1) for n in add.input):
            continue
        for tensor in add.input:
            inner = _match_gelu_inner(graph, tensor, x)
            if inner:
                every = graph.sorted((*nodes, add, *inner))
                return Activation("gelu", x, node.output[0], every)
    return None


def _match_gelu_inner(graph: _Graph, tensor: str, x: str) -> list[NodeProto] | None:
    """Return the nodes of Erf(x / sqrt 2) or Tanh(sqrt(2 / pi) * (x + 0.044715 x^3))."""
    erf, tanh = graph.op(tensor, "Erf"), graph.op(tensor, "Tanh")
    if erf is not None:
        nodes = _match_product(graph, erf.input[0], [x], math.sqrt(0.5))
        return [erf, *nodes] if nodes else None
    if tanh is not None:
        nodes = _match_cubic(graph, tanh.input[0], x)
        return [tanh, *nodes] if nodes else None
    return None


def _match_product(
    graph: _Graph, tensor: str, factors: list[str], constant: float
) -> list[NodeProto] | None:
    """Return the nodes that compute a tensor if it is the product of factors and constant."""
    node = graph.producers.get(tensor)
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    own_factors, nodes, own_constant = _open_product(graph, node)
    return nodes if own_factors == factors and _is_near(own_constant, constant) else None


def _match_cubic(graph: _Graph, tensor: str, x: str) -> list[NodeProto] | None:
    """Return the nodes of sqrt(2 / pi) * (x + 0.044715 x^3)."""
    node = graph.producers.get(tensor)
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    factors = _open_product(graph, node)[0]
    outer = _match_product(graph, tensor, factors, math.sqrt(2 / math.pi))
    add = graph.op(factors[0], "Add") if len(factors) == 1 else None
    if outer is None or add is None or x not in add.input:
        return None
    # exporters write the sum in either order
    cube = add.input[1] if add.input[0] == x else add.input[0]
    cubed = _match_product(graph, cube, [x, x, x], 0.044715) or _match_power(graph, cube, x)
    return [*outer, add, *cubed] if cubed else None


def _match_power(graph: _Graph, tensor: str, x: str) -> list[NodeProto] | None:
    """Return the nodes of 0.044715 * Pow(x, 3)."""
    node = graph.producers.get(tensor)
    if node is None:
        return None
    for name in node.input:
        power = graph.op(name, "Pow")
        if power is None or power.input[0] != x or not _is_near(graph.scalar(power.input[1]), 3):
            continue
        nodes = _match_product(graph, tensor, [power.output[0]], 0.044715)
        return [*nodes, power] if nodes else None
    return None


def _open_product(graph: _Graph, node: NodeProto) -> tuple[list[str], list[NodeProto], float]:
    """Open a product; nested products are opened if nothing else reads them.

    Returns
    -------
    factors : list of str
        Operands that are not constant; "" for a divisor.
    nodes : list of NodeProto
        Nodes of the product.
    constant : float
        Product of its constants.
    """
    factors: list[str] = []
    nodes, constant = [node], 1.0
    for i, name in enumerate(node.input):
        divisor = node.op_type == "Div" and i == 1
        value, inner = graph.scalar(name), graph.producers.get(name)
        if value is not None:
            constant = constant / value if divisor else constant * value
        elif divisor:
            # no tensor has this name, so that no pattern matches
            factors.append("")
        # a product that others read too must remain, and is a factor as it stands
        elif inner is not None and inner.op_type in ("Mul", "Div") and graph.reads[name] == 1:
            inner_factors, inner_nodes, inner_constant = _open_product(graph, inner)
            factors += inner_factors
            nodes += inner_nodes
            constant *= inner_constant
        else:
            factors.append(name)
    return factors, nodes, constant


def _has_limits(graph: _Graph, clip: NodeProto, low: float, high: float) -> bool:
    """Return True if a Clip has these limits, as attributes or as inputs."""
    given = [attribute(clip, "min"), attribute(clip, "max")]
    if len(clip.input) > 1:
        given = [graph.scalar(n) for n in clip.input[1:3]]
    return len(given) == 2 and _is_near(given[0], low) and _is_near(given[1], high)


def _is_near(value: float | None, expected: float) -> bool:
    """Return True if a constant equals a number up to rounding."""
    # a relative tolerance alone accepts nothing near 0
    return value is not None and math.isclose(value, expected, rel_tol=_RTOL, abs_tol=_RTOL * _RTOL)


def _build(
    activation: Activation, target: str, opset: int, limits: Sequence[str]
) -> list[NodeProto]:
    """Return the nodes of the new activation.

    Parameters
    ----------
    limits
        Names of the constants 0 and 6, if Clip takes them as inputs.
    """
    name, x, y = activation.nodes[-1].name, activation.input, activation.output
    if target == "relu":
        return [helper.make_node("Relu", [x], [y], name)]
    if target == "leakyrelu":
        return [helper.make_node("LeakyRelu", [x], [y], name, alpha=SLOPE)]
    if target == "relu6":
        if limits:
            return [helper.make_node("Clip", [x, *limits], [y], name)]
        return [helper.make_node("Clip", [x], [y], name, min=0.0, max=6.0)]
    # the version that introduced HardSwish
    if opset >= 14:
        return [helper.make_node("HardSwish", [x], [y], name)]
    gate, gate_name = f"{y}/gate", f"{name}/gate" if name else ""
    sigmoid = helper.make_node("HardSigmoid", [x], [gate], gate_name, alpha=1 / 6, beta=0.5)
    return [sigmoid, helper.make_node("Mul", [x, gate], [y], name)]


def _add_limits(model: EditableModel, tensor: str) -> list[str]:
    """Add the constants 0 and 6 in the type of a tensor; return their names."""
    kind = infer(model).dtype(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(np.float32)
    return [add_initializer(model, f"relu6/{value}", np.array(value, dtype)) for value in (0, 6)]
