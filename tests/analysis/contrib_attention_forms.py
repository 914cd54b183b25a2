"""Every form of onnxruntime's Attention and MultiHeadAttention, as graphs.

onnxruntime decides which of them are valid. Lengths: 2 sequences, 3 queries, 4 keys, 2 past keys, 4
heads of 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from attention_forms import BATCH, HEADS, KEYS, PAST, QUERIES, SIZE, further_outputs

WIDTH = HEADS * SIZE
_BIASES = ("", "b h", "1 h", "b 1", "1 1")  # batch and heads of a bias of the scores
_PAST_NODES = (
    "{0} = MatMul(p, w{0}); r{0} = Reshape({0}, heads); h{0} = Transpose<perm=[0,2,1,3]>(r{0})"
)


def _mask(kind: str, queries: int, keys: int) -> str:
    """Return a mask of valid keys, given as lengths, positions or flags; "" for none."""
    counts = {
        "lengths": (f"{BATCH}", [keys, keys - 1]),
        "bounds": (f"{2 * BATCH}", [keys, keys - 1, 0, 0]),
        "sequences": (
            f"{3 * BATCH + 2}",
            [keys, keys - 1, 0, queries, 2 * queries, 0, keys, 2 * keys],
        ),
    }
    if kind in counts:
        shape, values = counts[kind]
        return f"int32[{shape}] mask = {{{', '.join(map(str, values))}}}"
    shapes = {"keys": (BATCH, keys), "pairs": (BATCH, queries, keys), "square": (BATCH, 1, 8, 8)}
    if kind not in shapes:
        return ""
    count, dims = 1, shapes[kind]
    for d in dims:
        count *= d
    flags = ", ".join("0" if i % 3 == 2 else "1" for i in range(count))
    return f"int32[{','.join(map(str, dims))}] mask = {{{flags}}}"


def _score_bias(form: str, queries: int, keys: int) -> str:
    """Return a bias of the scores; "" for none."""
    if not form:
        return ""
    batch, heads = (str({"b": BATCH, "h": HEADS}.get(d, 1)) for d in form.split())
    return f"float[{batch},{heads},{queries},{keys}] t"


@dataclass(frozen=True)
class PackedForm:
    """A form of Attention of com.microsoft, which projects one input.

    Attributes
    ----------
    mask
        Kind of mask, see `_mask`; "" for none.
    bias
        Whether the projections have a bias.
    past
        Whether keys and values of the past are given.
    scores
        Batch and heads of a bias of the scores; "" for none.
    outputs
        Number of outputs: the result, present keys and values.
    attributes
        Further attributes.
    value_size
        Size of a value head, which is listed if it is not that of a query head.
    """

    mask: str = ""
    bias: bool = True
    past: bool = False
    scores: str = ""
    outputs: int = 1
    attributes: str = ""
    value_size: int = SIZE

    opset = 17

    @property
    def text(self) -> str:
        """Graph of this form, see `graph_text.net`."""
        keys = QUERIES + (PAST if self.past else 0)
        columns = 2 * WIDTH + HEADS * self.value_size
        weights = [
            f"float[5,6] w0, float[6,{columns}] w1, float[{HEADS * self.value_size},7] wo",
            f"int64[4] heads = {{0, 0, {HEADS}, {SIZE}}}",
            "int64[1] first = {0}",
        ]
        nodes, names = ["a = MatMul(x, w0)"], ["a", "w1", "", "", "", ""]
        if self.bias:
            weights.append(f"float[{columns}] b1")
            names[2] = "b1"
        if self.mask:
            weights.append(_mask(self.mask, QUERIES, keys))
            names[3] = "mask"
        if self.past:
            weights.append(f"float[5,{WIDTH}] wpk, float[5,{WIDTH}] wpv")
            nodes += [_PAST_NODES.format("pk"), _PAST_NODES.format("pv")]
            nodes.append("up = Unsqueeze(hpk, first); uv = Unsqueeze(hpv, first)")
            nodes.append("both = Concat<axis=0>(up, uv)")
            names[4] = "both"
        if self.scores:
            weights.append(_score_bias(self.scores, QUERIES, keys))
            names[5] = "t"
        sizes = f"qkv_hidden_sizes=[{WIDTH}, {WIDTH}, {HEADS * self.value_size}]"
        listed = [f"num_heads={HEADS}", self.attributes, sizes if self.value_size != SIZE else ""]
        while not names[-1]:
            names.pop()
        outputs = ["o", "present"][: self.outputs]
        nodes.append(
            f"{', '.join(outputs)} = com.microsoft.Attention<{', '.join(filter(None, listed))}>"
            f"({', '.join(names)}); y0 = MatMul(o, wo)"
        )
        return further_outputs(weights, nodes, outputs[1:], axes="0, 2, 3, 4", rank=5)


@dataclass(frozen=True)
class MultiHeadForm:
    """A form of MultiHeadAttention of com.microsoft.

    Attributes
    ----------
    layout
        "apart" for three operands, "by head" for keys and values with an axis of heads, "key and
        value" or "all" for projections in one operand.
    mask, bias, past, scores, outputs, attributes, value_size
        As in `PackedForm`; the outputs are the result, present keys, present values.
    """

    layout: str = "apart"
    mask: str = ""
    bias: bool = False
    past: bool = False
    scores: str = ""
    outputs: int = 1
    attributes: str = ""
    value_size: int = SIZE

    opset = 17

    @property
    def text(self) -> str:
        """Graph of this form, see `graph_text.net`."""
        v = self.value_size
        tokens = QUERIES if self.layout == "all" else KEYS
        keys = tokens + (PAST if self.past else 0)
        weights = [
            f"float[5,{WIDTH}] wq, float[5,{WIDTH}] wk, float[5,{HEADS * v}] wv",
            f"float[{HEADS * v},7] wo, int64[4] heads = {{0, 0, {HEADS}, {SIZE}}}",
            f"int64[4] vheads = {{0, 0, {HEADS}, {v}}}, int64[1] third = {{3}}",
        ]
        nodes = ["q = MatMul(x, wq); k = MatMul(z, wk); v = MatMul(z, wv)"]
        names = ["q", "k", "v", *[""] * 5]
        if self.layout != "apart":
            nodes.append("rk = Reshape(k, heads); rv = Reshape(v, vheads)")
        if self.layout == "by head":
            nodes.append("hk = Transpose<perm=[0,2,1,3]>(rk); hv = Transpose<perm=[0,2,1,3]>(rv)")
            names[1:3] = ["hk", "hv"]
        elif self.layout == "key and value":
            nodes.append("uk = Unsqueeze(rk, third); uv = Unsqueeze(rv, third)")
            nodes.append("kv = Concat<axis=3>(uk, uv)")
            names[1:3] = ["kv", ""]
        elif self.layout == "all":
            nodes[0] = "q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv)"
            nodes.append("rq = Reshape(q, heads); uq = Unsqueeze(rq, third)")
            nodes.append("uk = Unsqueeze(rk, third); uv = Unsqueeze(rv, third)")
            nodes.append("qkv = Concat<axis=3>(uq, uk, uv)")
            names[:3] = ["qkv", "", ""]
        if self.bias:
            weights.append(f"float[{2 * WIDTH + HEADS * v}] b1")
            names[3] = "b1"
        if self.mask:
            weights.append(_mask(self.mask, QUERIES, keys))
            names[4] = "mask"
        if self.scores:
            weights.append(_score_bias(self.scores, QUERIES, keys))
            names[5] = "t"
        if self.past:
            weights.append(f"float[5,{WIDTH}] wpk, float[5,{HEADS * v}] wpv")
            nodes.append(_PAST_NODES.format("pk"))
            nodes.append(_PAST_NODES.format("pv").replace("heads", "vheads"))
            names[6:8] = ["hpk", "hpv"]
        while not names[-1]:
            names.pop()
        outputs = ["o", "ok", "ov"][: self.outputs]
        listed = ", ".join(filter(None, (f"num_heads={HEADS}", self.attributes)))
        nodes.append(
            f"{', '.join(outputs)} = com.microsoft.MultiHeadAttention<{listed}>"
            f"({', '.join(names)}); y0 = MatMul(o, wo)"
        )
        return further_outputs(weights, nodes, outputs[1:])


def packed_forms() -> Iterator[PackedForm]:
    """Yield combinations of the forms of Attention."""
    masks = ("", "lengths", "bounds", "sequences", "keys", "pairs", "square")
    for mask, bias, past, scores, outputs in product(
        masks, (True, False), (False, True), _BIASES, (1, 2)
    ):
        yield PackedForm(mask, bias, past, scores, outputs)
    for causal, scale, past, size in product(
        ("", "unidirectional=1"), ("", "scale=0.3"), (False, True), (SIZE, 3)
    ):
        attributes = ", ".join(filter(None, (causal, scale)))
        yield PackedForm(past=past, attributes=attributes, outputs=1 + past, value_size=size)


def multi_head_forms() -> Iterator[MultiHeadForm]:
    """Yield combinations of the forms of MultiHeadAttention."""
    layouts = ("apart", "by head", "key and value", "all")
    masks = ("", "lengths", "sequences", "keys", "pairs")
    for layout, mask, bias, past, scores, outputs in product(
        layouts, masks, (False, True), (False, True), _BIASES, (1, 3)
    ):
        # with a past and no present, onnxruntime 1.32 reads memory that it did not write
        if outputs == 3 or not past:
            yield MultiHeadForm(layout, mask, bias, past, scores, outputs)
    for layout, causal, scale, bias, past in product(
        layouts, ("", "unidirectional=1"), ("", "scale=0.3"), (False, True), (False, True)
    ):
        attributes = ", ".join(filter(None, (causal, scale)))
        for size in (SIZE, 3):
            yield MultiHeadForm(
                layout, "", bias, past, "", 3 if past else 1, attributes, value_size=size
            )
