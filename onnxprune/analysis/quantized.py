"""Rows of the rule table for quantized operators: the letters of the plain ones, with scales and zero points beside them."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.analysis.rule import GROUP, Rule, View, axes_letters, per_channel


def quantize(view: View) -> Rule:
    """Q/DQ: scale and zero point are scalars or lie along `axis`; blocked ones freeze it."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", 1)) % max(len(names), 1)  # type: ignore[call-overload]
    if view.rank(1) > 1:
        blocked = " ".join("Z" if i == axis else n for i, n in enumerate(names))
        return Rule(
            ", ".join([" ".join(names), *[blocked] * (view.inputs - 1)]) + f" -> {' '.join(names)}",
            freeze=f"{names[axis]}Z",
        )
    scale = (
        names[axis] if view.rank(1) == 1 and view.dim(1, 0) != 1 else ("i" if view.rank(1) else "")
    )
    return Rule(
        ", ".join([" ".join(names)] + [scale] * (view.inputs - 1)) + f" -> {' '.join(names)}"
    )


def matmul_integer(view: View) -> Rule:
    """Zero points a row of A and a column of B, or scalars."""
    zeros = [per_channel(view, 2, "m"), per_channel(view, 3, "n")][: max(view.inputs - 2, 0)]
    return Rule(", ".join(["... m k", "... k n", *zeros]) + " -> ... m n", macs=("... m k n",))


def conv_integer(view: View) -> Rule:
    """The zero point of the weight is a scalar or one a filter."""
    return Rule(
        f"n (g c) *, (g o) c *, , {per_channel(view, 3, '(g o)')} -> n (g o) *",
        GROUP,
        freeze="*",
        refit={"group": "g"},
        macs=("n g o c * #",),
    )


def dynamic_quantize(view: View) -> Rule:
    """Scale and zero point come from all values; zeros among them change nothing, so this is where the oracle masks."""
    names = " ".join(axes_letters(view))
    return Rule(f"{names} -> {names}, , ", sums=names)


def qlinear(pattern: str, macs: str, bias: str = "") -> Callable[[View], Rule]:
    """x, x scale, x zero, w, w scale, w zero, y scale, y zero (, bias): w's scale and zero along its output axis or scalar."""

    def row(view: View) -> Rule:
        left, right = pattern.split("->")
        x, w, out = left.split(",")
        per = [per_channel(view, s, out) for s in (4, 5)]
        tail = f", {bias}" if view.inputs > 8 else ""
        return Rule(
            f"{x}, , , {w}, {per[0]}, {per[1]}, , {tail} -> {right}",
            GROUP if "g" in bias else {},
            freeze="*",
            refit={"group": "g"} if "g" in bias else {},
            macs=(macs,),
        )

    return row


def qlinear_elementwise(*data: int) -> Callable[[View], Rule]:
    """Broadcast of some operands; those between are their scales and zero points."""

    def row(view: View) -> Rule:
        """onnxruntime's; broadcast of the data operands, scales and zero points are scalars"""
        return Rule(", ".join("..." if s in data else "" for s in range(view.inputs)) + " -> ...")

    return row


def qlinear_pool(view: View) -> Rule | None:
    """onnxruntime's; channels come first."""
    return (
        None if view.attribute("channels_last", 0) else Rule("n c *, , , ,  -> n c *", freeze="*")
    )


def qlinear_softmax(view: View) -> Rule:
    """onnxruntime's; as in the opset that an attribute names."""
    names = axes_letters(view)
    axis = int(view.attribute("axis", -1)) % len(names)  # type: ignore[call-overload]
    mixed = names[axis] if int(view.attribute("opset", 13)) >= 13 else names[axis:]  # type: ignore[call-overload]
    return Rule(f"{' '.join(names)}, , , , -> {' '.join(names)}", mixes=mixed)


def qgemm(view: View) -> Rule:
    """onnxruntime's; A, B and C with scales, the result is float where its own scale is absent."""
    a, b = (
        "k m" if view.attribute("transA", 0) else "m k",
        "n k" if view.attribute("transB", 0) else "k n",
    )
    c = "m n" if view.rank(6) == 2 else "n" if view.rank(6) == 1 else ""
    slots = [a, "", "", b, per_channel(view, 4, "n"), per_channel(view, 5, "n"), c, "", ""][
        : view.inputs
    ]
    return Rule(f"{', '.join(slots)} -> m n", macs=("m k n",))


def matmul_to_float(dynamic: bool) -> Callable[[View], Rule]:
    """MatMulInteger with its scales; where A is quantized on the way, it has none of its own."""

    def row(view: View) -> Rule:
        """Onnxruntime's MatMulInteger with scales and a bias"""
        slots = (
            ["... m k", "... k n", "n", "n", "n"]
            if dynamic
            else ["... m k", "... k n", "", "n", "", "n", "n"]
        )
        per = [
            s if s != "n" or i == len(slots) - 1 else per_channel(view, i, s)
            for i, s in enumerate(slots)
        ]
        return Rule(f"{', '.join(per[: view.inputs])} -> ... m n", macs=("... m k n",))

    return row
