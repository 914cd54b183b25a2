"""Contract of allocators."""

from __future__ import annotations

import numpy as np

from onnxprune.allocators.base import Allocator, Constraints, Ranking
from onnxprune.allocators.steps import build_steps
from onnxprune.criteria.base import Context
from onnxprune.testing.contract import ContractError
from onnxprune.types import Scores


def check_allocator(
    allocator: Allocator, context: Context, scores: Scores, constraints: Constraints | None = None
) -> None:
    """Check the contract of an allocator.

    It returns a Ranking with one finite number per step, the same for the same arguments, and
    leaves the scores unchanged.

    Parameters
    ----------
    scores
        Scores of the channels, as of a criterion.
    constraints
        Allowed widths; None = all.

    Raises
    ------
    ContractError
        The contract is violated.
    """
    # later stages of a run get the same arrays
    before = {name: np.array(values) for name, values in scores.items()}
    steps, _ = build_steps(context.analysis, scores, constraints or Constraints(), (), ())
    first, second = (allocator(context, scores, steps) for _ in range(2))
    if not isinstance(first, Ranking) or not isinstance(first.per_saving, bool):
        raise ContractError(
            "allocator-contract", f"the result must be a Ranking, not {type(first).__name__}"
        )
    values = np.asarray(first.values)
    if values.shape != (len(steps),) or not np.isfinite(values).all():
        raise ContractError(
            "allocator-contract",
            f"values must be {len(steps)} finite numbers, one per step, not {values.dtype} of "
            f"shape {values.shape}",
        )
    if not np.array_equal(values, second.values) or first.per_saving != second.per_saving:
        raise ContractError(
            "allocator-contract",
            "two calls with the same arguments return different rankings; draw random numbers from "
            "context.seed",
        )
    for name, old in before.items():
        if not np.array_equal(old, scores[name]):
            raise ContractError(
                "allocator-contract", f"the scores of group {name!r} were changed in place"
            )
