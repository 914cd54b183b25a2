"""A sample of the ONNX standard's node tests; all of them: python -m benchmarks.backend_tests."""

from __future__ import annotations

import pytest

from benchmarks.backend_tests import failures, load_tests, measure, summarize

MODULES = ("compress", "topk", "reversesequence", "scatterelements", "gemm", "convtranspose")
# tests of one operator differ little: every third of a module
STEP = 3


@pytest.mark.parametrize("module", MODULES)
def test_node_tests_stay_equal_and_cuts_are_exact(module: str) -> None:
    tests = list(load_tests([module]))[::STEP]
    rows = [{"test": test.name, **measure(test, seeds=1)} for test in tests]
    assert not failures(rows)
    assert any(r["same"] == "equal" for r in rows), summarize(rows)
    assert any(r["first"] == "cut" for r in rows), summarize(rows)
