"""FINN: dataflow accelerators of quantized networks, with a folding that balances the layers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    script,
)
from onnxprune.deploy.nodes import GraphNode
from onnxprune.deploy.targets.qonnx import add_quantizers, is_qonnx
from onnxprune.deploy.targets.reports import load_json, numbers
from onnxprune.deploy.targets.rewrites import for_qonnx
from onnxprune.errors import UsageError
from onnxprune.ir.io import to_bytes
from onnxprune.ir.node_inference import QONNX_DOMAINS, QONNX_OPS

# a width with fewer divisors allows hardly more than one multiplier or all of them
FEW_FOLDINGS = 4
_POOLS = ("MaxPool", "AveragePool")
_WINDOW = "ConvolutionInputGenerator"  # FINN's sliding-window unit
# FINN's own steps up to its estimates, for which no synthesis is needed
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
    """Parallelism of one matrix-vector unit.

    Attributes
    ----------
    pe
        Output channels in parallel.
    simd
        Inputs (taps x channels) in parallel.
    cycles
        Cycles per image.
    """

    pe: int
    simd: int
    cycles: int


def divisors(number: int) -> tuple[int, ...]:
    """Return all divisors in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    # a set, because the root of a square occurs in both parts
    return tuple(sorted({*small, *(number // d for d in small)}))


def folding(
    inputs: int, outputs: int, positions: int, budget_cycles: int, channels: int
) -> Folding:
    """Return the cheapest folding of a layer within a number of cycles, else the fastest.

    Parameters
    ----------
    inputs, outputs
        Matrix of the unit: taps x input channels, output channels.
    positions
        Output pixels: multiplications with the matrix per image.
    budget_cycles
        Cycles per image.
    channels
        Input channels. SIMD divides them, so that the sliding-window unit in front can fold alike.
    """
    # PE and SIMD must divide their sides, so that few candidates exist
    candidates = [
        Folding(pe, simd, (outputs // pe) * (inputs // simd) * positions)
        for pe in divisors(outputs)
        for simd in divisors(inputs)
        if channels % simd == 0
    ]
    # the fewest multipliers, then the fewest cycles, then the most inputs in parallel
    fitting = [f for f in candidates if f.cycles <= budget_cycles]
    # no folding is fast enough: the target rate is missed by as little as possible
    if not fitting:
        return min(candidates, key=lambda f: f.cycles)
    return min(fitting, key=lambda f: (f.pe * f.simd, f.cycles, -f.simd))


def layer_folding(node: GraphNode, budget_cycles: int) -> Folding | None:
    """Return the folding of a convolution or fully connected layer, None for other operators."""
    channels, shape = node.channels, node.out_shape
    if channels is None or shape is None:
        return None
    taps = math.prod(node.kernel) if node.kernel else 1
    positions = math.prod(shape[2:]) if node.op == "Conv" else 1
    # a depthwise unit multiplies taps only
    if node.depthwise:
        return folding(taps, channels[1], positions, budget_cycles, taps)
    return folding(taps * channels[0], channels[1], positions, budget_cycles, channels[0])


def files(
    models: Sequence[PreparedModel], options: Mapping[str, str], samples: Samples | None
) -> Files:
    """Return the build configuration, a folding per model, and quantized copies of float models."""
    try:
        clock_ns, frames = float(options["clock-ns"]), float(options["target-fps"])
        # options are text; float() and the division report what is no positive number
        budget = max(1, int(1e9 / clock_ns / frames))
    except (ValueError, ZeroDivisionError) as problem:
        raise UsageError(
            "option-value",
            f"finn options clock-ns={options['clock-ns']!r} and "
            f"target-fps={options['target-fps']!r} must be positive numbers: {problem}",
        ) from problem
    style = options["style"]
    styles = {"Defaults": {"preferred_impl_style": [style, ["MVAU", "VVAU"]]}}
    content = {
        "dataflow_build_config.json": _to_json(_build_config(options, clock_ns)),
        "specialize_layers_config.json": _to_json(styles),
        "finn_estimate.py": script("finn_estimate"),
    }
    for model in models:
        content[f"folding_{model.name}.json"] = _to_json(folding_config(model, budget, style))
        # bits are only parsed if a copy is made: they do not concern a quantized model
        if not is_qonnx(model.model):
            weight_bits = _parse_bits(options, "weight-bits")
            activation_bits = _parse_bits(options, "activation-bits")
            copy = add_quantizers(model, samples, weight_bits, activation_bits)
            content[f"models/{model.name}.qonnx.onnx"] = to_bytes(copy)
    return content


def _build_config(options: Mapping[str, str], clock_ns: float) -> dict[str, Any]:
    """Return FINN's build configuration."""
    build = options["steps"] != "estimate"
    outputs = ["estimate_reports"]
    if build:
        outputs += ["stitched_ip", "rtlsim_performance", "out_of_context_synth"]
    config = {
        "output_dir": "output",
        "synth_clk_period_ns": clock_ns,
        "board": options["board"],
        "shell_flow_type": "vivado_zynq",
        "folding_config_file": "folding_config.json",
        "specialize_layers_config_file": "specialize_layers_config.json",
        # the RTL matrix units have no thresholds of their own
        "standalone_thresholds": options["style"] == "rtl",
        "generate_outputs": outputs,
    }
    if not build:
        config["steps"] = list(ESTIMATE_STEPS)
    return config


def _parse_bits(options: Mapping[str, str], name: str) -> int:
    """Return an option that is a number of bits."""
    if not options[name].isdecimal() or not 2 <= int(options[name]) <= 8:
        raise UsageError(
            "option-value", f"finn option {name}={options[name]!r} must be an integer from 2 to 8"
        )
    return int(options[name])


def folding_config(
    model: PreparedModel, budget_cycles: int, style: str
) -> dict[str, dict[str, int | str]]:
    """Return FINN's folding JSON: an entry per unit, by running number.

    Units are matrix-vector (MVAU) and depthwise (VVAU) units and sliding windows. Poolings have a
    sliding window too; FINN chooses theirs, so that it is only counted.
    """
    config: dict[str, dict[str, int | str]] = {"Defaults": {}}
    counts = {"MVAU": 0, "VVAU": 0, _WINDOW: 0}
    for node in model.nodes():
        # FINN numbers the windows of all layers in graph order
        if node.op in _POOLS:
            counts[_WINDOW] += 1
        folded = layer_folding(node, budget_cycles)
        if folded is None:
            continue
        if math.prod(node.kernel) > 1:
            channels = node.channels[0] if node.channels else 1
            # a depthwise window feeds PE channels at a time
            simd = math.gcd(folded.pe, channels) if node.depthwise else folded.simd
            config[f"{_WINDOW}_rtl_{counts[_WINDOW]}"] = {"SIMD": simd, "ram_style": "auto"}
            counts[_WINDOW] += 1
        # each kind of unit has its own running number in FINN
        kind = "VVAU" if node.depthwise else "MVAU"
        config[f"{kind}_{style}_{counts[kind]}"] = {
            "PE": folded.pe,
            "SIMD": folded.simd,
            "ram_style": "auto",
            "resType": "auto",
        }
        counts[kind] += 1
    return config


def parse(results: Path, model: str) -> TargetResult:
    """Return cycles, throughput and resources of FINN's estimates and of its RTL simulation."""
    network = load_json(
        results / f"{model}.estimate_network_performance.json", f"FINN's estimate for {model}"
    )
    # the slowest unit sets the interval between images
    figures = {k.replace("max_cycles", "interval_cycles"): v for k, v in numbers(network).items()}
    if "critical_path_cycles" in figures:
        figures["cycles"] = figures["critical_path_cycles"]
    resources = results / f"{model}.estimate_layer_resources.json"
    if resources.is_file():
        total = load_json(resources, "FINN's resource estimate").get("total", {})
        used = numbers(total if isinstance(total, dict) else {})
        # lower case, as the names of other targets' resources
        figures |= {name.lower(): value for name, value in used.items()}
    simulated = results / f"{model}.rtlsim_performance.json"
    if simulated.is_file():
        performance = numbers(load_json(simulated, "FINN's RTL simulation"))
        figures |= {f"rtlsim_{name}": value for name, value in performance.items()}
    layers = results / f"{model}.estimate_layer_cycles.json"
    by_layer = {}
    if layers.is_file():
        by_layer = numbers(load_json(layers, "FINN's estimate of cycles per layer"))
    slowest = network.get("max_cycles_node_name")
    notes = (f"slowest layer: {slowest}",) if slowest else ()
    return TargetResult(model, figures, by_layer, "cycles", notes)


def _check_quantized(model: PreparedModel) -> Finding:
    """Test for a graph with Quant nodes."""
    if not is_qonnx(model.model):
        yield (
            "note",
            "no Quant nodes: run.py uses the quantized copy of the bundle, whose cycles and "
            "resources are valid but whose outputs are inaccurate; "
            "train the pruned network with Brevitas for accurate outputs",
        )


def _check_divisors(node: GraphNode) -> Finding:
    """Test for widths with several divisors."""
    for side, count in zip(("input", "output"), node.channels or (), strict=False):
        choices = divisors(count)
        if len(choices) < FEW_FOLDINGS and count > FEW_FOLDINGS:
            yield (
                "slow",
                f"{count} {side} channels fold by {', '.join(map(str, choices))} only; "
                "a width with more divisors allows more degrees of parallelism",
            )


def _to_json(value: object) -> bytes:
    """Return a value as indented JSON."""
    return (json.dumps(value, indent=1) + "\n").encode()


_CONV = (
    limits.rank(4),
    limits.constant_weights(),
    limits.no_groups(True),
    limits.symmetric_pads("note"),
    _check_divisors,
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
        "Gemm": (limits.constant_weights(), _check_divisors),
        "MatMul": (limits.constant_weights(), _check_divisors),
        "MaxPool": (limits.rank(4),),
        "AveragePool": (limits.rank(4),),
        "Add": (limits.same_shapes(),),
        "Resize": (limits.attribute_is("mode", "nearest", "nearest"),),
        **limits.no_limits(
            "GlobalAveragePool BatchNormalization Relu Mul Sub Div Flatten Reshape Transpose "
            "Concat Pad TopK Identity"
        ),
        **{f"{domain}.{op}": () for domain in QONNX_DOMAINS for op in QONNX_OPS},
    },
    whole=_check_quantized,
    parse=parse,
    options={
        "target-fps": TargetOption("1000", "images per second that the folding aims at"),
        "clock-ns": TargetOption("5", "clock period in ns"),
        "board": TargetOption("ZCU104", "FINN's name of the board"),
        "weight-bits": TargetOption("4", "weights of the quantized copy, 2 to 8"),
        "activation-bits": TargetOption("4", "activations of the quantized copy, 2 to 8"),
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
