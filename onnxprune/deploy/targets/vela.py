"""Arm Ethos-U: int8 TFLite compiled by Vela, which estimates cycles."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import HandoffTarget, TargetOption, TargetResult
from onnxprune.deploy.nodes import GraphNode
from onnxprune.errors import DataError


def parse(results: Path, model: str) -> TargetResult:
    """Cycles, latency and memory out of Vela's summary, and cycles by layer where its per-layer table is there."""
    path = results / f"{model}.summary.csv"
    if not path.is_file():
        raise DataError("results-missing", f"{path} is missing; did run.py end well?")
    layers = results / f"{model}.layers.csv"
    by_layer = (
        parse_layers(layers.read_text(encoding="utf-8", errors="replace"))
        if layers.is_file()
        else {}
    )
    return TargetResult(
        model, parse_summary(path.read_text(encoding="utf-8", errors="replace")), by_layer, "cycles"
    )


def parse_summary(text: str) -> dict[str, float]:
    """Figures of a summary CSV: cycles, latency_ms, macs, memory in KiB.

    Raises
    ------
    DataError
        Not such a table.
    """
    rows = _rows(text)
    if not rows or "cycles_total" not in rows[-1]:
        raise DataError("report-invalid", "not Vela's summary: it has no column cycles_total")
    row, found = rows[-1], {}
    for figure, column, factor in _COLUMNS:
        try:
            found[figure] = float(row[column]) * factor
        except (KeyError, TypeError, ValueError):
            continue
    return found


def parse_layers(text: str) -> dict[str, float]:
    """Layer -> cycles; a Vela that writes other columns gives none."""
    found: dict[str, float] = {}
    for row in _rows(text):
        name = row.get("name") or row.get("Name") or ""
        cycles = row.get("cycles_total") or row.get("Op Cycles") or ""
        try:
            found[name] = found.get(name, 0.0) + float(cycles)
        except (TypeError, ValueError):
            continue
    return found


def _rows(text: str) -> list[dict[str, str]]:
    """The rows of a table with a header."""
    try:
        return list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    except csv.Error as problem:
        raise DataError("report-invalid", f"not a CSV table: {problem}") from problem


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


def _kernel(node: GraphNode) -> Iterator[tuple[str, str]]:
    """Vela's supported operators: height up to 64, height x width up to 4096, strides up to 3."""
    kernel = node.kernel
    if kernel and (kernel[0] > 64 or kernel[0] * kernel[-1] > 64 * 64):
        yield (
            "fallback",
            f"kernel {'x'.join(map(str, kernel))} is over 64 in height or 4096 in area",
        )


_CONV = (
    limits.rank(4, "fallback"),
    limits.constant_weights("fallback"),
    limits.stride_at_most(3, "fallback"),
    _kernel,
    limits.channels_multiple(16),
)
_POOL = (limits.rank(4, "fallback"), limits.stride_at_most(3, "fallback"), _kernel)
TARGET = HandoffTarget(
    name="vela",
    title="Ethos-U",
    script="vela",
    needs=(
        "ethos-u-vela 5.2 and onnx2tf with TensorFlow (tools/setup_vela.sh), or int8 TFLite files (--tflite FOLDER)",
    ),
    ops={
        "Conv": (*_CONV, limits.no_groups(True, "fallback")),
        "ConvTranspose": _CONV,
        "Gemm": (limits.constant_weights("fallback"), limits.channels_multiple(16)),
        "MatMul": (limits.constant_weights("fallback"), limits.channels_multiple(16)),
        "MaxPool": _POOL,
        "AveragePool": _POOL,
        "GlobalAveragePool": (limits.rank(4, "fallback"),),
        "Relu": (),
        "Clip": (),
        "LeakyRelu": (),
        "Sigmoid": (),
        "Tanh": (),
        "HardSwish": (),
        "Softmax": (),
        **{
            op: ()
            for op in (
                "Add",
                "Sub",
                "Mul",
                "Min",
                "Max",
                "Concat",
                "Split",
                "Slice",
                "Pad",
                "Reshape",
                "Flatten",
                "Transpose",
                "Squeeze",
                "Unsqueeze",
            )
        },
        "Resize": (),
        "ReduceMean": (),
        "BatchNormalization": (),
        "Identity": (),
        "QuantizeLinear": (),
        "DequantizeLinear": (),
    },
    otherwise="fallback",
    parse=parse,
    options={
        "accelerator": TargetOption(
            "ethos-u55-128",
            "Vela's name of the accelerator",
            (
                "ethos-u55-32",
                "ethos-u55-64",
                "ethos-u55-128",
                "ethos-u55-256",
                "ethos-u65-256",
                "ethos-u65-512",
            ),
        ),
        "tflite": TargetOption(
            "", "folder with original.tflite and pruned.tflite, to leave out the conversion"
        ),
    },
    multiple=16,
    sources=(
        "https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela (SUPPORTED_OPS.md)",
    ),
)
