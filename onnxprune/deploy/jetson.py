"""Jetson: content of its bundle, DLA compatibility checks, and readers of its logs.

Formats: trtexec --exportTimes and --exportProfile of TensorRT 8 to 11; tegrastats of L4T 28 to 38.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import (
    Files,
    Finding,
    HandoffTarget,
    PreparedModel,
    Samples,
    TargetOption,
    TargetResult,
    script,
)
from onnxprune.deploy.nodes import GraphNode
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import DataError
from onnxprune.files import read_text
from onnxprune.ir.half import to_half
from onnxprune.ir.io import to_bytes
from onnxprune.ir.quantize import is_quantized
from onnxprune.quantize.static import quantize_arrays

# of the highest GPU load in a log; samples below it are loading of the engine and shut-down
BUSY_SHARE = 0.5
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # measure the whole module
INNER_RAILS = frozenset({"VDDQ_VDD2_1V8AO"})  # supplied by another rail of the list
# the end excludes pairs with another unit, such as RAM 2448/7772MB
_RAIL = re.compile(
    r"(?<![\w/])([A-Z][A-Z0-9_]+) (\d{1,9})(?:mW)?/\d{1,9}(?:mW)?(?![\w(])", re.ASCII
)
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (\d{1,3})%", re.ASCII)
_STAMP = re.compile(r"(\d{1,15}\.\d{1,9}) ", re.ASCII)


@dataclass(frozen=True)
class PowerSample:
    """One line of tegrastats.

    Attributes
    ----------
    at_s
        Time of the line, NaN if the log has none.
    gpu_percent
        Load of the GPU, NaN if absent.
    rails_mw
        Power rail -> instant value.
    """

    at_s: float
    gpu_percent: float
    rails_mw: Mapping[str, float]

    @property
    def total_mw(self) -> float:
        """Power of the module: its input rail, else the sum of the outer rails, else NaN."""
        for rail in TOTAL_RAILS:
            if rail in self.rails_mw:
                return self.rails_mw[rail]
        # without a total, rails that feed other rails would count twice
        outer = [value for rail, value in self.rails_mw.items() if rail not in INNER_RAILS]
        return float(sum(outer)) if outer else float("nan")


def parse_tegrastats(text: str) -> tuple[PowerSample, ...]:
    """Return the samples of a tegrastats log, one per line with a power rail.

    Never raises: a log may be cut off anywhere. Rails are written `VDD_IN 4521mW/4521mW` (instant
    and average) or, in old releases, `POM_5V_IN 2532/2532`; the GPU `GR3D_FREQ 14%@[420]`,
    `GR3D_FREQ 14%@420`, `GR3D_FREQ 14%` or `GR3D 14%@420`. run.py puts the time in seconds before
    each line.
    """
    samples = []
    for line in text.splitlines():
        rails = {name: float(now) for name, now in _RAIL.findall(line)}
        if rails:
            stamp, gpu = _STAMP.match(line), _GPU.search(line)
            samples.append(PowerSample(_to_number(stamp), _to_number(gpu), rails))
    return tuple(samples)


def busy_mw(samples: Sequence[PowerSample]) -> float:
    """Return the mean power of the module while the GPU works; NaN without samples.

    The GPU counts as working from half of the log's highest load on.
    """
    loads = np.array([s.gpu_percent for s in samples])
    power = np.array([s.total_mw for s in samples])
    if not len(power):
        return float("nan")
    if np.isfinite(loads).any() and np.nanmax(loads) > 0:
        # samples without a load do not count as busy
        power = power[np.nan_to_num(loads, nan=-1.0) >= BUSY_SHARE * np.nanmax(loads)]
    return float(np.mean(power))


def parse(results: Path, model: str) -> TargetResult:
    """Return latency, energy and layers of one model."""
    environment = _read_environment(results)
    figures = _read_latency(results, model, environment)
    power = _read_power(results, model)
    notes = []
    if power:
        # mW times seconds per inference
        energy = power["power_mw"] / figures["throughput_per_s"]
        # power and energy first, then what else the logs hold
        figures |= {"power_mw": power["power_mw"], "energy_mj": energy} | power
    else:
        notes.append("no energy: the tegrastats log has no power rails")
    if "done" not in str(environment.get("clocks_set", "done")):
        notes.append(
            f"clocks were not fixed ({environment['clocks_set']}): "
            "latency varies with load and temperature"
        )
    notes += _read_outputs(results, model, figures)
    profile = results / f"{model}.profile.json"
    layers = {}
    if profile.is_file():
        layers = parse_profile(read_text(profile, "replace"))
    information = results / f"{model}.layers.json"
    options = environment.get("options")
    # without a DLA all layers run on the GPU
    if isinstance(options, dict) and options.get("dla", "none") != "none" and information.is_file():
        notes += _list_gpu_layers(read_text(information, "replace"))
    return TargetResult(model, figures, layers, "ms", tuple(notes))


def _read_latency(results: Path, model: str, environment: Mapping[str, Any]) -> dict[str, float]:
    """Return latency and throughput over all rounds; DataError if there are none."""
    warm_up = environment.get("warm_up_ms")
    warm_up = float(warm_up) if isinstance(warm_up, (int, float)) else 0.0
    runs = [
        parse_times(read_text(path, "replace"), warm_up)
        for path in sorted(results.glob(f"{model}.*.times.json"))
    ]
    if not runs:
        raise DataError(
            "results-missing",
            f"{results} has no {model}.*.times.json: the run on the device did not finish; "
            "see the *.log files there",
        )
    # rounds of one model are pooled; models alternate, so that drift is shared
    latency = np.concatenate([r.latency_ms for r in runs])
    q1, median, q3 = np.percentile(latency, [25, 50, 75])
    return {
        "latency_ms": float(median),
        "latency_min_ms": float(latency.min()),
        "latency_p99_ms": float(np.percentile(latency, 99)),
        "latency_iqr_ms": float(q3 - q1),
        "inferences": float(len(latency)),
        # from start to start, because copies of the next inference may overlap
        "throughput_per_s": 1e3 / float(np.mean([r.period_ms for r in runs])),
    }


def _read_power(results: Path, model: str) -> dict[str, float]:
    """Return power while the model runs and idle power, {} if no log has power rails."""
    powers = [
        busy_mw(parse_tegrastats(read_text(path, "replace")))
        for path in sorted(results.glob(f"{model}.*.power.log"))
    ]
    # boards without power sensors write logs without rails
    if not powers or not np.isfinite(powers).any():
        return {}
    figures = {"power_mw": float(np.nanmean(powers))}
    idle = results / "idle.power.log"
    samples = parse_tegrastats(read_text(idle, "replace")) if idle.is_file() else ()
    if samples:
        figures["idle_power_mw"] = float(np.mean([s.total_mw for s in samples]))
    return figures


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """Return the script for Python bindings and the model copies that the precision needs.

    These are float16 copies for TensorRT 11, and int8 copies of float models.
    """
    content = {f"{name}.py": script(name) for name in ("jetson_python", "jetson_arrays")}
    for m in models:
        if options["precision"] == "fp16":
            content[f"models/{m.name}.fp16.onnx"] = to_bytes(to_half(m.model))
        if options["precision"] == "int8" and not is_quantized(m.model):
            # TensorRT reads int8 only from QuantizeLinear and DequantizeLinear
            copy = quantize_arrays(m.model, samples, "jetson")
            content[f"models/{m.name}.int8.onnx"] = to_bytes(copy)
    return content


def _to_number(match: re.Match[str] | None) -> float:
    """Return the first group of a match as a number, NaN without a match."""
    return float(match[1]) if match else float("nan")


def _read_environment(results: Path) -> dict[str, Any]:
    """Return what run.py wrote about the device, {} if it is missing or invalid."""
    try:
        text = read_text(results / "environment.json", "replace")
        value = json.loads(text)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_outputs(results: Path, model: str, figures: dict[str, float]) -> list[str]:
    """Add the largest difference of the outputs to the figures; return a note if it is too large.

    run.py compares the engine's outputs with onnxruntime's on the device.
    """
    try:
        found = json.loads(read_text(results / f"{model}.outputs.json", "replace"))
        differences, limit = dict(found["differences"]), float(found["tolerance"])
        wrong = [str(name) for name in found["wrong"]]
        values = [float("nan") if v is None else float(v) for v in differences.values()]
    # of a bundle before this file existed, or without expected outputs
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ["the outputs on the device were not compared with onnxruntime's"]
    figures["output_difference"] = float(np.max(values)) if values else float("nan")
    if not wrong:
        return []
    return [
        f"outputs {', '.join(wrong[:5])} differ from onnxruntime's by "
        f"{figures['output_difference']:.2g} of their largest value; {limit:g} is allowed at this "
        "precision: the times are those of a model that computes something else"
    ]


def _list_gpu_layers(text: str) -> list[str]:
    """Return a note with the layers that TensorRT kept on the GPU, from exportLayerInfo."""
    try:
        rows = list(json.loads(text).get("Layers", []))
    # the list is only a note: a log in an unknown format does not make the times invalid
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []
    layers = [r if isinstance(r, dict) else {"Name": r} for r in rows]
    named = [(str(r.get("Name", "")), str(r.get("LayerType", ""))) for r in layers]
    computing = [(name, kind) for name, kind in named if name and not _copies(name, kind)]
    outside = [name for name, kind in computing if not _is_on_dla(name, kind)]
    if not outside:
        return []
    return [f"{len(outside)} of {len(computing)} layers run on the GPU: {', '.join(outside[:5])}"]


def _copies(name: str, kind: str) -> bool:
    """Return whether a layer only moves data, such as between the GPU and the DLA's memory."""
    moves = name.endswith((" to nvm", " from nvm", " copy finish")) or name.startswith("Reformat")
    return moves or kind in ("Reformat", "NoOp")


