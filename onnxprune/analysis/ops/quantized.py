"""Quantized operators: the letters of their float forms, with scales and zero points."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.analysis.rule import GROUP, Rule, View, axes_letters, axis_attribute, per_channel

_LEADING = "abcdefgh"  # axes before those of the matrix


def quantize(view: View) -> Rule:
    """Quantize or dequantize per tensor, along `axis`, or by blocks of `block_size` of it."""
    names = axes_letters(view)
    axis = axis_attribute(view, 1, len(names))
    tensor = " ".join(names)
    if view.rank(1) > 1:
        return _quantize_blocks(view, names, axis)
    scale = ""
    if view.rank(1) == 1:
        scale = names[axis] if view.dim(1, 0) != 1 else "i"
    return Rule(", ".join([tensor, *[scale] * (view.inputs - 1)]) + f" -> {tensor}")


def _quantize_blocks(view: View, names: str, axis: int) -> Rule:
    """Quantize or dequantize with a scale per block of an axis, which is cut by whole blocks."""
    size, block = view.dim(0, axis), view.integer("block_size", 0)
    scale = " ".join("Z" if i == axis else n for i, n in enumerate(names))
    if not block or size is None or size % block:
        # the last block is shorter than the others, which no product of letters expresses
        tensor = " ".join(names)
        left = ", ".join([tensor, *[scale] * (view.inputs - 1)])
        return Rule(f"{left} -> {tensor}", freeze=f"{names[axis]}Z")
    tensor = scale.replace("Z", f"(Z {names[axis]})")
    left = ", ".join([tensor, *[scale] * (view.inputs - 1)])
    return Rule(f"{left} -> {tensor}", {names[axis]: block}, freeze=names[axis])


def dynamic_quantize(view: View) -> Rule:
    """Quantize with a scale and zero point of all values, among which zeros change nothing."""
    names = " ".join(axes_letters(view))
    return Rule(f"{names} -> {names}, , ", sums=names)  # `sums`: the oracle masks its input


def matmul_integer(view: View) -> Rule:
    """Multiply matrices; zero points are scalars, or one per row of A and per column of B."""
    zeros = [per_channel(view, 2, "m"), per_channel(view, 3, "n")][: max(view.inputs - 2, 0)]
    return Rule(", ".join(["... m k", "... k n", *zeros]) + " -> ... m n", macs=("... m k n",))


def conv_integer(view: View) -> Rule:
    """Convolve; the zero point of the weight is a scalar or one per filter."""
    return Rule(
        f"n (g c) *, (g o) c *, , {per_channel(view, 3, '(g o)')} -> n (g o) *",
        GROUP,
        freeze="*",
        refit={"group": "g"},
        macs=("n g o c * #",),
    )


def qlinear(pattern: str, macs: str, bias: str = "") -> Callable[[View], Rule | None]:
    """Return a row for x, x scale, x zero, w, w scale, w zero, y scale, y zero and a bias.

    Scale and zero point of w are scalars or lie along its output axis.

    Parameters
    ----------
    pattern
        Pattern "x, w, output axis -> y" of the float operator.
    macs
        Product of letters that counts the multiply-accumulates.
    bias
        Axes of the bias.
    """

    def row(view: View) -> Rule | None:
        if view.integer("channels_last", 0):
            return None
        left, right = pattern.split("->")
        x, w, out = left.split(",")
        scale, zero = per_channel(view, 4, out), per_channel(view, 5, out)
        tail = f", {bias}" if view.inputs > 8 else ""
        grouped = "g" in bias
        return Rule(
            f"{x}, , , {w}, {scale}, {zero}, , {tail} -> {right}",
            GROUP if grouped else {},
            freeze="*",
            refit={"group": "g"} if grouped else {},
            macs=(macs,),
        )

    return row


def qlinear_elementwise(*data: int) -> Callable[[View], Rule]:
    """Return a row that broadcasts the operands `data`; the others are scalar scales and zeros."""

    def row(view: View) -> Rule:
        """Broadcast the data operands; scales and zero points are scalars."""
        return Rule(", ".join("..." if s in data else "" for s in range(view.inputs)) + " -> ...")

    return row


def qlinear_pool(view: View) -> Rule | None:
    """Pool with channels first."""
    if view.integer("channels_last", 0):
        return None
    return Rule("n c *, , , ,  -> n c *", freeze="*")


def qlinear_softmax(view: View) -> Rule:
    """Apply Softmax as in the opset that the attribute `opset` names."""
    names = axes_letters(view)
    axis = axis_attribute(view, -1, len(names))
    mixed = names[axis] if view.integer("opset", 13) >= 13 else names[axis:]
    return Rule(f"{' '.join(names)}, , , , -> {' '.join(names)}", mixes=mixed)


def qgemm(view: View) -> Rule:
    """Compute Gemm of A, B and C with scales; without its own scale, the result is float."""
    a = "k m" if view.integer("transA", 0) else "m k"
    b = "n k" if view.integer("transB", 0) else "k n"
    c = {1: "n", 2: "m n"}.get(view.rank(6), "")
    slots = [a, "", "", b, per_channel(view, 4, "n"), per_channel(view, 5, "n"), c, "", ""]
    return Rule(f"{', '.join(slots[: view.inputs])} -> m n", macs=("m k n",))


def matmul_to_float(dynamic: bool) -> Callable[[View], Rule]:
    """Return a row of MatMulInteger with scales and a bias.

    Parameters
    ----------
    dynamic
        A is float and quantized by the operator, so it has no scale and zero point of its own.
    """
    scales = ["n", "n"] if dynamic else ["", "n", "", "n"]

    def row(view: View) -> Rule:
        """Multiply integer matrices, then apply scales and a bias."""
        parameters = [per_channel(view, 2 + i, s) if s else "" for i, s in enumerate(scales)]
        rest = [*parameters, "n"][: view.inputs - 2]
        if dynamic and view.rank(1) == 2:
            # the scale of A depends on all its values, among which zeros change nothing
            rows = [*_LEADING[: view.rank(0) - 2], "m"]
            left = ", ".join([" ".join([*rows, "k"]), "k n", *rest])
            return Rule(
                f"{left} -> {' '.join(rows)} n",
                sums="".join(rows),
                macs=(" ".join([*rows, "k n"]),),
            )
        left = ", ".join(["... m k", "... k n", *rest])
        return Rule(f"{left} -> ... m n", macs=("... m k n",))

    return row
