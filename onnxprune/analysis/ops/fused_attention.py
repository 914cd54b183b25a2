"""Fused attention of onnxruntime.

Letters: b batch, s queries, t keys, u past keys, h heads, d size of a query or key head, v size of
a value head, j the three projections (or keys and values) that one tensor holds. Without a scale of
its own, attention divides by the square root of d; a cut writes the value from before.
"""

from __future__ import annotations

from onnxprune.analysis.rule import Rule, View, per_channel

_PAST_LENGTH = "w"  # letter of past and present keys together


def pinned_scale(view: View, head_size: int | None) -> dict[str, tuple[str, float]]:
    """Return the pin of the default scale; none if the node has a scale of its own."""
    if view.number("scale", 0.0) or not head_size:
        return {}
    return {"scale": ("d", head_size**-0.5)}


def head_is_free(view: View, head_size: int | None) -> bool:
    """Return whether the size of a head can be cut: the scale is known, and nothing rotates."""
    known = bool(view.number("scale", 0.0) or head_size)
    # rotation pairs channels of a head, which a cut would separate
    return known and not view.integer("do_rotary", 0)


def _find_head_size(view: View, slot: int, parts: int) -> int | None:
    """Return the size of a head of an operand whose last axis holds `parts` projections."""
    width = view.dim(slot, view.rank(slot) - 1) if view.rank(slot) else None
    return width // (parts * view.integer("num_heads", 1)) if width else None


def packed_attention(view: View) -> Rule | None:
    """Project to queries, keys and values of one size, and attend (Attention).

    Operands: input, weight, bias, mask, past keys and values, attention bias, past length.
    """
    mask = " ".join("lmno"[: view.rank(3)])
    slots = [mask, "p b h u d", _attention_bias(view, 5), ""]
    return _project_and_attend(view, "b s e", "b s (h d)", slots, past=4)


def quantized_attention(view: View) -> Rule | None:
    """Attend on quantized input and weights (QAttention); scales may be per column."""
    scale, zero = per_channel(view, 4, "(j h d)"), per_channel(view, 7, "(j h d)")
    mask = " ".join("lmno"[: view.rank(5)])
    slots = ["", scale, mask, "", zero, "p b h u d"]
    return _project_and_attend(view, "b s e", "b s (h d)", slots, past=8)


def attention_of_tokens(view: View) -> Rule | None:
    """Attend on tokens of all sequences without padding (PackedAttention)."""
    slots = ["b s", "c", _attention_bias(view, 5)]
    return _project_and_attend(view, "a e", "a (h d)", slots)


def _project_and_attend(
    view: View, data: str, out: str, slots: list[str], past: int | None = None
) -> Rule | None:
    """Return the rule of attention with a weight that holds all three projections.

    Parameters
    ----------
    view
        The node.
    data, out
        Axes of the input and of the output.
    slots
        Axes of the operands after the bias.
    past
        Operand that holds past keys and values.
    """
    sizes = view.integers("qkv_hidden_sizes")
    if sizes is not None and len(set(sizes)) > 1:
        return None  # a sum of products, not a product
    head_size = _find_head_size(view, 1, 3)
    with_past = past is not None and bool(view.rank(past))
    keys = ["s", "u"] if with_past else ["s"]
    rows = data.rpartition(" ")[0]
    present = f", p b h {_PAST_LENGTH} d" if past is not None else ""
    operands = [data, "e (j h d)", "(j h d)", *slots]
    return Rule(
        f"{', '.join(operands[: view.inputs])} -> {out}{present}",
        {"j": 3, "p": 2, "h": "num_heads"},
        freeze=f"{_FIXED} {'' if head_is_free(view, head_size) else 'd'}",
        sums="d",
        added=(1, 2),  # masked although past keys and values have d as well
        refit={"num_heads": "h"} | ({"qkv_hidden_sizes": "h d"} if sizes is not None else {}),
        macs=(f"{rows} e j h d", *(f"{rows} h {t} d" for t in keys for _ in "qv")),
        pins=pinned_scale(view, head_size),
    )


