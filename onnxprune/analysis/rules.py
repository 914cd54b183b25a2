"""THE TABLE: what each op does with channels.

A row is a string (see notation.py) and what the string cannot say. To add an op: add a row here, and a graph in ONNX text to
tests/analysis/graphs.py, which the masked oracle then runs on. Ops that move positions about are functions in movement.py.
An op that is in neither freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Protocol

import numpy as np

from onnxprune.registry import Registry


class View(Protocol):
    """What a row may ask of the node it is applied to."""

    @property
    def op(self) -> str: ...
    @property
    def opset(self) -> int: ...
    @property
    def inputs(self) -> int: ...  # operands, trailing absent ones not counted
    @property
    def outputs(self) -> int: ...  # named ones

    def rank(self, slot: int) -> int: ...
    def dim(self, slot: int, axis: int) -> int | None: ...
    def attribute(self, name: str, default: object = None) -> object: ...
    def value(self, slot: int) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Rule:
    """A row.

    pattern: the string. let: length of a letter, from an attribute. mixes: letters along which removing a position changes the
    kept ones; frozen unless allowed. freeze: letters never cut. sums: letters kept on the right that the op also sums over.
    refit: attribute -> letter whose new length it takes. macs: products of letters whose sum is the multiply-accumulates
    (`*` output positions, `@` input positions, `#` kernel positions, `...` leading axes). masked: slot of a weight that
    feeds outputs back, masked by the oracle along its last axis. means: letters that the op averages over; what is left is
    averaged over as many as before, by a factor behind the op, so that the cut is that of a sum.
    """

    pattern: str
    let: Mapping[str, int | str] = field(default_factory=dict)
    mixes: str = ""
    freeze: str = ""
    sums: str = ""
    refit: Mapping[str, str] = field(default_factory=dict)
    macs: tuple[str, ...] = ()
    masked: int | None = None
    means: str = ""


Row = Rule | Callable[[View], Rule | None]

PLUGINS = Registry("rule", "onnxprune.rules")


def elementwise(view: View) -> Rule:
    """Broadcast: align right, equal axes."""
    return Rule(", ".join(["..."] * view.inputs) + " -> ...")


def axes_letters(view: View, slot: int = 0) -> str:
    """One letter an axis of an operand."""
    return ascii_lowercase[: view.rank(slot)]


def along_axis(default: int, flatten_before: int = 0) -> Callable[[View], Rule]:
    """Same shape out, all positions of one axis (before opset `flatten_before`: that one and all behind it) mixed."""

    def row(view: View) -> Rule:
        names = axes_letters(view)
        axis = int(view.attribute("axis", 1 if view.opset < flatten_before else default)) % max(len(names), 1)  # type: ignore[call-overload]
        mixed = names[axis:] if view.opset < flatten_before else names[axis : axis + 1]
        return Rule(f"{' '.join(names)} -> {' '.join(names)}", mixes=mixed)

    return row


def reduce(linear: bool, mean: bool = False) -> Callable[[View], Rule | None]:
    """Reduction over `axes`. Linear ones (a zero adds nothing) contract; the others mix."""

    def row(view: View) -> Rule | None:
        names = axes_letters(view)
        axes = view.value(1) if view.inputs > 1 else view.attribute("axes")
        if view.inputs > 1 and axes is None:
            return None
        if axes is None or len(axes) == 0:  # type: ignore[arg-type]
            if view.attribute("noop_with_empty_axes", 0):
                return elementwise(view)
            axes = range(len(names))
        gone = {names[int(a)] for a in axes}  # type: ignore[union-attr]
        right = ["1" if n in gone else n for n in names] if view.attribute("keepdims", 1) else [n for n in names if n not in gone]
        left = " ".join(names) + (", I" if view.inputs > 1 else "")
        over = "".join(sorted(gone))
        return Rule(f"{left} -> {' '.join(right)}", mixes="" if linear else over, means=over if mean else "")

    return row


def arg_reduce(view: View) -> Rule:
    """ArgMax, ArgMin: positions of the axis are the answer."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", 0)) % len(names)  # type: ignore[call-overload]
    right = [("1" if view.attribute("keepdims", 1) else "") if i == axis else n for i, n in enumerate(names)]
    return Rule(f"{' '.join(names)} -> {' '.join(right)}", freeze=names[axis])


