"""Types, shapes and small constant values of the tensors of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TypeProto

from onnxprune.ir.values import Dim


@dataclass(frozen=True)
class Shapes:
    """Inferred properties of each tensor.

    Attributes
    ----------
    types
        onnx TypeProto by tensor name.
    values
        Constant small tensors by name (integers, booleans, floats). Where some elements are unknown
        (None) or symbolic (str), the dtype is object.
    assumed
        Tensors with a length that depends on the data and was replaced by an example length.
    equal
        Symbols of dynamic lengths, and what they equal in every run of the graph.
    open
        Tensors whose rank no rule of the standard gives, so that a fallback may.
    """

    types: Mapping[str, TypeProto]
    values: Mapping[str, np.ndarray] = field(repr=False)
    assumed: Collection[str] = field(default=(), repr=False)
    equal: Mapping[str, Dim] = field(default_factory=dict, repr=False)
    open: Collection[str] = field(default=(), repr=False, compare=False)
    _dims: dict[str, tuple[TypeProto, tuple[Dim, ...] | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """Return the dimensions, or None if not even the rank is known."""
        kind = self.types.get(name)
        if kind is None:
            return None
        # types are replaced and never changed in place, so that each is converted once
        known = self._dims.get(name)
        if known is not None and known[0] is kind:
            return known[1]
        dims = tuple(map(dimension, kind.tensor_type.shape.dim)) if has_shape(kind) else None
        self._dims[name] = (kind, dims)
        return dims

    def dtype(self, name: str) -> int:
        """Return the TensorProto.DataType, 0 if unknown."""
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type"):
            return 0
        return kind.tensor_type.elem_type

    def value(self, name: str) -> np.ndarray | None:
        """Return the value if every element is known, else None."""
        value = self.values.get(name)
        # partly known values have this dtype
        return value if value is not None and value.dtype != object else None


def has_shape(kind: TypeProto) -> bool:
    """Return whether a type is a tensor of known rank."""
    return kind.HasField("tensor_type") and kind.tensor_type.HasField("shape")


def dimension(d: Any) -> Dim:
    """Return a TensorShapeProto.Dimension as an int, a symbol, or None if unknown."""
    if d.HasField("dim_value"):
        return d.dim_value
    return d.dim_param or None
