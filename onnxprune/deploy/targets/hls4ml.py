"""hls4ml: ONNX to C++ for high-level synthesis; simulated with g++, synthesized where Vitis HLS is."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from onnxprune.deploy.targets.rewrites import for_qonnx
from onnxprune.errors import DataError

UNROLLED_WEIGHTS = (
    4096  # hls4ml refuses or takes hours over layers with more multiplications in parallel
)
AGREES = 0.95  # share of equal classes below which a note says so
_FIELDS = {
    "latency_cycles": "PerformanceEstimates/SummaryOfOverallLatency/Worst-caseLatency",
    "interval_cycles": "PerformanceEstimates/SummaryOfOverallLatency/Interval-max",
    "clock_ns": "PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod",
    "bram": "AreaEstimates/Resources/BRAM_18K",
    "dsp": "AreaEstimates/Resources/DSP",
    "ff": "AreaEstimates/Resources/FF",
    "lut": "AreaEstimates/Resources/LUT",
    "uram": "AreaEstimates/Resources/URAM",
}


def parse(results: Path, model: str) -> TargetResult:
    """Agreement with onnxruntime, and cycles and resources where the model was synthesized."""
    figures = numbers(load_json(results / f"{model}.json", f"hls4ml's result for {model}"))
    report = results / f"{model}.csynth.xml"
    notes = (
        [] if report.is_file() else ["simulated only: no cycles and resources without Vitis HLS"]
    )
    if (same := figures.get("argmax_agreement", 1.0)) < AGREES:
        notes.append(
            f"names onnxruntime's class on {same:.0%} of the inputs only: too few bits (precision), or an operator in the wrong layout"
        )
    return TargetResult(
        model,
        figures
        | (
            parse_synthesis(report.read_text(encoding="utf-8", errors="replace"))
            if report.is_file()
            else {}
        ),
        notes=tuple(notes),
    )


def parse_synthesis(text: str) -> dict[str, float]:
    """Figures of a csynth.xml of Vivado or Vitis HLS; fields that say "undef" are left out.

    Raises
    ------
    DataError
        Not such a report.
    """
    if "<!ENTITY" in text:
        raise DataError(
            "report-invalid", "the csynth.xml declares entities, which no HLS tool writes"
        )
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as problem:
        raise DataError("report-invalid", f"not a csynth.xml: {problem}") from problem
    found = {}
    for name, place in _FIELDS.items():
        value = root.findtext(place)
        try:
            found[name] = float(value) if value is not None else float("nan")
        except ValueError:
            continue
    found = {n: v for n, v in found.items() if v == v}
    if not found:
        raise DataError(
            "report-invalid", "not a csynth.xml: it has none of the fields of a synthesis report"
        )
    return found


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """hls4ml.json: what run.py lays over hls4ml's own configuration, by layer where more multipliers than can be unrolled are asked for."""
    config: dict[str, Any] = {
        "Model": {"Precision": options["precision"], "Strategy": options["strategy"]},
        "LayerName": {},
    }
    if options["strategy"] == "Resource":
        config["LayerName"] = {m.name: _factors(m, int(options["reuse"])) for m in models}
    return {"hls4ml.json": (json.dumps(config, indent=1) + "\n").encode()}


def _factors(prepared: PreparedModel, asked: int) -> dict[str, dict[str, int]]:
    """Reuse factor by layer, under the names that qonnx gives: operator and running number, a Gemm counting as MatMul."""
    seen: Counter[str] = Counter()
    found = {}
    for node in prepared.nodes():
        kind = "MatMul" if node.op == "Gemm" else node.op
        if kind in ("Conv", "MatMul"):
            if node.channels is not None:
                inputs = node.channels[0] // node.get("group", 1) * math.prod(node.kernel)
                found[f"{kind}_{seen[kind]}"] = {
                    "ReuseFactor": reuse(inputs, node.channels[1], asked)
                }
            seen[kind] += 1
    return found


def reuse(inputs: int, outputs: int, asked: int) -> int:
    """The valid reuse factor nearest to the asked one that leaves at most 4096 multipliers: it divides inputs * outputs, and either
    divides or is a multiple of the number of inputs (the rule of hls4ml's Resource strategy).
    """
    total = inputs * outputs
    valid = [
        r
        for r in range(1, total + 1)
        if total % r == 0
        and (inputs % r == 0 or r % inputs == 0)
        and total // r <= UNROLLED_WEIGHTS
    ]
    return min(valid, key=lambda r: (abs(r - asked), r))


def _unrolled(node: GraphNode) -> Iterator[tuple[str, str]]:
    channels = node.channels
    if channels is None:
        return
    count = channels[0] * channels[1] // node.get("group", 1) * math.prod(node.kernel)
    if count > UNROLLED_WEIGHTS:
        yield (
            "slow",
            f"{count} weights are too many to unroll (limit {UNROLLED_WEIGHTS}): take --option strategy=Resource and a reuse factor",
        )


def _joins(node: GraphNode) -> Iterator[tuple[str, str]]:
    shape = node.out_shape
    if (
        shape is not None
        and len(shape) == 4
        and sum(not node.constant(i) for i in range(len(node.proto.input))) > 1
    ):
        yield (
            "unsupported",
            "joins two images: a residual network with a Concat came out wrong in simulation (hls4ml 1.3.0, qonnx 1.0.0); chains only",
        )


TARGET = HandoffTarget(
    name="hls4ml",
    title="hls4ml",
    script="hls4ml",
    needs=(
        "Python with hls4ml 1.3 and qonnx 1.0 (tools/setup_hls4ml.sh)",
        "g++",
        "AMD Vitis HLS for cycles and resources (optional)",
    ),
    ops={
        "Conv": (
            limits.constant_weights(),
            limits.no_groups(True),
            limits.no_dilation(),
            _unrolled,
        ),
        "Gemm": (limits.constant_weights(), _unrolled),
        "MatMul": (limits.constant_weights(), _unrolled),
        "MaxPool": (limits.rank(4), limits.symmetric_pads("note")),
        "BatchNormalization": (),
        "Relu": (),
        "LeakyRelu": (),
        "PRelu": (),
        "Elu": (),
        "Selu": (),
        "Sigmoid": (),
        "HardSigmoid": (),
        "Tanh": (),
        "Softmax": (),
        "ThresholdedRelu": (),
        "Add": (_joins,),
        "Sub": (_joins,),
        "Mul": (_joins,),
        "Concat": (_joins,),
        "Flatten": (),
        "Reshape": (),
        "Transpose": (),
        "Identity": (),
        "Resize": (),
    },
    parse=parse,
    options={
        "precision": TargetOption("fixed<16,6>", "default type of weights and activations"),
        "reuse": TargetOption("1", "multiplications each multiplier does in turn"),
        "strategy": TargetOption(
            "Latency", "unrolled, or with a reuse factor", ("Latency", "Resource")
        ),
        "io": TargetOption(
            "io_parallel", "arrays or streams between layers", ("io_parallel", "io_stream")
        ),
        "backend": TargetOption("Vitis", "code for this tool", ("Vitis", "Vivado")),
        "part": TargetOption("xcu250-figd2104-2L-e", "device"),
        "clock-ns": TargetOption("5", "clock period"),
        "synthesize": TargetOption(
            "auto", "run Vitis HLS: where it is on PATH, always, never", ("auto", "yes", "no")
        ),
    },
    files=files,
    rewrite=for_qonnx,
    sources=("https://fastmachinelearning.org/hls4ml/",),
)
