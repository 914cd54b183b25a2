"""Verifies a cut model: valid ONNX that runs and equals the masked original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.errors import VerificationError
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import INLINE_BYTES, Model
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.weights import size_bytes
from onnxprune.surgery.integers import integer_sums, is_quantized
from onnxprune.surgery.size_literals import Editor
from onnxprune.types import Plan

# Rounding of sums in another order; float32 chains of a few hundred layers stay below it
TOLERANCE: dict[int, float] = {
    TensorProto.FLOAT: 1e-5,
    TensorProto.DOUBLE: 1e-12,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}
_ROUNDING = 2.0  # tolerance, in multiples of the rounding of the original itself
_MOST_TOLERANCES = 10.0  # upper limit of that, in multiples of TOLERANCE
_BLOCK = 1 << 20  # values of an output that are compared at a time
# Slot of the zero point of the first operand (of the weight: the operand's slot more)
_ZERO_SLOTS = {
    "ConvInteger": 2,
    "MatMulInteger": 2,
    "QLinearConv": 2,
    "QLinearMatMul": 2,
    "QGemm": 2,
    "MatMulIntegerToFloat": 4,
}

Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class Verification:
    """Result of a comparison of the cut model with the masked original.

    Attributes
    ----------
    difference
        Largest |cut - masked| over largest |masked|, of the worst output.
    masked_difference
        The same for the masked against the original model; close to 0, the comparison proves
        nothing.
    tolerance
        Largest `difference` that passes.
    outputs
        Difference per output.
    exact
        Whether the plan can be exact; False if it cuts along an axis that `allow_mixing` opened,
        and the difference is then only reported.
    """

    difference: float
    masked_difference: float
    tolerance: float
    outputs: Mapping[str, float]
    exact: bool

    @property
    def ok(self) -> bool:
        """Whether the cut model passes."""
        return not self.exact or self.difference <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "ok": self.ok,
            "exact": self.exact,
            "difference": self.difference,
            "masked_difference": self.masked_difference,
            "tolerance": self.tolerance,
            "outputs": dict(self.outputs),
        }


def verify(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    feeds: Mapping[str, np.ndarray] | None = None,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Verification:
    """Compare a cut model (before repair) with the masked original on real runs.

    Parameters
    ----------
    analysis, plan
        What the model was cut by.
    pruned
        The cut model.
    feeds
        One batch of inputs; None for random values.
    tolerance
        Largest relative difference; None for TOLERANCE of the coarsest float type of the graph.
        If the original itself, run with fused nodes, differs by more than half of that
        (normalizations of few values in sequence), twice its difference, but at most ten times
        TOLERANCE.
    seed
        Seed of the random values.
    threads
        Threads of each run.

    Raises
    ------
    VerificationError
        The model is not valid ONNX, or onnxruntime rejects it.
    ModelError
        The original itself does not run.
    """
    _check_unless_original_fails(analysis.model, pruned)
    feeds = example_feeds(analysis.model, seed) if feeds is None else feeds
    runner = _Runner(feeds, threads, is_quantized(analysis.model))
    reference, original = runner.run(masked(analysis, plan)), runner.run(analysis.model)
    outputs = runner.run_cut(pruned)
    by_output = {n: relative_difference(outputs[n], reference[n]) for n in reference}
    exact = _is_exact(analysis, plan)
    worst = max(by_output.values(), default=0.0)
    limit = tolerance if tolerance is not None else _tolerance(analysis)
    if tolerance is None and exact and limit < worst <= _MOST_TOLERANCES * limit:
        rounding = _largest_difference(runner.run(analysis.model, optimize=True), original)
        limit = max(limit, min(_ROUNDING * rounding, _MOST_TOLERANCES * limit))
    masked_difference = _largest_difference(reference, original)
    return Verification(worst, masked_difference, limit, by_output, exact)


@dataclass(frozen=True)
class _Runner:
    """Runs models on the same inputs so that their outputs can be compared.

    Attributes
    ----------
    feeds
        Inputs.
    threads
        Threads of each run.
    quantized
        Whether models are quantized; they then sum integers, in any order with the same result.
    """

    feeds: Mapping[str, np.ndarray]
    threads: int
    quantized: bool

    def run(self, model: Model, optimize: bool = False) -> Outputs:
        """Return the outputs of a model."""
        comparable = integer_sums(model) if self.quantized else model
        return Session(comparable, threads=self.threads, optimize=optimize).run(self.feeds)

    def run_cut(self, pruned: Model) -> Outputs:
        """Return the outputs of a cut model; VerificationError if it does not run."""
        try:
            if is_quantized(pruned):  # its integer sums may run although it does not
                Session(pruned, threads=self.threads, optimize=False).run(self.feeds)
            return self.run(pruned)
        except Exception as problem:
            raise VerificationError(
                "cut-refused", f"onnxruntime does not run the cut model: {problem}"
            ) from problem


def _is_exact(analysis: Analysis, plan: Plan) -> bool:
    """Return whether no pruned group has an axis along which an operator mixes."""
    return all(
        g.exact or g.name not in plan.kept or len(plan.kept[g.name]) == g.size
        for g in analysis.groups
    )


def _largest_difference(outputs: Outputs, expected: Outputs) -> float:
    """Return the largest relative difference of any output."""
    return max((relative_difference(outputs[n], expected[n]) for n in outputs), default=0.0)


def _check_unless_original_fails(original: Model, pruned: Model) -> None:
    """Check the cut model, unless onnx does not accept the original either.

    Onnxruntime runs models that onnx rejects: operators of its own in the standard domain,
    deprecated ones.
    """
    try:
        check(pruned)
    except VerificationError:
        try:
            check(original)
        except VerificationError:
            return
        raise


def check(model: Model) -> None:
    """Check a model with onnx.checker and strict shape inference.

    Large weights are declared as inputs, so that they need not be copied.

    Raises
    ------
    VerificationError
        The model is not valid.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.proto)
    declared = {i.name for i in skeleton.graph.input}
    small = []
    for tensor in skeleton.graph.initializer:
        weight = model.weights[tensor.name]
        if tensor.data_type == TensorProto.STRING:
            small.append(tensor)
        elif size_bytes(weight) <= INLINE_BYTES:
            tensor.raw_data = bytes(weight.raw())
            small.append(tensor)
        elif tensor.name not in declared:
            skeleton.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(small)
    try:
        onnx.checker.check_model(skeleton, full_check=True)
    except Exception as problem:  # onnx's C++ errors have no common type
        raise VerificationError(
            "cut-invalid",
            f"onnx rejects the cut model: {str(problem).strip().splitlines()[0]}",
        ) from problem


