"""Random networks out of the blocks that exporters really write.

The generator knows nothing of the rule table: blocks are written as PyTorch's exporters, tf2onnx
and Paddle write them, with trained-looking statistics. `network(seed)` returns the model and a
function that draws inputs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

Feeds = Mapping[str, np.ndarray]
OPSETS = (13, 14, 17, 18, 21)


@dataclass(frozen=True)
class Image:
    """A feature map. sizes: channels, height, width."""

    name: str
    c: int
    h: int
    w: int


@dataclass(frozen=True)
class Tokens:
    """A sequence of embeddings. s: length; e: embedding size."""

    name: str
    s: int
    e: int


class Builder:
    """Nodes and weights of a graph under construction."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.batch = int(self.rng.choice([1, 2]))
        self.dynamic_batch = bool(self.rng.random() < 0.5)
        self.quantized = bool(self.rng.random() < 0.08)
        self.half = bool(self.rng.random() < 0.06) and not self.quantized
        self.nodes: list = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: list = []
        self.outputs: list = []
        self.draw: dict[str, Callable[[np.random.Generator], np.ndarray]] = {}
        self.count = 0
        self.microsoft = False
        self.heads = 0

    def chance(self, share: float) -> bool:
        """Return True in `share` of the cases."""
        return bool(self.rng.random() < share)

    def pick(self, *values):
        """Return one of the values."""
        return values[int(self.rng.integers(len(values)))]

    def name(self, stem: str) -> str:
        """Return an unused name."""
        self.count += 1
        return f"{stem}_{self.count}"

    def const(self, value, dtype=np.float32) -> str:
        """Add an initializer and return its name."""
        name = self.name("c")
        self.weights[name] = np.asarray(value, dtype)
        return name

    def ints(self, *values: int) -> str:
        """Add a one-dimensional int64 initializer."""
        return self.const(list(values), np.int64)

    def random(self, *shape: int, fan_in: int = 1) -> str:
        """Add a weight whose outputs keep the variance of its inputs."""
        return self.const(self.rng.standard_normal(shape) * (1.4 / fan_in) ** 0.5)

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes):
        """Add a node; return the name of its output, or a list where it has several."""
        names = [self.name(kind.lower()) for _ in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, name=f"n/{names[0]}", domain=domain)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        self.microsoft |= domain == "com.microsoft"
        return names[0] if outputs == 1 else names

    # ops whose form depends on the opset

    def reduce(self, kind: str, x: str, axes: list[int], keepdims: int = 1) -> str:
        """Reduce along axes, which are an input since opset 18 (13 for ReduceSum)."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, self.ints(*axes), keepdims=keepdims)
        return self.op(kind, x, axes=axes, keepdims=keepdims)

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        """Split into parts, with or without explicit sizes where they are equal."""
        if len(set(sizes)) == 1 and self.chance(0.5):
            extra = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
            return self.op("Split", x, outputs=len(sizes), axis=axis, **extra)
        return self.op("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """Slice one axis."""
        bounds = (self.ints(start), self.ints(end), self.ints(axis), self.ints(step))
        return self.op("Slice", x, *bounds)

    def unsqueeze(self, x: str, axis: int) -> str:
        """Insert an axis of length 1."""
        return self.op("Unsqueeze", x, self.ints(axis))

    def reshape(self, x: str, like: str, tail: list[int], kept: int = 1) -> str:
        """Reshape to (first `kept` sizes of `like`, *tail) in one of the exporters' ways."""
        way = self.pick("zero", "shape", "chain")
        if way == "zero" and kept == 1:
            return self.op("Reshape", x, self.ints(0, *tail))
        shape = self.op("Shape", like)
        if way == "shape":
            lead = self.op("Slice", shape, self.ints(0), self.ints(kept), self.ints(0))
            target = self.op("Concat", lead, self.ints(*tail), axis=0)
            return self.op("Reshape", x, target)
        sizes = []
        for axis in range(kept):
            size = self.op("Gather", shape, self.const(axis, np.int64), axis=0)
            sizes.append(self.op("Unsqueeze", size, self.ints(0)))
        target = self.op("Concat", *sizes, *(self.ints(t) for t in tail), axis=0)
        return self.op("Reshape", x, target)

    def fake_quantize(self, x: str, scale: float) -> str:
        """Add a QuantizeLinear and DequantizeLinear pair."""
        parameters = (self.const(scale), self.const(0, np.int8))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *parameters), *parameters)

    # inputs and outputs of the graph

    def image(self, c: int, h: int, w: int) -> Image:
        """Add an image input."""
        name = self.name("image")
        batch = "N" if self.dynamic_batch else self.batch
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, c, h, w]))
        self.draw[name] = lambda rng: rng.standard_normal((self.batch, c, h, w)).astype(np.float32)
        return Image(name, c, h, w)

    def sequence(self, s: int, e: int) -> Tokens:
        """Add an input of embeddings."""
        name = self.name("tokens")
        batch = "N" if self.dynamic_batch else self.batch
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, s, e]))
        self.draw[name] = lambda rng: rng.standard_normal((self.batch, s, e)).astype(np.float32)
        return Tokens(name, s, e)

    def ids(self, s: int, vocabulary: int) -> str:
        """Add an input of token ids."""
        name = self.name("ids")
        batch = "N" if self.dynamic_batch else self.batch
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, [batch, s]))
        self.draw[name] = lambda rng: rng.integers(0, vocabulary, (self.batch, s))
        return name

    def output(self, x: str, *shape) -> None:
        """Declare a graph output of float values."""
        name = f"out_{self.heads}"
        self.heads += 1
        self.nodes.append(helper.make_node("Identity", [x], [name], name=f"n/{name}"))
        batch = "N" if self.dynamic_batch else self.batch
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        self.outputs.append(info)

    def model(self) -> ModelProto:
        """Return the finished model."""
        tensors = [numpy_helper.from_array(v, k) for k, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, "realistic", self.inputs, self.outputs, tensors)
        if self.half:
            _to_half(graph)
        opsets = [helper.make_opsetid("", self.opset)]
        if self.microsoft:
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def feeds(self, rng: np.random.Generator) -> Feeds:
        """Draw one batch of inputs."""
        feeds = {name: draw(rng) for name, draw in self.draw.items()}
        if not self.half:
            return feeds
        return {n: v.astype(np.float16) if v.dtype == np.float32 else v for n, v in feeds.items()}


def _to_half(graph: GraphProto) -> None:
    """Store the graph's floats as float16, but for the scales of Resize, which stay float32."""
    scales = {node.input[2] for node in graph.node if node.op_type == "Resize"}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in scales:
            value = np.clip(numpy_helper.to_array(tensor), -6e4, 6e4).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _to_half(attribute.g)


@dataclass(frozen=True)
class Network:
    """A generated model. kinds: the blocks it is made of; feeds: draws one batch of inputs."""

    seed: int
    model: ModelProto
    kinds: tuple[str, ...]
    feeds: Callable[[np.random.Generator], Feeds]


def network(seed: int) -> Network:
    """Return the random network of a seed; the same seed gives the same bytes."""
    from tests.robustness import realistic_tokens, realistic_vision  # they import this module

    builder = Builder(seed)
    family = builder.pick("vision", "vision", "tokens", "tokens", "recurrent", "mixed")
    if family == "vision":
        kinds = realistic_vision.vision(builder)
    elif family == "tokens":
        kinds = realistic_tokens.transformer(builder)
    elif family == "recurrent":
        kinds = realistic_tokens.recurrent(builder)
    else:
        kinds = realistic_tokens.patches(builder)
    return Network(seed, builder.model(), (family, *kinds), builder.feeds)
