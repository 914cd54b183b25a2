"""Hyperparameters and result of fine-tuning; importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import UsageError, unknown
from onnxprune.ir.io import Model

# 2e-3 destroyed a ResNet whose normalization was folded: top-1 fell from 85.8 to 35.2 %
FOLDED_LR_LIMIT = 1e-4
NORMALIZED_LR = 1e-3
CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bfloat16"),
    "batchnorm": ("keep", "frozen", "insert"),
    "augment": ("none", "flip", "flip-shift"),
    "schedule": ("cosine", "constant"),
}
MINIMA: Mapping[str, int] = {
    "epochs": 1,
    "steps": 0,
    "batch_size": 1,
    "threads": 1,
    "limit_s": 0,
    "ema": 0,
    "warmup": 0,
    "clip_norm": 0,
}


@dataclass(frozen=True)
class TuneSettings:
    """Hyperparameters of fine-tuning.

    Attributes
    ----------
    loss : str
        Terms of `losses.LOSSES` with weights: "kd", "ce+0.5*dist"; "task" is the caller's function.
    epochs, steps : int
        Length of the run; `steps` takes precedence unless it is 0.
    batch_size : int
        Samples per step, over all processes.
    lr : float or None
        Peak learning rate; None = 1e-3, or 1e-4 for a graph whose normalization is folded.
    force_lr : bool
        Allow more than 1e-4 for such a graph.
    optimizer : str
        "adamw", or "sgd" with Nesterov momentum 0.9.
    schedule : str
        "cosine" decays to zero after a linear warm-up, "constant" does not decay.
    warmup : float
        Share of the steps that the linear warm-up takes.
    weight_decay : float
        Weight decay of the optimizer.
    clip_norm : float
        Largest gradient norm; 0 = no clipping.
    batchnorm : str
        "keep" updates the running statistics, "frozen" does not, "insert" adds a
        BatchNormalization after every convolution without one while tuning.
    ema : float
        Decay of the exponential moving average of the weights; 0 = no average.
    precision : str
        "bfloat16" runs the passes under autocast; weights, averages and validation stay float32.
    augment : str
        "none", "flip" (mirror at random) or "flip-shift" (shift by up to an eighth as well).
    validation : float
        Share of the samples held out for validation if none are given.
    temperature : float
        Softmax temperature of kd and dist.
    class_axis : int or None
        Class axis of outputs that are not of rank 2 and do not come from a Softmax.
    class_offset : int
        Outputs before class 0; 1 for a background class.
    features : tuple of str
        Inner tensors of the loss "feature"; empty = chosen automatically.
    limit_s : float
        Seconds after which the run stops and returns the best weights; 0 = no limit.
    checkpoint_s : float
        Seconds between checkpoints.
    device : str
        "cpu", "cuda" or "cuda:N".
    threads : int
        Threads of torch.
    seed : int
        Seed of sample order, augmentation and split.
    lr_scale : mapping of str to float
        Factor on the learning rate by initializer name; 1 by default.
    """

    loss: str = "kd"
    epochs: int = 10
    steps: int = 0
    batch_size: int = 64
    lr: float | None = None
    force_lr: bool = False
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    batchnorm: str = "keep"
    ema: float = 0.99
    precision: str = "float32"
    augment: str = "none"
    validation: float = 0.1
    temperature: float = 4.0
    class_axis: int | None = None
    class_offset: int = 0
    features: tuple[str, ...] = ()
    limit_s: float = 0.0
    checkpoint_s: float = 60.0
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    lr_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values; raise UsageError for one out of range."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name, minimum in MINIMA.items():
            value = getattr(self, name)
            if value < minimum:
                raise UsageError("tune-setting", f"{name} must be at least {minimum}, not {value}")
        if not 0 < self.validation < 1 or self.ema >= 1 or (self.lr is not None and self.lr <= 0):
            raise UsageError(
                "tune-setting",
                f"validation {self.validation} and ema {self.ema} must be below 1, "
                f"validation and lr {self.lr} above 0",
            )

    def peak_lr(self, normalized: bool) -> float:
        """Return the peak learning rate.

        A graph whose normalization was folded into its weights diverges above 1e-4.

        Parameters
        ----------
        normalized
            True if the graph normalizes its activations.

        Raises
        ------
        UsageError
            `lr` is too high for the graph and `force_lr` is not set.
        """
        # inserted normalizations make the usual rates safe
        safe = normalized or self.batchnorm == "insert"
        if self.lr is None:
            return NORMALIZED_LR if safe else FOLDED_LR_LIMIT
        if self.lr > FOLDED_LR_LIMIT and not safe and not self.force_lr:
            raise UsageError(
                "tune-rate",
                f"lr {self.lr:g} is too high for a graph whose normalization is folded "
                f"(limit {FOLDED_LR_LIMIT:g}): lower it, set batchnorm to insert, or set force_lr",
            )
        return self.lr


@dataclass(frozen=True)
class TuneResult:
    """Result of `tune.finetune.tune`.

    Attributes
    ----------
    model : Model
        Best model; the given one if nothing was better.
    history : sequence of mapping
        One row per validation (epoch 0 = the start): score, losses, seconds.
    score, start_score : float
        Validation score of the best model and of the start, higher = better.
    epoch : int
        Epoch of the best model.
    """

    model: Model
    history: Sequence[Mapping[str, Any]]
    score: float
    start_score: float
    epoch: int
