"""Multiply-accumulates by the definitions of operators, for nodes that no rule counts.

A node without a rule, or in a form that its row does not cover, keeps all its channels: its count
is one number at the sizes of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.products import Product
from onnxprune.analysis.rule_shapes import INVALID_NODE
from onnxprune.analysis.rules import row
from onnxprune.analysis.sizes import Sizes
from onnxprune.analysis.state import Record
from onnxprune.errors import plural
from onnxprune.ir.contrib import CONTRIB_DOMAIN
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute


@dataclass(frozen=True)
class _Operands:
    """Shapes and attributes of a node.

    Attributes
    ----------
    node
        The node.
    sizes
        Lengths of dynamic axes.
    """

    node: NodeProto
    sizes: Sizes

    def shape(self, slot: int) -> tuple[int, ...]:
        """Return the shape of an input; LookupError if it is absent or of unknown rank."""
        return self._shape(self.node.input[slot])

    def out(self) -> tuple[int, ...]:
        """Return the shape of the first output; LookupError if its rank is unknown."""
        return self._shape(self.node.output[0])

    def has(self, slot: int) -> bool:
        """Return whether an input is present."""
        return slot < len(self.node.input) and bool(self.node.input[slot])

    def integer(self, name: str, default: int = 0) -> int:
        """Return an INT attribute."""
        return int(attribute(self.node, name, default))

    def _shape(self, name: str) -> tuple[int, ...]:
        if not name or not self.sizes.knows(name):
            raise LookupError(name)
        return self.sizes.at(name)


Count = Callable[[_Operands], int]


def _convolve(weight: int = 1) -> Count:
    """Return the count of a convolution: outputs times the positions of a filter."""
    # the filter of one output channel, which grouped convolutions have shortened already
    return lambda node: prod(node.out()) * prod(node.shape(weight)[1:])


def _convolve_transposed(node: _Operands) -> int:
    """Count a transposed convolution: inputs times the positions of a filter."""
    return prod(node.shape(0)) * prod(node.shape(1)[1:])


def _multiply(second: int = 1) -> Count:
    """Return the count of a matrix product: leading axes times rows, columns and sums."""

    def count(node: _Operands) -> int:
        left, right = node.shape(0), node.shape(second)
        # vectors are matrices of one row or column
        left = left if len(left) > 1 else (1, *left)
        right = right if len(right) > 1 else (*right, 1)
        rows, length = left[-2:]
        if node.integer("transA"):
            rows, length = length, rows
        columns = right[-2 if node.integer("transB") else -1]
        leading = [1] * max(len(left), len(right))
        for shape in (left[:-2], right[:-2]):
            for axis, size in enumerate(reversed(shape)):
                leading[axis] = max(leading[axis], size)
        return prod(leading) * rows * columns * length

    return count


def _multiply_quantized_weight(node: _Operands) -> int:
    """Count a product with a weight in blocks, whose sizes are attributes."""
    rows = prod(node.shape(0)[:-1])
    return rows * node.integer("K") * node.integer("N")


def _einsum(node: _Operands) -> int:
    """Count an Einsum of several operands: the product of the lengths of all letters."""
    equation = str(attribute(node.node, "equation", "")).replace(" ", "")
    operands = equation.partition("->")[0].split(",")
    # one operand: elements are moved and summed, not multiplied
    if len(operands) < 2:
        return 0
    lengths: dict[str, int] = {}
    for slot, letters in enumerate(operands):
        shape = node.shape(slot)
        before, dots, after = letters.partition("...")
        extra = len(shape) - len(before) - len(after) if dots else 0
        # axes of "..." are aligned at the right, as broadcasting does
        names = [*before, *(f"...{k}" for k in reversed(range(extra))), *after]
        for name, size in zip(names, shape, strict=True):
            # a length of 1 broadcasts to that of another operand
            lengths[name] = max(size, lengths.get(name, 1))
    return prod(lengths.values())


def _recur(gates: int) -> Count:
    """Return the count of a recurrent layer: gates times units times (inputs + units)."""

    def count(node: _Operands) -> int:
        steps, batch, inputs = node.shape(0)
        directions = 2 if attribute(node.node, "direction", "forward") == "bidirectional" else 1
        # absent: the recurrent weight has a column per unit
        units = node.integer("hidden_size") or node.shape(2)[-1]
        return steps * batch * directions * gates * units * (inputs + units)

    return count


def _attend(node: _Operands) -> int:
    """Count attention: two products over queries and keys (and the projection of onnxruntime's)."""
    query = node.shape(0)
    if node.node.op_type == "Attention" and node.node.domain == CONTRIB_DOMAIN:
        batch, steps, inputs = query
        # its weight holds three projections next to each other
        width = node.shape(1)[-1]
        past = node.shape(4)[-2] if node.has(4) else 0
        keys = steps + past
        return batch * steps * (inputs * width + 2 * keys * (width // 3))
    key = node.shape(1) if node.has(1) else query
    if len(query) not in (3, 4) or len(key) not in (3, 4):
        raise LookupError(node.node.op_type)  # packed operands, in a layout of their own
    slot = _PAST_KEY[node.node.op_type]
    keys = key[-2] + (node.shape(slot)[-2] if node.has(slot) else 0)
    if len(query) == 4:
        return prod(query[:-1]) * keys * (query[-1] + node.shape(2)[-1])
    width = query[-1]
    if not node.has(1):  # queries, keys and values in one operand
        heads, key_heads = node.integer("num_heads"), node.integer("kv_num_heads")
        width = width * heads // max(heads + 2 * key_heads, 1)
    return prod(query[:-1]) * keys * 2 * width


def _attend_linearly(node: _Operands) -> int:
    """Count linear attention: updates of a state per key head, and a read of it per query head."""
    batch, steps, width = node.shape(0)
    heads, key_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    rule = attribute(node.node, "update_rule", "gated_delta")
    # delta rules correct the state by what it returns, which reads it once more
    updates = 2 if "delta" in str(rule) else 1
    state = (width // max(heads, 1)) * (node.shape(2)[-1] // max(key_heads, 1))
    return batch * steps * state * (max(heads, key_heads) + updates * key_heads)


def _count_nothing(node: _Operands) -> int:
    """Return 0: the operator multiplies no matrices."""
    return 0


_CONVOLUTIONS = "CausalConvWithState Conv FusedConv ConvInteger DeformConv NhwcConv NhwcFusedConv"
_PRODUCTS = (
    "MatMul MatMulInteger FusedMatMul FusedMatMulActivation TransposeMatMul MatMulInteger16 "
    "MatMulIntegerToFloat DynamicQuantizeMatMul Gemm FusedGemm GemmFastGelu GemmFloat8"
)
_IN_BLOCKS = "MatMulNBits MatMulBnb4 MatMulFpQ4"
# attention -> operand that holds past keys, of shape (batch, heads, length, size)
_PAST_KEY = {
    "Attention": 4,
    "MultiHeadAttention": 6,
    "GroupQueryAttention": 3,
    "SparseAttention": 3,
    "DecoderMaskedMultiHeadAttention": 5,
}
# of onnxruntime: element-wise, normalizations, and operators that move or quantize values
_FREE_CONTRIB = """
    BiasAdd BiasDropout BiasSoftmax BiasSplitGelu BitmaskDropout CropAndResize
    EmbedLayerNormalization ExpandDims GatherBlockQuantized GatherND GridSample GroupNorm
    GroupNormalization IsAllFinite MaxpoolWithMask NGramRepeatBlock NhwcMaxPool Pad Range
    ReduceSumInteger RelativePositionBias RemovePadding RestorePadding RotaryEmbedding
    SkipGroupNorm SwiGLU Tokenizer Trilu UnfoldTensor Unique
"""
_COUNTS: dict[str, Count] = {
    **dict.fromkeys(_CONVOLUTIONS.split(), _convolve()),
    "QLinearConv": _convolve(3),
    "ConvTranspose": _convolve_transposed,
    **dict.fromkeys(_PRODUCTS.split(), _multiply()),
    "QLinearMatMul": _multiply(3),
    "QGemm": _multiply(3),
    **dict.fromkeys(_IN_BLOCKS.split(), _multiply_quantized_weight),
    "Einsum": _einsum,
    "LSTM": _recur(4),
    "DynamicQuantizeLSTM": _recur(4),
    "GRU": _recur(3),
    "RNN": _recur(1),
    **dict.fromkeys(_PAST_KEY, _attend),
    "LinearAttention": _attend_linearly,
    **dict.fromkeys(_FREE_CONTRIB.split(), _count_nothing),
}


def all_products(record: Record, sizes: Sizes) -> tuple[tuple[Product, ...], tuple[int, ...]]:
    """Return all products of a model, and the nodes that are not counted.

    Those of rules come first, then those of other nodes by the definitions of their operators.
    """
    products = list(record.products)
    counted = {product.node for product in products}
    uncounted = []
    for index, node in enumerate(record.nodes):
        if index in counted:
            continue
        # by name alone, an operator of another domain may be anything
        count = _COUNTS.get(node.op_type) if _is_built_in(node) else None
        if count is None:
            if not _is_known(node):
                uncounted.append(index)
            continue
        try:
            macs = count(_Operands(node, sizes))
        # an invalid node: named as uncounted, because a report of costs must not fail for it
        except INVALID_NODE:
            uncounted.append(index)
            continue
        if macs:
            products.append(Product(index, macs, ()))
    if len(products) > len(record.products):  # in graph order, as tables of layers list them
        products.sort(key=lambda product: product.node)
    return tuple(products), tuple(uncounted)


def _is_built_in(node: NodeProto) -> bool:
    """Return whether the operator is one of the standard or of onnxruntime."""
    return node.domain in STANDARD_DOMAINS or node.domain == CONTRIB_DOMAIN


def _is_known(node: NodeProto) -> bool:
    """Return whether an operator without a count multiplies nothing.

    Rules without products say so, and standard operators that multiply are listed above.
    """
    if node.domain in STANDARD_DOMAINS or node.domain.startswith("ai.onnx"):
        return True
    has_rule = row(node.op_type, node.domain) is not None
    return has_rule or (node.domain == CONTRIB_DOMAIN and node.op_type in MOVES)


def name_uncounted(nodes: Sequence[NodeProto]) -> str:
    """Return "2 nodes of com.microsoft.X, 1 node of my.Op"; "" for no node.

    >>> from onnx import helper
    >>> name_uncounted([helper.make_node("Op", [], ["y"], domain="my")])
    '1 node of my.Op'
    """
    names = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes)
    return ", ".join(f"{plural(count, 'node')} of {name}" for name, count in names.most_common())
