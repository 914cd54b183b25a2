"""Is the cut model the masked original? Checked, inferred, run and compared."""

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

# Float rounding of sums in another order; single-precision chains of a few hundred layers stay below it
TOLERANCE: dict[int, float] = {
    TensorProto.FLOAT: 1e-5,
    TensorProto.DOUBLE: 1e-12,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}
_ROUNDING = 2.0  # times what the original differs from itself is not held against a cut
_MOST_TOLERANCES = 10.0
_BLOCK = 1 << 20  # values of an output that are compared at a time
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Verification:
    """What a check found.

    difference: largest |cut - masked| over largest |masked|, the worst output; masked_difference: the same for masked against the
    original, so that 0 = 0 is seen for what it is; tolerance: what `difference` may be; outputs: difference by output name;
    exact: whether the plan can be exact (False where a mixing op was opened; the difference is then only reported).
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
        """Plain data."""
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
    feeds
        One batch of inputs; None = seeded random values.
    tolerance
        None = TOLERANCE of the coarsest type; where the original itself, its nodes fused and its sums in another order, differs by more than half of that
        (normalizations of few values, one behind another), twice as much as it does, but never more than ten times TOLERANCE.

    Raises
    ------
    VerificationError
        The model is not valid ONNX, or onnxruntime refuses it.
    ModelError
        The original itself does not run.
    """
    _check_as_good(analysis.model, pruned)
    feeds = example_feeds(analysis.model, seed) if feeds is None else feeds
    as_compared = integer_sums if is_quantized(analysis.model) else lambda model: model

    def run(model: Model) -> dict[str, Any]:
        return Session(as_compared(model), threads=threads, optimize=False).run(feeds)

    reference, original = run(masked(analysis, plan)), run(analysis.model)
    try:
        if is_quantized(pruned):
            Session(pruned, threads=threads, optimize=False).run(feeds)
        found = run(pruned)
    except Exception as problem:
        raise VerificationError(
            "cut-refused", f"the cut model does not run: {problem}"
        ) from problem
    by_output = {n: relative_difference(found[n], reference[n]) for n in reference}
    exact = all(
        g.exact or g.name not in plan.kept or len(plan.kept[g.name]) == g.size
        for g in analysis.groups
    )
    limit = tolerance if tolerance is not None else _tolerance(analysis)
    worst = max(by_output.values(), default=0.0)
    if tolerance is None and exact and limit < worst <= _MOST_TOLERANCES * limit:
        again = Session(as_compared(analysis.model), threads=threads).run(feeds)
        rounding = max(relative_difference(again[n], original[n]) for n in original)
        limit = max(limit, min(_ROUNDING * rounding, _MOST_TOLERANCES * limit))
    return Verification(
        worst,
        max((relative_difference(reference[n], original[n]) for n in reference), default=0.0),
        limit,
        by_output,
        exact,
    )


def _check_as_good(original: Model, pruned: Model) -> None:
    """`check`, unless onnx does not accept the original either (ops of onnxruntime's in the standard domain, deprecated ones)."""
    try:
        check(pruned)
    except VerificationError:
        try:
            check(original)
        except VerificationError:
            return
        raise


def check(model: Model) -> None:
    """onnx.checker with full_check (strict shape inference), the large weights declared as inputs so that they need not be copy_node."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model.proto)
    given = {i.name for i in skeleton.graph.input}
    small = []
    for tensor in skeleton.graph.initializer:
        weight = model.weights[tensor.name]
        if tensor.data_type == TensorProto.STRING:
            small.append(tensor)
        elif size_bytes(weight) <= INLINE_BYTES:
            tensor.raw_data = bytes(weight.raw())
            small.append(tensor)
        elif tensor.name not in given:
            skeleton.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(small)
    try:
        onnx.checker.check_model(skeleton, full_check=True)
    except Exception as problem:  # onnx's C++ errors have no common type
        raise VerificationError(
            "cut-invalid", f"the cut model is not valid: {str(problem).strip().splitlines()[0]}"
        ) from problem


def masked(analysis: Analysis, plan: Plan) -> Model:
    """The original with a 0/1 multiply on every operand that a node sums over, in place of the cut."""
    editor = Editor(analysis, analysis.model.edit(), analysis.removed(plan.kept))
    for number, mask in enumerate(analysis.record.masks):
        keep = analysis.keep(mask.ids, editor.removed)
        if keep.all():
            continue
        node = editor.nodes[mask.node]
        name = analysis.record.nodes[mask.node].input[mask.slot]
        rank = len(analysis.shapes.shape(name) or ())
        shape = [len(keep) if i == mask.axis else 1 for i in range(rank)]
        node.input[mask.slot] = _multiply(editor, mask.node, mask.slot, keep.reshape(shape), number)
    return editor.model.freeze()


def _multiply(editor: Editor, index: int, slot: int, keep: np.ndarray, number: int) -> str:
    """A node that zeroes what goes of an operand as it is by now: a product, or for quantized values a choice of their zero point."""
    dtype = editor.analysis.shapes.dtype(editor.analysis.record.nodes[index].input[slot])
    name = editor.nodes[index].input[slot]
    out = f"{name}_masked_{number}"
    if dtype in _FLOATS:
        values = keep.astype(helper.tensor_dtype_to_np_dtype(dtype))
        factor = add_initializer(editor.model, f"{out}_factor", values)
        editor.insert(index, helper.make_node("Mul", [name, factor], [out], name=out))
        return out
    node = editor.nodes[index]
    zero_slot = {
        "ConvInteger": 2 + slot,
        "MatMulInteger": 2 + slot,
        "QLinearConv": slot + 2,
        "QLinearMatMul": slot + 2,
        "QGemm": slot + 2,
        "MatMulIntegerToFloat": slot + 4,
    }.get(node.op_type, len(node.input))
    zero = node.input[zero_slot] if zero_slot < len(node.input) and node.input[zero_slot] else ""
    if not zero:
        zero = add_initializer(
            editor.model, f"{out}_zero", np.zeros((), helper.tensor_dtype_to_np_dtype(dtype))
        )
    mask = add_initializer(editor.model, f"{out}_keep", keep)
    editor.insert(index, helper.make_node("Where", [mask, name, zero], [out], name=out))
    return out


def relative_difference(found: Any, expected: Any) -> float:
    """Largest absolute difference over the largest absolute expected value; inf where shapes or non-finite values differ."""
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind not in "fiub" and a.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(a, b) else float("inf")
    scale = worst = 0.0
    flat_a, flat_b = a.ravel(), b.ravel()
    for at in range(0, a.size, _BLOCK):
        x, y = (
            flat_a[at : at + _BLOCK].astype(np.float64),
            flat_b[at : at + _BLOCK].astype(np.float64),
        )
        finite = np.isfinite(y)
        if not np.array_equal(np.isfinite(x), finite) or not np.array_equal(
            x[~finite], y[~finite], equal_nan=True
        ):
            return float("inf")
        scale = max(scale, float(np.abs(y[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(x[finite] - y[finite]).max(initial=0.0)))
    return worst / scale if scale else float("inf") if worst else 0.0


def _tolerance(analysis: Analysis) -> float:
    """By the coarsest float type that the graph computes in."""
    used = {analysis.shapes.dtype(n) for n in analysis.record.tensors} & set(_FLOATS)
    return max((TOLERANCE[t] for t in used), default=TOLERANCE[TensorProto.FLOAT])
