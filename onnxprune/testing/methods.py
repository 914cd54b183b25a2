"""Contract of search methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxprune.search.base import Search
from onnxprune.search.journal import Journal
from onnxprune.testing.contract import ContractError
from onnxprune.testing.plans import check_plan
from onnxprune.types import Plan


def check_method(method: Callable[[Search], Plan], search: Search) -> None:
    """Check the contract of a search method.

    It returns a valid plan (see `check_plan`) that meets the budgets, and the same plan for the
    same search. Each call gets an empty journal.

    Parameters
    ----------
    search
        A search with a budget that the method can reach. Its engine should be a computed one, or
        measured times may change the plan.

    Raises
    ------
    ContractError, UsageError, VerificationError
        The contract is violated.
    """
    first, second = (method(replace(search, journal=Journal())) for _ in range(2))
    # before the budgets: a plan for another model has no meaningful cost
    check_plan(search.analysis, first)
    if not search.met(first.kept):
        raise ContractError("method-contract", "the plan misses a budget; raise search.missed(...)")
    if first.kept != second.kept:
        raise ContractError(
            "method-contract",
            "two calls with the same search return different plans; draw random numbers from "
            "search.context.seed",
        )
