"""Any machine with Python and a runtime: times of models, and of layers with --layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxprune.deploy.bundle import (
    Files,
    HandoffTarget,
    PreparedModel,
    Samples,
    TargetOption,
    TargetResult,
    script,
)
from onnxprune.errors import DataError
from onnxprune.files import read_text


def parse(results: Path, model: str) -> TargetResult:
    """Return the latency of one model; DataError if it is missing or invalid."""
    try:
        text = read_text(results / f"{model}.times.json", "replace")
        times = np.array(json.loads(text), float)
        if times.ndim != 1 or not times.size or not np.isfinite(times).all():
            raise ValueError("no list of times")
    except OSError as problem:
        raise DataError(
            "results-missing", f"{results} has no {model}.times.json: the run did not finish"
        ) from problem
    except (ValueError, TypeError, RecursionError) as problem:
        raise DataError("times-invalid", f"{model}.times.json is invalid: {problem}") from problem
    figures = {"latency_ms": float(np.median(times)), "latency_min_ms": float(times.min())}
    return TargetResult(model, figures)


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """Return the scripts that time models."""
    return {f"{name}.py": script(name) for name in ("agent", "layer_times")}


TARGET = HandoffTarget(
    name="remote",
    title="the runtime",
    script="remote",
    needs=("Python 3.8 and the runtime's package: onnxruntime or openvino",),
    ops={},
    any_op=True,
    parse=parse,
    options={
        "runtime": TargetOption("onnxruntime", "onnxruntime, onnxruntime-cuda or openvino"),
        "precision": TargetOption(
            "f32", "precision of the runtime", ("f32", "bf16", "f16", "int8")
        ),
        "threads": TargetOption("1", "threads per inference"),
        "rounds": TargetOption("30", "rounds of the models, in turns"),
    },
    files=files,
    opset=0,
)
