"""How to tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import UsageError, unknown

FOLDED_LIMIT = 1e-4  # 2e-3 destroyed a folded ResNet: 85.8 -> 35.2 % (METHODS.md section 7)
NORMALIZED_RATE = 1e-3
CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bfloat16"),
    "batchnorm": ("keep", "frozen", "insert"),
    "augment": ("none", "flip", "flip-shift"),
    "schedule": ("cosine", "constant"),
}


@dataclass(frozen=True)
class Settings:
    """How to tune.

    loss: terms of `losses.LOSSES` with weights, "kd" or "ce+0.5*dist"; "task" is the caller's own.
    epochs, steps: how long (steps win); lr: peak rate, None = 1e-4 for a graph without normalization, else 1e-3;
    force_lr: allow more than 1e-4 there; schedule: "cosine" to zero after a linear warm-up over `warmup` of the steps, or "constant".
    batchnorm: "keep" learns statistics where the graph has BatchNormalization, "frozen" does not, "insert" puts it behind convolutions for the
    time of tuning. ema: decay of averaged weights, 0 = none; clip_norm: largest gradient norm, 0 = none.
    precision: "bfloat16" runs the passes under autocast; weights, averages and validation stay float32.
    validation: share of the samples to validate with where none are given; temperature: of kd and dist;
    class_axis: of outputs that are not of rank 2 and do not end in a Softmax; class_offset: outputs before class 0 (1 for a background class);
    features: inner tensors for loss "feature", empty = chosen; limit_s: stop and return the best after so many seconds, 0 = never;
    checkpoint_s: seconds between checkpoints; threads: of torch; seed: of order, augmentation and split.
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
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        least: dict[str, Any] = {
            "epochs": 1,
            "steps": 0,
            "batch_size": 1,
            "threads": 1,
            "limit_s": 0,
            "ema": 0,
            "warmup": 0,
            "clip_norm": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(
                    "tune-setting", f"{name} must be at least {low}, not {getattr(self, name)}"
                )
        if not 0 < self.validation < 1 or self.ema >= 1 or (self.lr is not None and self.lr <= 0):
            raise UsageError(
                "tune-setting",
                f"validation {self.validation} and ema {self.ema} must be below 1, lr {self.lr} above 0",
            )

    def rate(self, normalized: bool) -> float:
        """The peak learning rate, guarded: a graph without normalization (exported with it folded) breaks above 1e-4.

        Raises
        ------
        UsageError
            More than that was asked for, and not forced.
        """
        safe = normalized or self.batchnorm == "insert"
        if self.lr is None:
            return NORMALIZED_RATE if safe else FOLDED_LIMIT
        if self.lr > FOLDED_LIMIT and not safe and not self.force_lr:
            ways = "lower it, set batchnorm to insert, or force it"
            raise UsageError(
                "tune-rate",
                f"lr {self.lr:g} is too high for a graph whose normalization is folded (limit {FOLDED_LIMIT:g}): {ways}",
            )
        return self.lr
