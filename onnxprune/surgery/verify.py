"""Verifies a cut model: valid ONNX that runs and equals the masked original."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.errors import ModelError, VerificationError
from onnxprune.ir.io import INLINE_BYTES, Model
from onnxprune.ir.outputs import as_array
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.weights import size_bytes
from onnxprune.surgery.compare import Outputs, relative_difference
from onnxprune.surgery.integers import integer_sums, is_quantized
from onnxprune.surgery.masking import masked
from onnxprune.surgery.random_nodes import draw, fix_random, names_of
from onnxprune.surgery.root_means import round_scales
from onnxprune.surgery.ties import reconsider
from onnxprune.surgery.widen import has_half, widen, widen_feeds
from onnxprune.types import Plan

# Rounding of sums in another order; float32 chains of a few hundred layers stay below it
TOLERANCE: dict[int, float] = {
    TensorProto.FLOAT: 1e-5,
    TensorProto.DOUBLE: 1e-12,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}
# The same with sums in float32: constants that the cut adds are still rounded to the type
WIDENED_TOLERANCE: dict[int, float] = {TensorProto.FLOAT16: 1e-3, TensorProto.BFLOAT16: 8e-3}
_ROUNDING = 2.0  # tolerance, in multiples of the rounding of the original itself
_MOST_TOLERANCES = 10.0  # upper limit of that, in multiples of TOLERANCE
_MOST_HELD_BYTES = 32_000_000  # of weights of a session that is kept for further batches
EXTRA_DRAWS = 2  # of inputs, where masking does not change the outputs of the first


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
    removes
        Whether the plan removes anything.
    random
        Labels of random nodes, which drew the same numbers in all compared models.
    ties
        Labels of selecting nodes (TopK, ArgMax, ...) that chose differently although their inputs
        agree; the tensors in front of them were compared.
    """

    difference: float
    masked_difference: float
    tolerance: float
    outputs: Mapping[str, float]
    exact: bool
    removes: bool = True
    random: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()

    @property
    def vacuous(self) -> bool:
        """Whether masking changes so little that the comparison proves nothing."""
        return self.removes and self.masked_difference <= self.tolerance

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
            **({"vacuous": True} if self.vacuous else {}),
            **({"random": list(self.random)} if self.random else {}),
            **({"ties": list(self.ties)} if self.ties else {}),
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
        If the original, the masked original or the cut model, run with fused nodes, differs from
        itself by more than half of that (normalizations of few values in sequence), twice that
        difference, but at most ten times TOLERANCE.
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
    given = [] if feeds is None else [feeds]
    # drawn one by one: the first batch nearly always decides
    draws = (example_feeds(analysis.model, seed + i) for i in range(EXTRA_DRAWS + (feeds is None)))
    result, trial = None, None
    for number, batch in enumerate(itertools.chain(given, draws)):
        try:
            if trial is None or trial.depends_on_feeds:
                trial = _prepare(analysis, plan, pruned, batch, threads)
            else:
                trial = replace(trial, feeds=batch)
            again = _verify_on(analysis, plan, pruned, batch, tolerance, trial)
        except ModelError:
            if number == 0:  # drawn inputs need not fit a model; the given ones must
                raise
            break
        # a vacuous result is kept until a batch proves something, a failed one in any case
        result = again if result is None or not again.vacuous or not again.ok else result
        if not result.ok or not result.vacuous:
            break
    if result is None:
        raise ValueError("there are no inputs to compare on")
    return result


