"""Dynamic network surgery: masks that prune and splice while the network is tuned.

Source: Guo, Yao, Chen 2016, "Dynamic Network Surgery for Efficient DNNs", and METHODS.md section 6. A weight that was pruned goes on being trained
(the gradient of the masked weight is applied to it) and comes back when it has grown; two thresholds keep it from flickering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.ir.io import Model
from onnxprune.sparsify.layout import OPS, targets

LOWER, UPPER = 0.9, 1.1  # of the threshold: prune up to the one, splice beyond the other


@dataclass(frozen=True)
class SurgerySettings:
    """gamma, power: the masks are looked at with probability (1 + gamma * step) ** -power; stop_step: never from then on;
    c_rate: the threshold is mean + c_rate * deviation of a tensor's |w| at the start; rates: other values for single tensors;
    ops: whose weights; least_sparsity: a result counts only once the share of zeros among these weights is that high.
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
    """H = max(mu + c_rate * sigma, 0) with mu = mean |w| and sigma = sqrt(mean w^2 - mu^2)."""
    mean = float(np.abs(weight).mean())
    deviation = float(np.sqrt(max(np.square(weight).mean() - mean**2, 0.0)))
    return max(mean + c_rate * deviation, 0.0)


def updated(mask: np.ndarray, weight: np.ndarray, h: float) -> np.ndarray:
    """The next mask: out where |w| <= 0.9 h, in where |w| > 1.1 h, as it was between."""
    size = np.abs(weight)
    return np.where(size <= LOWER * h, False, np.where(size > UPPER * h, True, mask))


class PruneAndSplice:
    """A hook for `tune.finetune.tune`. Its result is the masked weights of the best validation after the masks came to rest."""

    def __init__(self, model: Model, settings: SurgerySettings) -> None:
        unknown = sorted(set(settings.rates) - set(model.weights))
        if unknown:
            raise UsageError(
                "surgery-tensor", f"rates name {unknown[0]!r}, which is no weight of the model"
            )
        self.settings = settings
        arrays = {
            t.tensor: model.weights[t.tensor].array().astype(np.float64)
            for t in targets(model, settings.ops)
        }
        if not arrays:
            raise UsageError(
                "surgery-nothing", f"the model has no weights of {', '.join(settings.ops)}"
            )
        self.thresholds = {
            n: threshold(w, settings.rates.get(n, settings.c_rate)) for n, w in arrays.items()
        }
        self.masks: dict[str, Any] = {n: np.ones(w.shape, bool) for n, w in arrays.items()}

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights that are under surgery."""
        return 1 - float(sum(m.sum() for m in self.masks.values())) / sum(
            m.size for m in self.masks.values()
        )

    def start(self, module: Any) -> None:
        """Masks enter the forward pass; their gradient passes straight to the weights."""
        module.transform = _StraightThrough(self.masks, module)

    def before_step(self, module: Any, step: int) -> None:
        """Look at the masks, with a probability that falls."""
        settings = self.settings
        if (
            step >= settings.stop_step
            or np.random.default_rng([settings.seed, step]).random()
            >= (1 + settings.gamma * step) ** -settings.power
        ):
            return
        for name, weight in module.named().items():
            if name in self.masks:
                self.masks[name] = updated(
                    self.masks[name], weight.detach().cpu().numpy(), self.thresholds[name]
                )
        self.start(module)

    def observe(self, loss: Any, tensors: Any, heads: Any, samples: int, step: int) -> None:
        """Masks of weights need no look at the pass."""

    def done(self) -> float | None:
        """As long as the settings say."""
        return None

    def accepts(self, step: int) -> bool:
        """Once the masks rest and are sparse enough."""
        return step >= self.settings.stop_step and self.sparsity >= self.settings.least_sparsity

    def signature(self) -> str:
        """Settings and thresholds."""
        return f"prune and splice {self.settings} {self.thresholds}"

    def state(self) -> dict[str, Any]:
        """The masks, as tensors."""
        import torch

        return {n: torch.from_numpy(np.asarray(m)) for n, m in self.masks.items()}

    def restore(self, module: Any, state: Mapping[str, Any]) -> None:
        """Masks of a checkpoint."""
        self.masks = {n: m.cpu().numpy() for n, m in state.items()}
        self.start(module)


class KeepZeros:
    """A hook that keeps a sparse model's zeros while its other weights are tuned."""

    def __init__(self, model: Model, ops: Sequence[str] = OPS) -> None:
        self.masks: dict[str, Any] = {
            t.tensor: model.weights[t.tensor].array() != 0 for t in targets(model, ops)
        }

    def start(self, module: Any) -> None:
        """Zeros enter the forward pass."""
        module.transform = _StraightThrough(self.masks, module)

    def before_step(self, module: Any, step: int) -> None:
        """Nothing changes."""

    def observe(self, loss: Any, tensors: Any, heads: Any, samples: int, step: int) -> None:
        """Masks of weights need no look at the pass."""

    def done(self) -> float | None:
        """As long as the settings say."""
        return None

    def accepts(self, step: int) -> bool:
        """Always."""
        return True

    def signature(self) -> str:
        """Its name; the model says the rest."""
        return "keep zeros"

    def state(self) -> dict[str, Any]:
        """Nothing: the model says it."""
        return {}

    def restore(self, module: Any, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""
        self.start(module)


class _StraightThrough:
    """(name, weight) -> weight * mask in value, with the gradient of the product applied to the weight whole."""

    def __init__(self, masks: Mapping[str, np.ndarray], module: Any) -> None:
        import torch

        device = next(iter(module.parameters())).device
        self.masks = {n: torch.from_numpy(np.asarray(m)).to(device) for n, m in masks.items()}

    def __call__(self, name: str, weight: Any) -> Any:
        if name not in self.masks:
            return weight
        return weight + (weight * self.masks[name] - weight).detach()
