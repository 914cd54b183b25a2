"""Transformers, recurrent networks and patch embeddings for `tests.robustness.realistic`."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.robustness.realistic import Builder, Tokens
from tests.robustness.realistic_vision import activate, block


def linear(b: Builder, x: Tokens, out: int, bias: bool | None = None) -> Tokens:
    """Apply a linear layer: MatMul and Add, Gemm on flattened rows, or a transposed weight."""
    bias = b.chance(0.7) if bias is None else bias
    shift = b.const(b.rng.standard_normal(out) * 0.1)
    source = x.name
    if b.chance(0.2):
        rows = b.op("Reshape", source, b.ints(-1, x.e))
        weight = b.random(out, x.e, fan_in=x.e)
        name = b.op("Gemm", rows, weight, shift, transB=1)
        return Tokens(b.op("Reshape", name, b.ints(-1, x.s, out)), x.s, out)
    if b.chance(0.2):
        weight = b.op("Transpose", b.random(out, x.e, fan_in=x.e), perm=[1, 0])
    else:
        weight = b.random(x.e, out, fan_in=x.e)
    if b.quantized:
        source = b.fake_quantize(source, 0.05)
        weight = b.fake_quantize(weight, 0.02)
    name = b.op("MatMul", source, weight)
    if bias:
        name = b.op("Add", name, shift) if b.chance(0.5) else b.op("Add", shift, name)
    return Tokens(name, x.s, out)


def normalize(b: Builder, x: Tokens) -> Tokens:
    """Normalize embeddings: LayerNormalization fused or decomposed, RMSNorm, or nothing."""
    kind = b.pick("layer", "decomposed", "pow", "rms", "none")
    scale, shift = b.const(b.rng.uniform(0.5, 1.5, x.e)), b.const(b.rng.standard_normal(x.e) * 0.1)
    if kind == "layer" and b.opset >= 17:
        return _same(x, b.op("LayerNormalization", x.name, scale, shift, axis=-1))
    if kind == "none":
        return x
    if kind == "rms":
        mean = b.reduce("ReduceMean", b.op("Pow", x.name, b.const(2.0)), [-1])
        root = b.op("Sqrt", b.op("Add", mean, b.const(1e-6)))
        unit = b.op("Mul", x.name, b.op("Div", b.const(1.0), root))
        return _same(x, b.op("Mul", scale, unit))
    centered = b.op("Sub", x.name, b.reduce("ReduceMean", x.name, [-1]))
    if kind == "pow":
        square = b.op("Pow", centered, b.const(2.0))
    else:
        square = b.op("Mul", centered, centered)
    variance = b.reduce("ReduceMean", square, [-1])
    root = b.op("Sqrt", b.op("Add", variance, b.const(1e-5)))
    product = b.op("Mul", b.op("Div", centered, root), scale)
    return _same(x, b.op("Add", product, shift))


def _same(x: Tokens, name: str) -> Tokens:
    return Tokens(name, x.s, x.e)


def _heads(b: Builder, x: Tokens, h: int) -> str:
    """Return (batch, heads, length, size)."""
    apart = b.reshape(x.name, x.name, [x.s, h, x.e // h])
    return b.op("Transpose", apart, perm=[0, 2, 1, 3])


def _rotate(b: Builder, x: str, s: int, d: int) -> str:
    """Apply rotary position embeddings by slices, negation and concatenation."""
    angles = np.arange(s)[:, None] * 0.5 ** np.arange(d // 2)[None]
    angles = np.concatenate([angles, angles], 1)
    first, second = b.slice(x, 0, d // 2, 3), b.slice(x, d // 2, 2**62, 3)
    turned = b.op("Concat", b.op("Neg", second), first, axis=-1)
    plain = b.op("Mul", x, b.const(np.cos(angles)))
    return b.op("Add", plain, b.op("Mul", turned, b.const(np.sin(angles))))


def _attend(b: Builder, q: str, k: str, v: str, s: int, d: int) -> str:
    """Return softmax(q k' / sqrt(d)) v, masked in one of the usual ways."""
    if b.chance(0.3):
        factor = b.const(d**-0.25)
        q, k = b.op("Mul", q, factor), b.op("Mul", k, factor)
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    else:
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
        if b.chance(0.5):
            scores = b.op("Div", scores, b.const(d**0.5))
        else:
            scores = b.op("Mul", scores, b.const(d**-0.5))
    mask = b.pick("none", "add", "where")
    causal = np.tril(np.ones((s, s), bool))
    if mask == "add":
        scores = b.op("Add", scores, b.const(np.where(causal, 0, -1e4)[None, None]))
    elif mask == "where":
        allowed = b.const(causal[None, None], np.bool_)
        scores = b.op("Where", allowed, scores, b.const(-3.0e38))
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v)


