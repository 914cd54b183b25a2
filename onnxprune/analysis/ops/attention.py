"""Attention of the standard.

Letters: b batch, s queries, t keys, k key heads, r query heads per key head, d size of a query or
key head, v size of a value head. Without a scale of its own, attention divides by the square root
of d; a cut writes the value from before.
"""

from __future__ import annotations

from onnxprune.analysis.ops.fused_attention import head_is_free, packed_attention, pinned_scale
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
    # each key head must serve the same number of query heads
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
    size = view.dim(0, view.rank(0) - 1)
    if flat:
        size = size // heads[0] if size else None
    return Rule(
        f"{', '.join(slots[: view.inputs])} -> {outputs}",
        {"k": heads[1], "r": heads[0] // heads[1]},
        freeze=f"b s t p w x y z {'' if head_is_free(view, size) else 'd'}",
        sums="d",
        # in one axis, the number of heads is an attribute, which a cut rewrites
        refit={"q_num_heads": "k r", "kv_num_heads": "k"} if flat else {},
        macs=tuple(f"b k r s {t} {x}" for t in keys for x in "dv"),
        pins=pinned_scale(view, size),
    )


def _mask(view: View) -> str:
    """Return the axes of a mask, aligned at the right with batch, heads, queries and keys."""
    rank = view.rank(3)
    axes = ["w", "(k r)", "y", "z"][4 - rank :]
    if rank > 2 and view.dim(3, rank - 3) == 1:
        axes[rank - 3] = "x"
    return " ".join(axes)
