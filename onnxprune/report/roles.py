"""Roles of linear layers in words: q, k, v, projection, MLP in, MLP out, head.

They are recognized by the graph, never by names: a softmax between two products of activations is
an attention, two layers with nothing but an activation function between them are an MLP, and a
layer that an output depends on without another layer between them is a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import linears

QUERY, KEY, VALUE, FUSED = "q", "k", "v", "q, k, v"
PROJECTION, MLP_IN, MLP_OUT, HEAD = "projection", "MLP in", "MLP out", "head"
MOST_STEPS = 64  # nodes between a layer and the product that it feeds
_PRODUCTS = ("MatMul", "Einsum", "Gemm")
# what an activation function is made of; Add only of a constant: two activations are a residual
_ACTIVATIONS = frozenset(
    "Add BiasGelu Cast Clip Div Dropout Elu Erf FastGelu Gelu HardSigmoid HardSwish Identity "
    "LeakyRelu Mish Mul Neg PRelu Pow QuickGelu Relu Selu Sigmoid Softplus Sqrt Sub Swish "
    "Tanh".split()
)


def find_roles(analysis: Analysis) -> dict[str, str]:
    """Return layer -> its role, for the layers whose role is known."""
    return _Roles(analysis).find()


class _Roles:
    """Walks from layers, softmaxes and outputs over the nodes of the main graph."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        graph = analysis.model.proto.graph
        self.outputs = {output.name for output in graph.output}
        self.nodes = list(graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
        self.layers = {layer.out: layer for layer in linears(analysis)}

    def find(self) -> dict[str, str]:
        """Return the roles; of two that apply, attention comes before MLP and head."""
        attention: dict[str, str] = {}
        for node in self.nodes:
            if node.op_type == "Softmax":
                attention.update(self._find_attention(node))
        roles = dict(self._find_heads())
        # two layers in a row of a convolutional classifier are no MLP of a transformer
        if attention:
            roles.update(self._find_mlps())
        return {**roles, **attention}

    def _find_attention(self, softmax: NodeProto) -> Iterator[tuple[str, str]]:
        """Yield the layers around a softmax between two products of activations."""
        scores = self._find_product(softmax.input[:1], self._produce)
        values = self._find_product(softmax.output[:1], self._consume)
        if scores is None or values is None or len(values.input) < 2 or len(scores.input) < 2:
            return
        # the product of the probabilities: its other input are the values
        behind = self._reach([values.input[0]], self._produce)
        place = 1 if softmax.output[0] in {name for node in behind for name in node.output} else 0
        named = {
            QUERY: self._find_layers([scores.input[0]]),
            KEY: self._find_layers([scores.input[1]]),
            VALUE: self._find_layers([values.input[place]]),
        }
        for role, names in named.items():
            fused = sum(names == other for other in named.values()) > 1
            yield from ((name, FUSED if fused else role) for name in names)
        for node in self._reach(values.output, self._consume):
            layer = self.layers.get(node.output[0]) if node.output else None
            if layer is not None:
                yield layer.name, PROJECTION

    def _find_product(
        self, names: Iterable[str], step: Callable[[str], list[NodeProto]]
    ) -> NodeProto | None:
        """Return the first product of two activations in a direction."""
        for node in self._reach(names, step):
            if node.op_type in _PRODUCTS and node.output[0] not in self.layers:
                return node
        return None

    def _find_layers(self, names: Iterable[str]) -> list[str]:
        """Return the layers that tensors come from, without another layer between them."""
        reached = self._reach(names, self._produce)
        return sorted(
            {self.layers[n.output[0]].name for n in reached if n.output[0] in self.layers}
        )

    def _find_mlps(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of layers with only an activation function between them."""
        for layer in self.layers.values():
            if layer.op not in _PRODUCTS:
                continue
            behind = self._reach([layer.data], self._produce)
            first = [n for n in behind if n.output[0] in self.layers]
            between = [n for n in behind if n.output[0] not in self.layers]
            if between and first and all(map(self._is_activation, between)):
                yield from ((self.layers[n.output[0]].name, MLP_IN) for n in first)
                yield layer.name, MLP_OUT

    def _is_activation(self, node: NodeProto) -> bool:
        """Return whether a node may be part of an activation function."""
        if node.op_type not in _ACTIVATIONS:
            return False
        computed = [name for name in node.input if name in self.producer]
        return node.op_type not in ("Add", "Sub") or len(computed) < 2

    def _find_heads(self) -> Iterator[tuple[str, str]]:
        """Yield the layers that outputs come from without another layer between them."""
        for name in self._find_layers(self.outputs):
            yield name, HEAD

    def _produce(self, name: str) -> list[NodeProto]:
        """Return the node that computes a tensor."""
        return [self.producer[name]] if name in self.producer else []

    def _consume(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a tensor."""
        return self.consumers.get(name, [])

    def _reach(
        self, names: Iterable[str], step: Callable[[str], list[NodeProto]]
    ) -> list[NodeProto]:
        """Return the nodes in a direction, nearest first, up to layers and products.

        At most MOST_STEPS, because shapes may be computed from anywhere in the graph.
        """
        pending, seen = list(names), dict[int, NodeProto]()
        while pending and len(seen) < MOST_STEPS:
            for node in step(pending.pop(0)):
                if id(node) in seen:
                    continue
                seen[id(node)] = node
                # beyond a layer or a product, another one begins; a shape carries no values
                is_end = node.op_type in (*_PRODUCTS, "Shape", "Size")
                if not is_end and node.output[0] not in self.layers:
                    ahead = node.input if step == self._produce else node.output
                    pending.extend(name for name in ahead if name)
        return list(seen.values())


def spell_roles(roles: Mapping[str, str], names: Iterable[str]) -> str:
    """Return the roles of some layers, each once.

    >>> spell_roles({"a": "q", "b": "k"}, ["a", "b", "c"])
    'q, k'
    """
    return ", ".join(dict.fromkeys(roles[name] for name in names if name in roles))
