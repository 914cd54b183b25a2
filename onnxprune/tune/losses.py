"""Training losses: the task's own loss, and terms that compare with the original model.

A loss is written as terms with weights, "kd" or "ce+0.5*dist"; a row of LOSSES is a term. All are
means over the batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError, UsageError, unknown
from onnxprune.tune.call import Tensor, torch

F = torch.nn.functional
Named = Mapping[str, Tensor]
_IGNORED = -100  # label that torch's cross-entropy ignores


@dataclass(frozen=True)
class Head:
    """A graph output as a loss reads it.

    Attributes
    ----------
    output : str
        Name of the output.
    tensor : str
        The output, or the input of the Softmax that computes it.
    axis : int or None
        Class axis; None for other outputs.
    """

    output: str
    tensor: str
    axis: int | None


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss term for one batch.

    Attributes
    ----------
    student, teacher : mapping of str to Tensor
        Outputs, logits and features by tensor name.
    labels : mapping of str to Tensor
        By label name.
    heads : sequence of Head
        Outputs of the graph.
    features : sequence of str
        Inner tensors to compare.
    temperature : float
        Softmax temperature.
    class_offset : int
        Outputs before class 0.
    """

    student: Named
    teacher: Named
    labels: Named
    heads: Sequence[Head]
    features: Sequence[str]
    temperature: float
    class_offset: int = 0


def cross_entropy(logits: Tensor, labels: Tensor, axis: int = -1) -> Tensor:
    """Return the mean negative log-likelihood.

    Parameters
    ----------
    labels
        Integers in the shape of `logits` without the class axis; labels out of range (void) are
        ignored.
    """
    logits = logits.movedim(axis, 1)
    # segmentation data mark void pixels by labels out of range, such as 255
    known = (labels >= 0) & (labels < logits.shape[1])
    return F.cross_entropy(logits, torch.where(known, labels, _IGNORED), ignore_index=_IGNORED)


def divergence(student: Tensor, teacher: Tensor, temperature: float, axis: int = -1) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over samples.

    Source: Hinton et al. 2015, section 2.
    """
    # logarithms keep probabilities near 0 finite
    p, q = (F.log_softmax(z / temperature, axis) for z in (teacher, student))
    # the factor keeps the size of the gradient equal at all temperatures
    return (p.exp() * (p - q)).sum(axis).mean() * temperature**2


def correlation(student: Tensor, teacher: Tensor, temperature: float, axis: int = -1) -> Tensor:
    """Return DIST: 1 - Pearson over the rows plus 1 - Pearson over the columns of the softmax.

    Source: Huang et al. 2022, equations 9 to 11.
    """
    a, b = (
        F.softmax(z / temperature, axis).movedim(axis, -1).flatten(0, -2)
        for z in (student, teacher)
    )
    between = 1 - _correlate_rows(a, b).mean()
    # a single sample has no correlation over samples
    within = 1 - _correlate_rows(a.T, b.T).mean() if len(a) > 1 else between
    return (between + within) * temperature**2


def _correlate_rows(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation of each pair of rows."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error over the teacher's variance; 1 for a constant guess."""
    # a constant output has no variance
    return (student - teacher).square().mean() / teacher.var(unbiased=False).clamp_min(1e-12)


def _compute_ce(inputs: LossInputs) -> Tensor:
    """Compute the cross-entropy of the first output against the labels."""
    head = inputs.heads[0]
    name = next((n for n in ("labels", "masks", "targets") if n in inputs.labels), None)
    advice = "distil with kd, dist or feature instead"
    if name is None:
        raise DataError(
            "tune-labels",
            f"loss ce: the data have no labels (labels, masks or targets); {advice}",
        )
    if head.axis is None:
        raise DataError(
            "tune-labels",
            f"loss ce: output {head.output!r} has no class axis; set class_axis; {advice}",
        )
    labels = inputs.labels[name].long() + inputs.class_offset
    return cross_entropy(inputs.student[head.tensor], labels, head.axis)