_FIXED = "a b c i j l m n o p s t u w x y z"


def _attention_bias(view: View, slot: int) -> str:
    """Return the axes of the bias of the scores, which may be one for all sequences or heads."""
    if not view.rank(slot):
        return ""
    batch = "y" if view.dim(slot, 0) == 1 else "b"
    return f"{batch} {'z' if view.dim(slot, 1) == 1 else 'h'} s x"


def multi_head_attention(view: View) -> Rule | None:
    """Attend from queries, keys and values, separate or interleaved (MultiHeadAttention).

    Operands: queries, keys, values, bias of the projections, padding mask, attention bias, past
    keys, past values, past length.
    """
    form = _separate_or_interleaved(view)
    if form is None or view.inputs > 9:
        return None
    (query, key, value), size = form
    v = "v" if "v" in value else "d"
    # a bias holds all projections, and keys and values of the past have one size
    tied = v == "v" and bool(view.rank(3) or view.rank(6))
    if tied and _find_head_size(view, 2, 1) != size:
        return None
    mask = " ".join("lmno"[: view.rank(4)])
    slots = [query, key, value, "(j h d)", mask, _attention_bias(view, 5)]
    slots += [f"b h u {x}" for x in ("d", v)] + [""]
    present = [f"b h {_PAST_LENGTH} {x}" for x in ("d", v)]
    keys = ["t", "u"] if view.rank(6) else ["t"]
    keys = [k if "t" in key or k == "u" else "s" for k in keys]
    pattern = f"{', '.join(slots[: view.inputs])} -> b s (h {v}), {', '.join(present)}, b h s w"
    return Rule(
        pattern.replace("v", "d") if tied else pattern,
        {"j": 2 if view.rank(1) == 5 else 3, "h": "num_heads"},
        freeze=f"{_FIXED} {'' if head_is_free(view, size) else 'd'}",
        sums="d",
        added=(3,),
        refit={"num_heads": "h"},
        macs=tuple(f"b h s {t} {'d' if tied else x}" for t in keys for x in ("d", v)),
        pins=pinned_scale(view, size),
    )


def _separate_or_interleaved(view: View) -> tuple[tuple[str, str, str], int | None] | None:
    """Return the axes of queries, keys and values, and the size of a head; None for other ranks."""
    ranks = tuple(map(view.rank, range(3)))
    size = _find_head_size(view, 0, 1)
    if ranks == (3, 3, 3):
        return ("b s (h d)", "b t (h d)", "b t (h v)"), size
    if ranks == (3, 4, 4):  # keys and values of an encoder, by head
        return ("b s (h d)", "b h t d", "b h t d"), size
    if ranks == (3, 5, 0):
        return ("b s (h d)", "b t h j d", ""), size
    if ranks == (5, 0, 0):
        return ("b s h j d", "", ""), view.dim(0, 4)
    return None


def attention_of_token_heads(view: View) -> Rule | None:
    """Attend from projections of tokens without padding (PackedMultiHeadAttention)."""
    interleaved = view.rank(0) == 4
    size = view.dim(0, 3) if interleaved else _find_head_size(view, 0, 1)
    query = "a h j d" if interleaved else "a (h d)"
    key = "" if interleaved else "a (h d)"
    slots = [query, key, key, "(j h d)", "b s", "c", _attention_bias(view, 6)]
    return Rule(
        f"{', '.join(slots[: view.inputs])} -> a (h d)",
        {"j": 3, "h": "num_heads"},
        freeze=f"{_FIXED} {'' if head_is_free(view, size) else 'd'}",
        sums="d",
        added=(3,),
        refit={"num_heads": "h"},
        macs=("a h s d", "a h s d"),
        pins=pinned_scale(view, size),
    )
