"""Random valid graphs of ops of the rule table: each step appends a block to an existing tensor.

Ops whose result depends on rounding (comparisons, rounding, quantization) are left out: the cut and
the masked model sum in different orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 18
BATCH, CHANNELS, SIDE = 2, 3, 4
LARGEST = 40  # channels a tensor may reach
UNARY = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "LeakyRelu",
    "Abs",
    "Elu",
    "Softplus",
    "Neg",
    "HardSwish",
    "Identity",
    "Erf",
    "Softsign",
)
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Mean")
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Image:
    """A tensor (batch, channels, height, width)."""

    name: str
    channels: int
    side: int


@dataclass
class Grower:
    """A graph under construction.

    Attributes
    ----------
    draw
        Source of every choice of structure.
    rng
        Source of the values of weights.
    nodes, weights, images
        What has been added: nodes, initializers by name, feature maps in order.
    """

    draw: Draw
    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Random values of about unit gain."""
        values = self.rng.standard_normal(shape) / max(np.sqrt(np.prod(shape[1:])), 1.0)
        return self.constant((np.abs(values) + 0.5 if positive else values).astype(np.float32))

    def constant(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; return the name of its output, or a list of names."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=f"n{len(self.nodes)}", **attributes)
        )
        return names[0] if outputs == 1 else names

    def add(self, name: str, channels: int, side: int) -> Image:
        self.images.append(Image(name, channels, side))
        return self.images[-1]

    def conv(
        self, x: Image, channels: int, *, kernel: int = 1, group: int = 1, stride: int = 1
    ) -> Image:
        w = self.weight(channels, x.channels // group, kernel, kernel)
        bias = [self.weight(channels)] if self.draw(st.booleans()) else []
        out = self.node(
            "Conv", x.name, w, *bias, group=group, strides=[stride] * 2, pads=[kernel // 2] * 4
        )
        return self.add(out, channels, (x.side - 1) // stride + 1)

    def model(self) -> ModelProto:
        """Return the graph with a head on the last image and, if drawn, a second output."""
        last = self.images[-1]
        ends = [self.conv(last, 3)]
        if self.draw(st.booleans()):
            ends.append(self.conv(self.pick(self.images), 2))
        outputs = [
            helper.make_tensor_value_info(
                e.name, TensorProto.FLOAT, [BATCH, e.channels, e.side, e.side]
            )
            for e in dict.fromkeys(ends)
        ]
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, CHANNELS, SIDE, SIDE])
        ]
        initializers = [numpy_helper.from_array(v, n) for n, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )


# Blocks append to a graph after an image; one that does not fit the image appends nothing.


def dense(g: Grower, x: Image) -> None:
    g.conv(x, g.integer(2, 8), kernel=g.pick([1, 3]), stride=g.pick([1, 1, 2]))


