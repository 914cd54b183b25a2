"""FINN: dataflow accelerators of quantized networks; a folding configuration that gives every layer about the same time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from onnxprune.deploy.nodes import GraphNode
from onnxprune.deploy.targets.qonnx import is_qonnx, quantized
from onnxprune.deploy.targets.reports import load_json, numbers
from onnxprune.deploy.targets.rewrites import for_qonnx
from onnxprune.errors import UsageError
from onnxprune.ir.io import to_bytes
from onnxprune.ir.node_inference import QONNX_DOMAINS, QONNX_OPS

FEW_FOLDINGS = (
    4  # a width with fewer divisors leaves hardly a choice between one multiplier and all of them
)
_POOLS = ("MaxPool", "AveragePool")
ESTIMATE_STEPS = (
    "step_qonnx_to_finn",
    "step_tidy_up",
    "step_streamline",
    "step_convert_to_hw",
    "step_create_dataflow_partition",
    "step_specialize_layers",
    "step_apply_folding_config",
    "step_minimize_bit_width",
    "step_generate_estimate_reports",
)


@dataclass(frozen=True)
class Folding:
    """Parallelism of one matrix-vector unit. pe: output channels, simd: inputs (taps x channels), at a time; cycles: of one image."""

    pe: int
    simd: int
    cycles: int


def divisors(number: int) -> tuple[int, ...]:
    """In ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def folding(
    inputs: int, outputs: int, positions: int, budget_cycles: int, channels: int
) -> Folding:
    """The cheapest folding of a layer within a number of cycles, or the fastest where none is.

    Parameters
    ----------
    inputs, outputs
        Matrix of the unit: taps x input channels, output channels.
    positions
        Output pixels: how often it is multiplied.
    channels
        Input channels. SIMD divides them, so that the sliding-window unit before it can fold alike.
    """
    every = [
        Folding(pe, simd, (outputs // pe) * (inputs // simd) * positions)
        for pe in divisors(outputs)
        for simd in divisors(inputs)
        if channels % simd == 0
    ]
    fitting = [f for f in every if f.cycles <= budget_cycles]
    return (
        min(fitting, key=lambda f: (f.pe * f.simd, f.cycles, -f.simd))
        if fitting
        else min(every, key=lambda f: f.cycles)
    )


def layer_folding(node: GraphNode, budget_cycles: int) -> Folding | None:
    """Of a convolution or fully connected layer; None for what has no matrix unit."""
    channels, shape = node.channels, node.out_shape
    if channels is None or shape is None:
        return None
    taps = math.prod(node.kernel) if node.kernel else 1
    positions = math.prod(shape[2:]) if node.op == "Conv" else 1
    if node.depthwise:
        return folding(taps, channels[1], positions, budget_cycles, taps)
    return folding(taps * channels[0], channels[1], positions, budget_cycles, channels[0])


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """dataflow_build_config.json and a folding configuration a model."""
    try:
        clock_ns, frames = float(options["clock-ns"]), float(options["target-fps"])
        budget = max(1, int(1e9 / clock_ns / frames))
    except (ValueError, ZeroDivisionError) as problem:
        raise UsageError(
            "option-value",
            f"finn options clock-ns and target-fps have to be positive numbers: {problem}",
        ) from problem
    build = options["steps"] != "estimate"
    config = {
        "output_dir": "output",
        "synth_clk_period_ns": clock_ns,
        "board": options["board"],
        "shell_flow_type": "vivado_zynq",
        "folding_config_file": "folding_config.json",
        "specialize_layers_config_file": "specialize_layers_config.json",
        "standalone_thresholds": options["style"] == "rtl",
        "generate_outputs": [
            "estimate_reports",
            *(("stitched_ip", "rtlsim_performance", "out_of_context_synth") if build else ()),
        ],
    }
    if not build:
        config["steps"] = list(ESTIMATE_STEPS)
    styles = {"Defaults": {"preferred_impl_style": [options["style"], ["MVAU", "VVAU"]]}}
    found = {
        "dataflow_build_config.json": _json(config),
        "specialize_layers_config.json": _json(styles),
        "finn_estimate.py": script("finn_estimate"),
    }
    for model in models:
        found[f"folding_{model.name}.json"] = _json(folding_config(model, budget, options["style"]))
        if not is_qonnx(model.model):
            made = quantized(
                model, samples, _bits(options, "weight-bits"), _bits(options, "activation-bits")
            )
            found[f"models/{model.name}.qonnx.onnx"] = to_bytes(made)
    return found


def _bits(options: Mapping[str, str], name: str) -> int:
    """An option that is a number of bits."""
    if not options[name].isdecimal() or not 2 <= int(options[name]) <= 8:
        raise UsageError(
            "option-value",
            f"finn option {name}={options[name]!r} is not a whole number from 2 to 8",
        )
    return int(options[name])


def folding_config(
    model: PreparedModel, budget_cycles: int, style: str
) -> dict[str, dict[str, int | str]]:
    """FINN's folding JSON: one entry a matrix-vector unit (MVAU), depthwise unit (VVAU) and sliding window, by running number.

    Poolings have a sliding window too; theirs are left to FINN and only counted.
    """
    found: dict[str, dict[str, int | str]] = {"Defaults": {}}
    counts = {"MVAU": 0, "VVAU": 0, "ConvolutionInputGenerator": 0}
    for node in model.nodes():
        if node.op in _POOLS:
            counts["ConvolutionInputGenerator"] += 1
        folded = layer_folding(node, budget_cycles)
        if folded is None:
            continue
        if math.prod(node.kernel) > 1:
            channels = node.channels[0] if node.channels else 1
            simd = math.gcd(folded.pe, channels) if node.depthwise else folded.simd
            found[f"ConvolutionInputGenerator_rtl_{counts['ConvolutionInputGenerator']}"] = {
                "SIMD": simd,
                "ram_style": "auto",
            }
            counts["ConvolutionInputGenerator"] += 1
        kind = "VVAU" if node.depthwise else "MVAU"
        found[f"{kind}_{style}_{counts[kind]}"] = {
            "PE": folded.pe,
            "SIMD": folded.simd,
            "ram_style": "auto",
            "resType": "auto",
        }
        counts[kind] += 1
    return found


def parse(results: Path, model: str) -> TargetResult:
    """Cycles, throughput and resources out of FINN's estimate (or, where it was built, RTL simulation) reports."""
    network = load_json(
        results / f"{model}.estimate_network_performance.json", f"FINN's estimate for {model}"
    )
    figures = {k.replace("max_cycles", "interval_cycles"): v for k, v in numbers(network).items()}
    if "critical_path_cycles" in figures:
        figures["cycles"] = figures["critical_path_cycles"]
    layers = results / f"{model}.estimate_layer_cycles.json"
    resources = results / f"{model}.estimate_layer_resources.json"
    if resources.is_file():
        total = load_json(resources, "resources").get("total", {})
        figures |= {
            k.lower(): v for k, v in numbers(total if isinstance(total, dict) else {}).items()
        }
    simulated = results / f"{model}.rtlsim_performance.json"
    if simulated.is_file():
        figures |= {
            f"rtlsim_{k}": v for k, v in numbers(load_json(simulated, "RTL simulation")).items()
        }
    slowest = network.get("max_cycles_node_name")
    by_layer = numbers(load_json(layers, "layer cycles")) if layers.is_file() else {}
    return TargetResult(
        model, figures, by_layer, "cycles", (f"slowest layer: {slowest}",) if slowest else ()
    )


def _whole(model: PreparedModel) -> Iterator[tuple[str, str]]:
    if not is_qonnx(model.model):
        yield (
            "note",
            (
                "no Quant nodes: run.py takes the rounded copy that the bundle holds, which is good for cycles and resources;"
                " train the pruned network with Brevitas for outputs worth having"
            ),
        )


def _foldable(node: GraphNode) -> Iterator[tuple[str, str]]:
    channels = node.channels
    for side, count in zip(("input", "output"), channels or (), strict=False):
        choices = divisors(count)
        if len(choices) < FEW_FOLDINGS and count > FEW_FOLDINGS:
            yield (
                "slow",
                f"{count} {side} channels fold by {', '.join(map(str, choices))} only; a width with more divisors leaves a choice of parallelism",
            )


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


_CONV = (
    limits.rank(4),
    limits.constant_weights(),
    limits.no_groups(True),
    limits.symmetric_pads("note"),
    _foldable,
)
TARGET = HandoffTarget(
    name="finn",
    title="FINN",
    script="finn",
    needs=(
        "FINN with Docker (FINN_ROOT), or finn-plus (tools/setup_finn.sh)",
        "Vivado and Vitis HLS: with Docker, or for more than estimates",
    ),
    ops={
        "Conv": _CONV,
        "Gemm": (limits.constant_weights(), _foldable),
        "MatMul": (limits.constant_weights(), _foldable),
        "MaxPool": (limits.rank(4),),
        "AveragePool": (limits.rank(4),),
        "GlobalAveragePool": (),
        "BatchNormalization": (),
        "Relu": (),
        "Add": (limits.same_shapes(),),
        "Mul": (),
        "Sub": (),
        "Div": (),
        "Flatten": (),
        "Reshape": (),
        "Transpose": (),
        "Concat": (),
        "Pad": (),
        "Resize": (limits.attribute_is("mode", "nearest", "nearest"),),
        "TopK": (),
        "Identity": (),
        **{f"{domain}.{op}": () for domain in QONNX_DOMAINS for op in QONNX_OPS},
    },
    whole=_whole,
    parse=parse,
    options={
        "target-fps": TargetOption("1000", "images a second that the folding aims at"),
        "clock-ns": TargetOption("5", "clock period"),
        "board": TargetOption("ZCU104", "FINN's name of the board"),
        "weight-bits": TargetOption("4", "of the rounded copy, 2 to 8"),
        "activation-bits": TargetOption("4", "of the rounded copy, 2 to 8"),
        "style": TargetOption("hls", "implementation of the matrix units", ("hls", "rtl")),
        "steps": TargetOption(
            "estimate", "estimates only, or synthesis too", ("estimate", "build")
        ),
        "finn-root": TargetOption("", "checkout of FINN; default: FINN_ROOT"),
    },
    files=files,
    rewrite=for_qonnx,
    sources=("https://finn.readthedocs.io/en/latest/internals.html#folding-factors",),
)
