"""Gemmini: a systolic array next to a RISC-V core, programmed by onnxruntime-riscv.

The bundle also holds the estimate of the array's cycles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import (
    Files,
    Finding,
    HandoffTarget,
    PreparedModel,
    Samples,
    TargetOption,
    TargetResult,
)
from onnxprune.deploy.nodes import GraphNode
from onnxprune.deploy.targets.reports import load_json, numbers
from onnxprune.engines.cost.systolic import ArrayEstimate, estimate, preset
from onnxprune.ir.io import to_bytes
from onnxprune.ir.quantize import is_quantized
from onnxprune.quantize.static import quantize_arrays


def parse(results: Path, model: str) -> TargetResult:
    """Return the cycles of one inference."""
    figures = numbers(load_json(results / f"{model}.json", f"Gemmini's result for {model}"))
    notes: tuple[str, ...] = ()
    # the runner falls back to the CPU silently, so that the cycles would mislead
    if figures.get("systolic_calls") == 0:
        notes = (
            "no operator ran on the array: "
            "the model is not int8 in the form that onnxruntime-riscv maps to it",
        )
    return TargetResult(model, figures, notes=notes)


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """Return estimate.json with cycles per layer, and int8 copies of float models.

    Copies need samples to calibrate their ranges.
    """
    # the default configuration, which the bundle assumes
    array = preset("gemmini")
    estimates = {m.name: _describe(estimate(m.model, array)) for m in models}
    text = json.dumps({"array": asdict(array), "models": estimates}, indent=1) + "\n"
    content = {}
    for m in models:
        if samples and not is_quantized(m.model):
            # onnxruntime-riscv maps QLinear operators to the array, not pairs of Q/DQ
            copy = quantize_arrays(m.model, samples, "gemmini")
            content[f"models/{m.name}.int8.onnx"] = to_bytes(copy)
    return content | {"estimate.json": text.encode()}


def _describe(figures: ArrayEstimate) -> dict[str, Any]:
    """Return plain data of an estimate."""
    layers = [
        asdict(layer)
        # the key of the first version, written for one more release
        | {"utilisation": layer.utilization, "cycles": layer.cycles, "bound": layer.bound}
        for layer in figures.layers
    ]
    return {"cycles": figures.cycles, "layers": layers}


def _check_groups(node: GraphNode) -> Finding:
    """Test for grouped convolutions."""
    # groups run one after another on the array, see engines.cost.systolic.compute_cycles
    if node.depthwise:
        yield "slow", "depthwise convolution: only one column of the array is busy"
    elif node.get("group", 1) > 1:
        yield "fallback", f"convolution with {node.get('group')} groups runs on the CPU"


def _check_model(model: PreparedModel) -> Finding:
    """Test for a quantized model."""
    if not is_quantized(model.model):
        yield (
            "note",
            "float32 model: the array computes int8; "
            "with --data the bundle holds an int8 copy that run.py uses",
        )


_CONV = (
    limits.rank(4),
    limits.constant_weights("fallback"),
    limits.no_dilation("fallback"),
    limits.symmetric_pads("fallback"),
    limits.channels_multiple(16),
)
TARGET = HandoffTarget(
    name="gemmini",
    title="Gemmini",
    script="gemmini",
    needs=("onnxruntime-riscv's ort_test", "spike with Gemmini's extension, FireSim, or a board"),
    ops={
        "Conv": (*_CONV, _check_groups),
        "Gemm": (limits.constant_weights("fallback"), limits.channels_multiple(16)),
        "MatMul": (limits.channels_multiple(16),),
        "QLinearConv": _CONV,
        "MaxPool": (limits.rank(4, "fallback"),),
        "Clip": (limits.clip_is((0.0, 6.0)),),
        "Add": (limits.same_shapes("fallback"),),
        **limits.no_limits(
            "Relu QLinearMatMul QLinearAdd Flatten Reshape Transpose Identity "
            "QuantizeLinear DequantizeLinear"
        ),
    },
    otherwise="fallback",
    whole=_check_model,
    parse=parse,
    options={
        "mode": TargetOption(
            "1", "0 = CPU, 1 = output stationary, 2 = weight stationary", ("0", "1", "2")
        ),
        "runner": TargetOption("ort_test", "onnxruntime-riscv's runner"),
        "spike": TargetOption(
            "yes", "simulate with spike; no = this machine has the array", ("yes", "no")
        ),
    },
    files=files,
    multiple=16,
    sources=("https://github.com/ucb-bar/gemmini", "https://github.com/ucb-bar/onnxruntime-riscv"),
)
