"""THE TABLE: what each operator does with channels.

A row is a pattern (see notation.py) and what the pattern cannot express (see rule.py), or a
function that builds it from a node (see ops/). To add an operator, add a row here and a graph in
ONNX text to tests/analysis/cases/, on which the cut is compared with the masked original.
Operators that move positions are functions in movement.py. An operator that is in neither
freezes the axes of its operands and outputs.
"""

from __future__ import annotations

from onnxprune.analysis.ops.attention import attention
from onnxprune.analysis.ops.cached_attention import (
    decoder_masked_attention,
    decoder_masked_self_attention,
    group_query_attention,
    linear_attention,
)
from onnxprune.analysis.ops.contractions import deform_conv, einsum, gemm, matmul, recurrent
from onnxprune.analysis.ops.elementwise import along_axis, elementwise
from onnxprune.analysis.ops.fused import (
    bias_dropout,
    bias_softmax,
    embed_layer_normalization,
    group_norm,
    nhwc_conv,
)
from onnxprune.analysis.ops.fused_attention import (
    attention_of_token_heads,
    attention_of_tokens,
    multi_head_attention,
    quantized_attention,
)
from onnxprune.analysis.ops.indexing import (
    by_element,
    discrete_fourier,
    gather_nd,
    one_hot,
    scatter_nd,
    tensor_scatter,
    top_k,
    triangle,
)
from onnxprune.analysis.ops.normalization import (
    batch_normalization,
    group_normalization,
    layer_normalization,
    local_response_normalization,
    lp_normalization,
    mean_variance_normalization,
    rms_normalization,
)
from onnxprune.analysis.ops.quantized import (
    conv_integer,
    dynamic_quantize,
    gather_block_quantized,
    matmul_integer,
    matmul_nbits,
    matmul_to_float,
    qgemm,
    qlinear,
    qlinear_elementwise,
    qlinear_pool,
    qlinear_reduce_mean,
    qlinear_softmax,
    quantize,
    quantized_lstm,
)
from onnxprune.analysis.ops.reductions import arg_reduce, cumsum, global_average, reduce
from onnxprune.analysis.ops.resampling import (
    col2im,
    depth_to_space,
    grid_sample,
    max_pool,
    resize,
    space_to_depth,
)
from onnxprune.analysis.ops.sequence import causal_conv, reverse_sequence, swiglu
from onnxprune.analysis.rule import GROUP, Row, Rule
from onnxprune.registry import Registry

PLUGINS = Registry("rule", "onnxprune.rules")

_GROUPS = {"group": "g"}
_CONV = "n (g c) *, (g o) c *, (g o) -> n (g o) *"
_CONV_LAST = "n * (g c), (g o) c *, (g o) -> n * (g o)"
_TRANSPOSED = "n (g c) *, (g c) o *, (g o) -> n (g o) *"
_PASS = "n c * -> n c *"

# Operators with the row `elementwise`
_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp
    Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not
    Reciprocal Relu Round ScaledSiLU Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish
    Tan Tanh ThresholdedRelu
"""
_BROADCAST = """
    Add And BiasAdd BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater
    GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
