"""Contract of repairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.surgery.cut import cut
from onnxprune.testing.contract import ContractError
from onnxprune.types import Plan

Repair = Callable[[Analysis, Plan, Model, Context], Model]


def check_repair(repair: Repair, context: Context, plan: Plan) -> None:
    """Check the contract of a repair.

    It returns a model with the interface of the pruned one that runs and whose weights are finite,
    and leaves the pruned model unchanged.

    Parameters
    ----------
    context
        Analysis of the original, and calibration data.
    plan
        Plan that the repaired model was cut by.

    Raises
    ------
    ContractError
        The contract is violated.
    ModelError
        The repaired model is not valid.
    """
    pruned = cut(context.analysis, plan)
    before = {name: weight.array().tobytes() for name, weight in pruned.weights.items()}
    repaired = repair(context.analysis, plan, pruned, context)
    for name, content in before.items():
        if pruned.weights[name].array().tobytes() != content:
            raise ContractError("repair-contract", f"weight {name!r} was changed in place")
    for name, weight in repaired.weights.items():
        values = weight.array()
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ContractError("repair-contract", f"weight {name!r} holds NaN or infinity")
    expected, actual = Session(pruned), Session(repaired)
    for kind, old, new in (
        ("inputs", list(expected.inputs), list(actual.inputs)),
        ("outputs", list(expected.outputs), list(actual.outputs)),
    ):
        if old != new:
            raise ContractError(
                "repair-contract", f"the {kind} are {', '.join(new)}, not {', '.join(old)}"
            )