def _is_on_dla(name: str, kind: str) -> bool:
    """Return whether a layer is a subgraph of the DLA.

    Detailed information has the type; a ForeignNode of another type is a region that Myelin
    compiled for the GPU. Without a type, a ForeignNode is taken as the DLA's.
    """
    return "DLA" in kind.upper() if kind else "ForeignNode" in name


def _check_pair(node: GraphNode) -> Finding:
    """Test QuantizeLinear and DequantizeLinear for the symmetric int8 that TensorRT reads."""
    zero, values = node.value(2), node.value(0)
    problem = ""
    # without a zero point, QuantizeLinear gives uint8
    if (zero is None and node.op == "QuantizeLinear") or (
        zero is not None and zero.dtype != "int8"
    ):
        problem = "is not int8"
    elif zero is not None and np.any(zero):
        problem = "has a zero point other than 0"
    elif values is not None and values.dtype == np.int32:
        problem = "computes a bias in int32"
    if problem:
        yield (
            "unsupported",
            f"{node.op} {problem}; quantize the float model with --quantize-form tensorrt",
        )


# TensorRT developer guide, "DLA supported layers and restrictions"
_IMAGE = (limits.rank(4, "fallback"),)
_DLA_CONV = (
    limits.rank(4, "fallback"),
    limits.constant_weights("fallback"),
    limits.kernel_at_most(32, "fallback"),
    limits.stride_at_most(8, "fallback"),
)
_DLA_POOL = (
    limits.rank(4, "fallback"),
    limits.kernel_at_most(8, "fallback"),
    limits.stride_at_most(16, "fallback"),
    limits.no_dilation("fallback"),
)
# "fallback" throughout: TensorRT runs on the GPU what the DLA cannot
DLA_OPS = {
    "Conv": _DLA_CONV,
    "ConvTranspose": (
        *_DLA_CONV,
        limits.no_groups(False, "fallback"),
        limits.no_dilation("fallback"),
    ),
    "MaxPool": _DLA_POOL,
    "AveragePool": (*_DLA_POOL, limits.attribute_is("count_include_pad", 0, 1, severity="note")),
    "GlobalAveragePool": (
        *_IMAGE,
        limits.always("note", "runs on DLA up to a window of 8x8, on the GPU above"),
    ),
    **{op: _IMAGE for op in ("Add", "Sub", "Mul", "Max", "Min", "Div")},
    "BatchNormalization": _IMAGE,
    "Concat": (*_IMAGE, limits.attribute_is("axis", 1, 1, -3, severity="fallback")),
    "LRN": (limits.attribute_is("size", 0, 3, 5, 7, 9, severity="fallback"),),
    "Softmax": (limits.always("note", "runs on Orin's DLA only"),),
    "Resize": (limits.attribute_is("mode", "nearest", "nearest", severity="fallback"),),
    "Slice": _IMAGE,
    "Split": _IMAGE,
    # "DLA does not support explicit quantization" in the guides of TensorRT 8; 11.4.1 on AGX Orin
    # reads the types of the graph only
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear"),
        (
            _check_pair,
            limits.always(
                "note",
                "the DLA reads Q/DQ from TensorRT 11.4.1 on; before, such a graph runs on the GPU",
            ),
        ),
    ),
    **limits.no_limits("Relu Sigmoid Tanh Clip LeakyRelu PRelu Identity Constant"),
}

TARGET = HandoffTarget(
    name="jetson",
    title="DLA",
    script="jetson",
    needs=("JetPack 5, 6 or 7 (TensorRT 8.5 to 11), nothing else",),
    ops=DLA_OPS,
    otherwise="fallback",
    everywhere=(limits.channels_multiple(16),),
    parse=parse,
    options={
        "precision": TargetOption("fp16", "precision of the engine", ("fp32", "fp16", "int8")),
        "dla": TargetOption("none", "DLA core to use", ("none", "0", "1")),
        "clocks": TargetOption(
            "max",
            "max = fix the clocks at the highest (needs sudo without password), keep = no change",
            ("max", "keep"),
        ),
        "power-mode": TargetOption(
            "max", "nvpmodel -m; max = the highest that nvpmodel -p --verbose lists"
        ),
        "duration": TargetOption("10", "seconds per timing round"),
        "rounds": TargetOption("3", "rounds per model, in turns"),
        "idle": TargetOption("3", "seconds of power sampling before the first round"),
        "warm-up": TargetOption("500", "milliseconds"),
        "interval": TargetOption("100", "milliseconds between power samples"),
    },
    files=files,
    opset=0,
    multiple=16,
    sources=(
        "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-with-dla.html",
    ),
)