"""


def _each(ops: str, row: Row) -> dict[str, Row]:
    """Return one row for several operators."""
    return dict.fromkeys(ops.split(), row)


RULES: dict[str, Row] = {
    # Contractions
    "Conv": Rule(_CONV, GROUP, freeze="*", refit=_GROUPS, macs=("n g o c * #",)),
    "ConvTranspose": Rule(_TRANSPOSED, GROUP, freeze="*", refit=_GROUPS, macs=("n g o c @ #",)),
    "DeformConv": deform_conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "LSTM": recurrent(4, 3),
    "GRU": recurrent(3),
    "RNN": recurrent(1),
    "Attention": attention,
    "GroupQueryAttention": group_query_attention,
    "DecoderMaskedMultiHeadAttention": decoder_masked_attention,
    "DecoderMaskedSelfAttention": decoder_masked_self_attention,
    "LinearAttention": linear_attention,
    # Sequences and random numbers
    "CausalConvWithState": causal_conv,
    "ReverseSequence": reverse_sequence,
    "SwiGLU": swiglu,
    **_each("Bernoulli RandomNormalLike RandomUniformLike BitCast", Rule("... -> ...")),
    "DFT": discrete_fourier,
    # Normalizations
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": Rule("n c *, c, c -> n c *", mixes="*"),
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    **_each("RMSNormalization SimplifiedLayerNormalization", rms_normalization),
    "LpNormalization": lp_normalization,
    "LRN": local_response_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    # Functions of one axis
    **_each("Softmax LogSoftmax Hardmax", along_axis(-1, flattened_before=13)),
    **_each("ArgMax ArgMin", arg_reduce),
    **_each("CumSum CumProd", cumsum),
    "Det": Rule("... m n -> ...", freeze="m n"),
    # Reductions
    **_each("ReduceSum ReduceL1 ReduceL2 ReduceSumSquare", reduce(linear=True)),
    "ReduceMean": reduce(linear=True, mean=True),
    **_each(
        "ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp",
        reduce(linear=False),
    ),
    # Pooling, resampling, rearrangement
    **_each("AveragePool GlobalMaxPool LpPool GlobalLpPool", Rule(_PASS, freeze="*")),
    "GlobalAveragePool": global_average,
    "MaxPool": max_pool,
    **_each("Resize Upsample", resize),
    "GridSample": grid_sample,
    "RoiAlign": Rule("n c h w, r i, r -> r c 1 1", freeze="nhwri"),
    "MaxRoiPool": Rule("n c h w, r i -> r c 1 1", freeze="nhwri"),
    "Col2Im": col2im,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    # Indexing
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    **_each("GatherElements ScatterElements Scatter", by_element),
    "OneHot": one_hot,
    "TensorScatter": tensor_scatter,
    "TopK": top_k,
    "Trilu": triangle,
    # Quantized operators
    **_each("QuantizeLinear DequantizeLinear", quantize),
    "DynamicQuantizeLinear": dynamic_quantize,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear(_CONV, "n g o c * #", "(g o)", _CONV_LAST),
    "QLinearMatMul": qlinear("... m k, ... k n, n -> ... m n", "... m k n"),
    "QGemm": qgemm,
    "DynamicQuantizeMatMul": matmul_to_float(dynamic=True),
    "MatMulIntegerToFloat": matmul_to_float(dynamic=False),
    **_each("QLinearAdd QLinearMul", qlinear_elementwise(0, 3)),
    **_each("QLinearLeakyRelu QLinearSigmoid", qlinear_elementwise(0)),
    "QLinearWhere": qlinear_elementwise(0, 1, 4),
    **_each("QLinearAveragePool QLinearGlobalAveragePool", qlinear_pool),
    "QLinearSoftmax": qlinear_softmax,
    # Elementwise
    **_each(_UNARY + _BROADCAST, elementwise),
    "CastLike": Rule("... -> ..."),
    "Dropout": Rule("..., , -> ..., ..."),
    # Written by the optimizers and quantizers of onnxruntime
    **_each("NhwcConv NhwcFusedConv", nhwc_conv),
    "ConvTransposeWithDynamicPads": Rule(
        "n (g c) *, (g c) o *, i, (g o) -> n (g o) *",
        GROUP,
        freeze="* i",
        refit=_GROUPS,
        macs=("n g o c @ #",),
    ),
    "MatMulNBits": matmul_nbits,
    "GatherBlockQuantized": gather_block_quantized,
    "DynamicQuantizeLSTM": quantized_lstm,
    "MultiHeadAttention": multi_head_attention,
    "QAttention": quantized_attention,
    "PackedAttention": attention_of_tokens,
    "PackedMultiHeadAttention": attention_of_token_heads,
    **_each("GroupNorm SkipGroupNorm", group_norm),
    **_each("EmbedLayerNormalization QEmbedLayerNormalization", embed_layer_normalization),
    "BiasSoftmax": bias_softmax,
    "BiasSplitGelu": Rule("n s (j d), (j d) -> n s d", {"j": 2}, freeze="j"),
    **_each("BiasDropout BitmaskDropout BitmaskBiasDropout", bias_dropout),
    "NhwcMaxPool": Rule("n * c -> n * c", freeze="*"),
    "QLinearReduceMean": qlinear_reduce_mean,
}


def row(op: str, domain: str) -> Row | None:
    """Return the row of an operator; None if there is none.

    Plug-ins add rows under "OP" or "domain::OP" and cannot replace built-in ones.
    """
    if domain in ("", "ai.onnx") or (domain == "com.microsoft" and op in RULES):
        return RULES.get(op) or (PLUGINS.get(op) if op in PLUGINS else None)
    name = f"{domain}::{op}"
    return PLUGINS.get(name) if name in PLUGINS else None
