"""Shapes of a model's inputs: as declared, and with the user's overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.errors import UsageError, unknown
from onnxprune.ir.example_sizes import is_anonymous, name_shapes

Shape = tuple[int | str | None, ...]


def spell(shape: Sequence[Any]) -> str:
    """Return a shape as text: 1x3xHx224, "scalar" for rank 0."""
    return "x".join("?" if d is None else str(d) for d in shape) or "scalar"


def dimension(size: Any) -> int | str | None:
    """Return a size from onnxruntime as a number, a symbol, or None if unknown."""
    return size if isinstance(size, str) or (isinstance(size, int) and size >= 0) else None


def apply_overrides(
    declared: Mapping[str, Shape], overrides: Mapping[str, Sequence[int]]
) -> dict[str, Shape]:
    """Return the shapes with overrides in them, and the symbols so fixed replaced everywhere.

    Raises
    ------
    UsageError
        An override names no input or contradicts the model.
    """
    symbols: dict[str, int] = {}
    given: dict[str, Shape] = {}
    for name, sizes in name_shapes(overrides, declared).items():
        option = f"shape {name}:{spell(sizes)}"
        if name not in declared:
            raise unknown("input", name, declared)
        # an input without a declared shape also reads as rank 0
        shape: Shape = declared[name] or (None,) * len(sizes)
        if len(shape) != len(sizes):
            raise UsageError(
                "shape-override",
                f"{option} has rank {len(sizes)}, the model's input has {len(shape)}: "
                f"{spell(shape)}",
            )
        merged = []
        for have, size in zip(shape, sizes, strict=True):
            if size == -1:
                merged.append(have)
                continue
            if size < 1 or (isinstance(have, int) and have != size):
                raise UsageError(
                    "shape-override",
                    f"{option} does not fit the model's input {spell(shape)}; only dynamic axes "
                    "can have another length",
                )
            # anonymous sizes are unrelated: fixing one fixes no other
            named = have if isinstance(have, str) and not is_anonymous(have) else None
            if named is not None and symbols.setdefault(named, size) != size:
                raise UsageError(
                    "shape-override",
                    f"{option}: size {named!r} is already {symbols[named]} and must be the same "
                    "everywhere",
                )
            merged.append(size)
        given[name] = tuple(merged)
    result: dict[str, Shape] = {}
    for name, shape in declared.items():
        dims = given.get(name, shape)
        result[name] = tuple(symbols.get(d, d) if isinstance(d, str) else d for d in dims)
    return result
