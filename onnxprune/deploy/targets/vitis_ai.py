"""AMD Vitis AI: DPUCZDX8G on Zynq UltraScale+; quantized, compiled and timed by AMD's tools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from onnxprune.engines.cost.systolic import PRESETS
from onnxprune.errors import DataError
from onnxprune.files import read_text
from onnxprune.ir.io import to_bytes
from onnxprune.ir.quantize import is_quantized
from onnxprune.quantize.static import quantize_arrays

_FPS = re.compile(r"FPS\s*[=:]\s*([\d.]+)")
_COUNTS = re.compile(r"Total device subgraph number (\d+), DPU subgraph number (\d+)")


def parse(results: Path, model: str) -> TargetResult:
    """Return the images per second, if a DPU ran the model, and the compiler's subgraphs."""
    compiled, timed = results / f"{model}.compile.log", results / f"{model}.benchmark.log"
    # either is enough: the compiler runs on a workstation, the timing on the board
    if not compiled.is_file() and not timed.is_file():
        raise DataError(
            "results-missing",
            f"{results} has neither {compiled.name} nor {timed.name}; check the output of run.py",
        )
    figures: dict[str, float] = {}
    notes: list[str] = []
    # a log without the line, of another compiler, gives no counts but is no error
    counts = _COUNTS.search(read_text(compiled, "replace")) if compiled.is_file() else None
    if counts is not None:
        figures |= {"subgraphs": float(counts[1]), "dpu_subgraphs": float(counts[2])}
        # one subgraph is the goal: each further one adds copies between CPU and DPU
        if counts[2] != "1":
            notes.append(f"{counts[2]} DPU subgraphs; the nodes between them run on the CPU")
    if timed.is_file():
        rates = _FPS.findall(read_text(timed, "replace"))
        if not rates:
            raise DataError("report-invalid", f"{timed} has no FPS line of xdputil benchmark")
        # the latency is that of one thread, the default; several threads overlap
        figures |= {"throughput_per_s": float(rates[-1]), "latency_ms": 1e3 / float(rates[-1])}
    else:
        notes.append("compiled only; run the folder again on the board for times")
    return TargetResult(model, figures, notes=tuple(notes))


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """Return the int8 models that AMD's quantizer does not make.

    These are models that are quantized already, and with quantizer=onnxprune copies of float ones.
    """
    content = {}
    for m in models:
        if is_quantized(m.model):
            content[f"models/{m.name}.int8.onnx"] = to_bytes(m.model)
        elif options["quantizer"] == "onnxprune":
            copy = quantize_arrays(m.model, samples, "vitis-ai")
            content[f"models/{m.name}.int8.onnx"] = to_bytes(copy)
    return content


def _check_channels(node: GraphNode) -> Finding:
    """Test widths against the largest DPU, whose multiple is 16; smaller ones have 8 to 14."""
    yield from limits.channels_multiple(PRESETS["dpu-b4096"].multiple)(node)


_CONV = (
    limits.rank(4),
    limits.constant_weights(),
    limits.no_groups(True),
    limits.kernel_at_most(16),
    limits.stride_at_most(8),
    _check_channels,
)
_POOL = (limits.rank(4), limits.kernel_at_most(256), limits.stride_at_most(256))
_CONFIGURED = (limits.always("note", "needs an IP that is configured for it"),)
TARGET = HandoffTarget(
    name="vitis-ai",
    title="DPUCZDX8G",
    script="vitis_ai",
    needs=(
        "AMD's Vitis AI 3.5 container (vai_q_onnx, vai_c_xir)",
        "a board with a DPU for times (xdputil)",
    ),
    ops={
        "Conv": _CONV,
        "ConvTranspose": _CONV,
        "Gemm": (limits.constant_weights(), _check_channels),
        "MaxPool": _POOL,
        "AveragePool": _POOL,
        "GlobalAveragePool": (limits.rank(4),),
        "Clip": (limits.clip_is((0.0, 6.0)),),
        "LeakyRelu": (
            limits.leaky_slope(
                26 / 256, "computed with slope 26/256 on an IP that is configured with LeakyReLU"
            ),
        ),
        "HardSigmoid": _CONFIGURED,
        "HardSwish": _CONFIGURED,
        "Add": (limits.same_shapes(),),
        "Mul": (limits.same_shapes(),),
        "Concat": (limits.attribute_is("axis", 1, 1, -3),),
        "Resize": (limits.attribute_is("mode", "nearest", "nearest", "linear"),),
        **limits.no_limits(
            "Relu Pad Flatten Reshape Transpose BatchNormalization Identity "
            "QuantizeLinear DequantizeLinear DepthToSpace SpaceToDepth"
        ),
    },
    otherwise="fallback",
    parse=parse,
    files=files,
    options={
        "arch": TargetOption(
            "/opt/vitis_ai/compiler/arch/DPUCZDX8G/ZCU104/arch.json", "arch.json of the DPU"
        ),
        "quantizer": TargetOption(
            "vai",
            "vai = AMD's vai_q_onnx, onnxprune = int8 copies in the bundle (with --data)",
            ("vai", "onnxprune"),
        ),
        "threads": TargetOption("1", "threads of xdputil benchmark"),
    },
    multiple=16,
    sources=(
        "https://docs.amd.com/r/en-US/pg338-dpu",
        "https://docs.amd.com/r/en-US/ug1414-vitis-ai (Operators Supported)",
    ),
)
