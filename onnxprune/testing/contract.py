"""Error of a violated contract."""

from __future__ import annotations

from onnxprune.errors import OnnxpruneError


class ContractError(OnnxpruneError, AssertionError):
    """An object violates the contract of its kind; also an AssertionError, as of a failed test."""
