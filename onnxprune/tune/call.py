"""What an operator's function is given, and what a row of the table holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.tune.lazy import torch

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True)
class Row:
    """An operator in torch.

    function: (Call, *inputs) -> tensor or tuple of tensors; an absent optional input is None.
    trainable: positions of inputs that may be parameters; an initializer that is read elsewhere is a constant.
    elementwise: a one-element initializer there is a constant of the formula (the 0.5 of a GELU), not a weight.
    """

    function: Callable[..., Any]
    trainable: tuple[int, ...] = ()
    elementwise: bool = False


@dataclass
class Batch:
    """How many samples run at once.

    declared: the size that the graph spells out, 0 where it leaves it open; actual: of this run;
    shapes: what each Reshape gives at the declared size, by output name, noted while `recording`; inputs: the input shapes that they belong to.
    """

    declared: int = 0
    actual: int = 0
    recording: bool = False
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ()

    @property
    def rebased(self) -> bool:
        """Whether literals that spell the batch must be read as another number."""
        return self.declared > 0 and self.actual != self.declared


@dataclass(frozen=True)
class Call:
    """A node as its function sees it. output: name of its first output; mode: of the module, shared by all nodes."""

    op: str
    node: str
    output: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    batch: Batch
    mode: Mapping[str, bool] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        """An attribute's value or its default."""
        return self.attributes.get(name, default)

    @property
    def training(self) -> bool:
        """Whether the module is in training mode."""
        return self.mode["training"]

    def dtype(self, kind: int) -> torch.dtype:
        """Torch's name of an ONNX type; half precision is computed in float32."""
        if kind not in DTYPES:
            raise self.unsupported(f"type {TensorProto.DataType.Name(kind)}")
        return DTYPES[kind]

    def unsupported(self, what: str) -> ModelError:
        """The error for an operator's variant that has no torch form here."""
        return ModelError(
            "tune-unsupported",
            f"{self.op} node {self.node!r}: {what} cannot be tuned through; prune without --tune",
        )


DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT16: torch.int32,
}


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors on one device: shapes and indices live on the host, data where the parameters are."""
    home = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return tensors if home is None else tuple(t.to(home) for t in tensors)
