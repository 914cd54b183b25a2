"""What a tuning run carries from step to step: averaged weights, the best so far, and a file to go on from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.files import write_bytes
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch

Tensors = dict[str, torch.Tensor]
FORMAT = 2


@dataclass
class State:
    """step: steps done; averaged: moving averages, empty where there are none; best: values of the best validation, empty while that is the start."""

    step: int = 0
    averaged: Tensors = field(default_factory=dict)
    best: Tensors = field(default_factory=dict)
    best_score: tuple[float, float] = (float("-inf"), float("-inf"))
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    running_loss: float = 0.0


def snapshot(module: OnnxModule) -> Tensors:
    """Copies of the parameters and running statistics by initializer name."""
    return {
        n: v.detach().clone()
        for n, v in (*module.named().items(), *module.buffers_by_name().items())
    }


def put(module: OnnxModule, values: Mapping[str, torch.Tensor]) -> None:
    """Set parameters and running statistics."""
    with torch.no_grad():
        for name, tensor in (*module.named().items(), *module.buffers_by_name().items()):
            tensor.copy_(values[name])


def average(averaged: Tensors, module: OnnxModule, decay: float, step: int) -> None:
    """One step of the exponential moving average; early steps forget faster, so that the start does not linger: min(decay, (1 + t) / (10 + t))."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in (*module.named().items(), *module.buffers_by_name().items()):
            averaged[name].lerp_(tensor, rate) if tensor.is_floating_point() else averaged[
                name
            ].copy_(tensor)


def write_checkpoint(
    path: Path,
    key: str,
    state: State,
    module: OnnxModule,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
) -> None:
    """Write everything a later process needs to go on, atomically."""
    buffer = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "key": key,
            "state": vars(state),
            "values": snapshot(module),
            "optimizer": optimizer.state_dict(),
            "extra": dict(extra),
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def read_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """What was written, None where nothing was.

    Raises
    ------
    UsageError
        The file is of another run (model, data or settings differ) or is none.
    """
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        same = found["format"] == FORMAT and found["key"] == key
    except Exception as problem:  # torch raises whatever its unpickler meets
        raise UsageError(
            "checkpoint-invalid",
            f"{path} is no checkpoint of tuning: {str(problem).splitlines()[0]}; remove it to start over",
        ) from problem
    if not same:
        raise UsageError(
            "checkpoint-other",
            f"{path} belongs to a run with another model, data or settings; remove it or name another to start over",
        )
    return found
