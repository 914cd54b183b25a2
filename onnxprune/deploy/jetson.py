"""Jetson: what a bundle for it holds, what its DLA would hand back to the GPU, and how its logs are read.

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
    HandoffTarget,
    PreparedModel,
    Samples,
    TargetOption,
    TargetResult,
    script,
)
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import DataError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import to_bytes
from onnxprune.ir.quantize import is_quantized, quantize

BUSY_SHARE = (
    0.5  # of the highest GPU load in a log; samples below it are engine loading and shut-down
)
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # the whole module on one rail
INNER_RAILS = frozenset({"VDDQ_VDD2_1V8AO"})  # fed by another rail of the list


@dataclass(frozen=True)
class PowerSample:
    """One tegrastats line. at_s: when it came, NaN where the log does not say; gpu_percent: NaN where absent; rails_mw: instant values."""

    at_s: float
    gpu_percent: float
    rails_mw: Mapping[str, float]

    @property
    def total_mw(self) -> float:
        """The whole module: its input rail, else the sum of the outer rails; NaN without rails."""
        for rail in TOTAL_RAILS:
            if rail in self.rails_mw:
                return self.rails_mw[rail]
        outer = [v for k, v in self.rails_mw.items() if k not in INNER_RAILS]
        return float(sum(outer)) if outer else float("nan")


def parse_tegrastats(text: str) -> tuple[PowerSample, ...]:
    """Samples of a tegrastats log, one a line; lines without a power rail are dropped. Never fails: a log may be cut off anywhere.

    Rails come as `VDD_IN 4521mW/4521mW` (instant/average) or, in old releases, `POM_5V_IN 2532/2532`; the GPU as `GR3D_FREQ 14%@[420]`,
    `GR3D_FREQ 14%@420`, `GR3D_FREQ 14%` or `GR3D 14%@420`. A leading number is the time in seconds that run.py puts before each line.
    """
    found = []
    for line in text.splitlines():
        rails = {name: float(now) for name, now in _RAIL.findall(line)}
        if not rails:
            continue
        stamp, gpu = _STAMP.match(line), _GPU.search(line)
        found.append(PowerSample(_number(stamp), _number(gpu), rails))
    return tuple(found)


def busy_mw(samples: Sequence[PowerSample]) -> float:
    """Mean power of the module while the GPU works (at least half of the log's highest load); NaN without samples."""
    loads = np.array([s.gpu_percent for s in samples])
    power = np.array([s.total_mw for s in samples])
    if not len(power):
        return float("nan")
    if np.isfinite(loads).any() and np.nanmax(loads) > 0:
        power = power[np.nan_to_num(loads, nan=-1.0) >= BUSY_SHARE * np.nanmax(loads)]
    return float(np.mean(power))


def parse(results: Path, model: str) -> TargetResult:
    """Latency, energy and layers of one model out of the results folder of a run."""
    environment = _environment(results)
    warm_up = environment.get("warm_up_ms")
    warm_up = float(warm_up) if isinstance(warm_up, (int, float)) else 0.0
    runs = [
        parse_times(p.read_text(encoding="utf-8", errors="replace"), warm_up)
        for p in sorted(results.glob(f"{model}.*.times.json"))
    ]
    if not runs:
        raise DataError(
            "results-missing",
            f"{results} has no {model}.*.times.json: the run on the device did not finish; see its *.log",
        )
    latency = np.concatenate([r.latency_ms for r in runs])
    q1, median, q3 = np.percentile(latency, [25, 50, 75])
    figures = {
        "latency_ms": float(median),
        "latency_min_ms": float(latency.min()),
        "latency_p99_ms": float(np.percentile(latency, 99)),
        "latency_iqr_ms": float(q3 - q1),
        "inferences": float(len(latency)),
        "throughput_per_s": 1e3 / float(np.mean([r.period_ms for r in runs])),
    }
    powers = [
        busy_mw(parse_tegrastats(p.read_text(errors="replace")))
        for p in sorted(results.glob(f"{model}.*.power.log"))
    ]
    notes = []
    if powers and np.isfinite(powers).any():
        figures["power_mw"] = float(np.nanmean(powers))
        figures["energy_mj"] = figures["power_mw"] / figures["throughput_per_s"]
        idle = results / "idle.power.log"
        if idle.is_file() and (samples := parse_tegrastats(idle.read_text(errors="replace"))):
            figures["idle_power_mw"] = float(np.mean([s.total_mw for s in samples]))
    else:
        notes.append("no power rails in the tegrastats log: no energy")
    if "done" not in str(environment.get("clocks_set", "done")):
        notes.append(
            f"clocks were not fixed ({environment['clocks_set']}): latencies vary with load and temperature"
        )
    profile = results / f"{model}.profile.json"
    layers = (
        parse_profile(profile.read_text(encoding="utf-8", errors="replace"))
        if profile.is_file()
        else {}
    )
    information = results / f"{model}.layers.json"
    options = environment.get("options")
    if isinstance(options, dict) and options.get("dla", "none") != "none" and information.is_file():
        notes += _not_on_dla(information.read_text(encoding="utf-8", errors="replace"))
    return TargetResult(model, figures, layers, "ms", tuple(notes))


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """The part for the Python bindings, float16 copies for TensorRT 11, int8 copies where the models are not quantized."""
    found: dict[str, bytes] = {"jetson_python.py": script("jetson_python")}
    if options["precision"] == "fp16":
        found |= {f"models/{m.name}.fp16.onnx": to_bytes(to_half(m.model)) for m in models}
    if options["precision"] == "int8":
        found |= {
            f"models/{m.name}.int8.onnx": to_bytes(quantize(m.model, samples, qdq=True))
            for m in models
            if not is_quantized(m.model)
        }
    return found


def _number(match: re.Match[str] | None) -> float:
    """The first group, NaN without a match."""
    return float(match[1]) if match else float("nan")


def _environment(results: Path) -> dict[str, Any]:
    """What run.py wrote about the device."""
    try:
        found = json.loads(
            (results / "environment.json").read_text(encoding="utf-8", errors="replace")
        )
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _not_on_dla(text: str) -> list[str]:
    """The layers that TensorRT kept on the GPU, out of exportLayerInfo."""
    try:
        rows = list(json.loads(text).get("Layers", []))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []
    names = [str(r.get("Name", "")) if isinstance(r, dict) else str(r) for r in rows]
    outside = [n for n in names if "ForeignNode" not in n and not n.startswith("Reformat") and n]
    return (
        [f"{len(outside)} of {len(names)} layers stayed on the GPU: {', '.join(outside[:5])}"]
        if outside
        else []
    )


_RAIL = re.compile(
    r"(?<![\w/])([A-Z][A-Z0-9_]+) (\d{1,9})(?:mW)?/\d{1,9}(?:mW)?(?![\w(])", re.ASCII
)
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (\d{1,3})%", re.ASCII)
_STAMP = re.compile(r"(\d{1,15}\.\d{1,9}) ", re.ASCII)

# TensorRT developer guide, "DLA supported layers and restrictions"
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
        limits.rank(4, "fallback"),
        limits.always("note", "runs on DLA up to an 8x8 window, larger ones on the GPU"),
    ),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Clip": (),
    "LeakyRelu": (),
    "PRelu": (),
    **{op: (limits.rank(4, "fallback"),) for op in ("Add", "Sub", "Mul", "Max", "Min", "Div")},
    "BatchNormalization": (limits.rank(4, "fallback"),),
    "Concat": (
        limits.rank(4, "fallback"),
        limits.attribute_is("axis", 1, 1, -3, severity="fallback"),
    ),
    "LRN": (limits.attribute_is("size", 0, 3, 5, 7, 9, severity="fallback"),),
    "Softmax": (limits.always("note", "on Orin's DLA only"),),
    "Resize": (limits.attribute_is("mode", "nearest", "nearest", severity="fallback"),),
    "Slice": (limits.rank(4, "fallback"),),
    "Split": (limits.rank(4, "fallback"),),
    "QuantizeLinear": (),
    "DequantizeLinear": (),
    "Identity": (),
    "Constant": (),
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
        "precision": TargetOption("fp16", "what the engine computes in", ("fp32", "fp16", "int8")),
        "dla": TargetOption("none", "DLA core to use", ("none", "0", "1")),
        "clocks": TargetOption(
            "max",
            "fix the clocks at their highest (needs sudo without password) or leave them",
            ("max", "keep"),
        ),
        "power-mode": TargetOption("0", "nvpmodel -m"),
        "duration": TargetOption("10", "seconds of a timing round"),
        "rounds": TargetOption("3", "rounds of each model, in turns"),
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
