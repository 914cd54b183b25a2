"""hls4ml: ONNX to C++ for high-level synthesis; simulated with g++, synthesized with Vitis HLS."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
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
from onnxprune.deploy.targets.rewrites import for_qonnx
from onnxprune.errors import DataError
from onnxprune.files import read_text

# with more parallel multiplications per layer hls4ml fails or takes hours
UNROLLED_WEIGHTS = 4096
AGREES = 0.95  # top-1 agreement below which a note warns
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
    """Return the agreement with onnxruntime; cycles and resources if the model was synthesized."""
    figures = numbers(load_json(results / f"{model}.json", f"hls4ml's result for {model}"))
    report = results / f"{model}.csynth.xml"
    notes = []
    if not report.is_file():
        notes.append("simulated only; cycles and resources need Vitis HLS")
    agreement = figures.get("argmax_agreement", 1.0)
    if agreement < AGREES:
        notes.append(
            f"top-1 agreement with onnxruntime is {agreement:.0%} (expected {AGREES:.0%}): "
            "too few bits (option precision), or an operator in the wrong layout"
        )
    if report.is_file():
        figures |= parse_synthesis(read_text(report, "replace"))
    return TargetResult(model, figures, notes=tuple(notes))


def parse_synthesis(text: str) -> dict[str, float]:
    """Return the figures of a csynth.xml of Vivado or Vitis HLS, without those that are "undef".

    Raises
    ------
    DataError
        The text is not such a report.
    """
    # entities could expand to any size
    if "<!ENTITY" in text:
        raise DataError(
            "report-invalid", "not a csynth.xml: it declares entities, which no HLS tool writes"
        )
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as problem:
        raise DataError("report-invalid", f"not a csynth.xml: {problem}") from problem
    figures = {}
    for name, place in _FIELDS.items():
        try:
            # latencies of loops with unknown bounds are written as "undef"
            value = float(root.findtext(place) or "nan")
        except ValueError:
            continue
        if not math.isnan(value):
            figures[name] = value
    # any XML parses; a report without one of these fields is another file
    if not figures:
        raise DataError("report-invalid", "not a csynth.xml: it has no field of a synthesis report")
    return figures


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """Return hls4ml.json, which run.py merges into hls4ml's own configuration.

    With strategy Resource it holds a reuse factor per layer.
    """
    config: dict[str, Any] = {
        "Model": {"Precision": options["precision"], "Strategy": options["strategy"]},
        "LayerName": {},
    }
    if options["strategy"] == "Resource":
        reuse = int(options["reuse"])
        config["LayerName"] = {m.name: _choose_factors(m, reuse) for m in models}
    return {"hls4ml.json": (json.dumps(config, indent=1) + "\n").encode()}


def _choose_factors(prepared: PreparedModel, requested: int) -> dict[str, dict[str, int]]:
    """Return the reuse factor per layer, under qonnx's names.

    These are operator and running number; a Gemm counts as MatMul.
    """
    counts: Counter[str] = Counter()
    factors = {}
    for node in prepared.nodes():
        # qonnx splits a Gemm into MatMul and Add
        kind = "MatMul" if node.op == "Gemm" else node.op
        if kind not in ("Conv", "MatMul"):
            continue
        if node.channels is not None:
            # length of the sum of one output
            inputs = node.channels[0] // node.get("group", 1) * math.prod(node.kernel)
            factor = choose_reuse(inputs, node.channels[1], requested)
            factors[f"{kind}_{counts[kind]}"] = {"ReuseFactor": factor}
        # qonnx numbers all nodes of a kind, also those without constant weights
        counts[kind] += 1
    return factors


def choose_reuse(inputs: int, outputs: int, requested: int) -> int:
    """Return the valid reuse factor nearest to the requested one.

    A factor is valid if it divides inputs * outputs, divides or is a multiple of the number of
    inputs (the rule of hls4ml's Resource strategy), and leaves at most 4096 multipliers.
    """
    total = inputs * outputs
    # never empty: the product of both leaves one multiplier
    valid = [
        r
        for r in range(1, total + 1)
        if total % r == 0
        and (inputs % r == 0 or r % inputs == 0)
        and total // r <= UNROLLED_WEIGHTS
    ]
    # of two at equal distance the smaller one: it is faster
    return min(valid, key=lambda r: (abs(r - requested), r))


def _check_unrolled(node: GraphNode) -> Finding:
    """Test for layers that can be unrolled."""
    channels = node.channels
    if channels is None:
        return
    count = channels[0] * channels[1] // node.get("group", 1) * math.prod(node.kernel)
    if count > UNROLLED_WEIGHTS:
        yield (
            "slow",
            f"{count} weights are too many to unroll (limit {UNROLLED_WEIGHTS}); "
            "pass --option strategy=Resource and a reuse factor",
        )


def _check_join(node: GraphNode) -> Finding:
    """Test for nodes that join two images."""
    shape = node.out_shape
    if shape is None or len(shape) != 4:
        return
    # a constant operand is a bias or scale, which hls4ml computes
    if sum(not node.constant(i) for i in range(len(node.proto.input))) > 1:
        yield (
            "unsupported",
            "joins two images; only chains are supported, a residual network with a Concat "
            "computes wrong outputs in simulation (hls4ml 1.3.0, qonnx 1.0.0)",
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
            _check_unrolled,
        ),
        "Gemm": (limits.constant_weights(), _check_unrolled),
        "MatMul": (limits.constant_weights(), _check_unrolled),
        "MaxPool": (limits.rank(4), limits.symmetric_pads("note")),
        "Add": (_check_join,),
        "Sub": (_check_join,),
        "Mul": (_check_join,),
        "Concat": (_check_join,),
        **limits.no_limits(
            "BatchNormalization Relu LeakyRelu PRelu Elu Selu Sigmoid HardSigmoid Tanh Softmax "
            "ThresholdedRelu Flatten Reshape Transpose Identity Resize"
        ),
    },
    parse=parse,
    options={
        "precision": TargetOption("fixed<16,6>", "default type of weights and activations"),
        "reuse": TargetOption("1", "multiplications per multiplier (reuse factor)"),
        "strategy": TargetOption(
            "Latency", "Latency = unrolled, Resource = by reuse factor", ("Latency", "Resource")
        ),
        "io": TargetOption(
            "io_parallel", "arrays or streams between layers", ("io_parallel", "io_stream")
        ),
        "backend": TargetOption("Vitis", "tool that the code is written for", ("Vitis", "Vivado")),
        "part": TargetOption("xcu250-figd2104-2L-e", "device"),
        "clock-ns": TargetOption("5", "clock period in ns"),
        "synthesize": TargetOption(
            "auto", "run Vitis HLS; auto = if it is on PATH", ("auto", "yes", "no")
        ),
    },
    files=files,
    rewrite=for_qonnx,
    sources=("https://fastmachinelearning.org/hls4ml/",),
)