def _verify_on(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    feeds: Mapping[str, np.ndarray],
    tolerance: float | None,
    trial: _Trial,
) -> Verification:
    """Compare on one batch."""
    removed = analysis.removed(plan.kept)
    reference, original = trial.run(trial.reference), trial.run(trial.dense)
    outputs = _run_pruned(trial, analysis.model, pruned, feeds)
    # first, for a message that names the cause: the differences below would just be infinite
    _check_interface(reference, outputs)
    by_output = {n: relative_difference(outputs[n], reference[n]) for n in reference}
    exact = _is_exact(analysis, plan)
    limit = base = tolerance if tolerance is not None else trial.tolerance(analysis)
    ties: tuple[str, ...] = ()
    # rounding is measured only where the usual tolerance fails: it costs three more runs
    if tolerance is None and exact and max(by_output.values(), default=0.0) > base:
        # widened copies round as float32, far below the tolerance of their constants
        if not trial.is_widened(analysis):
            runs = ((trial.dense, original), (trial.reference, reference), (trial.pruned, outputs))
            limit = max(base, _measure_own_rounding(trial, runs, base))
        failed = [n for n, difference in by_output.items() if difference > limit]
        if failed:
            again = reconsider(analysis, trial.pruned, removed, failed, limit, trial.run_both)
            by_output.update(again.outputs)
            ties = again.ties
    return Verification(
        difference=max(by_output.values(), default=0.0),
        masked_difference=_find_largest_difference(reference, original),
        tolerance=limit,
        outputs=by_output,
        exact=exact,
        removes=bool(removed.any()),
        random=names_of(analysis.model),
        ties=ties,
    )


@dataclass(frozen=True)
class _Trial:
    """Models and inputs of one comparison, in a form whose sums hardly depend on their order.

    Attributes
    ----------
    dense, reference, pruned
        The original, the masked original and the cut model.
    feeds
        Inputs, of the types of the models.
    threads
        Threads of each run.
    depends_on_feeds
        Whether the models hold numbers drawn for these inputs, or the inputs were converted.
    sessions
        Sessions of the models by id, for further batches.
    """

    dense: Model
    reference: Model
    pruned: Model
    feeds: Mapping[str, np.ndarray]
    threads: int
    depends_on_feeds: bool
    sessions: dict[int, Session] = field(default_factory=dict)

    def run(
        self, model: Model, outputs: Sequence[str] | None = None, optimize: bool = False
    ) -> Outputs:
        """Run one of the models; without `optimize`, node by node."""
        # the weights of large models are not held for a further batch, which is rarely needed
        if outputs is not None or optimize or model.size_bytes() > _MOST_HELD_BYTES:
            session = Session(model, outputs=outputs, threads=self.threads, optimize=optimize)
            return session.run(self.feeds)
        if id(model) not in self.sessions:
            self.sessions[id(model)] = Session(model, threads=self.threads, optimize=False)
        return self.sessions[id(model)].run(self.feeds)

    def run_both(self, outputs: Sequence[str]) -> tuple[Outputs, Outputs]:
        """Return tensors of the masked original and of the cut model."""
        return self.run(self.reference, outputs), self.run(self.pruned, outputs)

    def tolerance(self, analysis: Analysis) -> float:
        """Return the tolerance of the coarsest float type that the models compute in."""
        used = {analysis.shapes.dtype(n) for n in analysis.tensors} & TOLERANCE.keys()
        table = TOLERANCE | WIDENED_TOLERANCE if self.is_widened(analysis) else TOLERANCE
        return max((table[t] for t in used), default=TOLERANCE[TensorProto.FLOAT])

    def is_widened(self, analysis: Analysis) -> bool:
        """Return whether the models are float32 copies of models of half precision."""
        return has_half(analysis.model) and not has_half(self.dense)


def _prepare(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    feeds: Mapping[str, np.ndarray],
    threads: int,
) -> _Trial:
    """Fix random nodes, widen half precision, and make integer sums of quantized layers exact."""
    dense, reference = analysis.model, masked(analysis, plan)
    bound = bool(names_of(dense))  # to these inputs
    if bound:
        # drawn once, for the original: the cut model gets the kept positions of the same numbers
        values = draw(dense, feeds, threads)
        dense, reference = fix_random(dense, values), fix_random(reference, values)
        removed = analysis.removed(plan.kept)
        kept = {n: analysis.keep_values(n, np.asarray(v), removed) for n, v in values.items()}
        pruned = fix_random(pruned, kept)
    if has_half(dense):
        wide, wide_feeds = widen(dense), widen_feeds(feeds)
        with contextlib.suppress(ModelError):  # an operator that takes half precision only
            Session(wide, threads=threads, optimize=False).run(wide_feeds)
            removed = analysis.removed(plan.kept)
            reference = round_scales(analysis, removed, widen(reference))
            dense, pruned, feeds, bound = wide, widen(pruned), wide_feeds, True
    if is_quantized(dense):
        # of widened copies too: their scales are float32, which exact sums ask for
        dense, reference, pruned = map(integer_sums, (dense, reference, pruned))
    return _Trial(dense, reference, pruned, feeds, threads, bound)


