"""THE TABLE: what each op does with channels.

A row is a string (see notation.py) and what the string cannot say. To add an op: add a row here, and a graph in ONNX text to
tests/analysis/graphs.py, which the masked oracle then runs on. Ops that move positions about are functions in movement.py.
An op that is in neither freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_uppercase

from onnxprune.analysis.quantized import (
    conv_integer,
    dynamic_quantize,
    matmul_integer,
    matmul_to_float,
    qgemm,
    qlinear,
    qlinear_elementwise,
    qlinear_pool,
    qlinear_softmax,
    quantize,
)
from onnxprune.analysis.rule import GROUP, Row, Rule, View, axes_letters
from onnxprune.registry import Registry

PLUGINS = Registry("rule", "onnxprune.rules")


def elementwise(view: View) -> Rule:
    """Broadcast: align right, equal axes."""
    return Rule(", ".join(["..."] * view.inputs) + " -> ...")


def along_axis(default: int, flatten_before: int = 0) -> Callable[[View], Rule]:
    """Same shape out, all positions of one axis (before opset `flatten_before`: that one and all behind it) mixed."""

    def row(view: View) -> Rule:
        names = axes_letters(view)
        axis = int(view.attribute("axis", 1 if view.opset < flatten_before else default)) % max(  # type: ignore[call-overload]
            len(names), 1
        )  # type: ignore[call-overload]
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
        gone = {names[int(a)] for a in axes}  # type: ignore[attr-defined]
        right = (
            ["1" if n in gone else n for n in names]
            if view.attribute("keepdims", 1)
            else [n for n in names if n not in gone]
        )
        left = " ".join(names) + (", I" if view.inputs > 1 else "")
        over = "".join(sorted(gone))
        return Rule(
            f"{left} -> {' '.join(right)}", mixes="" if linear else over, means=over if mean else ""
        )

    return row


def arg_reduce(view: View) -> Rule:
    """ArgMax, ArgMin: positions of the axis are the answer."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", 0)) % len(names)  # type: ignore[call-overload]
    right = [
        ("1" if view.attribute("keepdims", 1) else "") if i == axis else n
        for i, n in enumerate(names)
    ]
    return Rule(f"{' '.join(names)} -> {' '.join(right)}", freeze=names[axis])


def matmul(view: View) -> Rule:
    """Numpy's matmul, with vectors."""
    if view.rank(0) == 1:
        return Rule("k, ... k n -> ... n" if view.rank(1) > 1 else "k, k -> ", macs=("... k n",))
    return Rule(
        *(("... m k, k -> ... m",) if view.rank(1) == 1 else ("... m k, ... k n -> ... m n",)),
        macs=("... m k n",),
    )


def gemm(view: View) -> Rule:
    """Alpha A' B' + beta C, C broadcast."""
    a = "k m" if view.attribute("transA", 0) else "m k"
    b = "n k" if view.attribute("transB", 0) else "k n"
    c = (
        ""
        if view.inputs < 3
        else ", " + ("m n" if view.rank(2) == 2 else "n" if view.rank(2) == 1 else "")
    )
    return Rule(f"{a}, {b}{c} -> m n", macs=("m k n",))


def layer_normalization(view: View) -> Rule:
    """Normalizes over `axis` and all behind it; scale and bias have those axes."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", -1)) % len(names)  # type: ignore[call-overload]
    tail = names[axis:]
    left = [" ".join(names)] + [" ".join(tail)] * (view.inputs - 1)
    stats = " ".join([*names[:axis], *"1" * len(tail)])
    return Rule(f"{', '.join(left)} -> {' '.join(names)}, {stats}, {stats}", mixes=tail)


def batch_normalization(view: View) -> Rule:
    """By stored statistics. In training mode by those of the batch, over all axes but the channels'; the new ones are further outputs."""
    training = view.outputs > 1 or bool(view.attribute("training_mode", 0))
    return Rule(
        f"n c *, c, c, c, c -> n c *{', c' * (view.outputs - 1)}", mixes="n*" if training else ""
    )


def group_normalization(view: View) -> Rule:
    """Scale and bias a group before opset 21, a channel since."""
    scale = "(g c)" if view.opset >= 21 else "g"
    return Rule(
        f"n (g c) *, {scale}, {scale} -> n (g c) *",
        {"g": "num_groups"},
        mixes="c*",
        refit={"num_groups": "g"},
    )


