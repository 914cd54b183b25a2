"""State of a tuning run and its checkpoint file."""

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
    """Values that a run carries from step to step.

    Attributes
    ----------
    step : int
        Completed steps.
    averaged : dict
        Moving averages of the weights; empty without averaging.
    best : dict
        Weights of the best validation; empty if there is none.
    best_score : (float, float)
        Score and minus the loss of the best validation.
    best_epoch : int
        Epoch of the best validation; 0 = the start.
    history : list of dict
        One row per validation.
    running_loss : float
        Sum of the losses of the current epoch.
    """

    step: int = 0
    averaged: Tensors = field(default_factory=dict)
    best: Tensors = field(default_factory=dict)
    best_score: tuple[float, float] = (float("-inf"), float("-inf"))
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    running_loss: float = 0.0


def snapshot(module: OnnxModule) -> Tensors:
    """Return copies of the parameters and running statistics by initializer name."""
    # training changes the tensors in place
    return {name: tensor.detach().clone() for name, tensor in _list_tensors(module).items()}


def load_values(module: OnnxModule, values: Mapping[str, torch.Tensor]) -> None:
    """Set parameters and running statistics."""
    with torch.no_grad():
        for name, tensor in _list_tensors(module).items():
            tensor.copy_(values[name])


def update_average(averaged: Tensors, module: OnnxModule, decay: float, step: int) -> None:
    """Update the exponential moving average in place.

    The decay is min(decay, (1 + step) / (10 + step)): early steps forget faster, so that the
    initial weights do not persist.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in _list_tensors(module).items():
            # counters cannot be averaged
            if tensor.is_floating_point():
                averaged[name].lerp_(tensor, share)
            else:
                averaged[name].copy_(tensor)


def write_checkpoint(
    path: Path,
    key: str,
    state: State,
    module: OnnxModule,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
) -> None:
    """Write everything that a later process needs to resume, atomically."""
    # in memory first, because the file is replaced at once
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
    """Return the content of a checkpoint, None if the file does not exist.

    Raises
    ------
    UsageError
        The file belongs to a different run (model, data or settings) or is not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        # without pickled code, and for a device that may be another than the writer's
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        same = content["format"] == FORMAT and content["key"] == key
    except Exception as problem:  # torch raises whatever its unpickler meets
        raise UsageError(
            "checkpoint-invalid",
            f"{path} is not a tuning checkpoint: {str(problem).splitlines()[0]}; "
            "remove it to start over",
        ) from problem
    if not same:
        raise UsageError(
            "checkpoint-other",
            f"{path} belongs to a run with another model, data or settings; "
            "remove it or name another file to start over",
        )
    return content


def _list_tensors(module: OnnxModule) -> Tensors:
    """Return the parameters, then the running statistics."""
    return {**module.named(), **module.buffers_by_name()}
