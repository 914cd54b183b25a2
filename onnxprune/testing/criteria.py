"""Contract of criteria."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.base import Context, Criterion
from onnxprune.testing.contract import ContractError


def check_criterion(criterion: Criterion, context: Context) -> None:
    """Check the contract of a criterion.

    It returns known groups only, one finite float64 per channel, and the same scores for the same
    context.

    Raises
    ------
    ContractError
        The contract is violated.
    UsageError
        A group is unknown.
    """
    first, second = criterion(context), criterion(context)
    if first.keys() != second.keys():
        raise ContractError(
            "criterion-contract", "two calls with the same context score different groups"
        )
    # group() raises for an unknown name
    for name, scores in first.items():
        size = context.analysis.group(name).size
        if scores.shape != (size,) or scores.dtype != np.float64 or not np.isfinite(scores).all():
            raise ContractError(
                "criterion-contract",
                f"scores of group {name!r} must be {size} finite float64 values, not "
                f"{scores.dtype} of shape {scores.shape}",
            )
        if not np.array_equal(scores, second[name]):
            raise ContractError(
                "criterion-contract",
                f"scores of group {name!r} differ between two calls with the same context; draw "
                "random numbers from context.seed",
            )
