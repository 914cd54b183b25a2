"""Fused attention of the standard and of onnxruntime.

Letters: b batch, s queries, t keys, k key heads, r query heads per key head, d size of a query or
key head, v size of a value head. Without a scale of its own, attention divides by the square root
of d, which then cannot be cut.
"""

from __future__ import annotations

from onnxprune.analysis.rule import Rule, View


def attention(view: View) -> Rule | None:
    """Attend by head; several query heads may share a key head.

    Operands: queries, keys, values, mask, keys and values of the past, number of keys. Outputs:
    the result, keys and values of past and present together, scores.
    """
    if view.rank(1) == 2:
        return packed_attention(view)
    flat = view.rank(0) == 3  # heads are part of the last axis, not an axis of their own
    if flat:
        heads = view.integer("q_num_heads", 0), view.integer("kv_num_heads", 0)
    else:
        heads = view.dim(0, 1) or 0, view.dim(1, 1) or 0
    if not all(heads) or heads[0] % heads[1] or view.rank(0) != view.rank(1):
        return None
    if flat:
        slots, result = ["b s (k r d)", "b t (k d)", "b t (k v)"], "b s (k r v)"
    else:
        slots, result = ["b (k r) s d", "b k t d", "b k t v"], "b (k r) s v"
    slots += [_mask(view), "b k p d", "b k p v", "b"]
    # the number of keys with those of the past is written as 1, an axis that the operator creates
    outputs = f"{result}, b k 1 d, b k 1 v, b (k r) s 1"
    keys = ["t", "p"] if view.rank(4) else ["t"]
    return Rule(
        f"{', '.join(slots[: view.inputs])} -> {outputs}",
        {"k": heads[1], "r": heads[0] // heads[1]},
        freeze=f"b s t p w x y z {'' if view.has('scale') else 'd'}",
        sums="d",
        refit={"q_num_heads": "k r", "kv_num_heads": "k"} if flat else {},
        macs=tuple(f"b k r s {t} {size}" for t in keys for size in "dv"),
    )


def _mask(view: View) -> str:
    """Return the axes of a mask, aligned at the right with batch, heads, queries and keys."""
    rank = view.rank(3)
    axes = ["w", "(k r)", "y", "z"][4 - rank :]
    if rank > 2 and view.dim(3, rank - 3) == 1:
        axes[rank - 3] = "x"
    return " ".join(axes)


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