def cumsum(view: View) -> Rule:
    """Sums along an axis, along any where it is computed."""
    names, axis = axes_letters(view), view.value(1)
    return Rule(
        f"{' '.join(names)}, -> {' '.join(names)}",
        mixes=names if axis is None else names[int(axis.reshape(()))],
    )


def max_pool(view: View) -> Rule:
    """The second output counts positions through the whole tensor, channels included."""
    return Rule("n c * -> n c *, n c *", freeze="*" if view.outputs < 2 else "n c *")


def einsum(view: View) -> Rule | None:
    """Its own attribute."""
    equation = str(view.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = [o.replace("...", "") for o in left.split(",")]
    if (
        not arrow
        or any(len(set(o)) != len(o) for o in operands)
        or "..." in equation
        and not all(o.startswith("...") for o in left.split(","))
    ):
        return None

    def spaced(operand: str) -> str:
        return ("... " if operand.startswith("...") else "") + " ".join(operand.replace("...", ""))

    names = dict.fromkeys("".join(operands))
    return Rule(
        f"{', '.join(map(spaced, left.split(',')))} -> {spaced(right)}",
        macs=(" ".join(["...", *names]),) if len(operands) > 1 else (),
    )


def resize(view: View) -> Rule | None:
    """Axes whose length stays are carried. Targets given as sizes are refitted in movement.py."""
    names = axes_letters(view)
    scales = (
        view.value(1 if view.op == "Upsample" or view.opset < 11 else 2)
        if view.inputs > 1
        else view.attribute("scales")
    )
    if scales is None or len(scales) != len(names):  # type: ignore[arg-type]
        return None
    changed = "".join(n for n, s in zip(names, scales, strict=False) if s != 1)  # type: ignore[call-overload]
    rest = "".join(f", {chr(ord('p') + i)}" for i in range(view.inputs - 1))
    return Rule(
        f"{' '.join(names)}{rest} -> {' '.join('1' if n in changed else n for n in names)}",
        freeze=changed,
    )


def recurrent(gates: int, peepholes: int = 0) -> Callable[[View], Rule]:
    """Gates are a product axis with the hidden units; both directions share the units."""

    def row(view: View) -> Rule:
        time = "s b" if not view.attribute("layout", 0) else "b s"
        state = "d b h" if not view.attribute("layout", 0) else "b d h"
        out = "s d b h" if not view.attribute("layout", 0) else "b s d h"
        slots = [f"{time} i", "d (g h) i", "d (g h) h", "d (p h)", "b", state, state, "d (q h)"][
            : view.inputs
        ]
        return Rule(
            ", ".join(slots) + f" -> {out}, {state}, {state}",
            {"g": gates, "p": 2 * gates, "q": peepholes or 1},
            freeze="d g p q s b",
            refit={"hidden_size": "h"},
            macs=("s b d g h i", "s b d g h h"),
            masked=2,
        )

    return row


def attention(view: View) -> Rule | None:
    """Queries, keys and values by head; several query heads may share a key head. Without a scale of its own it takes the head size, which then stays."""
    if view.rank(1) == 2:
        return packed_attention(view)
    if view.inputs > 4 or view.outputs > 1 or view.rank(0) != view.rank(1):
        return None
    heads = (
        [view.attribute("q_num_heads"), view.attribute("kv_num_heads")]
        if view.rank(0) == 3
        else [view.dim(0, 1), view.dim(1, 1)]
    )
    if (
        not all(heads)
        or view.inputs > 3
        and (view.rank(3) > 2 and view.dim(3, view.rank(3) - 3) != 1)
    ):
        return None
    mask = ", " + " ".join("uwst"[4 - view.rank(3) :]) if view.inputs > 3 else ""
    left = (
        "b s (k r d), b t (k d), b t (k v)"
        if view.rank(0) == 3
        else "b (k r) s d, b k t d, b k t v"
    )
    right = "b s (k r v)" if view.rank(0) == 3 else "b (k r) s v"
    fixed = "" if view.attribute("scale") is not None else "d"
    refit = {"q_num_heads": "k r", "kv_num_heads": "k"} if view.rank(0) == 3 else {}
    return Rule(
        f"{left}{mask} -> {right}",
        {"k": int(heads[1]), "r": int(heads[0]) // int(heads[1])},  # type: ignore[call-overload]
        freeze=f"b s t u w {fixed}",
        refit=refit,  # type: ignore[call-overload]
        macs=("b k r s t d", "b k r s t v"),
    )


def packed_attention(view: View) -> Rule | None:
    """Onnxruntime's form, that makes queries, keys and values of equal size by itself, with one weight and bias for all three."""
    sizes = view.attribute("qkv_hidden_sizes")
    if (
        view.outputs > 1
        or view.rank(4)
        or view.inputs > 6
        or sizes is not None
        and len(set(sizes)) > 1  # type: ignore[call-overload]
    ):  # type: ignore[call-overload]
        return None
    mask, bias = " ".join("uvwx"[: view.rank(3)]), "y z s t" if view.inputs > 5 else ""
    if view.inputs > 5 and view.dim(5, 1) != 1:
        bias = "y h s t"
    fixed = "" if view.attribute("scale") and not view.attribute("do_rotary", 0) else "d"
    return Rule(
        f"b s e, e (j h d), (j h d), {mask}, , {bias} -> b s (h d)",
        {"j": 3, "h": "num_heads"},
        freeze=f"b s t j u v w x y z {fixed}",
        sums="d",
        refit={"num_heads": "h"} | ({"qkv_hidden_sizes": "h d"} if sizes is not None else {}),
        macs=("b s e j h d", "b h s s d", "b h s s d"),
    )


def multi_head_attention(view: View) -> Rule | None:
    """Onnxruntime's form, with separate queries, keys and values and nothing else."""
    if view.inputs != 3 or view.outputs > 1 or view.rank(0) != 3:
        return None
    return Rule(
        "b s (h d), b t (h d), b t (h v) -> b s (h v)",
        {"h": "num_heads"},
        freeze="b s t" if view.attribute("scale") else "b s t d",
        refit={"num_heads": "h"},
        macs=("b h s t d", "b h s t v"),
    )


def gather_nd(view: View) -> Rule | None:
    """The last axis of the indices tells places on as many axes behind the batch; what lies behind those is carried."""
    data, batch, depth = (
        axes_letters(view),
        int(view.attribute("batch_dims", 0)),  # type: ignore[call-overload]
        view.dim(1, view.rank(1) - 1),
    )  # type: ignore[call-overload]
    if depth is None:
        return None
    picks = ascii_uppercase[: view.rank(1) - 1 - batch]
    right = data[:batch] + picks + data[batch + depth :]
    return Rule(
        f"{' '.join(data)}, {' '.join(data[:batch] + picks + 'Z')} -> {' '.join(right)}",
        freeze=f"{data[batch : batch + depth]}{picks}Z",
    )


def scatter_nd(view: View) -> Rule | None:
    """As GatherND; the updates have the axes of the indices but the last, and those that are carried."""
    data, depth = axes_letters(view), view.dim(1, view.rank(1) - 1)
    if depth is None:
        return None
    picks = ascii_uppercase[: view.rank(1) - 1]
    return Rule(
        f"{' '.join(data)}, {' '.join(picks + 'Z')}, {' '.join(picks + data[depth:])} -> {' '.join(data)}",
        freeze=f"{data[:depth]}{picks}Z",
    )


def by_element(view: View) -> Rule:
    """Gather or scatter with a place an element along `axis`: other axes of equal length are carried."""
    data, axis = axes_letters(view), int(view.attribute("axis", 0)) % view.rank(0)  # type: ignore[call-overload]
    same = [
        i != axis and view.dim(0, i) is not None and view.dim(0, i) == view.dim(1, i)
        for i in range(len(data))
    ]
    picks = " ".join(n if s else n.upper() for n, s in zip(data, same, strict=False))
    fixed = "".join(f"{n}{n.upper()}" for n, s in zip(data, same, strict=False) if not s)
    names = " ".join(data)
    return Rule(
        f"{names}, {picks} -> {picks}"
        if view.op == "GatherElements"
        else f"{names}, {picks}, {picks} -> {names}",
        freeze=fixed,
    )


def col2im(view: View) -> Rule | None:
    """Blocks of each channel laid out as an image."""
    block, spatial = view.value(2), view.dim(1, 0)
    return (
        Rule(f"n (c k) l, i, j -> n c{' 1' * spatial}", {"k": int(block.prod())}, freeze="k l")
        if block is not None and spatial
        else None
    )


def skip_normalization(view: View) -> Rule:
    """The sum of two tensors, normalized; the fourth output is the sum."""
    names = axes_letters(view)
    whole = " ".join(names)
    stats = " ".join([*names[:-1], "1"])
    return Rule(
        f"{', '.join([whole, whole] + [names[-1]] * (view.inputs - 2))} -> {whole}, {stats}, {stats}, {whole}",
        mixes=names[-1],
    )


_CONV = "n (g c) *, (g o) c *, (g o) -> n (g o) *"
_PASS = "n c * -> n c *"

RULES: dict[str, Row] = {
    "Conv": Rule(_CONV, GROUP, freeze="*", refit={"group": "g"}, macs=("n g o c * #",)),
    "ConvTranspose": Rule(
        "n (g c) *, (g c) o *, (g o) -> n (g o) *",
        GROUP,
        freeze="*",
        refit={"group": "g"},
        macs=("n g o c @ #",),
    ),
    "ConvInteger": conv_integer,
    "DeformConv": Rule(
        "n (g c) *, (g o) c *, n p h w, (g o), n q h w -> n (g o) *",
        GROUP,
        freeze="* g p q h w",
        macs=("n g o c * #",),
    ),
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
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": Rule("n c *, c, c -> n c *", mixes="*"),
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": layer_normalization,
    "SimplifiedLayerNormalization": layer_normalization,
    "SkipLayerNormalization": skip_normalization,
    "SkipSimplifiedLayerNormalization": skip_normalization,
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
    "LpNormalization": lambda view: Rule(
        f"{' '.join(axes_letters(view))} -> {' '.join(axes_letters(view))}",
        sums=axes_letters(view)[int(view.attribute("axis", -1))],  # type: ignore[call-overload]
    ),  # type: ignore[call-overload]
    "LRN": Rule(_PASS, mixes="c"),
    "MeanVarianceNormalization": lambda view: Rule(
        _PASS,
        mixes="c*" if 1 in view.attribute("axes", [0, 2, 3]) else "*",  # type: ignore[operator]
    ),  # type: ignore[operator]
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
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    **dict.fromkeys(["GatherElements", "ScatterElements"], by_element),
    "Col2Im": col2im,
    "DepthToSpace": lambda view: Rule(
        f"n ({'a b c' if view.attribute('mode', 'DCR') == 'DCR' else 'c a b'}) h w -> n c (h a) (w b)",
        {"a": "blocksize", "b": "blocksize"},
        freeze="a b h w",
    ),
    "SpaceToDepth": Rule(
        "n c (h a) (w b) -> n (a b c) h w", {"a": "blocksize", "b": "blocksize"}, freeze="a b h w"
    ),
    "LSTM": recurrent(4, 3),
    "GRU": recurrent(3),
    "RNN": recurrent(1),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "CumSum": cumsum,
    "Dropout": Rule("..., , -> ..., ..."),
    **dict.fromkeys(
        ["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"],
        Rule(_PASS, freeze="*"),
    ),
    **dict.fromkeys(["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"], reduce(linear=True)),
    "ReduceMean": reduce(linear=True, mean=True),
    **dict.fromkeys(
        ["ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"],
        reduce(linear=False),
    ),
    **dict.fromkeys(
        [
            "Abs",
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "BitShift",
            "BitwiseAnd",
            "BitwiseNot",
            "BitwiseOr",
            "BitwiseXor",
            "Cast",
            "Ceil",
            "Celu",
            "Cos",
            "Cosh",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "IsInf",
            "IsNaN",
            "LeakyRelu",
            "Log",
            "Mish",
            "Neg",
            "Not",
            "Reciprocal",
            "Relu",
            "Round",
            "Selu",
            "Shrink",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Swish",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Add",
            "And",
            "Clip",
            "Div",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Max",
            "Mean",
            "Min",
            "Mod",
            "Mul",
            "Or",
            "PRelu",
            "Pow",
            "Sub",
            "Sum",
            "Where",
            "Xor",
            "QuickGelu",
            "FastGelu",
            "BiasGelu",
        ],
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
