"""Reference gradients: central differences and torch autograd, both in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.autodiff import BINARY, DRAWN, VECTOR, Gradient, Loss, Place
from onnxprune.autodiff.losses import BACKGROUND, LEAST_VARIANCE
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session

SINGLE = 1e-4  # float32 sums of a few hundred terms against float64
STEP = 1e-5  # of central differences in float64: error about STEP**2
# float64 against float64; the graph's own constants (1 / pixels, slopes) are float32
FORMULA = 2e-7


def in_torch(model: Model) -> Any:
    """Return torch and the graph as a float64 module."""
    torch = pytest.importorskip("torch")
    from onnxprune.tune.bridge import to_module

    module = to_module(model).eval().double()
    module.constants = {
        n: v.double() if v.is_floating_point() else v for n, v in module.constants.items()
    }
    return torch, module


def mask_derivatives(
    model: Model, feeds: dict[str, np.ndarray], place: Place, vector: np.ndarray
) -> np.ndarray:
    """Return the derivative of v'f by a factor on each channel of an input, (samples, channels).

    Central differences in float64, per sample.
    """
    torch, module = in_torch(model)
    tensors = {n: torch.from_numpy(v) for n, v in feeds.items()}
    x = feeds[place.tensor]
    derivatives = np.zeros((x.shape[0], x.shape[place.axis]))
    for n, c in np.ndindex(derivatives.shape):
        position: list[Any] = [slice(None)] * x.ndim
        position[place.axis], position[0] = c, n
        index = tuple(position)
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] *= 1 + sign * STEP
            with torch.no_grad():
                (y,) = module({**tensors, place.tensor: torch.from_numpy(moved)}).values()
            ends.append(float((y.double().numpy() * vector).sum()))
        derivatives[n, c] = (ends[0] - ends[1]) / (2 * STEP)
    return derivatives


def run(
    gradient: Gradient, feeds: dict[str, np.ndarray], extra: dict[str, np.ndarray]
) -> dict[Place, np.ndarray]:
    """Return the outputs by place."""
    values = Session(gradient.model).run({**feeds, **extra})
    return {place: values[name] for place, name in gradient.outputs.items()}


def autograd(
    model: Model,
    feeds: dict[str, np.ndarray],
    losses: list[Loss],
    extra: dict[str, np.ndarray],
    places: list[Place],
) -> dict[Place, np.ndarray]:
    """Return A * dL/dA by torch autograd in float64, (samples, channels)."""
    torch, module = in_torch(model)
    tensors = {n: torch.from_numpy(v).double().requires_grad_(True) for n, v in feeds.items()}
    producers = {o: node for node in model.proto.graph.node for o in node.output}
    starts = []
    for loss in losses:
        producer = producers[loss.head]
        softmax = producer.op_type == "Softmax" and loss.kind != VECTOR
        starts.append(producer.input[0] if softmax else loss.head)
    names = list(dict.fromkeys(p.tensor for p in places))
    scores = [loss.weight[0] for loss in losses if loss.weight]
    values = module(tensors, [*names, *starts, *scores])
    total = torch.zeros((), dtype=torch.float64)
    for loss, start in zip(losses, starts, strict=True):
        total = total + _differentiate(loss, values, start, torch.from_numpy(extra[loss.input]))
    grads = dict(zip(names, torch.autograd.grad(total, [values[n] for n in names]), strict=True))
    result = {}
    for place in places:
        a = values[place.tensor].detach()
        product = (a * grads[place.tensor]).reshape(
            len(next(iter(feeds.values()))), -1, *a.shape[1:]
        )
        axis = place.axis % a.ndim + 1
        result[place] = product.sum([i for i in range(1, product.ndim) if i != axis]).numpy()
    return result


def _differentiate(loss: Loss, values: dict[str, Any], start: str, given: Any) -> Any:
    """Return one loss, a scalar of torch; the formula of each kind is its own definition."""
    import torch
    from torch.nn import functional

    head = values[start]
    factor = torch.ones((), dtype=torch.float64)
    if loss.weight:
        tensor, axis, probabilities = loss.weight
        score = values[tensor].detach()
        most = (score if probabilities else score.sigmoid()).amax(axis, keepdim=True)
        if most.ndim == head.ndim:
            factor = (most + BACKGROUND).sqrt()
    if loss.kind == VECTOR:
        return (head * given * factor).sum()
    if loss.kind == BINARY:
        scale = loss.scale or 1.0
        if not loss.probabilities:
            labels = (head.detach() + given > 0).double()
            each = functional.binary_cross_entropy_with_logits(head, labels, reduction="none")
            return (each * factor).sum() * scale
        p = head.detach()
        labels = (given < p).double()
        derivative = (p - labels) / (p * (1 - p)).clamp_min(LEAST_VARIANCE)
        return (head * derivative * factor).sum() * scale
    axis = loss.axis % head.ndim
    labels = (head + given).argmax(axis) if loss.kind == DRAWN else given
    each = functional.cross_entropy(
        head.movedim(axis, 1), labels, reduction="none", ignore_index=-1
    )
    return (each * factor.squeeze(axis) if loss.weight else each).sum() * (
        1 / labels[0].numel() if loss.scale is None else loss.scale
    )


def close(
    found: dict[Place, np.ndarray], expected: dict[Place, np.ndarray], tolerance: float
) -> None:
    """Assert a relative tolerance in the Euclidean norm for every place."""
    assert set(found) == set(expected)
    errors = {
        p: np.linalg.norm(found[p] - e) / max(np.linalg.norm(e), 1e-300)
        for p, e in expected.items()
    }
    worst = max(errors, key=lambda p: errors[p])
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]}"
