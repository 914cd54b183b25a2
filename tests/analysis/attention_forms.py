"""Every form of fused attention, as graphs; onnxruntime decides which of them are valid.

Queries, keys, values and the past are products, so that heads and their sizes can be cut. Every
output is read by a product or a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

BATCH, QUERIES, KEYS, PAST, HEADS, SIZE = 2, 3, 4, 2, 4, 6
_MASKS = ("", "s t", "1 s t", "h s t", "b 1 s t", "1 h s t", "b h s t")


@dataclass(frozen=True)
class StandardForm:
    """A form of Attention of ai.onnx.

    Attributes
    ----------
    by_head
        Whether the heads have an axis of their own (rank 4).
    key_heads
        Number of key heads.
    value_size
        Size of a value head.
    mask
        Axes of the mask: b, h, s, t or 1; "" for none.
    boolean
        Whether the mask is boolean.
    past
        Whether keys and values of the past are given.
    outputs
        Number of outputs: the result, present keys and values, scores.
    attributes
        Further attributes.
    opset
        Opset of the model.
    lengths
        Whether the number of keys of each sequence is given.
    """

    by_head: bool = False
    key_heads: int = HEADS
    value_size: int = SIZE
    mask: str = ""
    boolean: bool = False
    past: bool = False
    outputs: int = 1
    attributes: str = ""
    opset: int = 23
    lengths: bool = False

    @property
    def text(self) -> str:
        """Graph of this form, see `graph_text.net`."""
        k, v = self.key_heads, self.value_size
        total = KEYS + (PAST if self.past else 0)
        weights = [
            f"float[5,{HEADS * SIZE}] wq, float[5,{k * SIZE}] wk, float[5,{k * v}] wv",
            f"float[{HEADS * v},7] wo, int64[3] flat = {{0, 0, -1}}",
            f"int64[4] qs = {{0, 0, {HEADS}, {SIZE}}}, int64[4] ks = {{0, 0, {k}, {SIZE}}}",
            f"int64[4] vs = {{0, 0, {k}, {v}}}",
        ]
        nodes = ["q = MatMul(x, wq); k = MatMul(z, wk); v = MatMul(z, wv)"]
        names = ["q", "k", "v"]
        if self.by_head:
            nodes += [_by_head(n) for n in names]
            names = ["hq", "hk", "hv"]
        if self.mask:
            lengths = {"b": BATCH, "h": HEADS, "s": QUERIES, "t": total, "1": 1}
            dims = ",".join(str(lengths[d]) for d in self.mask.split())
            weights.append(f"float[{dims}] m")
            if self.boolean:
                nodes.append("h = Abs(m); n = Sub(h, c); mask = Less(n, c)")
                weights.append("float c = {1.0}")
            names.append("mask" if self.boolean else "m")
        if self.past:
            weights.append(f"float[5,{k * SIZE}] wpk, float[5,{k * v}] wpv")
            nodes.append("pk = MatMul(p, wpk); pv = MatMul(p, wpv)")
            nodes += [_by_head("pk", "ks"), _by_head("pv", "vs")]
            names += ([] if self.mask else [""]) + ["hpk", "hpv"]
        if self.lengths:
            weights.append("int64[2] n = {3, 4}")
            names += [""] * (6 - len(names)) + ["n"]
        outputs = ["o", "ok", "ov", "oqk"][: self.outputs]
        heads = "" if self.by_head else f"q_num_heads={HEADS}, kv_num_heads={k}"
        attributes = ", ".join(filter(None, (heads, self.attributes)))
        listed = f"<{attributes}>" if attributes else ""
        nodes.append(f"{', '.join(outputs)} = Attention{listed}({', '.join(names)})")
        if self.by_head:
            nodes.append("t = Transpose<perm=[0,2,1,3]>(o); f = Reshape(t, flat)")
        nodes.append(f"y0 = MatMul({'f' if self.by_head else 'o'}, wo)")
        return further_outputs(weights, nodes, outputs[1:])


def _by_head(name: str, sizes: str = "") -> str:
    """Return nodes that give heads an axis of their own."""
    return f"s{name} = Reshape({name}, {sizes or name + 's'}); " + (
        f"h{name} = Transpose<perm=[0,2,1,3]>(s{name})"
    )


def further_outputs(
    weights: list[str], nodes: list[str], more: list[str], axes: str = "1, 2, 3", rank: int = 4
) -> str:
    """Return the graph whose output adds the sums of further outputs of the node.

    Parameters
    ----------
    weights, nodes
        Parts of the text; the last node computes `y0`.
    more
        Names of the further outputs.
    axes, rank
        Axes of them to sum over, all but that of the batch, and their rank.
    """
    inputs = f"float[{BATCH},{QUERIES},5] x, float[{BATCH},{KEYS},5] z, float[{BATCH},{PAST},5] p"
    result = "y0"
    for i, name in enumerate(more):
        nodes.append(f"r{i} = Abs({name}); e{i} = ReduceSum<keepdims=0>(r{i}, sums)")
        nodes.append(f"u{i} = Unsqueeze(e{i}, back); y{i + 1} = Add({result}, u{i})")
        result = f"y{i + 1}"
    weights.append(f"int64[2] back = {{1, 2}}, int64[{rank - 1}] sums = {{{axes}}}")
    nodes.append(f"y = Relu({result})")
    return f"{inputs} | {', '.join(weights)} | {'; '.join(nodes)}"


def standard_forms() -> Iterator[StandardForm]:
    """Yield every combination of the forms that may depend on each other, then attributes."""
    for by_head, key_heads, value_size, mask, past, outputs in product(
        (False, True), (HEADS, 2, 1), (SIZE, 3), _MASKS, (False, True), (1, 3, 4)
    ):
        yield StandardForm(by_head, key_heads, value_size, mask, False, past, outputs)
    values = {
        "scale": ("", "scale=0.3"),
        "causal": ("", "is_causal=1"),
        "cap": ("", "softcap=2.0"),
        "scores": ("", "qk_matmul_output_mode=1", "qk_matmul_output_mode=2"),
        "precision": ("", "softmax_precision=1"),
    }
    for by_head, boolean, past, chosen in product(
        (False, True), (False, True), (False, True), product(*values.values())
    ):
        attributes = ", ".join(filter(None, chosen))
        outputs = 4 if "output_mode" in attributes else 1
        yield StandardForm(by_head, 2, SIZE, "b h s t", boolean, past, outputs, attributes)


def nonpadded_forms() -> Iterator[StandardForm]:
    """Yield forms of opset 24 in which each sequence has a number of keys of its own."""
    for by_head, key_heads, mask in product((False, True), (HEADS, 2), ("", "s t", "h s t")):
        yield StandardForm(by_head, key_heads, mask=mask, lengths=True, opset=24)
