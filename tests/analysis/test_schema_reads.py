"""Rules read every attribute and operand of their schemas, in every opset version."""

from __future__ import annotations

import pytest
from schema_reads import Version, unread, versions
from unread import UNREAD, reasons

from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.rules import RULES

# Rows that no graph reaches: Identity is removed before the analysis
_NEVER_APPLIED = {"Identity"}
_VERSIONS = [v for v in versions() if v.op not in _NEVER_APPLIED]


@pytest.mark.parametrize("version", _VERSIONS, ids=lambda version: version.label)
def test_rule_reads_what_matters(version: Version) -> None:
    known = reasons()
    missing = [name for name in unread(version) if (version.op, name) not in known]
    assert missing == [], (
        f"the rule of {version.label} does not read {', '.join(missing)}: read it, "
        "or say in unread.py why it does not matter"
    )


def test_every_reason_is_needed() -> None:
    needed = {(version.op, name) for version in _VERSIONS for name in unread(version)}
    assert set(reasons()) - needed == set()


def test_no_reason_is_given_twice() -> None:
    assert len(reasons()) == sum(len(e.ops.split()) * len(e.names.split()) for e in UNREAD)


def test_every_operator_has_a_schema() -> None:
    """Only operators that onnxruntime keeps to itself have none."""
    assert {*RULES, *MOVES} - {v.op for v in versions()} == {"SimplifiedLayerNormalization"}
