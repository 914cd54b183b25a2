"""Arm Ethos-U: int8 TFLite compiled by Vela, which estimates cycles."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import Finding, HandoffTarget, TargetOption, TargetResult
from onnxprune.deploy.nodes import GraphNode
from onnxprune.errors import DataError
from onnxprune.files import read_text

# figure, column of the summary, factor
_COLUMNS = (
    ("cycles", "cycles_total", 1.0),
    ("npu_cycles", "cycles_npu", 1.0),
    ("sram_access_cycles", "cycles_sram_access", 1.0),
    ("off_chip_flash_access_cycles", "cycles_off_chip_flash_access", 1.0),
    ("latency_ms", "inference_time", 1e3),
    ("macs", "nn_macs", 1.0),
    ("sram_kib", "sram_memory_used", 1.0),
    ("off_chip_flash_kib", "off_chip_flash_memory_used", 1.0),
)


def parse(results: Path, model: str) -> TargetResult:
    """Return cycles, latency and memory of Vela's summary, and cycles per layer if reported."""
    summary, layers = results / f"{model}.summary.csv", results / f"{model}.layers.csv"
    if not summary.is_file():
        raise DataError("results-missing", f"{summary} is missing; check the output of run.py")
    by_layer = {}
    # cycles per layer are an option of Vela's; the summary is always written
    if layers.is_file():
        by_layer = parse_layers(read_text(layers, "replace"))
    figures = parse_summary(read_text(summary, "replace"))
    return TargetResult(model, figures, by_layer, "cycles")


def parse_summary(text: str) -> dict[str, float]:
    """Return the figures of a summary CSV: cycles, latency_ms, macs, memory in KiB.

    Raises
    ------
    DataError
        The text is not such a table.
    """
    rows = _read_rows(text)
    if not rows or "cycles_total" not in rows[-1]:
        raise DataError("report-invalid", "not Vela's summary: column cycles_total is missing")
    figures = {}
    for figure, column, factor in _COLUMNS:
        try:
            # columns differ between versions; those that exist are still valid
            figures[figure] = float(rows[-1][column]) * factor
        except (KeyError, TypeError, ValueError):
            continue
    return figures


def parse_layers(text: str) -> dict[str, float]:
    """Return the cycles per layer; {} if this version of Vela writes other columns."""
    cycles: dict[str, float] = {}
    for row in _read_rows(text):
        # column names differ between versions of Vela
        name = row.get("name") or row.get("Name") or ""
        value = row.get("cycles_total") or row.get("Op Cycles") or ""
        try:
            # several rows may have the same name
            cycles[name] = cycles.get(name, 0.0) + float(value)
        except (TypeError, ValueError):
            continue
    return cycles


def _read_rows(text: str) -> list[dict[str, str]]:
    """Return the rows of a table with a header."""
    try:
        return list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    except csv.Error as problem:
        raise DataError("report-invalid", f"not a CSV table: {problem}") from problem


def _check_kernel(node: GraphNode) -> Finding:
    """Test for a kernel height up to 64 and an area up to 4096, Vela's limits."""
    kernel = node.kernel
    if kernel and (kernel[0] > 64 or kernel[0] * kernel[-1] > 64 * 64):
        size = "x".join(map(str, kernel))
        yield "fallback", f"kernel {size} exceeds 64 in height or 4096 in area"


_CONV = (
    limits.rank(4, "fallback"),
    limits.constant_weights("fallback"),
    limits.stride_at_most(3, "fallback"),
    _check_kernel,
    limits.channels_multiple(16),
)
_DENSE = (limits.constant_weights("fallback"), limits.channels_multiple(16))
_POOL = (limits.rank(4, "fallback"), limits.stride_at_most(3, "fallback"), _check_kernel)
_ACCELERATORS = (
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
)
TARGET = HandoffTarget(
    name="vela",
    title="Ethos-U",
    script="vela",
    needs=(
        "ethos-u-vela 5.2 and onnx2tf with TensorFlow (tools/setup_vela.sh), "
        "or int8 TFLite files (--tflite FOLDER)",
    ),
    ops={
        "Conv": (*_CONV, limits.no_groups(True, "fallback")),
        "ConvTranspose": _CONV,
        "Gemm": _DENSE,
        "MatMul": _DENSE,
        "MaxPool": _POOL,
        "AveragePool": _POOL,
        "GlobalAveragePool": (limits.rank(4, "fallback"),),
        **limits.no_limits(
            "Relu Clip LeakyRelu Sigmoid Tanh HardSwish Softmax Add Sub Mul Min Max Concat Split "
            "Slice Pad Reshape Flatten Transpose Squeeze Unsqueeze Resize ReduceMean "
            "BatchNormalization Identity QuantizeLinear DequantizeLinear"
        ),
    },
    otherwise="fallback",
    parse=parse,
    options={
        "accelerator": TargetOption(
            "ethos-u55-128", "Vela's name of the accelerator", _ACCELERATORS
        ),
        "tflite": TargetOption(
            "", "folder with original.tflite and pruned.tflite; skips the conversion"
        ),
    },
    multiple=16,
    sources=(
        "https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela (SUPPORTED_OPS.md)",
    ),
)