def attention(b: Builder, x: Tokens) -> Tokens:
    """Apply self-attention in one of the exporters' styles."""
    style = b.pick("apart", "apart", "packed", "stacked", "grouped", "rotary", "einsum", "fused")
    h = b.pick(2, 4)
    d = b.pick(4, 6)
    inner = h * d
    if style == "packed":
        qkv = linear(b, x, 3 * inner)
        parts = [Tokens(p, x.s, inner) for p in b.split(qkv.name, [inner] * 3, 2)]
        q, k, v = (_heads(b, p, h) for p in parts)
    elif style == "stacked":
        qkv = linear(b, x, 3 * inner)
        apart = b.reshape(qkv.name, qkv.name, [x.s, 3, h, d])
        turned = b.op("Transpose", apart, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.op("Gather", turned, b.const(i, np.int64), axis=0) for i in range(3))
    elif style == "grouped":
        q = _heads(b, linear(b, x, inner), h)
        few = h // 2
        k, v = (_heads(b, linear(b, x, few * d), few) for _ in range(2))
        k, v = (_repeat(b, y, few, 2, x.s, d) for y in (k, v))
    elif style == "einsum":
        return _einsum_attention(b, x, h, d)
    elif style == "fused":
        q, k, v = (linear(b, x, inner).name for _ in range(3))
        name = b.op("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=h)
        return linear(b, Tokens(name, x.s, inner), x.e)
    else:
        q, k, v = (_heads(b, linear(b, x, inner), h) for _ in range(3))
    if style == "rotary":
        q, k = _rotate(b, q, x.s, d), _rotate(b, k, x.s, d)
    out = b.op("Transpose", _attend(b, q, k, v, x.s, d), perm=[0, 2, 1, 3])
    joined = Tokens(b.reshape(out, x.name, [x.s, inner]), x.s, inner)
    return linear(b, joined, x.e)


def _repeat(b: Builder, x: str, h: int, times: int, s: int, d: int) -> str:
    """Repeat each key or value head, by Expand or by Tile."""
    apart = b.unsqueeze(x, 2)
    if b.chance(0.5):
        wide = b.op("Expand", apart, b.ints(1, 1, times, 1, 1))
    else:
        wide = b.op("Tile", apart, b.ints(1, 1, times, 1, 1))
    return b.reshape(wide, x, [h * times, s, d])


def _einsum_attention(b: Builder, x: Tokens, h: int, d: int) -> Tokens:
    """Apply attention whose projections keep heads as an axis of the weight."""
    q, k, v = (
        b.op("Einsum", x.name, b.random(x.e, h, d, fan_in=x.e), equation="bse,ehd->bshd")
        for _ in range(3)
    )
    scores = b.op("Einsum", q, k, equation="bshd,bthd->bhst")
    scores = b.op("Mul", scores, b.const(d**-0.5))
    weights = b.op("Softmax", scores, axis=-1)
    mixed = b.op("Einsum", weights, v, equation="bhst,bthd->bshd")
    out = b.op("Einsum", mixed, b.random(h, d, x.e, fan_in=h * d), equation="bshd,hde->bse")
    return _same(x, out)


def perceptron(b: Builder, x: Tokens) -> Tokens:
    """Apply a plain or gated multilayer perceptron."""
    wide = 2 * x.e
    style = b.pick("plain", "gated", "packed")
    if style == "plain":
        hidden = linear(b, x, wide)
        return linear(b, Tokens(activate(b, hidden.name, wide, 3), x.s, wide), x.e)
    if style == "gated":
        gate, up = linear(b, x, wide), linear(b, x, wide)
        gated = b.op("Mul", activate(b, gate.name, wide, 3), up.name)
        return linear(b, Tokens(gated, x.s, wide), x.e)
    both = linear(b, x, 2 * wide)
    gate_name, up_name = b.split(both.name, [wide, wide], 2)
    gated = b.op("Mul", activate(b, gate_name, wide, 3), up_name)
    return linear(b, Tokens(gated, x.s, wide), x.e)


def mixer(b: Builder, x: Tokens) -> Tokens:
    """Mix tokens by a perceptron along the sequence."""
    turned = Tokens(b.op("Transpose", x.name, perm=[0, 2, 1]), x.e, x.s)
    hidden = linear(b, turned, 12)
    back = linear(b, Tokens(activate(b, hidden.name, 12, 3), x.e, 12), x.s)
    return _same(x, b.op("Transpose", back.name, perm=[0, 2, 1]))


def local(b: Builder, x: Tokens) -> Tokens:
    """Convolve along the sequence (Conformer's convolution module)."""
    turned = b.op("Transpose", x.name, perm=[0, 2, 1])
    wide = b.op("Conv", turned, b.random(2 * x.e, x.e, 1, fan_in=x.e))
    left, right = b.split(wide, [x.e, x.e], 1)
    gated = b.op("Mul", left, b.op("Sigmoid", right))
    deep = b.op("Conv", gated, b.random(x.e, 1, 3, fan_in=3), group=x.e, pads=[1, 1])
    out = b.op("Conv", b.op("Relu", deep), b.random(x.e, x.e, 1, fan_in=x.e))
    return _same(x, b.op("Transpose", out, perm=[0, 2, 1]))


def looped(b: Builder, x: Tokens) -> Tokens:
    """Apply a layer with one weight several times in a Loop."""
    first = linear(b, x, 8)
    prefix = b.name("loop")
    weight = (b.rng.standard_normal((8, 8)) * 0.4).astype(np.float32)
    nodes = [
        helper.make_node("Identity", [f"{prefix}_go"], [f"{prefix}_on"]),
        helper.make_node("MatMul", [f"{prefix}_x", f"{prefix}_w"], [f"{prefix}_y"]),
        helper.make_node("Tanh", [f"{prefix}_y"], [f"{prefix}_z"]),
    ]
    inputs = [
        helper.make_tensor_value_info(f"{prefix}_i", TensorProto.INT64, []),
        helper.make_tensor_value_info(f"{prefix}_go", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"{prefix}_x", TensorProto.FLOAT, None),
    ]
    outputs = [
        helper.make_tensor_value_info(f"{prefix}_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"{prefix}_z", TensorProto.FLOAT, None),
    ]
    tensor = numpy_helper.from_array(weight, f"{prefix}_w")
    body = helper.make_graph(nodes, prefix, inputs, outputs, [tensor])
    name = b.op("Loop", b.const(3, np.int64), b.const(True, np.bool_), first.name, body=body)
    return linear(b, Tokens(name, x.s, 8), x.e)


SUBLAYERS = (attention, attention, attention, perceptron, perceptron, mixer, local, looped)


def stack(b: Builder, x: Tokens) -> tuple[Tokens, list[str]]:
    """Apply one to three residual sublayers with the norm before or after."""
    kinds = []
    before = b.chance(0.6)
    for _ in range(int(b.rng.integers(1, 4))):
        kind = SUBLAYERS[int(b.rng.integers(len(SUBLAYERS)))]
        kinds.append(kind.__name__)
        y = kind(b, normalize(b, x) if before else x)
        x = _same(x, b.op("Add", x.name, y.name))
        x = x if before else normalize(b, x)
    return x, kinds


def transformer(b: Builder) -> list[str]:
    """Build an encoder over ids or embeddings with a pooled or per-token head."""
    s, e, vocabulary = 6, b.pick(8, 12), 20
    table = ""
    if b.chance(0.5):
        table = b.const(b.rng.standard_normal((vocabulary, e)) * 0.5)
        x = Tokens(b.op("Gather", table, b.ids(s, vocabulary), axis=0), s, e)
        x = _same(x, b.op("Add", x.name, b.const(b.rng.standard_normal((1, s, e)) * 0.1)))
    else:
        x = linear(b, b.sequence(s, 5), e)
    x, kinds = stack(b, x)
    x = normalize(b, x)
    if table and b.chance(0.5):
        kinds.append("tied")
        turned = b.op("Transpose", table, perm=[1, 0])
        b.output(b.op("MatMul", x.name, turned), s, vocabulary)
    elif b.chance(0.5):
        b.output(linear(b, x, 7).name, s, 7)
    else:
        _pooled(b, x)
    return kinds


def _pooled(b: Builder, x: Tokens) -> None:
    if b.chance(0.5):
        pooled = b.reduce("ReduceMean", x.name, [1], keepdims=0)
    else:
        pooled = b.op("Gather", x.name, b.const(0, np.int64), axis=1)
    weight = b.random(7, x.e, fan_in=x.e)
    b.output(b.op("Gemm", pooled, weight, b.const(np.zeros(7)), transB=1), 7)


def patches(b: Builder) -> list[str]:
    """Build a vision transformer: a convolutional stem, patches, a class token, sublayers."""
    image = b.image(3, 8, 8)
    stem = block(b, image, 8) if b.chance(0.5) else image
    e = b.pick(8, 12)
    weight = b.random(e, stem.c, 4, 4, fan_in=stem.c * 16)
    grid = b.op("Conv", stem.name, weight, b.const(np.zeros(e)), strides=[4, 4])
    flat = b.reshape(grid, grid, [e, -1]) if b.chance(0.5) else b.reshape(grid, grid, [e, 4])
    x = Tokens(b.op("Transpose", flat, perm=[0, 2, 1]), 4, e)
    if b.chance(0.5):
        token = b.const(b.rng.standard_normal((1, 1, e)))
        size = b.op("Slice", b.op("Shape", x.name), b.ints(0), b.ints(1), b.ints(0))
        shape = b.op("Concat", size, b.ints(-1, -1), axis=0)
        ones = b.op("ConstantOfShape", b.ints(3), value=numpy_helper.from_array(np.array([1])))
        negative = b.op("Mul", ones, b.ints(-1))
        target = b.op("Where", b.op("Equal", shape, negative), ones, shape)
        wide = b.op("Expand", token, target)
        x = Tokens(b.op("Concat", wide, x.name, axis=1), 5, e)
    x = _same(x, b.op("Add", x.name, b.const(b.rng.standard_normal((1, x.s, e)) * 0.1)))
    x, kinds = stack(b, x)
    _pooled(b, normalize(b, x))
    return ["patches", *kinds]


def recurrent(b: Builder) -> list[str]:
    """Build a recurrent network: LSTM, GRU or RNN, one or two directions, layers on top."""
    b.half = False  # onnxruntime crashes on recurrent operators of float16
    kind = b.pick("LSTM", "GRU", "RNN")
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    s, width, hidden, ways = 6, 8, 6, b.pick(1, 2)
    x = linear(b, b.sequence(s, 5), width)
    source = activate(b, x.name, width, 3)
    source = b.op("Transpose", source, perm=[1, 0, 2])
    kinds = [kind]
    for layer in range(b.pick(1, 2)):
        size = width if layer == 0 else ways * hidden
        w = b.random(ways, gates * hidden, size, fan_in=size)
        r = b.random(ways, gates * hidden, hidden, fan_in=hidden)
        bias = b.const(b.rng.standard_normal((ways, 2 * gates * hidden)) * 0.1)
        attributes = {"hidden_size": hidden}
        attributes["direction"] = "bidirectional" if ways == 2 else "forward"
        if kind == "GRU":
            attributes["linear_before_reset"] = b.pick(0, 1)
        y = b.op(kind, source, w, r, bias, **attributes)
        if ways == 1:
            source = b.op("Squeeze", y, b.ints(1))
        else:
            turned = b.op("Transpose", y, perm=[0, 2, 1, 3])
            source = b.op("Reshape", turned, b.ints(0, 0, -1))
    out = Tokens(b.op("Transpose", source, perm=[1, 0, 2]), s, ways * hidden)
    if b.chance(0.5):
        out, more = stack(b, out)
        kinds += more
    b.output(linear(b, out, 7).name, s, 7)
    return kinds
