"""What tuning minimizes: the task's own loss and four ways to follow the unpruned model.

A loss is written as terms with weights, "kd" or "ce+0.5*dist"; a row of LOSSES is a term. All are means over the batch.
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


@dataclass(frozen=True)
class Head:
    """A graph output as a loss sees it. tensor: the output, or what goes into its Softmax; axis: of the classes, None for other outputs."""

    output: str
    tensor: str
    axis: int | None


@dataclass(frozen=True)
class Sight:
    """What a loss term sees of a batch. student, teacher: tensors by name; labels: by name; features: names of tensors to compare."""

    student: Named
    teacher: Named
    labels: Named
    heads: Sequence[Head]
    features: Sequence[str]
    temperature: float
    class_offset: int = 0


def cross_entropy(logits: Tensor, labels: Tensor, axis: int = -1) -> Tensor:
    """Mean negative log-likelihood. labels: int, shape of `logits` without the class axis; those out of range (void) are left out."""
    logits = logits.movedim(axis, 1)
    known = (labels >= 0) & (labels < logits.shape[1])
    return F.cross_entropy(logits, torch.where(known, labels, -100), ignore_index=-100)


def divergence(student: Tensor, teacher: Tensor, temperature: float, axis: int = -1) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over everything but the classes. Source: Hinton et al. 2015, section 2."""
    p, q = (F.log_softmax(z / temperature, axis) for z in (teacher, student))
    return (p.exp() * (p - q)).sum(axis).mean() * temperature**2


def correlation(student: Tensor, teacher: Tensor, temperature: float, axis: int = -1) -> Tensor:
    """DIST: 1 - Pearson over the rows plus 1 - Pearson over the columns of the softmax. Source: Huang et al. 2022, equations 9 to 11."""
    rows = [
        F.softmax(z / temperature, axis).movedim(axis, -1).flatten(0, -2)
        for z in (student, teacher)
    ]
    between = 1 - _pearson(rows[0], rows[1]).mean()
    within = 1 - _pearson(rows[0].T, rows[1].T).mean() if len(rows[0]) > 1 else between
    return (between + within) * temperature**2


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the rows."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance over the teacher's squared deviation from its mean: 1 for a constant guess, whatever the units."""
    return (student - teacher).square().mean() / teacher.var(unbiased=False).clamp_min(1e-12)


def _ce(sight: Sight) -> Tensor:
    head = sight.heads[0]
    name = next((n for n in ("labels", "masks", "targets") if n in sight.labels), None)
    if name is None or head.axis is None:
        why = (
            "the data have no labels (labels, masks or targets)"
            if name is None
            else f"output {head.output!r} has no class axis; set class_axis"
        )
        raise DataError("tune-labels", f"loss ce: {why}; distil with kd, dist or feature instead")
    return cross_entropy(
        sight.student[head.tensor], sight.labels[name].long() + sight.class_offset, head.axis
    )


def _per_head(
    function: Callable[[Tensor, Tensor, float, int], Tensor],
) -> Callable[[Sight], Tensor]:
    """A term over all outputs; one without classes is compared by its relative error."""

    def run(sight: Sight) -> Tensor:
        terms = []
        for head in sight.heads:
            mine, theirs = sight.student[head.tensor], sight.teacher[head.tensor]
            terms.append(
                relative_error(mine, theirs)
                if head.axis is None
                else function(mine, theirs, sight.temperature, head.axis)
            )
        return torch.stack(terms).sum()

    return run


def _output(sight: Sight) -> Tensor:
    return torch.stack(
        [relative_error(sight.student[h.tensor], sight.teacher[h.tensor]) for h in sight.heads]
    ).sum()


def _feature(sight: Sight) -> Tensor:
    if not sight.features:
        raise UsageError(
            "tune-features",
            "loss feature: no inner tensor has the same shape in both models; name some in features, or use kd",
        )
    return torch.stack(
        [relative_error(sight.student[n], sight.teacher[n]) for n in sight.features]
    ).mean()


Term = Callable[[Sight], Tensor]
LOSSES: Mapping[str, tuple[Term, str]] = {
    "ce": (_ce, "cross-entropy against the labels"),
    "kd": (
        _per_head(divergence),
        "divergence of the softened class probabilities from the unpruned model's",
    ),
    "dist": (
        _per_head(correlation),
        "1 - Pearson correlation with the unpruned model's probabilities, over rows and columns",
    ),
    "output": (_output, "relative squared error of the outputs"),
    "feature": (_feature, "relative squared error of inner tensors that both models have"),
}
_TERM = re.compile(r"(?:([0-9.eE-]+)\s*\*\s*)?([a-z]+)")


def parse(spec: str) -> dict[str, float]:
    """Weight of each term: "ce+0.5*dist" -> {"ce": 1, "dist": 0.5}. "task" stands for the caller's own loss.

    Raises
    ------
    UsageError
        Unknown term or not of that form.
    """
    weights: dict[str, float] = {}
    for part in spec.split("+"):
        match = _TERM.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                "loss-form",
                f"loss {spec!r} is not of the form TERM+WEIGHT*TERM; terms: {', '.join(LOSSES)}, task",
            )
        if match[2] not in (*LOSSES, "task"):
            raise unknown("loss", match[2], (*LOSSES, "task"))
        try:
            weights[match[2]] = weights.get(match[2], 0.0) + float(match[1] or 1)
        except ValueError:
            raise UsageError("loss-form", f"loss {spec!r}: {match[1]!r} is not a number") from None
    return weights


def needs_teacher(weights: Mapping[str, float]) -> bool:
    """Whether a term compares with another model."""
    return bool(set(weights) - {"ce", "task"})


def accuracy(
    outputs: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    head: Head,
    class_offset: int = 0,
) -> float | None:
    """Share of labels (of pixels, for masks) that the largest class hits; None without labels or classes."""
    name = next((n for n in ("labels", "masks") if n in labels), None)
    if name is None or head.axis is None:
        return None
    found, wanted = (
        outputs[head.tensor].argmax(head.axis),
        labels[name].astype(np.int64) + class_offset,
    )
    known = (wanted >= 0) & (wanted < outputs[head.tensor].shape[head.axis])
    return (
        float((found == wanted)[known].mean())
        if found.shape == wanted.shape and known.any()
        else None
    )
