"""Several processes that tune one model, as torchrun or accelerate start them.

    torchrun --nproc-per-node 2 -m onnxprune tune ...        accelerate launch --multi_gpu -m onnxprune tune --device cuda ...

Both say who is who in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. (On CPUs take torchrun: accelerate starts one process there.) Each process takes its share of every batch; gradients are averaged, so the steps
are those of one process with the whole batch (but for statistics over the batch: BatchNormalization and the columns of DIST see a share).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import OnnxpruneError
from onnxprune.tune.call import torch


@dataclass(frozen=True)
class World:
    """rank: of this process; size: how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and reports."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of a batch."""
        return rows[self.rank :: self.size]

    def average(self, tensors: Iterable[torch.Tensor], weight: float = 1.0) -> None:
        """Replace each tensor by its sum over the processes of weight * tensor / size."""
        if self.size == 1:
            return
        for tensor in tensors:
            tensor.mul_(weight / self.size)
            torch.distributed.all_reduce(tensor)

    def from_leader(self, value: Any) -> Any:
        """The leader's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def own_device(device: str) -> str:
    """ "cuda" as the GPU that the launcher meant for this process; other devices as they are."""
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if device == "cuda" and "LOCAL_RANK" in os.environ
        else device
    )


def join_world(device: str) -> World:
    """The processes that a launcher started, this one alone where there was none.

    Raises
    ------
    OnnxpruneError
        The launcher's variables are there and the processes cannot meet.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not torch.distributed.is_available():
        raise OnnxpruneError(
            "tune-distributed",
            "WORLD_SIZE is set and this build of torch has no distributed package; start one process",
        )
    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        except (RuntimeError, ValueError) as problem:
            raise OnnxpruneError(
                "tune-distributed",
                f"{size} processes cannot meet: {problem}; start them by torchrun or accelerate launch",
            ) from problem
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
