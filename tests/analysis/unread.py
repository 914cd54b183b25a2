"""Attributes and operands that rules need not read, with the reason.

To add an operator: what `test_attributes.py` finds unread is either read by its rule or has a line
here.
"""

from __future__ import annotations

from typing import NamedTuple


class Unread(NamedTuple):
    """Attributes and operands that do not matter to the rules of some operators.

    Attributes
    ----------
    ops
        Names of the operators.
    names
        Names of the attributes and operands.
    reason
        Why they do not change which positions belong together, nor what a kept channel becomes.
    """

    ops: str
    names: str
    reason: str


_FUNCTION = "the same function of each element, or of each channel alone"
_WINDOW = "positions of the window: spatial axes are frozen, channels do not meet"
_SCALAR = "a scalar"
_MEMORY = "where the past is stored; its positions are frozen"

UNREAD = (
    Unread(
        "Conv ConvInteger DeformConv QLinearConv", "kernel_shape pads strides dilations", _WINDOW
    ),
    Unread("Conv ConvInteger QLinearConv", "auto_pad", _WINDOW),
    Unread(
        "ConvTranspose",
        "auto_pad kernel_shape pads strides dilations output_padding output_shape",
        _WINDOW,
    ),
    Unread(
        "AveragePool LpPool MaxPool",
        "auto_pad kernel_shape pads strides dilations ceil_mode",
        _WINDOW,
    ),
    Unread("QLinearAveragePool", "auto_pad kernel_shape pads strides ceil_mode", _WINDOW),
    Unread("AveragePool QLinearAveragePool", "count_include_pad", _WINDOW),
    Unread("Col2Im", "pads strides dilations", _WINDOW),
    Unread(
        "GridSample", "align_corners padding_mode mode", "positions of the samples of a channel"
    ),
    Unread(
        "RoiAlign",
        "mode output_height output_width sampling_ratio spatial_scale "
        "coordinate_transformation_mode",
        "positions of the samples of a channel; heights and widths are frozen",
    ),
    Unread(
        "Resize",
        "mode nearest_mode cubic_coeff_a exclude_outside extrapolation_value antialias",
        "how an axis is resampled; an axis that is resampled is frozen",
    ),
    Unread("Upsample", "mode", "how an axis is resampled; an axis that is resampled is frozen"),
    Unread("MaxPool", "storage_order", "order of the indices, which freeze all axes"),
    Unread("GlobalLpPool LpPool", "p", _FUNCTION),
    Unread("LpNormalization", "p", "zeros add nothing to a norm of any order"),
    Unread("LRN", "alpha beta bias", "the channels that are summed over are frozen"),
    Unread(
        "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization "
        "RMSNormalization",
        "epsilon",
        _FUNCTION,
    ),
    Unread("BatchNormalization", "momentum", _FUNCTION),
    Unread(
        "GroupNormalization LayerNormalization RMSNormalization",
        "stash_type",
        "precision of the statistics",
    ),
    Unread(
        "Celu Elu HardSigmoid LeakyRelu QLinearLeakyRelu Selu Swish ThresholdedRelu",
        "alpha",
        _FUNCTION,
    ),
    Unread("HardSigmoid", "beta", _FUNCTION),
    Unread("Selu", "gamma", _FUNCTION),
    Unread("Shrink", "bias lambd", _FUNCTION),
    Unread("Gelu", "approximate", _FUNCTION),
    Unread("BitShift", "direction", _FUNCTION),
    Unread("Mod", "fmod", _FUNCTION),
    Unread("IsInf", "detect_negative detect_positive", _FUNCTION),
    Unread("Clip", "min max", _FUNCTION),
    Unread("Cast", "to", _FUNCTION),
    Unread("Cast CastLike", "saturate round_mode", _FUNCTION),
    Unread("CastLike", "target_type", "only the type of the operand matters, not its axes"),
    Unread("QuantizeLinear", "saturate precision", _FUNCTION),
    Unread("QuantizeLinear DequantizeLinear", "output_dtype", _FUNCTION),
    Unread("Dropout", "ratio seed", "elements are zeroed independently of each other"),
    Unread("Gemm QGemm", "alpha", "a factor of all products"),
    Unread("Gemm", "beta", "a factor of all elements of C"),
    Unread(
        "LSTM GRU RNN",
        "activations activation_alpha activation_beta clip",
        "functions of each unit alone; a unit that is cut is masked where others read it",
    ),
    Unread(
        "LSTM GRU RNN",
        "direction",
        "the axis of directions is frozen, and both directions have the same units",
    ),
    Unread("GRU", "linear_before_reset", "both forms are products of the same weights"),
    Unread("LSTM", "input_forget", "a function of the gates of each unit alone"),
    Unread("ArgMax ArgMin", "select_last_index", "the axis of the extreme is frozen"),
    Unread("CumSum CumProd", "exclusive reverse", "the summed axis is frozen"),
    Unread("ScatterElements ScatterND", "reduction", "indexed axes are frozen, others are alike"),
    Unread("Pad", "value constant_value", _SCALAR),
    Unread("QLinearConcat", "Y_scale Y_zero_point", _SCALAR),
    Unread("ConstantOfShape", "value", _SCALAR),
    Unread("Flatten", "axis", "the lengths of the output are inferred from it"),
    Unread(
        "Attention",
        "is_causal unidirectional left_window_size right_window_size softcap softmax_precision "
        "mask_filter_value",
        "a function of the scores of each head; queries and keys are frozen",
    ),
    Unread("MultiHeadAttention", "unidirectional mask_filter_value", "a function of the scores"),
    Unread(
        "DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention",
        "mask_filter_value",
        "a function of the scores",
    ),
    Unread(
        "GroupQueryAttention",
        "causal local_window_size softcap smooth_softmax sliding_window_cache scale",
        "a function of the scores of each head",
    ),
    Unread(
        "GroupQueryAttention",
        "do_rotary rotary_interleaved qk_norm_epsilon q_norm_epsilon k_norm_epsilon "
        "kv_cache_bit_width",
        "sizes of heads are frozen, and heads are independent of each other",
    ),
    Unread("GroupQueryAttention", "qk_output", "what a fourth output holds, by head"),
    Unread("DecoderMaskedMultiHeadAttention", "output_qk", "whether there is a fourth output"),
    Unread("DecoderMaskedMultiHeadAttention", "past_present_share_buffer", _MEMORY),
    Unread("DecoderMaskedSelfAttention", "past_present_share_buffer", _MEMORY),
    Unread("LinearAttention", "chunk_size", "how the sum over positions is computed"),
    Unread("RotaryEmbedding", "is_packed_batching", "batch and sequence are frozen"),
    Unread("RotaryEmbedding", "scale", "a factor of all positions"),
    Unread("CausalConvWithState", "dilation ndim", _WINDOW),
    Unread("CausalConvWithState", "activation", _FUNCTION),
    Unread("SwiGLU", "alpha activation_alpha activation_beta limit round_activation", _FUNCTION),
    Unread("MaxUnpool", "kernel_shape pads strides", _WINDOW),
    Unread("MaxRoiPool", "pooled_shape spatial_scale", "heights and widths are frozen"),
    Unread("DFT", "inverse onesided", "the transformed axis is frozen"),
    Unread("TopK", "k sorted largest", "the axis of the selection is frozen"),
    Unread("TensorScatter", "mode", "the axis of the positions is frozen"),
    Unread("Trilu", "upper", "rows and columns are frozen"),
    Unread("BitCast", "to", _FUNCTION),
    Unread("Bernoulli RandomNormalLike RandomUniformLike", "dtype seed", _FUNCTION),
    Unread("RandomNormalLike", "mean scale", _FUNCTION),
    Unread("RandomUniformLike", "low high", _FUNCTION),
    Unread("Attention", "qk_matmul_output_mode", "what a fourth output holds, by head"),
    Unread("Attention", "past_present_share_buffer", _MEMORY),
    Unread("Attention", "rotary_embedding_dim", "with rotary embeddings, head sizes are frozen"),
    # Written by the optimizers and quantizers of onnxruntime
    Unread(
        "NhwcConv NhwcFusedConv NhwcMaxPool ConvTransposeWithDynamicPads",
        "auto_pad kernel_shape strides dilations",
        _WINDOW,
    ),
    Unread("NhwcConv NhwcFusedConv NhwcMaxPool", "pads", _WINDOW),
    Unread("NhwcMaxPool", "ceil_mode", _WINDOW),
    Unread("ConvTransposeWithDynamicPads", "output_padding", _WINDOW),
    Unread("NhwcFusedConv", "activation_params", _FUNCTION),
    Unread("GroupNorm SkipGroupNorm", "activation epsilon", _FUNCTION),
    Unread("EmbedLayerNormalization QEmbedLayerNormalization", "epsilon", _FUNCTION),
    Unread("EmbedLayerNormalization", "mask_index_type", "the second output is frozen"),
    Unread("ScaledSiLU", "alpha", _FUNCTION),
    Unread("BiasDropout BitmaskBiasDropout BitmaskDropout", "seed", _FUNCTION),
    Unread("BiasSoftmax", "is_inner_broadcast", "the bias broadcasts by its lengths of 1"),
    Unread("MatMulNBits", "accuracy_level", "how a block of inputs is rounded; blocks are alike"),
    Unread("MatMulNBits", "bits", "the bytes of a block are frozen"),
    Unread("QAttention PackedMultiHeadAttention", "mask_filter_value", "a function of the scores"),
    Unread("QAttention", "unidirectional", "a function of the scores"),
    Unread("QAttention", "past_present_share_buffer", _MEMORY),
    Unread(
        "DynamicQuantizeLSTM",
        "activation_alpha activation_beta clip direction input_forget",
        "a unit without parameters is 0 whatever they are; directions are frozen",
    ),
)


def reasons() -> dict[tuple[str, str], str]:
    """Return the reason per operator and name."""
    return {
        (op, name): entry.reason
        for entry in UNREAD
        for op in entry.ops.split()
        for name in entry.names.split()
    }
