"""Static int8 quantization: form, calibrator, exclusions, bias correction and checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.data.dataset import Data, open_data
from onnxprune.errors import DataError, ModelError, UsageError, plural, unknown
from onnxprune.ir.edit import copy_message
from onnxprune.ir.io import Model, load
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.quantize import PER_CHANNEL_OPSET, is_quantized
from onnxprune.ir.runtime import Session
from onnxprune.metrics.base import Decoder
from onnxprune.metrics.fidelity import fidelity
from onnxprune.quantize.bias import carry_biases, correct_biases
from onnxprune.quantize.equalize import equalize
from onnxprune.quantize.forms import Form, find_form, list_ops
from onnxprune.quantize.graph import (
    build,
    count_integer,
    find_requantized,
    optimized,
)
from onnxprune.quantize.names import AUTO, CALIBRATORS
from onnxprune.quantize.ranges import (
    BATCH,
    Feeds,
    Parts,
    collect_ranges,
    find_masked,
    find_unbounded,
    match_nodes,
    prepare,
    split_feeds,
)

MOST_DIFFERENCE = 0.02  # of outputs with graph optimization on and off
CLEARLY = 0.95  # times a divergence; few inputs do not resolve smaller gains


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and how it was made.

    Attributes
    ----------
    form, calibrate
        Form and calibrator, chosen if "auto" was asked for.
    excluded
        Node that stays in float32 -> reason.
    integer
        Operator -> (nodes that compute in integers, all nodes), in the graph that onnxruntime
        executes after its own optimization.
    choice
        Calibrator -> divergence on the inputs held back for the choice; empty without a choice.
    corrected
        Number of corrected biases.
    equalized
        Number of pairs of convolutions with equalized weights.
    difference
        Relative difference of the outputs with onnxruntime's graph optimization on and off.
    warnings
        Sentences about limits.
    """

    model: Model
    form: str
    calibrate: str
    excluded: Mapping[str, str] = field(default_factory=dict)
    integer: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    choice: Mapping[str, float] = field(default_factory=dict)
    corrected: int = 0
    equalized: int = 0
    difference: float = 0.0
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return all but the model as plain JSON."""
        return {
            "form": self.form,
            "calibrate": self.calibrate,
            "excluded": dict(self.excluded),
            "integer": {op: list(counts) for op, counts in self.integer.items()},
            "choice": {n: v if math.isfinite(v) else None for n, v in self.choice.items()},
            "corrected": self.corrected,
            "equalized": self.equalized,
            "difference": self.difference if math.isfinite(self.difference) else None,
            "warnings": list(self.warnings),
        }

    def describe(self) -> str:
        """Return form, calibrator and integer nodes in one line."""
        counts = ", ".join(
            f"{integer} of {plural(every, op)}" for op, (integer, every) in self.integer.items()
        )
        return f"form {self.form}, calibrator {self.calibrate}, in integers: {counts or 'nothing'}"


def quantize(
    model: Model,
    data: Data,
    form: str = AUTO,
    calibrate: str = AUTO,
    exclude: Sequence[str] = (),
    *,
    engine: str = "",
    correct: bool = True,
    max_divergence: float | None = None,
    decoder: str | Decoder | None = None,
    threads: int = 1,
    progress: Callable[[float, str], None] = lambda share, detail: None,
) -> Quantized:
    """Quantize a float model to int8.

    Parameters
    ----------
    data
        Real calibration inputs; parts of them are held back for the bias correction and for the
        choice of the calibrator.
    form
        One of FORMS, or "auto": that of `engine` (or hand-off target), u8s8 for others.
    calibrate
        One of CALIBRATORS, or "auto": the one with the least divergence.
    exclude
        Patterns of names of nodes, or of their outputs, that stay in float32.
    correct
        Correct the biases.
    max_divergence
        Exclude sensitive nodes until the divergence on the inputs held back is within this limit.
    decoder
        See `fidelity`.
    progress
        Receives the share that is done and a description.

    Raises
    ------
    UsageError
        The model is quantized already, a name is unknown, or a pattern matches no node.
    DataError
        The data are random.
    ModelError
        onnxruntime cannot quantize the model.
    """
    name, shape = find_form(form, engine)
    _check(model, data, calibrate)
    work = _Work(model, prepare(model), shape, split_feeds(data), decoder, threads)
    progress(0.1, "ranges")
    work, excluded = work.leave_masks(match_nodes(work.proto, exclude))
    candidates, ranges = work.choose(calibrate, excluded, correct, progress)
    best = min(candidates, key=lambda method: candidates[method].divergence)
    sensitive: Mapping[str, str] = {}
    if max_divergence is not None:
        progress(0.6, "sensitivity of nodes")
        sensitive = work.exclude_sensitive(ranges[best], excluded, max_divergence)
    excluded |= sensitive
    chosen = work.candidate(ranges[best], excluded, correct) if sensitive else candidates[best]
    chosen = work.try_equalized(best, chosen, excluded, correct)
    return work.finish(name, best, chosen, excluded, candidates)


def quantize_arrays(model: Model, samples: Mapping[str, np.ndarray] | None, target: str) -> Model:
    """Quantize a float model in the form of an engine or a hand-off target.

    Parameters
    ----------
    samples
        Input name -> array (n, ...).

    Raises
    ------
    DataError
        There are no samples.
    """
    if not samples:
        raise DataError(
            "int8-without-data",
            "an int8 copy needs real inputs to determine ranges: "
            "pass --data, or a model that is already quantized",
        )
    count = min(map(len, samples.values()))
    inputs = {name: array[:count] for name, array in samples.items()}
    data = open_data(inputs, Session(model).inputs, samples=count)
    return quantize(model, data, engine=target).model


def _check(model: Model, data: Data, calibrate: str) -> None:
    """Raise what `quantize` documents."""
    if calibrate not in (AUTO, *CALIBRATORS):
        raise unknown("quantize-calibrate", calibrate, (AUTO, *CALIBRATORS), code="option-value")
    if is_quantized(model):
        raise UsageError("quantize-twice", "the model is quantized already: quantize a float model")
    if data.warning:
        raise DataError(
            "int8-without-data", "int8 needs real inputs to determine ranges: pass --data PATH"
        )


@dataclass(frozen=True)
class _Candidate:
    """An int8 model and its divergence on the inputs held back for choices.

    Attributes
    ----------
    corrected
        Number of corrected biases.
    rejected
        Whether their correction raised the divergence and was left out.
    equalized
        Number of pairs of convolutions with equalized weights.
    """

    model: Model
    divergence: float
    corrected: int = 0
    rejected: bool = False
    equalized: int = 0


@dataclass(frozen=True)
class _Work:
    """A prepared model with what all its quantized forms share.

    Attributes
    ----------
    extremes
        Ranges by the least and largest values.
    unbounded
        Activations of which no ranges are collected, because of masks.
    """

    model: Model
    proto: ModelProto
    form: Form
    parts: Parts
    decoder: str | Decoder | None
    threads: int
    extremes: Any = None
    unbounded: Sequence[str] = ()

    def collect(self, method: str) -> Any:
        """Return the ranges of the activations by a calibrator."""
        if method == "minmax" and self.extremes is not None:
            return self.extremes
        return collect_ranges(
            self.proto,
            method,
            list_ops(self.form),
            self.form.symmetric,
            self.parts.ranges,
            self.unbounded,
        )

    def leave_masks(self, excluded: Mapping[str, str]) -> tuple[_Work, dict[str, str]]:
        """Return work without ranges of masked values, and the nodes excluded for them as well."""
        extremes = self.collect("minmax")
        unbounded = find_unbounded(extremes)
        masked = find_masked(self.proto, list_ops(self.form), unbounded)
        for name in unbounded:
            del extremes.data[name]
        return replace(self, extremes=extremes, unbounded=tuple(unbounded)), {**masked, **excluded}

    def choose(
        self,
        calibrate: str,
        excluded: Mapping[str, str],
        correct: bool,
        progress: Callable[[float, str], None],
    ) -> tuple[dict[str, _Candidate], dict[str, Any]]:
        """Return models and ranges by calibrator."""
        methods = CALIBRATORS if calibrate == AUTO else (calibrate,)
        candidates, ranges = {}, {}
        for i, method in enumerate(methods):
            progress(0.1 + 0.5 * i / len(methods), f"calibrator {method}")
            ranges[method] = self.collect(method)
            # corrected, because that repairs some calibrators more than others
            candidates[method] = self.candidate(ranges[method], excluded, correct)
        return candidates, ranges

    def candidate(self, ranges: Any, excluded: Mapping[str, str], correct: bool) -> _Candidate:
        """Return the int8 model with corrected biases, or without if it diverges less."""
        proto = build(self.proto, ranges, self.form, excluded)
        plain = load(copy_message(proto))
        divergence = self.divergence(plain)
        if not correct:
            return _Candidate(plain, divergence)
        proto, count = self.correct(proto, ranges, excluded)
        model = load(proto)
        corrected = self.divergence(model)
        # few inputs can give worse means than the rounding itself
        if corrected > divergence:
            return _Candidate(plain, divergence, rejected=True)
        return _Candidate(model, corrected, count)

    def correct(
        self, proto: ModelProto, ranges: Any, excluded: Mapping[str, str]
    ) -> tuple[ModelProto, int]:
        """Return the int8 graph with corrected biases, and their number."""
        if not self.form.operators:
            return proto, correct_biases(self.proto, proto, self.parts.correction)
        # QLinear operators hide the sums whose means are compared: they take the biases of pairs,
        # but for those of QLinearAdd, whose operands the tool rounds in another way
        form = replace(self.form, operators=False, ops=tuple(list_ops(self.form)))
        pairs = build(self.proto, ranges, form, excluded)
        count = correct_biases(self.proto, pairs, self.parts.correction, products=False)
        carry_biases(pairs, proto)
        return proto, count

    def build(self, ranges: Any, excluded: Mapping[str, str]) -> Model:
        """Return the int8 model without bias correction."""
        return load(build(self.proto, ranges, self.form, excluded))

    def divergence(self, candidate: Model) -> float:
        """Return the divergence on the inputs held back for choices; infinite if it fails."""
        try:
            result = fidelity(
                self.model,
                candidate,
                self.parts.choice,
                decoder=self.decoder,
                threads=self.threads,
                batch_size=BATCH,
            )
        except ModelError:
            return math.inf
        return result.divergence

    def try_equalized(
        self, method: str, best: _Candidate, excluded: Mapping[str, str], correct: bool
    ) -> _Candidate:
        """Return the int8 model with equalized weights if it diverges less, else `best`."""
        if self.form.per_channel:  # every channel has a scale of its own
            return best
        proto = copy_message(self.proto)
        count = equalize(proto)
        if not count:
            return best
        work = replace(self, proto=proto, extremes=None)
        candidate = replace(
            work.candidate(work.collect(method), excluded, correct), equalized=count
        )
        return candidate if candidate.divergence < CLEARLY * best.divergence else best

    def exclude_sensitive(
        self, ranges: Any, excluded: Mapping[str, str], limit: float
    ) -> dict[str, str]:
        """Return node -> reason for the nodes whose quantization costs most.

        Nodes are ranked by the divergence of the model in which all other layers are float.
        """
        layers = [n.name for n in self.proto.graph.node if n.op_type in LINEAR_OPS]
        candidates = [name for name in layers if name not in excluded]
        found: dict[str, str] = {}
        current = self.divergence(self.build(ranges, excluded))
        if current <= limit:
            return found
        alone = {}
        for name in candidates:
            others = dict.fromkeys((n for n in layers if n != name), "") | dict(excluded)
            alone[name] = self.divergence(self.build(ranges, others))
        ranked = sorted(candidates, key=lambda n: -alone[n])
        for name in ranked:
            found[name] = f"alone in int8, the outputs diverge by {alone[name]:.3g}"
            current = self.divergence(self.build(ranges, {**excluded, **found}))
            if current <= limit:
                break
        return found

    def finish(
        self,
        form: str,
        calibrate: str,
        candidate: _Candidate,
        excluded: Mapping[str, str],
        candidates: Mapping[str, _Candidate],
    ) -> Quantized:
        """Return the result, checked."""
        model, warnings = candidate.model, []
        if candidate.rejected:
            warnings.append("bias correction raises the divergence and was not applied")
        opset = model.opset
        if self.form.per_channel and opset < PER_CHANNEL_OPSET:
            warnings.append(
                f"weights have one scale per tensor: opset {opset} has none per channel; export "
                f"the model with opset {PER_CHANNEL_OPSET}"
            )
        graph = optimized(model)
        layers = [n for n in self.proto.graph.node if n.op_type in LINEAR_OPS]
        weights = {n.name: n.input[1] for n in layers if n.name in excluded}
        if broken := find_requantized(graph, weights):
            warnings.append(
                f"onnxruntime's optimizer quantizes excluded nodes: {', '.join(broken[:3])}"
            )
        difference = compare_optimization(model, self.parts.correction, self.threads)
        if not difference <= MOST_DIFFERENCE:
            warnings.append(
                f"outputs with onnxruntime's graph optimization on and off differ by "
                f"{difference:.1%}, more than {MOST_DIFFERENCE:.0%}"
            )
        return Quantized(
            model,
            form,
            calibrate,
            excluded,
            count_integer(graph),
            {n: c.divergence for n, c in candidates.items()} if len(candidates) > 1 else {},
            candidate.corrected,
            candidate.equalized,
            difference,
            tuple(warnings),
        )


def compare_optimization(model: Model, feeds: Sequence[Feeds], threads: int = 1) -> float:
    """Return the relative difference of the outputs with graph optimization on and off."""
    on, off = (Session(model, threads=threads, optimize=o) for o in (True, False))
    sums: dict[str, tuple[float, float]] = {}
    for feed in feeds:
        first, second = on.run(feed), off.run(feed)
        for name, value in second.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                continue
            error = np.sum((first[name].astype(np.float64) - value) ** 2)
            norm = np.sum(value.astype(np.float64) ** 2)
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + float(error), before[1] + float(norm)
    return max(
        (math.sqrt(error / norm) if norm else math.sqrt(error) for error, norm in sums.values()),
        default=0.0,
    )