def matmul(view: View) -> Rule:
    """numpy's matmul, with vectors."""
    if view.rank(0) == 1:
        return Rule("k, ... k n -> ... n" if view.rank(1) > 1 else "k, k -> ", macs=("... k n",))
    return Rule(*(("... m k, k -> ... m",) if view.rank(1) == 1 else ("... m k, ... k n -> ... m n",)), macs=("... m k n",))


def gemm(view: View) -> Rule:
    """alpha A' B' + beta C, C broadcast."""
    a = "k m" if view.attribute("transA", 0) else "m k"
    b = "n k" if view.attribute("transB", 0) else "k n"
    c = "" if view.inputs < 3 else ", " + ("m n" if view.rank(2) == 2 else "n" if view.rank(2) == 1 else "")
    return Rule(f"{a}, {b}{c} -> m n", macs=("m k n",))


def layer_normalization(view: View) -> Rule:
    """Normalises over `axis` and all behind it; scale and bias have those axes."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", -1)) % len(names)  # type: ignore[call-overload]
    tail = names[axis:]
    left = [" ".join(names)] + [" ".join(tail)] * (view.inputs - 1)
    stats = " ".join([*names[:axis], *"1" * len(tail)])
    return Rule(f"{', '.join(left)} -> {' '.join(names)}, {stats}, {stats}", mixes=tail)


def quantize(view: View) -> Rule:
    """Q/DQ: scale and zero point are scalars or lie along `axis`; blocked ones freeze it."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", 1)) % max(len(names), 1)  # type: ignore[call-overload]
    if view.rank(1) > 1:
        blocked = " ".join("Z" if i == axis else n for i, n in enumerate(names))
        return Rule(", ".join([" ".join(names), *[blocked] * (view.inputs - 1)]) + f" -> {' '.join(names)}", freeze=f"{names[axis]}Z")
    scale = names[axis] if view.rank(1) == 1 and view.dim(1, 0) != 1 else ("i" if view.rank(1) else "")
    return Rule(", ".join([" ".join(names)] + [scale] * (view.inputs - 1)) + f" -> {' '.join(names)}")


def per_channel(view: View, slot: int, letters: str) -> str:
    """Axes of a scale or zero point: the letters where it has one value a channel, none where it is a scalar."""
    return letters if view.rank(slot) == 1 and view.dim(slot, 0) != 1 else ""


def matmul_integer(view: View) -> Rule:
    """Zero points a row of A and a column of B, or scalars."""
    zeros = [per_channel(view, 2, "m"), per_channel(view, 3, "n")][: max(view.inputs - 2, 0)]
    return Rule(", ".join(["... m k", "... k n", *zeros]) + " -> ... m n", macs=("... m k n",))


def conv_integer(view: View) -> Rule:
    """The zero point of the weight is a scalar or one a filter."""
    return Rule(f"n (g c) *, (g o) c *, , {per_channel(view, 3, '(g o)')} -> n (g o) *", GROUP, freeze="*", refit={"group": "g"}, macs=("n g o c * #",))


def dynamic_quantize(view: View) -> Rule:
    """Scale and zero point come from all values; zeros among them change nothing, so this is where the oracle masks."""
    names = " ".join(axes_letters(view))
    return Rule(f"{names} -> {names}, , ", sums=names)


def group_normalization(view: View) -> Rule:
    """Scale and bias a group before opset 21, a channel since."""
    scale = "(g c)" if view.opset >= 21 else "g"
    return Rule(f"n (g c) *, {scale}, {scale} -> n (g c) *", {"g": "num_groups"}, mixes="c*", refit={"num_groups": "g"})


def cumsum(view: View) -> Rule:
    """Sums along an axis, along any where it is computed."""
    names, axis = axes_letters(view), view.value(1)
    return Rule(f"{' '.join(names)}, -> {' '.join(names)}", mixes=names if axis is None else names[int(axis.reshape(()))])


