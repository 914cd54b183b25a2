"""Fused attention of the standard and of onnxruntime.

Letters: b batch, s queries, t keys, k key heads, r query heads per key head, d size of a query or
key head, v size of a value head. Without a scale of its own, attention divides by the square root
of d, which then cannot be cut.
"""

from __future__ import annotations

from onnxprune.analysis.rule import Rule, View


def attention(view: View) -> Rule | None:
    """Attend by head; several query heads may share a key head."""
    if view.rank(1) == 2:
        return packed_attention(view)
    if view.inputs > 4 or view.outputs > 1 or view.rank(0) != view.rank(1):
        return None
    flat = view.rank(0) == 3  # heads are part of the last axis, not an axis of their own
    if flat:
        heads = view.integer("q_num_heads", 0), view.integer("kv_num_heads", 0)
    else:
        heads = view.dim(0, 1) or 0, view.dim(1, 1) or 0
    if not all(heads) or _masks_per_head(view):
        return None
    mask = ", " + " ".join("uwst"[4 - view.rank(3) :]) if view.inputs > 3 else ""
    if flat:
        left, right = "b s (k r d), b t (k d), b t (k v)", "b s (k r v)"
    else:
        left, right = "b (k r) s d, b k t d, b k t v", "b (k r) s v"
    fixed = "" if view.has("scale") else "d"
    return Rule(
        f"{left}{mask} -> {right}",
        {"k": heads[1], "r": heads[0] // heads[1]},
        freeze=f"b s t u w {fixed}",
        refit={"q_num_heads": "k r", "kv_num_heads": "k"} if flat else {},
        macs=("b k r s t d", "b k r s t v"),
    )


def _masks_per_head(view: View) -> bool:
    """Return whether the attention mask has one matrix per head."""
    rank = view.rank(3) if view.inputs > 3 else 0
    return rank > 2 and view.dim(3, rank - 3) != 1


def packed_attention(view: View) -> Rule | None:
    """Project to queries, keys and values of one size, and attend (onnxruntime).

    One weight and one bias hold all three projections (letter j).
    """
    sizes = view.integers("qkv_hidden_sizes")
    unequal = sizes is not None and len(set(sizes)) > 1
    if view.outputs > 1 or view.rank(4) or view.inputs > 6 or unequal:
        return None
    mask, bias = " ".join("uvwx"[: view.rank(3)]), ""
    if view.inputs > 5:
        bias = "y h s t" if view.dim(5, 1) != 1 else "y z s t"
    scaled = view.number("scale", 0.0) and not view.integer("do_rotary", 0)
    return Rule(
        f"b s e, e (j h d), (j h d), {mask}, , {bias} -> b s (h d)",
        {"j": 3, "h": "num_heads"},
        freeze=f"b s t j u v w x y z {'' if scaled else 'd'}",
        sums="d",
        refit={"num_heads": "h"} | ({"qkv_hidden_sizes": "h d"} if sizes is not None else {}),
        macs=("b s e j h d", "b h s s d", "b h s s d"),
    )


def multi_head_attention(view: View) -> Rule | None:
    """Attend from separate queries, keys and values without further operands (onnxruntime)."""
    if view.inputs != 3 or view.outputs > 1 or view.rank(0) != 3:
        return None
    return Rule(
        "b s (h d), b t (h d), b t (h v) -> b s (h v)",
        {"h": "num_heads"},
        freeze="b s t" if view.number("scale", 0.0) else "b s t d",
        refit={"num_heads": "h"},
        macs=("b h s t d", "b h s t v"),
    )
