"""Matrix products, Einsum and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters

from onnxprune.analysis.rule import GROUP, Rule, View


def matmul(view: View) -> Rule:
    """Multiply matrices as numpy does, vectors included."""
    # a vector on the left has no rows
    if view.rank(0) == 1:
        return Rule("k, ... k n -> ... n" if view.rank(1) > 1 else "k, k -> ", macs=("... k n",))
    pattern = "... m k, k -> ... m" if view.rank(1) == 1 else "... m k, ... k n -> ... m n"
    return Rule(pattern, macs=("... m k n",))


def deform_conv(view: View) -> Rule:
    """Convolve at offset positions.

    Offset groups divide the input channels, as groups do. With both, their borders may cross, and
    the input channels are frozen; with offset groups alone, each loses the same positions.
    """
    offset_groups, groups = view.integer("offset_group", 1), view.integer("group", 1)
    macs = ("n g o c * #",)
    pattern = "n (g c) *, (g o) c *, n p h w, (g o), n q h w -> n (g o) *"
    if offset_groups == 1:
        return Rule(pattern, GROUP, freeze="* g p q h w", macs=macs)
    if groups > 1:
        return Rule(pattern, GROUP, freeze="* g c p q h w", macs=macs)
    return Rule(
        "n (g c) *, o (g c) *, n p h w, o, n q h w -> n o *",
        {"g": "offset_group"},
        freeze="* g p q h w",
        macs=macs,
    )


def gemm(view: View) -> Rule:
    """Compute alpha A' B' + beta C, C broadcast."""
    a = "k m" if view.integer("transA", 0) else "m k"
    b = "n k" if view.integer("transB", 0) else "k n"
    c = ", " + {1: "n", 2: "m n"}.get(view.rank(2), "") if view.inputs > 2 else ""
    return Rule(f"{a}, {b}{c} -> m n", macs=("m k n",))


def einsum(view: View) -> Rule | None:
    """Contract as the equation says; a letter twice in one operand takes its diagonal."""
    equation = view.text("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if not arrow:
        right = _complete_output(left)
    if "..." in left and "..." not in right:
        return None  # the axes that it stands for are summed over
    # the notation has "..." in front alone; elsewhere, letters stand for its axes
    if any("..." in o and not o.startswith("...") for o in (*operands, right)):
        operands, right = _spell_out(view, operands, right)
    names = dict.fromkeys("".join(operands).replace("...", ""))
    return Rule(
        f"{', '.join(map(_space_letters, operands))} -> {_space_letters(right)}",
        # a single operand is moved or summed, which multiplies nothing
        macs=(" ".join(["...", *names]),) if len(operands) > 1 else (),
    )


def _complete_output(left: str) -> str:
    """Return the output of an equation without one: letters that occur once, sorted."""
    leading = "..." if "..." in left else ""
    letters = left.replace("...", "").replace(",", "")
    return leading + "".join(sorted(c for c in letters if letters.count(c) == 1))


def _spell_out(view: View, operands: list[str], right: str) -> tuple[list[str], str]:
    """Return operands and output with letters instead of "...", aligned at the right."""
    unused = [c for c in ascii_letters if c not in "".join((*operands, right))]
    counts = [
        view.rank(slot) - len(o.replace("...", "")) if "..." in o else 0
        for slot, o in enumerate(operands)
    ]
    letters = "".join(unused[: max(counts)])
    spelled = [
        o.replace("...", letters[len(letters) - count :])
        for o, count in zip(operands, counts, strict=True)
    ]
    return spelled, right.replace("...", letters)


def _space_letters(operand: str) -> str:
    """Return the letters of an Einsum operand in the notation of the table."""
    leading = "... " if operand.startswith("...") else ""
    return leading + " ".join(operand.replace("...", ""))


def recurrent(gates: int, peepholes: int = 0) -> Callable[[View], Rule]:
    """Return a row of a recurrent layer.

    Gates form a product axis with the hidden units; both directions share the units.

    Parameters
    ----------
    gates
        Number of gates in the rows of W and R.
    peepholes
        Number of peephole weights per unit; 0 if the operator has none.
    """

    def row(view: View) -> Rule:
        batch_first = view.integer("layout", 0)
        time = "b s" if batch_first else "s b"
        state = "b d h" if batch_first else "d b h"
        out = "b s d h" if batch_first else "s d b h"
        slots = [f"{time} i", "d (g h) i", "d (g h) h", "d (p h)", "b", state, state, "d (q h)"]
        return Rule(
            ", ".join(slots[: view.inputs]) + f" -> {out}, {state}, {state}",
            # rows of W and R are gates; a bias has those of W, then those of R
            {"g": gates, "p": 2 * gates, "q": peepholes or 1},
            freeze="d g p q s b",
            refit={"hidden_size": "h"},
            macs=("s b d g h i", "s b d g h h"),
            masked=2,
        )

    return row
