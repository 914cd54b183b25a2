"""Why operators of the standard have no rule: the reason that their axes are frozen for."""

from __future__ import annotations

_REASONS = {
    "its result does not have channels": """
        AffineGrid BlackmanWindow HammingWindow HannWindow MelWeightMatrix RandomNormal
        RandomUniform Range STFT
    """,
    "its result depends on the sizes of its operand": "EyeLike Size",
    "which rows it returns depends on the data": "NonMaxSuppression NonZero Unique",
    "it compares the probabilities of all classes": """
        Multinomial NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss
    """,
    "its operands are strings or bytes": """
        ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer
    """,
    "the elements of its sequence are not known": """
        ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
        SequenceLength SequenceMap SplitToSequence
    """,
    "an optional value is not followed": "Optional OptionalGetElement OptionalHasElement",
}
REASONS = {op: reason for reason, ops in _REASONS.items() for op in ops.split()}


def explain(op: str, standard: bool) -> str:
    """Return the end of the message that an operator has no rule; "" for no known reason."""
    return f" ({REASONS[op]})" if standard and op in REASONS else ""
