"""Gemmini: a systolic array beside a RISC-V core, fed by onnxruntime-riscv; the estimate of its array goes along."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import (
    Files,
    HandoffTarget,
    PreparedModel,
    Samples,
    TargetOption,
    TargetResult,
)
from onnxprune.deploy.nodes import GraphNode
from onnxprune.deploy.targets.reports import load_json, numbers
from onnxprune.engines.cost.systolic import estimate, preset
from onnxprune.ir.io import to_bytes
from onnxprune.ir.quantize import is_quantized, quantize


def parse(results: Path, model: str) -> TargetResult:
    """Cycles of one inference."""
    found = numbers(load_json(results / f"{model}.json", f"Gemmini's result for {model}"))
    notes = (
        (
            "no operator ran on the array: the model is not int8 in the form that onnxruntime-riscv maps",
        )
        if found.get("systolic_calls") == 0
        else ()
    )
    return TargetResult(model, found, notes=notes)


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """estimate.json: cycles by layer on a 16 x 16 array; int8 copies of the models where there are inputs to find ranges by."""
    array = preset("gemmini")
    found = {}
    for m in models:
        figures = estimate(m.model, array)
        found[m.name] = {
            "cycles": figures.cycles,
            "layers": [
                asdict(layer) | {"cycles": layer.cycles, "bound": layer.bound}
                for layer in figures.layers
            ],
        }
    whole = {
        f"models/{m.name}.int8.onnx": to_bytes(quantize(m.model, samples, qdq=False))
        for m in models
        if samples and not is_quantized(m.model)
    }
    return whole | {
        "estimate.json": (
            json.dumps({"array": asdict(array), "models": found}, indent=1) + "\n"
        ).encode()
    }


def _depthwise(node: GraphNode) -> Iterator[tuple[str, str]]:
    if node.depthwise:
        yield "slow", "depthwise: one column of the array works"
    elif node.get("group", 1) > 1:
        yield "fallback", f"{node.get('group')} groups run on the CPU"


_CONV = (
    limits.rank(4),
    limits.constant_weights("fallback"),
    limits.no_dilation("fallback"),
    limits.symmetric_pads("fallback"),
    limits.channels_multiple(16),
)


def _integers(model: PreparedModel) -> Iterator[tuple[str, str]]:
    if not is_quantized(model.model):
        yield (
            "note",
            "float32: the array takes int8; with --data the bundle holds an int8 copy, and run.py takes that",
        )


TARGET = HandoffTarget(
    name="gemmini",
    title="Gemmini",
    script="gemmini",
    needs=("onnxruntime-riscv's ort_test", "spike with Gemmini's extension, FireSim, or a board"),
    ops={
        "Conv": (*_CONV, _depthwise),
        "Gemm": (limits.constant_weights("fallback"), limits.channels_multiple(16)),
        "MatMul": (limits.channels_multiple(16),),
        "QLinearConv": _CONV,
        "QLinearMatMul": (),
        "MaxPool": (limits.rank(4, "fallback"),),
        "Relu": (),
        "Clip": (limits.clip_is((0.0, 6.0)),),
        "Add": (limits.same_shapes("fallback"),),
        "QLinearAdd": (),
        "Flatten": (),
        "Reshape": (),
        "Transpose": (),
        "Identity": (),
        "QuantizeLinear": (),
        "DequantizeLinear": (),
    },
    otherwise="fallback",
    whole=_integers,
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
