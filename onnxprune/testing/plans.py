"""Contract of plans, which allocators and search methods return."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from onnxprune.analysis.groups import Analysis
from onnxprune.errors import VerificationError
from onnxprune.moved import old_names
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.testing.contract import ContractError
from onnxprune.types import Plan

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__, {"check_rule": "onnxprune.testing.rules:check_rule"})


def check_plan(analysis: Analysis, plan: Plan) -> None:
    """Check the contract of a plan.

    It belongs to the analysis, is the same after writing and reading JSON, and the model cut by it
    equals the masked original.

    Raises
    ------
    UsageError
        The plan is for another model, or names unknown groups or channels.
    ContractError
        Sizes and kept channels do not match, or the plan is not plain data.
    VerificationError
        The cut model does not run, or differs from the masked original.
    """
    analysis.check(plan)
    if set(plan.kept) != set(plan.sizes) or dict(plan.options) != dict(analysis.options):
        raise ContractError(
            "plan-contract",
            "kept and sizes must name the same groups, and the options must be those of the "
            "analysis",
        )
    if Plan.from_json(json.loads(json.dumps(plan.to_json()))) != plan:
        raise ContractError("plan-contract", "the plan changes when it is written and read as JSON")
    result = verify(analysis, plan, cut(analysis, plan))
    if not result.ok:
        raise VerificationError(
            "plan-contract",
            f"the cut model differs from the masked original by {result.difference:.2g} "
            f"(limit {result.tolerance:.2g})",
        )
