"""Evaluation of a model by onnx's reference evaluator or by onnxruntime."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from proving.worlds import FEED, INPUT
from tests.analysis.contrib_ops import OPERATORS

REFERENCE, ONNXRUNTIME = "reference", "onnxruntime"
NUMPY = "numpy"  # the reference evaluator, with operators that the tests define in numpy
FLOATS = {REFERENCE: np.float64, ONNXRUNTIME: np.float32, NUMPY: np.float64}
# Relative to the largest value of an output. Removed terms are zeros, so only the order of sums
# and vectorized functions differ.
TOLERANCE = {REFERENCE: 1e-12, ONNXRUNTIME: 1e-5, NUMPY: 1e-12}


class EvaluationError(Exception):
    """The evaluator cannot run a model; the message is its own."""


def evaluate(model: ModelProto, runtime: str) -> list[np.ndarray]:
    """Return the outputs of a model.

    Raises
    ------
    EvaluationError
        The evaluator lacks an operator or a form of it, or the graph is invalid.
    """
    feeds = {INPUT: np.array(FEED, FLOATS[runtime])}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if runtime == ONNXRUNTIME:
                return list(map(np.asarray, _session(model).run(None, feeds)))
            operators = OPERATORS if runtime == NUMPY else None
            evaluator = ReferenceEvaluator(model, new_ops=operators)
            return list(map(np.asarray, evaluator.run(None, feeds)))
    except Exception as problem:  # evaluators raise any kind of exception
        raise EvaluationError(f"{type(problem).__name__}: {problem}") from problem


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    """Return a session that runs the graph as it is written, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def differs(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    """Return how an output differs by more than a relative tolerance; "" if it does not."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return (
            f"{actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
        )
    same = (actual == expected) | (_is_nan(actual) & _is_nan(expected))
    if same.all():
        return ""
    with np.errstate(all="ignore"):
        error = np.where(same, 0, np.abs(actual.astype(np.float64) - expected))
    finite = np.abs(expected)[np.isfinite(expected)]
    limit = tolerance * max(1.0, float(finite.max(initial=0)))
    if tolerance and bool((error <= limit).all()):
        return ""
    return f"{actual.ravel().tolist()} instead of {expected.ravel().tolist()}"


def _is_nan(values: np.ndarray) -> np.ndarray:
    """Return which values are NaN; none of integers."""
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