def masked(analysis: Analysis, plan: Plan) -> Model:
    """Return the original with removed channels zeroed in every operand that a node sums over."""
    editor = Editor(analysis, analysis.model.edit(), analysis.removed(plan.kept))
    for number, mask in enumerate(analysis.masks):
        keep = analysis.keep(mask.ids, editor.removed)
        if keep.all():
            continue
        node = editor.nodes[mask.node]
        rank = len(analysis.shapes.shape(mask.tensor) or ())
        shape = [len(keep) if i == mask.axis else 1 for i in range(rank)]
        node.input[mask.slot] = _mask(editor, mask.node, mask.slot, keep.reshape(shape), number)
    return editor.model.freeze()


def _mask(editor: Editor, index: int, slot: int, keep: np.ndarray, number: int) -> str:
    """Add a node that zeroes removed channels of an operand; return its output.

    Floats are multiplied by 0 or 1; of quantized values, the removed ones get their zero point.
    """
    dtype = editor.analysis.shapes.dtype(editor.analysis.nodes[index].input[slot])
    node = editor.nodes[index]
    name = node.input[slot]  # an earlier mask of the same operand included
    out = f"{name}_masked_{number}"
    if dtype in TOLERANCE:
        values = keep.astype(helper.tensor_dtype_to_np_dtype(dtype))
        factor = add_initializer(editor.model, f"{out}_factor", values)
        editor.insert(index, helper.make_node("Mul", [name, factor], [out], name=out))
        return out
    first = _ZERO_SLOTS.get(node.op_type)
    zero_slot = len(node.input) if first is None else first + slot
    zero = node.input[zero_slot] if zero_slot < len(node.input) else ""
    if not zero:
        zeros = np.zeros((), helper.tensor_dtype_to_np_dtype(dtype))
        zero = add_initializer(editor.model, f"{out}_zero", zeros)
    mask = add_initializer(editor.model, f"{out}_keep", keep)
    editor.insert(index, helper.make_node("Where", [mask, name, zero], [out], name=out))
    return out


def relative_difference(actual: Any, expected: Any) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    Returns
    -------
    difference
        Infinite if shapes, types or non-finite values differ.
    """
    a, b = np.asarray(actual), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind not in "fiub" and a.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(a, b) else float("inf")
    scale = worst = 0.0
    flat_a, flat_b = a.ravel(), b.ravel()
    for at in range(0, a.size, _BLOCK):
        x = flat_a[at : at + _BLOCK].astype(np.float64)
        y = flat_b[at : at + _BLOCK].astype(np.float64)
        finite = np.isfinite(y)
        if not np.array_equal(np.isfinite(x), finite):
            return float("inf")
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return float("inf")
        scale = max(scale, float(np.abs(y[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(x[finite] - y[finite]).max(initial=0.0)))
    if scale:
        return worst / scale
    return float("inf") if worst else 0.0


def _tolerance(analysis: Analysis) -> float:
    """Return the tolerance of the coarsest float type that the graph computes in."""
    used = {analysis.shapes.dtype(n) for n in analysis.tensors} & TOLERANCE.keys()
    return max((TOLERANCE[t] for t in used), default=TOLERANCE[TensorProto.FLOAT])
