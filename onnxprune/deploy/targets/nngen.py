"""NNgen: ONNX to Verilog; clock cycles by RTL simulation.

The limits are those of NNgen 1.3.4's importer: no groups, no dilations, equal pads on all sides,
weights of Gemm as (out, in).
"""

from __future__ import annotations

from pathlib import Path

from onnxprune.deploy import limits
from onnxprune.deploy.bundle import Finding, HandoffTarget, TargetOption, TargetResult
from onnxprune.deploy.nodes import GraphNode
from onnxprune.deploy.targets.reports import load_json, numbers
from onnxprune.deploy.targets.rewrites import whole_image_pool


def parse(results: Path, model: str) -> TargetResult:
    """Return cycles, agreement with onnxruntime, and outputs that differ from the integer model."""
    figures = numbers(load_json(results / f"{model}.json", f"NNgen's result for {model}"))
    wrong, count = figures.get("outputs_wrong", 0.0), figures.get("outputs", 0.0)
    notes: tuple[str, ...] = ()
    if wrong:
        notes = (f"{wrong:g} of {count:g} simulated outputs differ from the integer model",)
    return TargetResult(model, figures, notes=notes)


def _check_window(node: GraphNode) -> Finding:
    """Test that average pooling has the stride of its kernel."""
    # attributes are always present, see prepare.make_explicit
    if node.get("strides") != node.get("kernel_shape"):
        yield (
            "unsupported",
            "average pooling whose stride differs from its kernel computes wrong integers in "
            "simulation (NNgen 1.3.4)",
        )


def _check_pads(node: GraphNode) -> Finding:
    """Test for equal pads on all sides."""
    pads = node.get("pads", ())
    # stricter than limits.symmetric_pads: NNgen has one number for all sides
    if len(set(pads)) > 1:
        yield "unsupported", f"pads {tuple(pads)} differ; NNgen needs the same on all sides"
    # NNgen pads as TensorFlow does, whose SAME is ONNX's SAME_UPPER
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "SAME_UPPER"):
        yield "unsupported", f"auto_pad {node.get('auto_pad')} is not supported"


def _check_transposed(node: GraphNode) -> Finding:
    """Test for a weight of Gemm as (out, in)."""
    if not node.get("transB", 0):
        yield "unsupported", "Gemm without transB; NNgen reads the weight as (out, in)"


_POOL = (limits.rank(4), _check_pads)
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
            _check_pads,
        ),
        "Gemm": (limits.constant_weights(), _check_transposed),
        "MaxPool": _POOL,
        "AveragePool": (*_POOL, _check_window),
        "Sigmoid": (limits.always("note", "computed by a look-up table of 256 entries"),),
        "BatchNormalization": (limits.rank(4),),
        **limits.no_limits(
            "Relu LeakyRelu Add Sub Mul Div Concat Flatten Reshape Transpose Pad Squeeze "
            "Unsqueeze Slice Identity ReduceMax ReduceMin ReduceSum ArgMax Upsample"
        ),
    },
    parse=parse,
    options={
        "bits": TargetOption("8", "width of weights and activations", ("8", "16")),
        "par-ich": TargetOption("1", "input channels in parallel"),
        "par-och": TargetOption("1", "output channels in parallel"),
        "samples": TargetOption("16", "inputs that calibrate the quantization"),
        "simulate": TargetOption("yes", "count cycles with Icarus Verilog", ("yes", "no")),
    },
    rewrite=whole_image_pool,
    sources=("https://github.com/NNgen/nngen (nngen/onnx)",),
)
