"""Blocks of convolutional networks for `tests.robustness.realistic`."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from tests.robustness.realistic import Builder, Image

ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "HardSwish",
    "silu",
    "gelu",
    "mish",
    "prelu",
    "hard",
    "Elu",
    "none",
)


def activate(b: Builder, x: str, c: int, rank: int = 4) -> str:
    """Apply a random activation, fused or written out."""
    kind = b.pick(*ACTIVATIONS)
    if kind == "Clip":
        return b.op("Clip", x, b.const(0.0), b.const(6.0))
    if kind == "HardSwish" and b.opset < 14 or kind == "hard":
        gate = b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        return b.op("Mul", x, gate)
    if kind == "silu":
        return b.op("Mul", x, b.op("Sigmoid", x))
    if kind == "gelu":
        erf = b.op("Erf", b.op("Div", x, b.const(2**0.5)))
        product = b.op("Mul", x, b.op("Add", erf, b.const(1.0)))
        return b.op("Mul", product, b.const(0.5))
    if kind == "mish":
        return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))
    if kind == "prelu":
        shape = (c, 1, 1) if rank == 4 else (c,)
        return b.op("PRelu", x, b.const(b.rng.uniform(0.05, 0.3, shape)))
    return x if kind == "none" else b.op(kind, x)


def convolution(
    b: Builder, x: Image, out: int, k: int = 3, group: int = 1, stride: int = 1
) -> Image:
    """Apply a convolution with same padding, its bias optional, quantized in QDQ networks."""
    weight = b.random(out, x.c // group, k, k, fan_in=x.c // group * k * k)
    source = x.name
    if b.quantized:
        source = b.fake_quantize(source, 0.05)
        weight = b.fake_quantize(weight, 0.02)
    inputs = [source, weight]
    if b.chance(0.6):
        inputs.append(b.const(b.rng.standard_normal(out) * 0.1))
    attributes = {"pads": [k // 2] * 4, "strides": [stride] * 2, "group": group}
    if b.chance(0.7):
        attributes["kernel_shape"] = [k, k]
    name = b.op("Conv", *inputs, **attributes)
    return Image(name, out, -(-x.h // stride), -(-x.w // stride))


def normalize(b: Builder, x: Image) -> Image:
    """Apply one of the normalizations of vision networks, fused or decomposed."""
    kind = b.pick("batch", "batch", "batch", "none", "affine", "group", "instance", "layer", "grn")
    scale = b.rng.uniform(0.5, 1.5, x.c)
    shift = b.rng.standard_normal(x.c) * 0.1
    if kind == "batch":
        parts = (scale, shift, b.rng.standard_normal(x.c) * 0.1, b.rng.uniform(0.5, 2, x.c))
        return _same(x, b.op("BatchNormalization", x.name, *(b.const(p) for p in parts)))
    column = (x.c, 1, 1)
    if kind == "affine":
        product = b.op("Mul", x.name, b.const(scale.reshape(column)))
        return _same(x, b.op("Add", product, b.const(shift.reshape(column))))
    if kind == "instance":
        return _same(x, b.op("InstanceNormalization", x.name, b.const(scale), b.const(shift)))
    if kind == "group":
        groups = b.pick(1, 2, 4) if x.c % 4 == 0 else 1
        flat = b.reshape(x.name, x.name, [groups, -1])
        ones, zeros = b.const(np.ones(groups)), b.const(np.zeros(groups))
        normal = b.op("InstanceNormalization", flat, ones, zeros)
        restored = b.op("Reshape", normal, b.op("Shape", x.name))
        product = b.op("Mul", restored, b.const(scale.reshape(column)))
        return _same(x, b.op("Add", product, b.const(shift.reshape(column))))
    if kind == "layer":
        mean = b.reduce("ReduceMean", x.name, [1])
        centered = b.op("Sub", x.name, mean)
        variance = b.reduce("ReduceMean", b.op("Mul", centered, centered), [1])
        deviation = b.op("Sqrt", b.op("Add", variance, b.const(1e-6)))
        product = b.op("Mul", b.op("Div", centered, deviation), b.const(scale.reshape(column)))
        return _same(x, b.op("Add", product, b.const(shift.reshape(column))))
    if kind == "grn":
        norm = b.reduce("ReduceL2", x.name, [2, 3])
        mean = b.reduce("ReduceMean", norm, [1])
        ratio = b.op("Div", norm, b.op("Add", mean, b.const(1e-6)))
        return _same(x, b.op("Add", b.op("Mul", x.name, ratio), x.name))
    return x


def _same(x: Image, name: str) -> Image:
    return Image(name, x.c, x.h, x.w)


def block(b: Builder, x: Image, out: int, k: int = 3, group: int = 1, stride: int = 1) -> Image:
    """Apply convolution, normalization and activation."""
    y = normalize(b, convolution(b, x, out, k, group, stride))
    return _same(y, activate(b, y.name, y.c))


def residual(b: Builder, x: Image) -> Image:
    """Add a branch to its input; the shortcut may be a convolution or a padded slice."""
    inner = b.pick(4, 6, 8)
    if b.chance(0.5):
        y = convolution(b, block(b, x, inner), x.c)
        joined = b.op("Add", y.name, x.name) if b.chance(0.5) else b.op("Add", x.name, y.name)
        return _same(x, activate(b, joined, x.c))
    out = x.c + 4
    y = convolution(b, block(b, x, inner), out)
    if b.chance(0.5):
        short = convolution(b, x, out, 1).name
    else:
        short = b.op("Pad", x.name, b.ints(0, 2, 0, 0, 0, 2, 0, 0), b.const(0.0))
    return _same(y, activate(b, b.op("Add", y.name, short), out))


def bottleneck(b: Builder, x: Image) -> Image:
    """Apply an inverted residual with a depthwise convolution."""
    wide = block(b, x, x.c * 2, 1)
    deep = block(b, wide, wide.c, 3, wide.c)
    if b.chance(0.5):
        deep = squeeze_excite(b, deep)
    y = convolution(b, deep, x.c, 1)
    return _same(x, b.op("Add", x.name, y.name))


def squeeze_excite(b: Builder, x: Image) -> Image:
    """Scale channels by a gate computed from their means."""
    few = b.pick(2, 4)
    if b.chance(0.5):
        mean = b.op("GlobalAveragePool", x.name)
    else:
        mean = b.reduce("ReduceMean", x.name, [2, 3])
    if b.chance(0.5):
        pooled = Image(mean, x.c, 1, 1)
        hidden = convolution(b, pooled, few, 1)
        gate = convolution(b, _same(hidden, activate(b, hidden.name, few)), x.c, 1).name
    else:
        flat = b.op("Flatten", mean, axis=1)
        first, second = b.random(few, x.c, fan_in=x.c), b.random(x.c, few, fan_in=few)
        hidden_name = b.op("Gemm", flat, first, b.const(np.zeros(few)), transB=1)
        hidden_name = activate(b, hidden_name, few, 2)
        gate = b.op("Gemm", hidden_name, second, b.const(np.zeros(x.c)), transB=1)
        gate = b.reshape(gate, gate, [x.c, 1, 1])
    return _same(x, b.op("Mul", x.name, b.op(b.pick("Sigmoid", "HardSigmoid"), gate)))


def concat(b: Builder, x: Image) -> Image:
    """Concatenate branches of different kinds."""
    branches = [block(b, x, b.pick(4, 6), b.pick(1, 3))]
    branches.append(block(b, block(b, x, 4, 1), 6))
    if b.chance(0.5):
        branches.append(x)
    if b.chance(0.4):
        pooled = b.op("MaxPool", x.name, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        branches.append(_same(x, pooled))
    total = sum(y.c for y in branches)
    return Image(b.op("Concat", *(y.name for y in branches), axis=1), total, x.h, x.w)


def cross_stage(b: Builder, x: Image) -> Image:
    """Split channels, transform one part, concatenate (CSP, C2f)."""
    y = block(b, x, 8, 1)
    if b.chance(0.5):
        left, right = b.split(y.name, [4, 4], 1)
    else:
        left, right = b.slice(y.name, 0, 4, 1), b.slice(y.name, 4, 2**31 - 1, 1)
    part = residual(b, Image(right, 4, x.h, x.w))
    names = [left, right, part.name] if b.chance(0.5) else [left, part.name]
    width = 4 * (len(names) - 1) + part.c
    return block(b, Image(b.op("Concat", *names, axis=1), width, x.h, x.w), 8, 1)


def shuffle(b: Builder, x: Image) -> Image:
    """Shuffle the channels of grouped convolutions."""
    y = block(b, x, 8, 1, 2 if x.c % 2 == 0 else 1)
    groups = b.pick(2, 4)
    cut = b.reshape(y.name, y.name, [groups, 8 // groups, x.h, x.w])
    turned = b.op("Transpose", cut, perm=[0, 2, 1, 3, 4])
    back = b.reshape(turned, turned, [8, x.h, x.w]) if b.chance(0.5) else None
    name = back or b.op("Reshape", turned, b.ints(0, -1, x.h, x.w))
    return block(b, Image(name, 8, x.h, x.w), 8, 3, b.pick(1, 2, 4, 8))


def gathered(b: Builder, x: Image) -> Image:
    """Reorder or pick channels by index."""
    y = block(b, x, 8)
    order = b.rng.permutation(8)[: b.pick(8, 6)]
    return Image(b.op("Gather", y.name, b.ints(*map(int, order)), axis=1), len(order), x.h, x.w)


def transposed(b: Builder, x: Image) -> Image:
    """Upsample by a transposed convolution and come back by a strided one."""
    group = 2 if x.c % 2 == 0 and b.chance(0.4) else 1
    weight = b.random(x.c, 8 // group, 2, 2, fan_in=x.c)
    name = b.op("ConvTranspose", x.name, weight, strides=[2, 2], group=group)
    big = Image(name, 8, 2 * x.h, 2 * x.w)
    return block(b, _same(big, activate(b, big.name, 8)), 8, 3, 1, 2)


def pixels(b: Builder, x: Image) -> Image:
    """Move channels to space and back."""
    mode = b.pick("DCR", "CRD")
    y = block(b, x, 12)
    up = Image(b.op("DepthToSpace", y.name, blocksize=2, mode=mode), 3, 2 * x.h, 2 * x.w)
    y = block(b, up, 4)
    down = b.op("SpaceToDepth", y.name, blocksize=2)
    return block(b, Image(down, 16, x.h, x.w), 8, 1)


def pyramid(b: Builder, x: Image) -> Image:
    """Merge two resolutions, one upsampled by Resize."""
    low = block(b, x, 8, 3, 1, 2)
    if b.chance(0.5):
        sizes = (b.const(np.array([1, 1, 2, 2])),)
    else:
        shape = b.op("Shape", x.name)
        lead = b.op("Slice", b.op("Shape", low.name), b.ints(0), b.ints(2), b.ints(0))
        tail = b.op("Slice", shape, b.ints(2), b.ints(4), b.ints(0))
        sizes = ("", b.op("Concat", lead, tail, axis=0))
    attributes = {"mode": "nearest", "nearest_mode": "floor"}
    attributes["coordinate_transformation_mode"] = "asymmetric"
    up = b.op("Resize", low.name, "", *sizes, **attributes)
    side = block(b, x, 8, 1)
    if b.chance(0.5):
        return Image(b.op("Add", up, side.name), 8, x.h, x.w)
    return Image(b.op("Concat", up, side.name, axis=1), 16, x.h, x.w)


def spatial_attention(b: Builder, x: Image) -> Image:
    """Scale positions by a gate computed from the mean and maximum over channels."""
    mean, most = b.reduce("ReduceMean", x.name, [1]), b.reduce("ReduceMax", x.name, [1])
    both = Image(b.op("Concat", mean, most, axis=1), 2, x.h, x.w)
    gate = b.op("Sigmoid", convolution(b, both, 1).name)
    return _same(x, b.op("Mul", x.name, gate))


def shared(b: Builder, x: Image) -> Image:
    """Apply the same weights to two feature maps (siamese branches, heads on pyramid levels)."""
    left, right = block(b, x, 8), block(b, x, 8)
    weight, bias = b.random(6, 8, 3, 3, fan_in=72), b.const(np.zeros(6))
    out = [b.op("Conv", y.name, weight, bias, pads=[1] * 4) for y in (left, right)]
    out = [activate(b, name, 6) for name in out]
    if b.chance(0.5):
        return Image(b.op("Concat", *out, axis=1), 12, x.h, x.w)
    return Image(b.op(b.pick("Add", "Sub", "Mul"), *out), 6, x.h, x.w)


def conditional(b: Builder, x: Image) -> Image:
    """Choose one of two convolutions by a value of the input."""
    total = b.reduce("ReduceMean", x.name, [0, 1, 2, 3], keepdims=0)
    condition = b.op("Greater", total, b.const(0.0))
    branches = []
    for number in range(2):
        weight = b.rng.standard_normal((8, x.c, 3, 3)) * (1.4 / x.c / 9) ** 0.5
        name = b.name("branch")
        tensor = numpy_helper.from_array(weight.astype(np.float32), f"{name}_w")
        node = helper.make_node("Conv", [x.name, f"{name}_w"], [name], pads=[1] * 4)
        info = helper.make_empty_tensor_value_info(name)
        branches.append(helper.make_graph([node], f"branch{number}", [], [info], [tensor]))
    name = b.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    return block(b, Image(name, 8, x.h, x.w), 8)


def padded(b: Builder, x: Image) -> Image:
    """Pad and crop, by reflection or zeros, with statically and dynamically sized slices."""
    amount = b.ints(0, 0, 1, 1, 0, 0, 1, 1)
    if b.chance(0.5):
        wide = b.op("Pad", x.name, amount, mode=b.pick("reflect", "edge"))
    else:
        wide = b.op("Pad", x.name, amount, b.const(0.0))
    y = block(b, Image(wide, x.c, x.h + 2, x.w + 2), 8)
    cropped = b.slice(b.slice(y.name, 1, x.h + 1, 2), 1, x.w + 1, 3)
    return Image(cropped, 8, x.h, x.w)


def computed_weight(b: Builder, x: Image) -> Image:
    """Normalize the weight of a convolution inside the graph (weight normalization)."""
    weight = b.random(8, x.c, 3, 3, fan_in=9 * x.c)
    norm = b.reduce("ReduceL2", weight, [1, 2, 3])
    direction = b.op("Div", weight, norm)
    gain = b.const(b.rng.uniform(0.5, 1.5, (8, 1, 1, 1)))
    name = b.op("Conv", x.name, b.op("Mul", direction, gain), pads=[1] * 4)
    return Image(activate(b, name, 8), 8, x.h, x.w)


def selective(b: Builder, x: Image) -> Image:
    """Weigh two branches by a softmax over them (selective kernels)."""
    left, right = block(b, x, 6, 3), block(b, x, 6, 1)
    mean = b.op("GlobalAveragePool", b.op("Add", left.name, right.name))
    gates = convolution(b, Image(mean, 6, 1, 1), 12, 1)
    apart = b.reshape(gates.name, gates.name, [2, 6, 1, 1])
    soft = b.op("Softmax", apart, axis=1)
    parts = [b.op("Gather", soft, b.const(i, np.int64), axis=1) for i in range(2)]
    terms = [b.op("Mul", y.name, p) for y, p in zip((left, right), parts, strict=True)]
    return Image(b.op("Add", *terms), 6, x.h, x.w)


def masked(b: Builder, x: Image) -> Image:
    """Replace values where a condition on the feature map holds."""
    y = block(b, x, 8)
    low = b.op("Less", y.name, b.const(-1.0))
    return _same(y, b.op("Where", low, b.const(-1.0), y.name))


BLOCKS = (
    residual,
    bottleneck,
    squeeze_excite,
    concat,
    cross_stage,
    shuffle,
    gathered,
    transposed,
    pixels,
    pyramid,
    spatial_attention,
    shared,
    conditional,
    padded,
    computed_weight,
    selective,
    masked,
)


def vision(b: Builder) -> list[str]:
    """Build a convolutional network of two to four random blocks; return their names."""
    x = b.image(3, 8, 8)
    x = block(b, x, b.pick(6, 8, 12))
    kinds = []
    for _ in range(int(b.rng.integers(2, 5))):
        kind = BLOCKS[int(b.rng.integers(len(BLOCKS)))]
        kinds.append(kind.__name__)
        x = kind(b, x)
    if b.chance(0.7):
        _classifier(b, x)
    if b.chance(0.4) or not b.outputs:
        y = convolution(b, x, 5, 1)
        name = b.op("Sigmoid", y.name) if b.chance(0.4) else y.name
        b.output(name, 5, x.h, x.w)
    return kinds


def _classifier(b: Builder, x: Image) -> None:
    pooled = b.op("GlobalAveragePool", x.name)
    flat = b.op("Flatten", pooled, axis=1) if b.chance(0.6) else b.reshape(pooled, pooled, [-1])
    weight = b.random(10, x.c, fan_in=x.c)
    scores = b.op("Gemm", flat, weight, b.const(np.zeros(10)), transB=1)
    b.output(b.op("Softmax", scores, axis=1) if b.chance(0.3) else scores, 10)