def _run_pruned(
    trial: _Trial, original: Model, pruned: Model, feeds: Mapping[str, np.ndarray]
) -> Outputs:
    """Run the cut model; VerificationError if onnxruntime does not, but runs the original."""
    try:
        # the changed copy may run although the model itself does not
        if trial.pruned is not pruned and _can_run(original, feeds, trial.threads):
            Session(pruned, threads=trial.threads, optimize=False).run(feeds)
        return trial.run(trial.pruned)
    except Exception as problem:
        raise VerificationError(
            "cut-refused", f"onnxruntime does not run the cut model: {problem}"
        ) from problem


def _can_run(model: Model, feeds: Mapping[str, np.ndarray], threads: int) -> bool:
    """Return whether onnxruntime runs a model; it lacks bfloat16 for many operators."""
    try:
        Session(model, threads=threads, optimize=False).run(feeds)
    except ModelError:
        return False
    return True


def _measure_own_rounding(
    trial: _Trial, runs: Iterable[tuple[Model, Outputs]], base: float
) -> float:
    """Return the tolerance that the rounding of the models themselves justifies, within limits.

    Parameters
    ----------
    runs
        Models and their outputs, node by node. A trained network may round well and with most of
        its channels masked badly, so the masked original and the cut model count as well.
    """
    rounding = 0.0
    for model, outputs in runs:
        with contextlib.suppress(ModelError):  # a fused operator that onnxruntime refuses
            optimized = trial.run(model, optimize=True)
            rounding = max(rounding, _find_largest_difference(optimized, outputs))
    return min(_ROUNDING * rounding, _MOST_TOLERANCES * base)


def _check_interface(reference: Outputs, outputs: Outputs) -> None:
    """Raise VerificationError for a missing output or one of another rank or type."""
    for name, expected in reference.items():
        if name not in outputs:
            raise VerificationError("cut-outputs", f"the cut model has no output {name!r}")
        if isinstance(outputs[name], np.ndarray) != isinstance(expected, np.ndarray):
            kinds = (type(v).__name__ for v in (outputs[name], expected))
            raise VerificationError(
                "cut-outputs",
                "output {!r} of the cut model is a {}; the original's is a {}".format(name, *kinds),
            )
        a, b = as_array(outputs[name]), as_array(expected)
        if a is None or b is None:  # empty optionals, whose difference is reported
            continue
        if a.ndim != b.ndim or a.dtype != b.dtype:
            raise VerificationError(
                "cut-outputs",
                f"output {name!r} of the cut model has rank {a.ndim} and type {a.dtype}; "
                f"the original's has rank {b.ndim} and type {b.dtype}",
            )


def _is_exact(analysis: Analysis, plan: Plan) -> bool:
    """Return whether no pruned group has an axis along which an operator mixes."""
    return all(
        g.exact or g.name not in plan.kept or len(plan.kept[g.name]) == g.size
        for g in analysis.groups
    )


def _find_largest_difference(outputs: Outputs, expected: Outputs) -> float:
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
        # onnx computes shapes from small constants, so that these must stay in the graph
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
        # full_check infers shapes strictly, which finds literals that a cut has left behind
        onnx.checker.check_model(skeleton, full_check=True)
    except Exception as problem:  # onnx's C++ errors have no common type
        raise VerificationError(
            "cut-invalid",
            f"onnx rejects the cut model: {str(problem).strip().splitlines()[0]}",
        ) from problem
