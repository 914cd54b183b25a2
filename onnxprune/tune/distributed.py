"""Data-parallel tuning in several processes, as torchrun or accelerate start them.

    torchrun --nproc-per-node 2 -m onnxprune tune ...
    accelerate launch --multi_gpu -m onnxprune tune --device cuda ...

Both set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. On CPUs use torchrun:
accelerate starts one process there. Each process takes its share of every batch and gradients are
averaged, so that the steps are those of one process with the whole batch. Statistics over the
batch are the exception: BatchNormalization and the columns of DIST see one share.
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
    """Processes of a run.

    Attributes
    ----------
    rank : int
        Number of this process.
    size : int
        Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True if this process validates, writes and reports."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's part of a batch."""
        # interleaved, so that shares differ by at most one sample
        return rows[self.rank :: self.size]

    def average(self, tensors: Iterable[torch.Tensor], weight: float = 1.0) -> None:
        """Replace each tensor by the sum over all processes of weight * tensor / size."""
        if self.size == 1:
            return
        for tensor in tensors:
            tensor.mul_(weight / self.size)
            torch.distributed.all_reduce(tensor)

    def from_leader(self, value: Any) -> Any:
        """Return the leading process's value on every process."""
        if self.size == 1:
            return value
        box = [value]
        # replaces the items of the list in place
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Block until all processes arrive."""
        if self.size > 1:
            torch.distributed.barrier()


def own_device(device: str) -> str:
    """Return the device of this process: its own GPU for "cuda", other names unchanged."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def join_world(device: str) -> World:
    """Join the processes that a launcher started; without a launcher there is one.

    Raises
    ------
    OnnxpruneError
        The launcher's variables are set and the processes cannot connect.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not torch.distributed.is_available():
        raise OnnxpruneError(
            "tune-distributed",
            f"WORLD_SIZE is {size}, but this build of torch has no distributed package; "
            "start one process",
        )
    # a program that calls this may have joined already
    if not torch.distributed.is_initialized():
        try:
            # nccl moves tensors of GPUs only, gloo those of the host
            torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        except (RuntimeError, ValueError) as problem:
            raise OnnxpruneError(
                "tune-distributed",
                f"{size} processes cannot connect: {problem}; "
                "start them with torchrun or accelerate launch",
            ) from problem
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