def grouped(g: Grower, x: Image) -> None:
    divisors = [d for d in range(2, x.channels + 1) if x.channels % d == 0]
    if divisors:
        group = g.pick(divisors)
        g.conv(x, group * g.integer(1, max(1, 12 // group)), kernel=g.pick([1, 3]), group=group)


def transposed(g: Grower, x: Image) -> None:
    group = g.pick([d for d in range(1, x.channels + 1) if x.channels % d == 0])
    each = g.integer(1, max(1, 8 // group))
    if x.side <= SIDE:
        out = g.node(
            "ConvTranspose", x.name, g.weight(x.channels, each, 2, 2), group=group, strides=[2, 2]
        )
        g.add(out, group * each, 2 * x.side)


def unary(g: Grower, x: Image) -> None:
    g.add(g.node(g.pick(UNARY), x.name), x.channels, x.side)


def binary(g: Grower, x: Image) -> None:
    like = [i for i in g.images if (i.channels, i.side) == (x.channels, x.side)]
    g.add(g.node(g.pick(BINARY), x.name, g.pick(like).name), x.channels, x.side)


def per_channel(g: Grower, x: Image) -> None:
    shape = g.pick([(x.channels, 1, 1), (1, x.channels, 1, 1), (1,), (x.channels, x.side, x.side)])
    g.add(
        g.node(g.pick(["Add", "Mul", "Sub", "PRelu"]), x.name, g.weight(*shape)), x.channels, x.side
    )


def batchnorm(g: Grower, x: Image) -> None:
    parameters = [g.weight(x.channels) for _ in range(3)] + [g.weight(x.channels, positive=True)]
    g.add(g.node("BatchNormalization", x.name, *parameters), x.channels, x.side)


def normalize(g: Grower, x: Image) -> None:
    kind = g.pick(["InstanceNormalization", "LpNormalization", "Softmax", "LayerNormalization"])
    if x.side < 2:
        return
    if kind == "InstanceNormalization":
        out = g.node(kind, x.name, g.weight(x.channels), g.weight(x.channels))
    elif kind == "LpNormalization":
        out = g.node(kind, x.name, axis=g.pick([1, 2]), p=2)
    elif kind == "Softmax":
        out = g.node(kind, x.name, axis=g.pick([1, 2, 3]))
    else:
        axis = g.pick([2, 3])
        out = g.node(kind, x.name, g.weight(*[x.side] * (4 - axis)), axis=axis)
    g.add(out, x.channels, x.side)


def residual(g: Grower, x: Image) -> None:
    inner = g.conv(x, g.integer(2, 6))
    back = g.conv(
        Image(g.node("Relu", inner.name), inner.channels, inner.side), x.channels, kernel=3
    )
    g.add(g.node("Add", x.name, back.name), x.channels, x.side)


def concat(g: Grower, x: Image) -> None:
    like = [i for i in g.images if i.side == x.side]
    parts = [x, *(g.pick(like) for _ in range(g.integer(1, 2)))]
    if sum(p.channels for p in parts) <= LARGEST:
        g.add(
            g.node("Concat", *(p.name for p in parts), axis=g.pick([1, -3])),
            sum(p.channels for p in parts),
            x.side,
        )


def split(g: Grower, x: Image) -> None:
    if x.channels < 2:
        return
    at = g.integer(1, x.channels - 1)
    a, b = g.node("Split", x.name, g.ints(at, x.channels - at), axis=1, outputs=2)
    g.add(a, at, x.side)
    g.add(b, x.channels - at, x.side)


def halves(g: Grower, x: Image) -> None:
    """Append a gate: one half times the sigmoid of the other."""
    if x.channels % 2 == 0:
        a, b = g.node("Split", x.name, axis=1, num_outputs=2, outputs=2)
        g.add(g.node("Mul", a, g.node("Sigmoid", b)), x.channels // 2, x.side)


def slice_(g: Grower, x: Image) -> None:
    start = g.integer(-x.channels, x.channels - 1)
    end = g.integer(-x.channels, x.channels + 2)
    step = g.pick([1, 1, 1, 2, -1])
    count = len(range(*slice(start, end, step).indices(x.channels)))
    if count:
        g.add(
            g.node(
                "Slice", x.name, g.ints(start), g.ints(end), g.ints(g.pick([1, -3])), g.ints(step)
            ),
            count,
            x.side,
        )


def gather(g: Grower, x: Image) -> None:
    index = g.draw(st.lists(st.integers(-x.channels, x.channels - 1), min_size=1, max_size=10))
    g.add(g.node("Gather", x.name, g.ints(*index), axis=1), len(index), x.side)


def pad(g: Grower, x: Image) -> None:
    before, after, edge = g.integer(0, 2), g.integer(0, 2), g.integer(0, 1) if x.side <= SIDE else 0
    g.add(
        g.node("Pad", x.name, g.ints(0, before, edge, edge, 0, after, edge, edge)),
        x.channels + before + after,
        x.side + 2 * edge,
    )


def pool(g: Grower, x: Image) -> None:
    op = g.pick(["MaxPool", "AveragePool", "LpPool"])
    if x.side >= 2:
        g.add(g.node(op, x.name, kernel_shape=[2, 2]), x.channels, x.side - 1)


def squeeze_excite(g: Grower, x: Image) -> None:
    mean = Image(g.node(g.pick(["GlobalAveragePool", "GlobalMaxPool"]), x.name), x.channels, 1)
    gate = g.conv(
        Image(g.node("Relu", g.conv(mean, g.integer(2, 4)).name), g.images[-1].channels, 1),
        x.channels,
    )
    g.add(g.node("Mul", x.name, g.node("Sigmoid", gate.name)), x.channels, x.side)


def shuffle(g: Grower, x: Image) -> None:
    factor = g.pick([d for d in range(1, x.channels + 1) if x.channels % d == 0])
    a = g.node("Reshape", x.name, g.ints(BATCH, factor, x.channels // factor, x.side, x.side))
    b = g.node("Transpose", a, perm=[0, 2, 1, 3, 4])
    g.add(
        g.node("Reshape", b, g.ints(g.pick([0, -1]), x.channels, x.side, x.side)),
        x.channels,
        x.side,
    )


def reduce_factor(g: Grower, x: Image) -> None:
    """Append a sum or a maximum over a factor of the channel axis."""
    factor = g.pick([d for d in range(1, x.channels + 1) if x.channels % d == 0])
    rest = x.channels // factor
    a = g.node(
        "Reshape",
        x.name,
        g.ints(*g.pick([(0, factor, rest, x.side, x.side), (BATCH, factor, -1, x.side, x.side)])),
    )
    axis = g.integer(1, 2)
    if g.draw(st.booleans()):
        g.add(
            g.node("ReduceSum", a, g.ints(axis), keepdims=0), rest if axis == 1 else factor, x.side
        )
    else:
        g.add(
            g.node("ReduceMax", a, g.ints(axis), keepdims=0), rest if axis == 1 else factor, x.side
        )


def channels_last(g: Grower, x: Image) -> None:
    channels = g.integer(2, 8)
    a = g.node("Transpose", x.name, perm=[0, 2, 3, 1])
    b = g.node("Add", g.node("MatMul", a, g.weight(x.channels, channels)), g.weight(channels))
    g.add(g.node("Transpose", b, perm=[0, 3, 1, 2]), channels, x.side)


def contraction(g: Grower, x: Image) -> None:
    channels = g.integer(2, 6)
    g.add(
        g.node("Einsum", x.name, g.weight(channels, x.channels), equation="bchw,dc->bdhw"),
        channels,
        x.side,
    )


def depth_and_space(g: Grower, x: Image) -> None:
    if x.channels % 4 == 0 and x.side <= SIDE:
        g.add(
            g.node("DepthToSpace", x.name, blocksize=2, mode=g.pick(["DCR", "CRD"])),
            x.channels // 4,
            2 * x.side,
        )
    elif x.side % 2 == 0 and 4 * x.channels <= LARGEST:
        g.add(g.node("SpaceToDepth", x.name, blocksize=2), 4 * x.channels, x.side // 2)


def tile(g: Grower, x: Image) -> None:
    if 2 * x.channels <= LARGEST:
        g.add(g.node("Tile", x.name, g.ints(1, 2, 1, 1)), 2 * x.channels, x.side)


def interleave(g: Grower, x: Image) -> None:
    if 2 * x.channels <= LARGEST:
        a = g.node("Unsqueeze", x.name, g.ints(2))
        b = g.node("Expand", a, g.ints(1, 1, 2, 1, 1))
        g.add(
            g.node("Reshape", b, g.ints(0, 2 * x.channels, x.side, x.side)), 2 * x.channels, x.side
        )


def resize(g: Grower, x: Image) -> None:
    if x.side > SIDE:
        return
    if g.draw(st.booleans()):
        out = g.node(
            "Resize", x.name, "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest"
        )
    else:
        out = g.node(
            "Resize",
            x.name,
            "",
            "",
            g.ints(BATCH, x.channels, 2 * x.side, 2 * x.side),
            mode="linear",
        )
    g.add(out, x.channels, 2 * x.side)


def attention(g: Grower, x: Image) -> None:
    """Append self-attention over the positions, with random heads."""
    heads, width, values = g.integer(1, 3), g.integer(2, 3), g.integer(2, 3)
    tokens = g.node("Transpose", g.node("Reshape", x.name, g.ints(0, 0, x.side**2)), perm=[0, 2, 1])

    def project(size: int, perm: list[int]) -> str:
        flat = g.node("MatMul", tokens, g.weight(x.channels, heads * size))
        return g.node("Transpose", g.node("Reshape", flat, g.ints(0, 0, heads, size)), perm=perm)

    scores = g.node(
        "Softmax",
        g.node("MatMul", project(width, [0, 2, 1, 3]), project(width, [0, 2, 3, 1])),
        axis=-1,
    )
    mixed = g.node(
        "Transpose", g.node("MatMul", scores, project(values, [0, 2, 1, 3])), perm=[0, 2, 1, 3]
    )
    flat = g.node("Reshape", mixed, g.ints(0, 0, heads * values))
    out = g.node("MatMul", flat, g.weight(heads * values, x.channels))
    back = g.node(
        "Reshape",
        g.node("Transpose", out, perm=[0, 2, 1]),
        g.ints(BATCH, x.channels, x.side, x.side),
    )
    g.add(g.node("Add", back, x.name), x.channels, x.side)


def lstm(g: Grower, x: Image) -> None:
    """Append a recurrent layer along the rows, in one direction or both."""
    hidden, way = g.integer(2, 4), g.pick(["forward", "reverse", "bidirectional"])
    d = 2 if way == "bidirectional" else 1
    op, gates = g.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    rows = g.node("ReduceSum", x.name, g.ints(3), keepdims=0)
    steps = g.node("Transpose", rows, perm=[2, 0, 1])
    out = g.node(
        op,
        steps,
        g.weight(d, gates * hidden, x.channels),
        g.weight(d, gates * hidden, hidden),
        hidden_size=hidden,
        direction=way,
    )
    flat = g.node(
        "Reshape", g.node("Transpose", out, perm=[2, 1, 3, 0]), g.ints(BATCH, d * hidden, x.side, 1)
    )
    g.add(g.node("Expand", flat, g.ints(1, 1, x.side, x.side)), d * hidden, x.side)


BLOCKS = (
    *[dense] * 3,
    *[grouped] * 2,
    transposed,
    *[unary] * 2,
    *[binary] * 2,
    per_channel,
    batchnorm,
    normalize,
    residual,
    *[concat] * 2,
    *[split] * 2,
    halves,
    slice_,
    gather,
    pad,
    pool,
    squeeze_excite,
    shuffle,
    reduce_factor,
    channels_last,
    contraction,
    depth_and_space,
    tile,
    interleave,
    resize,
    attention,
    lstm,
)


@st.composite
def graphs(draw: Draw, most: int = 8) -> ModelProto:
    """Draw a model of up to `most` blocks between two convolutions."""
    g = Grower(draw, np.random.default_rng(draw(st.integers(0, 2**16))))
    g.conv(Image("x", CHANNELS, SIDE), g.integer(2, 8), kernel=3)
    for _ in range(g.integer(1, most)):
        block = g.pick(BLOCKS)
        recent = g.images[-3:]
        block(g, g.pick(recent))
    return g.model()
