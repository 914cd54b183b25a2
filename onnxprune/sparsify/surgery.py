"""Dynamic network surgery: masks that prune and splice weights while the network is tuned.

A pruned weight keeps learning (the gradient of the masked weight is applied to it) and is spliced
back once it has grown. Two thresholds keep it from flickering.

Source: Guo, Yao, Chen 2016, "Dynamic Network Surgery for Efficient DNNs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.ir.io import Model
from onnxprune.sparsify.layout import OPS, linear_weights

LOWER, UPPER = 0.9, 1.1  # factors on the threshold: prune up to LOWER, splice above UPPER


@dataclass(frozen=True)
class SurgerySettings:
    """Hyperparameters of dynamic network surgery.

    Attributes
    ----------
    gamma, power : float
        The masks are updated before a step with probability (1 + gamma * step) ** -power.
    c_rate : float
        The threshold is mean + c_rate * standard deviation of a tensor's initial |w|.
    stop_step : int
        First step from which the masks are constant.
    rates : mapping of str to float
        c_rate of single tensors.
    ops : tuple of str
        Operators whose weights are masked.
    least_sparsity : float
        Share of zeros among these weights below which a result is not accepted.
    seed : int
        Seed of the update steps.
    """

    gamma: float = 1e-3
    power: float = 1.0
    c_rate: float = 3.0
    stop_step: int = 10000
    rates: Mapping[str, float] = field(default_factory=dict)
    ops: tuple[str, ...] = OPS
    least_sparsity: float = 0.0
    seed: int = 0


def threshold(weight: np.ndarray, c_rate: float) -> float:
    """Return max(mu + c_rate * sigma, 0) with mu = mean |w| and sigma^2 = mean w^2 - mu^2."""
    mean = float(np.abs(weight).mean())
    # rounding may leave a negative variance
    deviation = float(np.sqrt(max(np.square(weight).mean() - mean**2, 0.0)))
    return max(mean + c_rate * deviation, 0.0)


def update_mask(mask: np.ndarray, weight: np.ndarray, h: float) -> np.ndarray:
    """Return the next mask: False for |w| <= 0.9 h, True for |w| > 1.1 h, unchanged between."""
    size = np.abs(weight)
    return np.where(size <= LOWER * h, False, np.where(size > UPPER * h, True, mask))


class PruneAndSplice:
    """Hook for `tune.finetune.tune` that masks weights below a threshold.

    The result of the run is the masked weights of the best validation after the masks are constant.

    Raises
    ------
    UsageError
        A rate for an unknown tensor, or no weights of the given operators.
    """

    def __init__(self, model: Model, settings: SurgerySettings) -> None:
        unknown = sorted(set(settings.rates) - set(model.weights))
        if unknown:
            raise UsageError(
                "surgery-tensor", f"rates name {unknown[0]!r}, which is not a weight of the model"
            )
        self.settings = settings
        arrays = {
            t.tensor: model.weights[t.tensor].array().astype(np.float64)
            for t in linear_weights(model, settings.ops)
        }
        if not arrays:
            raise UsageError(
                "surgery-nothing", f"the model has no weights of {', '.join(settings.ops)}"
            )
        # from the initial weights, so that training does not move what it is compared with
        self.thresholds = {
            n: threshold(w, settings.rates.get(n, settings.c_rate)) for n, w in arrays.items()
        }
        self.masks: dict[str, Any] = {n: np.ones(w.shape, bool) for n, w in arrays.items()}

    @property
    def sparsity(self) -> float:
        """Share of zeros among the masked tensors."""
        kept = float(sum(m.sum() for m in self.masks.values()))
        return 1 - kept / sum(m.size for m in self.masks.values())

    def start(self, module: Any) -> None:
        """Apply the masks in the forward pass; gradients pass straight to the weights."""
        module.transform = _StraightThrough(self.masks, module)

    def before_step(self, module: Any, step: int) -> None:
        """Update the masks with a probability that falls with the step."""
        settings = self.settings
        if step >= settings.stop_step:
            return
        probability = (1 + settings.gamma * step) ** -settings.power
        # the draw depends on seed and step alone, so that a resumed run repeats it
        if np.random.default_rng([settings.seed, step]).random() >= probability:
            return
        for name, weight in module.named().items():
            if name in self.masks:
                value = weight.detach().cpu().numpy()
                self.masks[name] = update_mask(self.masks[name], value, self.thresholds[name])
        # the transform holds the masks as tensors of the device
        self.start(module)

    def observe(self, loss: Any, tensors: Any, heads: Any, samples: int, step: int) -> None:
        """Do nothing: masks of weights do not depend on activations."""

    def done(self) -> float | None:
        """Return None: the settings determine the length of the run."""
        return None

    def accepts(self, step: int) -> bool:
        """Return True once the masks are constant and sparse enough."""
        return step >= self.settings.stop_step and self.sparsity >= self.settings.least_sparsity

    def signature(self) -> str:
        """Return settings and thresholds as text."""
        return f"prune and splice {self.settings} {self.thresholds}"

    def state(self) -> dict[str, Any]:
        """Return the masks as tensors."""
        import torch

        return {n: torch.from_numpy(np.asarray(m)) for n, m in self.masks.items()}

    def restore(self, module: Any, state: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint."""
        self.masks = {n: m.cpu().numpy() for n, m in state.items()}
        self.start(module)


class KeepZeros:
    """Hook that keeps a sparse model's zeros while its other weights are tuned."""

    def __init__(self, model: Model, ops: Sequence[str] = OPS) -> None:
        self.masks: dict[str, Any] = {
            t.tensor: model.weights[t.tensor].array() != 0 for t in linear_weights(model, ops)
        }

    def start(self, module: Any) -> None:
        """Apply the masks in the forward pass."""
        module.transform = _StraightThrough(self.masks, module)

    def before_step(self, module: Any, step: int) -> None:
        """Do nothing: the masks are constant."""

    def observe(self, loss: Any, tensors: Any, heads: Any, samples: int, step: int) -> None:
        """Do nothing: masks of weights do not depend on activations."""

    def done(self) -> float | None:
        """Return None: the settings determine the length of the run."""
        return None

    def accepts(self, step: int) -> bool:
        """Return True: the zeros hold from the start."""
        return True

    def signature(self) -> str:
        """Return its name; the masks follow from the model."""
        return "keep zeros"

    def state(self) -> dict[str, Any]:
        """Return nothing: the masks follow from the model."""
        return {}

    def restore(self, module: Any, state: Mapping[str, Any]) -> None:
        """Apply the masks in the forward pass."""
        self.start(module)


class _StraightThrough:
    """(name, weight) -> weight * mask, with the product's gradient passed to every weight."""

    def __init__(self, masks: Mapping[str, np.ndarray], module: Any) -> None:
        import torch

        device = next(iter(module.parameters())).device
        self.masks = {n: torch.from_numpy(np.asarray(m)).to(device) for n, m in masks.items()}

    def __call__(self, name: str, weight: Any) -> Any:
        if name not in self.masks:
            return weight
        # the detached difference changes the value but not the gradient
        return weight + (weight * self.masks[name] - weight).detach()