def max_pool(view: View) -> Rule:
    """The second output counts positions through the whole tensor, channels included."""
    return Rule("n c * -> n c *, n c *", freeze="*" if view.outputs < 2 else "n c *")


def qlinear(pattern: str, macs: str, bias: str = "") -> Callable[[View], Rule]:
    """x, x scale, x zero, w, w scale, w zero, y scale, y zero (, bias): w's scale and zero along its output axis or scalar."""

    def row(view: View) -> Rule:
        left, right = pattern.split("->")
        x, w, out = left.split(",")
        per = [per_channel(view, s, out) for s in (4, 5)]
        tail = f", {bias}" if view.inputs > 8 else ""
        return Rule(f"{x}, , , {w}, {per[0]}, {per[1]}, , {tail} -> {right}", GROUP if "g" in bias else {}, freeze="*", refit={"group": "g"} if "g" in bias else {}, macs=(macs,))

    return row


def qlinear_elementwise(*data: int) -> Callable[[View], Rule]:
    """Broadcast of some operands; those between are their scales and zero points."""

    def row(view: View) -> Rule:
        """onnxruntime's; broadcast of the data operands, scales and zero points are scalars"""
        return Rule(", ".join("..." if s in data else "" for s in range(view.inputs)) + " -> ...")

    return row


def qlinear_pool(view: View) -> Rule | None:
    """onnxruntime's; channels come first."""
    return None if view.attribute("channels_last", 0) else Rule("n c *, , , ,  -> n c *", freeze="*")


def qlinear_softmax(view: View) -> Rule:
    """onnxruntime's; as in the opset that an attribute names."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", -1)) % len(names)  # type: ignore[call-overload]
    mixed = names[axis] if int(view.attribute("opset", 13)) >= 13 else names[axis:]  # type: ignore[call-overload]
    return Rule(f"{' '.join(names)}, , , , -> {' '.join(names)}", mixes=mixed)


def qgemm(view: View) -> Rule:
    """onnxruntime's; A, B and C with scales, the result is float where its own scale is absent."""
    a, b = "k m" if view.attribute("transA", 0) else "m k", "n k" if view.attribute("transB", 0) else "k n"
    c = "m n" if view.rank(6) == 2 else "n" if view.rank(6) == 1 else ""
    slots = [a, "", "", b, per_channel(view, 4, "n"), per_channel(view, 5, "n"), c, "", ""][: view.inputs]
    return Rule(f"{', '.join(slots)} -> m n", macs=("m k n",))


def matmul_to_float(dynamic: bool) -> Callable[[View], Rule]:
    """MatMulInteger with its scales; where A is quantised on the way, it has none of its own."""

    def row(view: View) -> Rule:
        """onnxruntime's MatMulInteger with scales and a bias"""
        slots = ["... m k", "... k n", "n", "n", "n"] if dynamic else ["... m k", "... k n", "", "n", "", "n", "n"]
        per = [s if s != "n" or i == len(slots) - 1 else per_channel(view, i, s) for i, s in enumerate(slots)]
        return Rule(f"{', '.join(per[: view.inputs])} -> ... m n", macs=("... m k n",))

    return row


