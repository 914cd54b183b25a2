"""Multiply-accumulates of a node as products of lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxprune.analysis.folded import Axis, Folded, Places
from onnxprune.ir.values import Dim


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of a node: a factor times the kept lengths of axes.

    Attributes
    ----------
    node
        Index of the node.
    factor
        Product of all lengths that cannot change.
    axes
        Ids of the axes that can be cut.
    dynamic
        Per further factor that is a dynamic length: the (tensor, axis) that have it. Where they
        differ, the others are broadcast to the largest.
    loops
        Nodes whose number of iterations is a further factor.
    """

    node: int
    factor: int
    axes: tuple[np.ndarray, ...]
    dynamic: tuple[Places, ...] = ()
    loops: tuple[int, ...] = ()


@dataclass
class Factored:
    """Product under construction; attributes as those of `Product`."""

    factor: int = 1
    axes: list[np.ndarray] = field(default_factory=list)
    dynamic: list[Places] = field(default_factory=list)

    def multiply(self, axis: Axis | None, size: Dim, places: Places) -> None:
        """Multiply by an axis: by its kept, its fixed or its dynamic length."""
        if isinstance(axis, Folded):
            # a factor each, as the kept lengths of some of them may change
            for part in axis.parts:
                self.multiply(part.axis, part.length, part.places)
        elif isinstance(axis, np.ndarray):
            self.axes.append(axis)
        elif isinstance(size, int):
            self.factor *= size
        elif places:
            self.dynamic.append(places)

    def product(self, node: int) -> Product:
        """Return the product as one of a node."""
        return Product(node, self.factor, tuple(self.axes), tuple(self.dynamic))
