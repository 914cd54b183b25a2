"""Attention with a cache of keys and values, and linear attention with a state.

Letters as in `ops.attention`: b batch, s queries, t keys, k key heads, r query heads per key head,
d size of a query or key head, v size of a value head; p past positions. Axes of lengths that a run
determines are written as 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.analysis.rule import Rule, View

_BIAS = 10  # slot of the attention bias of GroupQueryAttention
_QUERIES_AND_KEYS = ("b k r s t d", "b k r s t d")
_PAST = ("b k r s p d", "b k r s p d")


def _join(left: Sequence[str], right: Sequence[str], inputs: int) -> str:
    """Return a pattern of the operands that a node has."""
    return f"{', '.join(left[:inputs])} -> {', '.join(right)}"


def group_query_attention(view: View) -> Rule | None:
    """Attend by groups of query heads, each with one key head (onnxruntime).

    Its kernels take heads of a multiple of 8 channels only, so heads are cut as units. Queries,
    keys and values in one operand are split before the analysis.
    """
    heads, key_heads = view.integer("num_heads", 0), view.integer("kv_num_heads", 0)
    if not view.rank(1) or not heads or not key_heads or heads % key_heads:
        return None
    if any(view.text(f"{x}_quant_type", "NONE") != "NONE" for x in "kv"):
        return None  # two values of a quantized cache may share a byte
    bias = ""
    if view.rank(_BIAS):
        bias = "w x u z" if view.dim(_BIAS, 1) == 1 else "w (k r) u z"
    left = ["b s (k r d)", "b t (k d)", "b t (k d)"]
    left += ["b k p d", "b k p d"] if view.rank(3) else ["", ""]
    left += ["q", "", "m e", "n f", "g h", bias]
    left += ["(k r)", "", "", "d", "d", "q"]
    for slot in (7, 8, 9, 11, 14, 15, 16):
        if not view.rank(slot):
            left[slot] = ""
    right = ["b s (k r d)", "b k 1 d", "b k 1 d", "b (k r) s 1"]
    return Rule(
        _join(left, right, view.inputs),
        {"k": key_heads, "r": heads // key_heads},
        freeze="b s t d e f g h m n p q u w x z",
        refit={"num_heads": "k r", "kv_num_heads": "k"},
        macs=_QUERIES_AND_KEYS + (_PAST if view.rank(3) else ()),
    )


def decoder_masked_attention(view: View) -> Rule | None:
    """Attend from one position to a cache (onnxruntime).

    Heads of queries, keys and values must have one size. Keys and values of other tokens (cross
    attention) have an axis of heads.
    """
    if not view.rank(1) or not view.integer("num_heads", 0):
        return None
    other = "b h t d" if view.rank(1) == 4 else "b t (h d)"
    left = ["b s (h d)", other, other]
    left.append(" ".join("mn"[: view.rank(3)]))
    heads = "x" if view.rank(4) and view.dim(4, 1) == 1 else "h"
    left.append(f"w {heads} u z" if view.rank(4) else "")
    left += ["b h p d", "b h p d"] if view.rank(5) else ["", ""]
    left += ["q" if view.rank(7) else "", "i" if view.rank(8) else ""]
    left += [" ".join("aec"[: view.rank(9)]), "(j h d)" if view.rank(10) else ""]
    right = ["b s (h d)", "b h 1 d", "b h 1 d", "b h s 1"]
    scaled = view.number("scale", 0.0)
    macs = ["b h s t d", "b h s t d"]
    if view.rank(5):
        macs += ["b h s p d", "b h s p d"]
    return Rule(
        _join(left, right, view.inputs),
        {"h": "num_heads", "j": 3},
        freeze=f"a b c e i j m n p q s t u w x z {'' if scaled else 'd'}",
        sums="d",
        refit={"num_heads": "h"},
        macs=tuple(macs),
    )


def decoder_masked_self_attention(view: View) -> Rule | None:
    """Project one position to a query, a key and a value, and attend to a cache (onnxruntime)."""
    if view.dim(1, 1) is None or view.dim(2, 0) is None or view.outputs < 1:
        return None
    left = ["b s e", "e (j h d)", "(j h d)", " ".join("mn"[: view.rank(3)]), "g b h p d"]
    heads = "x" if view.rank(5) and view.dim(5, 1) == 1 else "h"
    left.append(f"w {heads} u z" if view.rank(5) else "")
    left += ["q" if view.rank(6) else "", "i" if view.rank(7) else ""]
    left.append(" ".join("afc"[: view.rank(8)]))
    scaled = view.number("scale", 0.0) and not view.integer("do_rotary", 0)
    return Rule(
        _join(left, ["b s (h d)", "g b h 1 d"], view.inputs),
        {"j": 3, "h": "num_heads", "g": 2},
        freeze=f"a b c f g i j m n p q s u w x z {'' if scaled else 'd'}",
        sums="d",
        refit={"num_heads": "h"},
        macs=("b s e j h d", "b h s s d", "b h s s d", "b h s p d", "b h s p d"),
    )


def linear_attention(view: View) -> Rule | None:
    """Attend through a state of outer products of keys and values, one per key head."""
    heads, key_heads = view.integer("q_num_heads", 0), view.integer("kv_num_heads", 0)
    if not heads or not key_heads or heads % key_heads:
        return None  # onnxruntime also lets several key heads share a query head
    state = f"{'w ' if view.integer('state_window', 0) else ''}b k d v"
    left = ["b t (k r d)", "b t (k d)", "b t (k v)", state if view.rank(3) else "", "", ""]
    if view.rank(4):  # a decay per channel, or one per head
        left[4] = "b t k" if view.dim(4, 2) == key_heads else "b t (k d)"
    if view.rank(5):
        left[5] = "b t x" if view.dim(5, 2) == 1 else "b t k"
    corrected = "delta" in view.text("update_rule", "gated_delta")
    # without a scale of its own it divides by the square root of d; the delta rules sum over d of
    # the keys alone as well, so that zeros of the queries would not remove a channel
    free = view.number("scale", 0.0) and not (
        corrected and (view.is_constant(0) or view.is_constant(1))
    )
    return Rule(
        _join(left, ["b t (k r v)", state], view.inputs),
        {"k": key_heads, "r": heads // key_heads},
        freeze=f"b t w x {'' if free else 'd'}",
        sums="d",
        refit={"q_num_heads": "k r", "kv_num_heads": "k"},
        macs=("b t k r d v", "b t k d v") + (("b t k d v",) if corrected else ()),
    )
