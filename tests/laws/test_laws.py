"""The laws of a cut, on graphs drawn at random from the rule table."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from graph_laws import (
    assert_composes,
    assert_cost_as_predicted,
    assert_exact,
    assert_finds_the_rest,
    assert_shapes_as_predicted,
    live_positions,
    plan_of,
    random_plan,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper
from random_graphs import graphs

from onnxprune.analysis.walk import analyse
from onnxprune.model.io import load, to_bytes
from onnxprune.surgery.cut import cut

SLOW_PARTS, SLOW_EXAMPLES = 4, 500
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
few = settings(max_examples=int(os.environ.get("ONNXPRUNE_EXAMPLES", "100")), deadline=None, suppress_health_check=_QUIET, derandomize=True)
many = settings(max_examples=SLOW_EXAMPLES, deadline=None, suppress_health_check=_QUIET)
seeds = st.integers(0, 2**16)


def all_laws(model: ModelProto, seed: int) -> None:
    """Cut at random: equal to the masked original, shapes and cost as predicted; again on what is left."""
    rng = np.random.default_rng(seed)
    analysis = analyse(load(model))
    plan = random_plan(analysis, rng)
    pruned, _ = assert_exact(analysis, plan, tolerance=1e-4)
    assert_shapes_as_predicted(analysis, plan, pruned)
    assert_cost_as_predicted(analysis, plan, pruned)


@few
@given(graphs(), seeds)
def test_cut_equals_masked(model: ModelProto, seed: int) -> None:
    all_laws(model, seed)