def einsum(view: View) -> Rule | None:
    """Its own attribute."""
    equation = str(view.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = [o.replace("...", "") for o in left.split(",")]
    if not arrow or any(len(set(o)) != len(o) for o in operands) or "..." in equation and not all(o.startswith("...") for o in left.split(",")):
        return None

    def spaced(operand: str) -> str:
        return ("... " if operand.startswith("...") else "") + " ".join(operand.replace("...", ""))

    names = dict.fromkeys("".join(operands))
    return Rule(f"{', '.join(map(spaced, left.split(',')))} -> {spaced(right)}", macs=(" ".join(["...", *names]),) if len(operands) > 1 else ())


def resize(view: View) -> Rule | None:
    """Axes whose length stays are carried. Targets given as sizes are refitted in movement.py."""
    names = axes_letters(view)
    scales = view.value(1 if view.op == "Upsample" or view.opset < 11 else 2) if view.inputs > 1 else view.attribute("scales")
    if scales is None or len(scales) != len(names):  # type: ignore[arg-type]
        return None
    changed = "".join(n for n, s in zip(names, scales) if s != 1)  # type: ignore[call-overload]
    rest = "".join(f", {chr(ord('p') + i)}" for i in range(view.inputs - 1))
    return Rule(f"{' '.join(names)}{rest} -> {' '.join('1' if n in changed else n for n in names)}", freeze=changed)


def recurrent(gates: int, peepholes: int = 0) -> Callable[[View], Rule]:
    """Gates are a product axis with the hidden units; both directions share the units."""

    def row(view: View) -> Rule:
        time = "s b" if not view.attribute("layout", 0) else "b s"
        state = "d b h" if not view.attribute("layout", 0) else "b d h"
        out = "s d b h" if not view.attribute("layout", 0) else "b s d h"
        slots = [f"{time} i", "d (g h) i", "d (g h) h", "d (p h)", "b", state, state, "d (q h)"][: view.inputs]
        return Rule(
            ", ".join(slots) + f" -> {out}, {state}, {state}", {"g": gates, "p": 2 * gates, "q": peepholes or 1}, freeze="d g p q s b",
            refit={"hidden_size": "h"}, macs=("s b d g h i", "s b d g h h"), masked=2,
        )  # fmt: skip

    return row


def attention(view: View) -> Rule | None:
    """Queries, keys and values by head; several query heads may share a key head. Without a scale of its own it takes the head size, which then stays."""
    if view.inputs > 4 or view.outputs > 1 or view.rank(0) != view.rank(1):
        return None
    heads = [view.attribute("q_num_heads"), view.attribute("kv_num_heads")] if view.rank(0) == 3 else [view.dim(0, 1), view.dim(1, 1)]
    if not all(heads) or view.inputs > 3 and (view.rank(3) > 2 and view.dim(3, view.rank(3) - 3) != 1):
        return None
    mask = ", " + " ".join("uwst"[4 - view.rank(3) :]) if view.inputs > 3 else ""
    left = "b s (k r d), b t (k d), b t (k v)" if view.rank(0) == 3 else "b (k r) s d, b k t d, b k t v"
    right = "b s (k r v)" if view.rank(0) == 3 else "b (k r) s v"
    fixed = "" if view.attribute("scale") is not None else "d"
    refit = {"q_num_heads": "k r", "kv_num_heads": "k"} if view.rank(0) == 3 else {}
    return Rule(
        f"{left}{mask} -> {right}", {"k": int(heads[1]), "r": int(heads[0]) // int(heads[1])}, freeze=f"b s t u w {fixed}", refit=refit,  # type: ignore[call-overload]
        macs=("b k r s t d", "b k r s t v"),
    )  # fmt: skip


def multi_head_attention(view: View) -> Rule | None:
    """onnxruntime's form, with separate queries, keys and values and nothing else."""
    if view.inputs != 3 or view.outputs > 1 or view.rank(0) != 3:
        return None
    return Rule(
        "b s (h d), b t (h d), b t (h v) -> b s (h v)", {"h": "num_heads"}, freeze="b s t" if view.attribute("scale") else "b s t d", refit={"num_heads": "h"},
        macs=("b h s t d", "b h s t v"),
    )  # fmt: skip


def skip_normalization(view: View) -> Rule:
    """The sum of two tensors, normalised; the fourth output is the sum."""
    names = axes_letters(view)
    whole = " ".join(names)
    stats = " ".join([*names[:-1], "1"])
    return Rule(f"{', '.join([whole, whole] + [names[-1]] * (view.inputs - 2))} -> {whole}, {stats}, {stats}, {whole}", mixes=names[-1])


GROUP: Mapping[str, int | str] = {"g": "group"}
_CONV = "n (g c) *, (g o) c *, (g o) -> n (g o) *"
_PASS = "n c * -> n c *"

RULES: dict[str, Row] = {
    "Conv": Rule(_CONV, GROUP, freeze="*", refit={"group": "g"}, macs=("n g o c * #",)),
    "ConvTranspose": Rule("n (g c) *, (g c) o *, (g o) -> n (g o) *", GROUP, freeze="*", refit={"group": "g"}, macs=("n g o c @ #",)),
    "ConvInteger": conv_integer,
    "DeformConv": Rule("n (g c) *, (g o) c *, n p h w, (g o), n q h w -> n (g o) *", GROUP, freeze="* g p q h w", macs=("n g o c * #",)),
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear("n (g c) *, (g o) c *, (g o) -> n (g o) *", "n g o c * #", "(g o)"),
    "QLinearMatMul": qlinear("... m k, ... k n, n -> ... m n", "... m k n"),
    "QGemm": qgemm,
    "DynamicQuantizeMatMul": matmul_to_float(dynamic=True),
    "MatMulIntegerToFloat": matmul_to_float(dynamic=False),
    **dict.fromkeys(["QLinearAdd", "QLinearMul"], qlinear_elementwise(0, 3)),
    **dict.fromkeys(["QLinearLeakyRelu", "QLinearSigmoid"], qlinear_elementwise(0)),
    "QLinearWhere": qlinear_elementwise(0, 1, 4),
    **dict.fromkeys(["QLinearAveragePool", "QLinearGlobalAveragePool"], qlinear_pool),
    "QLinearSoftmax": qlinear_softmax,
    "Einsum": einsum,
    "BatchNormalization": Rule("n c *, c, c, c, c -> n c *"),
    "InstanceNormalization": Rule("n c *, c, c -> n c *", mixes="*"),
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": layer_normalization,
    "SimplifiedLayerNormalization": layer_normalization,
    "SkipLayerNormalization": skip_normalization,
    "SkipSimplifiedLayerNormalization": skip_normalization,
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
    "LpNormalization": lambda view: Rule(f"{' '.join(axes_letters(view))} -> {' '.join(axes_letters(view))}", sums=axes_letters(view)[int(view.attribute("axis", -1))]),  # type: ignore[call-overload]
    "LRN": Rule(_PASS, mixes="c"),
    "MeanVarianceNormalization": lambda view: Rule(_PASS, mixes="c*" if 1 in view.attribute("axes", [0, 2, 3]) else "*"),  # type: ignore[operator]
    "Softmax": along_axis(-1, 13),
    "LogSoftmax": along_axis(-1, 13),
    "Hardmax": along_axis(-1, 13),
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "MaxPool": max_pool,
    "Resize": resize,
    "Upsample": resize,
    "GridSample": Rule("n c *, n h w i -> n c *", freeze="*hwi"),
    "RoiAlign": Rule("n c h w, r i, r -> r c 1 1", freeze="nhwri"),
    "DepthToSpace": lambda view: Rule(
        f"n ({'a b c' if view.attribute('mode', 'DCR') == 'DCR' else 'c a b'}) h w -> n c (h a) (w b)", {"a": "blocksize", "b": "blocksize"}, freeze="a b h w"
    ),
    "SpaceToDepth": Rule("n c (h a) (w b) -> n (a b c) h w", {"a": "blocksize", "b": "blocksize"}, freeze="a b h w"),
    "LSTM": recurrent(4, 3),
    "GRU": recurrent(3),
    "RNN": recurrent(1),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "CumSum": cumsum,
    "Dropout": Rule("..., , -> ..., ..."),
    **dict.fromkeys(["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"], Rule(_PASS, freeze="*")),
    **dict.fromkeys(["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"], reduce(linear=True)),
    "ReduceMean": reduce(linear=True, mean=True),
    **dict.fromkeys(["ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"], reduce(linear=False)),
    **dict.fromkeys(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf "
        "IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu "
        "Add And Clip Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor QuickGelu FastGelu BiasGelu".split(),
        elementwise,
    ),
    "CastLike": Rule("... -> ..."),
}


def row(op: str, domain: str) -> Row | None:
    """The row of an op; plug-ins add ops as "OP" or "domain::OP" and cannot replace built-in ones."""
    if domain in ("", "ai.onnx") or (domain == "com.microsoft" and op in RULES):
        return RULES.get(op) or (PLUGINS.get(op) if op in PLUGINS else None)
    name = f"{domain}::{op}"
    return PLUGINS.get(name) if name in PLUGINS else None
