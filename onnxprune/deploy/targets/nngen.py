"""NNgen: ONNX to Verilog; clock cycles by RTL simulation.

Reads NNgen 1.3.4's own importer: no groups, no dilations, pads that are the same on all sides, weights of Gemm as (out, in).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import HandoffTarget, TargetOption, TargetResult
from onnxprune.deploy.nodes import GraphNode
from onnxprune.deploy.targets.reports import load_json, numbers
from onnxprune.deploy.targets.rewrites import whole_image_pool


def parse(results: Path, model: str) -> TargetResult:
    """Cycles, agreement with onnxruntime, and whether the hardware equals its integer model."""
    found = numbers(load_json(results / f"{model}.json", f"NNgen's result for {model}"))
    wrong = found.get("outputs_wrong", 0.0)
    notes = (
        (f"{wrong:g} of {found['outputs']:g} simulated outputs differ from the integer model",)
        if wrong
        else ()
    )
    return TargetResult(model, found, notes=notes)


def _whole_steps(node: GraphNode) -> Iterator[tuple[str, str]]:
    if node.get("strides") != node.get("kernel_shape"):
        yield (
            "unsupported",
            "average pooling whose stride is not its kernel gave wrong integers in simulation (NNgen 1.3.4)",
        )


def _pads(node: GraphNode) -> Iterator[tuple[str, str]]:
    pads = node.get("pads", ())
    if len(set(pads)) > 1:
        yield (
            "unsupported",
            f"pads {tuple(pads)} are not the same on all sides, which NNgen's importer needs",
        )
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "SAME_UPPER"):
        yield "unsupported", f"auto_pad {node.get('auto_pad')}"


def _transposed(node: GraphNode) -> Iterator[tuple[str, str]]:
    if not node.get("transB", 0):
        yield "unsupported", "Gemm without transB: NNgen takes the weight as (out, in)"


_POOL = (limits.rank(4), _pads)
TARGET = HandoffTarget(
    name="nngen",
    title="NNgen",
    script="nngen",
    needs=(
        "Python with nngen 1.3.4 (tools/setup_nngen.sh)",
        "Icarus Verilog (iverilog) for cycles",
    ),
    ops={
        "Conv": (
            limits.rank(4),
            limits.constant_weights(),
            limits.no_groups(False),
            limits.no_dilation(),
            _pads,
        ),
        "Gemm": (limits.constant_weights(), _transposed),
        "MaxPool": _POOL,
        "AveragePool": (*_POOL, _whole_steps),
        "Relu": (),
        "LeakyRelu": (),
        "Sigmoid": (limits.always("note", "a look-up table of 256 entries"),),
        "BatchNormalization": (limits.rank(4),),
        **{
            op: ()
            for op in (
                "Add",
                "Sub",
                "Mul",
                "Div",
                "Concat",
                "Flatten",
                "Reshape",
                "Transpose",
                "Pad",
                "Squeeze",
                "Unsqueeze",
                "Slice",
                "Identity",
            )
        },
        "ReduceMax": (),
        "ReduceMin": (),
        "ReduceSum": (),
        "ArgMax": (),
        "Upsample": (),
    },
    parse=parse,
    options={
        "bits": TargetOption("8", "width of weights and activations", ("8", "16")),
        "par-ich": TargetOption("1", "input channels in parallel"),
        "par-och": TargetOption("1", "output channels in parallel"),
        "samples": TargetOption("16", "inputs that the shifts are found on"),
        "simulate": TargetOption("yes", "count cycles with Icarus Verilog", ("yes", "no")),
    },
    rewrite=whole_image_pool,
    sources=("https://github.com/NNgen/nngen (nngen/onnx)",),
)
