"""Fused operators of onnxruntime: what its graph optimizer writes."""

from __future__ import annotations

from string import ascii_lowercase

from onnxprune.analysis.rule import GROUP, Rule, View, axes_letters, axis_attribute

# Activations that act on each element; another one may mix channels
_ELEMENTWISE = frozenset(
    """
    Affine Clip Elu Gelu HardSigmoid HardSwish LeakyRelu ParametricSoftplus QuickGelu Relu
    ScaledTanh Selu Sigmoid Softplus Softsign Tanh ThresholdedRelu
    """.split()
)


def acts_elementwise(view: View) -> bool:
    """Return whether the fused activation acts on each element; True if there is none."""
    name = view.text("activation", "")
    return not name or name in _ELEMENTWISE


def spatial_letters(rank: int, taken: str = "") -> str:
    """Return a letter per spatial axis of a feature map, none of them in `taken`."""
    return "".join(x for x in ascii_lowercase if x not in taken)[: max(rank - 2, 0)]


def nhwc_conv(view: View) -> Rule | None:
    """Convolve with channels last, add the residual, apply the activation; filters as in Conv."""
    if not acts_elementwise(view):
        return None
    positions = " ".join(spatial_letters(view.rank(0), "ncgo"))
    return Rule(
        f"n * (g c), (g o) c *, (g o), n {positions} (g o) -> n * (g o)",
        GROUP,
        freeze=f"* {positions}",
        refit={"group": "g"},
        macs=("n g o c * #",),
    )


def group_norm(view: View) -> Rule:
    """Normalize per group of channels, last by default; add a skip and a bias before it."""
    positions = spatial_letters(view.rank(0), "ncg")
    if view.integer("channels_last", 1):
        tensor = f"n {' '.join(positions)} (g c)"
    else:
        tensor = f"n (g c) {' '.join(positions)}"
    # data, scale, shift, skip and bias; a skip may be one row per sample
    slots = [tensor, "(g c)", "(g c)", "n (g c)" if view.rank(3) == 2 else tensor, "(g c)"]
    return Rule(
        f"{', '.join(slots[: view.inputs])} -> {tensor}, {tensor}",
        {"g": "groups"},
        mixes=f"c{positions}",
        refit={"groups": "g"},
    )


def bias_softmax(view: View) -> Rule:
    """Add a broadcast bias, and apply Softmax over `axis` and all axes after it."""
    names = axes_letters(view)
    axis = axis_attribute(view, 1, len(names))
    tensor, bias = " ".join(names), " ".join(names[len(names) - view.rank(1) :])
    return Rule(f"{tensor}, {bias} -> {tensor}", mixes=names[axis:])


def bias_dropout(view: View) -> Rule | None:
    """Add a bias, drop elements, add a residual; the bits of a packed mask are not followed."""
    # the second output, a mask of bits, packs elements of several channels into one number
    if view.op.startswith("Bitmask") and view.outputs > 1:
        return None
    bias = "" if view.op == "BitmaskDropout" else "..., ..., "
    return Rule(f"..., {bias}, -> ..., ...")


def embed_layer_normalization(view: View) -> Rule:
    """Add the embeddings of words, positions and segments, and normalize their sum.

    Slots: word ids, segment ids, three tables, scale, bias, mask, position ids. The scales and
    zero points of the quantized form are scalars.
    """
    segments = "b s" if view.rank(1) else ""
    slots = ["b s", segments, "w d", "p d", "q d", "d", "d", "b s"]
    # position ids may be one row for all samples
    if view.op == "EmbedLayerNormalization":
        slots.append("i s" if view.dim(8, 0) == 1 else "b s") if view.inputs > 8 else None
    slots += [""] * max(view.inputs - len(slots), 0)
    return Rule(f"{', '.join(slots)} -> b s d, b, b s d", mixes="d", freeze="b s w p q i")