def _per_head(
    function: Callable[[Tensor, Tensor, float, int], Tensor],
) -> Callable[[LossInputs], Tensor]:
    """Return a term summed over all outputs; one without classes uses its relative error."""

    def compute(inputs: LossInputs) -> Tensor:
        terms = []
        for head in inputs.heads:
            student, teacher = inputs.student[head.tensor], inputs.teacher[head.tensor]
            if head.axis is None:
                terms.append(relative_error(student, teacher))
            else:
                terms.append(function(student, teacher, inputs.temperature, head.axis))
        return torch.stack(terms).sum()

    return compute


def _compute_output(inputs: LossInputs) -> Tensor:
    """Sum the relative errors of the outputs."""
    names = [head.tensor for head in inputs.heads]
    errors = [relative_error(inputs.student[n], inputs.teacher[n]) for n in names]
    return torch.stack(errors).sum()


def _compute_feature(inputs: LossInputs) -> Tensor:
    """Average the relative errors of inner tensors."""
    if not inputs.features:
        raise UsageError(
            "tune-features",
            "loss feature: no inner tensor has the same shape in both models; "
            "name some in features, or use kd",
        )
    errors = [relative_error(inputs.student[n], inputs.teacher[n]) for n in inputs.features]
    return torch.stack(errors).mean()


Term = Callable[[LossInputs], Tensor]
LOSSES: Mapping[str, tuple[Term, str]] = {
    "ce": (_compute_ce, "cross-entropy against the labels"),
    "kd": (
        _per_head(divergence),
        "divergence of the softened class probabilities from the original model's",
    ),
    "dist": (
        _per_head(correlation),
        "1 - Pearson correlation with the original model's probabilities, over rows and columns",
    ),
    "output": (_compute_output, "relative squared error of the outputs"),
    "feature": (_compute_feature, "relative squared error of inner tensors that both models have"),
}
_TERM = re.compile(r"(?:([0-9.eE-]+)\s*\*\s*)?([a-z]+)")


def parse(spec: str) -> dict[str, float]:
    """Return the weight of each term.

    >>> parse("ce+0.5*dist")
    {'ce': 1.0, 'dist': 0.5}

    Parameters
    ----------
    spec
        Terms of LOSSES with weights; "task" stands for the caller's own loss.

    Raises
    ------
    UsageError
        Unknown term, or not of this form.
    """
    weights: dict[str, float] = {}
    names = (*LOSSES, "task")
    for part in spec.split("+"):
        match = _TERM.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                "loss-form",
                f"loss {spec!r} is not of the form TERM+WEIGHT*TERM; terms: {', '.join(names)}",
            )
        if match[2] not in names:
            raise unknown("loss", match[2], names)
        try:
            # a term may occur twice
            weights[match[2]] = weights.get(match[2], 0.0) + float(match[1] or 1)
        except ValueError:
            raise UsageError("loss-form", f"loss {spec!r}: {match[1]!r} is not a number") from None
    return weights


def needs_teacher(weights: Mapping[str, float]) -> bool:
    """Return True if a term compares with the original model."""
    return bool(set(weights) - {"ce", "task"})


def accuracy(
    outputs: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    head: Head,
    class_offset: int = 0,
) -> float | None:
    """Return the share of labels (for masks, of pixels) that the largest class hits.

    None if there are no labels or classes.
    """
    name = next((n for n in ("labels", "masks") if n in labels), None)
    if name is None or head.axis is None:
        return None
    logits = outputs[head.tensor]
    predicted = logits.argmax(head.axis)
    expected = labels[name].astype(np.int64) + class_offset
    known = (expected >= 0) & (expected < logits.shape[head.axis])
    # outputs of another size, such as masks at a lower resolution, cannot be compared
    if predicted.shape != expected.shape or not known.any():
        return None
    return float((predicted == expected)[known].mean())
