"""Quantized operators: the letters of their float forms, with scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from string import ascii_uppercase

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
        # a single scale for all of the axis is a scalar, in a vector of one
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


def qlinear(
    pattern: str, macs: str, bias: str = "", channels_last: str = ""
) -> Callable[[View], Rule]:
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
    channels_last
        Pattern if the attribute of this name is set.
    """

    def row(view: View) -> Rule:
        """Compute the float operator on integers, then quantize its result."""
        form = channels_last if view.integer("channels_last", 0) else pattern
        left, right = form.split("->")
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


def qlinear_pool(view: View) -> Rule:
    """Pool each channel."""
    tensor = "n * c" if view.integer("channels_last", 0) else "n c *"
    return Rule(f"{tensor}, , , , -> {tensor}", freeze="*")


def qlinear_reduce_mean(view: View) -> Rule:
    """Average over `axes`, which are never cut: a factor after the node would be rounded."""
    names = axes_letters(view)
    listed = view.integers("axes") or range(len(names))
    reduced = "".join(names[a % len(names)] for a in listed)
    one = "1" if view.integer("keepdims", 1) else ""
    right = [one if n in reduced else n for n in names]
    return Rule(f"{' '.join(names)}, , , , -> {' '.join(right)}", freeze=reduced)


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


def matmul_nbits(view: View) -> Rule | None:
    """Multiply by a weight (N, K) in blocks along K, each with a scale and a zero point.

    Letters: q blocks, k values per block, z bytes per block. Inputs are cut by whole blocks. That
    is not possible if zero points of several blocks share a byte, or if K ends within a block.
    """
    block, columns = view.integer("block_size", 0), view.integer("K", 0)
    if block < 1 or view.integer("weight_prepacked", 0) or view.rank(1) != 3:
        return None
    filters, blocks = view.dim(1, 0), view.dim(1, 1)
    per_block = "n q" if view.rank(2) == 2 else "(n q)"
    zero, frozen = per_block, "k z"
    if view.rank(3) and _count_elements(view, 3) != (filters or 0) * (blocks or 0):
        zero, frozen = ("n w" if view.rank(3) == 2 else "(n w)"), "k z q w"
    data = "... (q k)" if columns % block == 0 else "... i"
    if view.rank(4) or columns % block:  # an index of groups per input is never cut
        frozen += " q i"
    return Rule(
        f"{data}, n q z, {per_block}, {zero}, i, n -> ... n",
        {"k": block},
        freeze=frozen,
        refit={"N": "n"} | ({"K": "q k"} if columns % block == 0 else {}),
        macs=(f"{data.replace('(', '').replace(')', '')} n",),
    )


def _count_elements(view: View, slot: int) -> int:
    """Return the number of elements of an operand of known shape; 0 if an axis is dynamic."""
    return prod(view.dim(slot, i) or 0 for i in range(view.rank(slot)))


def gather_block_quantized(view: View) -> Rule | None:
    """Gather rows of a table that is quantized in blocks, which are cut whole.

    Letters as in `matmul_nbits`; several values may share a byte.
    """
    names, block = axes_letters(view), view.integer("block_size", 128)
    gathered = view.integer("gather_axis", 0) % max(len(names), 1)
    axis = view.integer("quantize_axis", 1) % max(len(names), 1)
    blocks, stored = view.dim(2, axis), view.dim(0, axis)
    # along the axis that is picked from, blocks would be taken apart
    if gathered == axis or not blocks or not stored or stored % blocks:
        return None
    # values or, in bytes that hold several, fewer
    per_block = stored // blocks
    packed = per_block * 8 // view.integer("bits", 4) == block
    if per_block != block and not packed:
        return None
    data, scales, right = list(names), list(names), list(names)
    data[axis], scales[axis], right[axis] = "(Q Z)", "Q", "(Q K)"
    picks = ascii_uppercase[: view.rank(1)]
    right[gathered] = " ".join(picks)
    zeros, frozen = scales, f"{names[gathered]}{picks}ZK"
    if view.rank(3) and view.dim(3, axis) != blocks:
        zeros, frozen = [*scales], frozen + "QW"
        zeros[axis] = "W"
    left = [data, list(picks), scales, zeros][: view.inputs]
    return Rule(
        f"{', '.join(map(' '.join, left))} -> {' '.join(right)}",
        {"Z": per_block, "K": block},
        freeze=frozen,
    )


# activation functions with f(0) = 0, whatever their parameters
_ZERO_AT_ZERO = frozenset("relu tanh leakyrelu scaledtanh thresholdedrelu elu softsign".split())
_ACTIVATIONS = 3  # per direction: of the gates, of the cell candidate, of the cell in the output


def quantized_lstm(view: View) -> Rule:
    """Compute an LSTM with integer weights, stored as (directions, inputs, gates times units).

    The state is quantized with the range of all units and zero. A unit whose parameters are zero
    has a state of 0, which does not change that range: this is the network a cut equals.
    """
    state = "d b h"
    slots = ["s b i", "d i (g h)", "d h (g h)", "d (p h)", "b", state, state, "d (r h)"]
    # scale and zero point of W, then of R: one per direction, or one per column
    slots += ["d (g h)" if view.rank(slot) > 1 else "d" for slot in range(8, 12)]
    left = ", ".join(slots[: view.inputs])
    functions = view.texts("activations") or []
    cell = {f.lower() for i, f in enumerate(functions) if i % _ACTIVATIONS}
    # verification zeroes weights by their zero points
    known = all(not view.rank(slot) or view.is_constant(slot) for slot in (9, 11))
    zeroed = known and cell <= _ZERO_AT_ZERO
    return Rule(
        f"{left} -> s d b h, {state}, {state}",
        {"g": 4, "p": 8, "r": 3},
        freeze="d g p r s b" if zeroed else "d g p r h s b",
        refit={"hidden_size": "h"},
        macs=("s b d g h i", "s b d g h h"),
        zeroed={1: 2, 2: 2, 3: 1, 5: 2, 6: 2, 7: 1},
    )
