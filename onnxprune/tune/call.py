"""Arguments of an operator's torch function, and the rows of the operator table."""

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

    Attributes
    ----------
    function : function
        (Call, *inputs) -> tensor or tuple of tensors; an absent optional input is None.
    trainable : tuple of int
        Positions of inputs that may be parameters; an initializer that another position reads
        stays constant.
    elementwise : bool
        A one-element initializer is a constant of a formula (the 0.5 of a GELU), not a weight.
    """

    function: Callable[..., Any]
    trainable: tuple[int, ...] = ()
    elementwise: bool = False


@dataclass
class BatchState:
    """Batch size of the present run against that of the graph.

    Attributes
    ----------
    declared : int
        Batch size that the graph's input declares; 0 if it is dynamic.
    actual : int
        Batch size of the present run.
    recording : bool
        True while the graph runs at its declared size to record shapes.
    shapes : dict
        Shape of each Reshape's output at the declared size, by output name.
    inputs : tuple
        Input shapes (without the batch axis) that `shapes` belongs to.
    """

    declared: int = 0
    actual: int = 0
    recording: bool = False
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ()

    @property
    def rebased(self) -> bool:
        """True if literals that hold the declared batch size stand for another number."""
        return self.declared > 0 and self.actual != self.declared


@dataclass(frozen=True)
class Call:
    """A node as its torch function sees it.

    Attributes
    ----------
    op, node, output : str
        Operator, name of the node, and name of its first output.
    attributes : mapping
        Attributes as plain Python values.
    opset : int
        Version of the default domain.
    outputs : int
        Number of named outputs.
    batch : BatchState
        Batch size, shared by all nodes.
    mode : mapping
        "training": mode of the module, shared by all nodes.
    """

    op: str
    node: str
    output: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    batch: BatchState
    mode: Mapping[str, bool] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute's value, or the default."""
        return self.attributes.get(name, default)

    @property
    def training(self) -> bool:
        """True if the module is in training mode."""
        return self.mode["training"]

    def dtype(self, kind: int) -> torch.dtype:
        """Return torch's type of an ONNX type; half precision is computed in float32."""
        if kind not in DTYPES:
            raise self.unsupported(f"type {TensorProto.DataType.Name(kind)}")
        return DTYPES[kind]

    def unsupported(self, what: str) -> ModelError:
        """Return the error for a variant of an operator that has no torch implementation."""
        return ModelError(
            "tune-unsupported",
            f"{self.op} node {self.node!r}: gradients through {what} are not supported; "
            "prune without fine-tuning",
        )


# torch computes neither in unsigned types wider than 8 bits nor, on CPUs, in half precision
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


def to_common_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors on one device.

    Shapes and indices are on the host, data where the parameters are.
    """
    # moving shapes and indices to an accelerator costs less than moving data to the host
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return tensors if device is None else tuple(t.to(device) for t in tensors)
