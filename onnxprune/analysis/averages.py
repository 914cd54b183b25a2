"""Records of divisions by the lengths of axes that can be cut, or by functions of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Average:
    """A node that divides by the lengths of the axes it sums over.

    Attributes
    ----------
    node
        Index of the node.
    axes
        Ids of those of the axes that can be cut.
    of_kept
        Whether the node, which sums, is scaled so that a division by the lengths from before the
        cut gives the average over the kept positions; else its average is that of all positions.
    """

    node: int
    axes: tuple[np.ndarray, ...]
    of_kept: bool = False


@dataclass(frozen=True)
class RootMean:
    """A division by the root of a mean (RMSNormalization), fused or written as several nodes.

    With k of n positions kept and zeros elsewhere, mean + epsilon is k / n times the mean over the
    kept positions plus epsilon * n / k. So a cut multiplies epsilon by n / k and the scale that
    follows by a power of it.

    Attributes
    ----------
    axes
        Ids of those of the averaged axes that can be cut.
    epsilon
        Index of a node, and the slot or the name of the attribute that holds epsilon; None if
        there is none.
    scale
        Index of a node, and the slot of the scale.
    exponent
        Power of n / k that the scale is multiplied by.
    """

    axes: tuple[np.ndarray, ...]
    epsilon: tuple[int, int | str] | None
    scale: tuple[int, int]
    exponent: float = 0.5


@dataclass(frozen=True)
class Pin:
    """A default of an attribute that depends on the length of an axis.

    Attributes
    ----------
    node
        Index of the node.
    name
        Name of the attribute.
    value
        Its value before the cut.
    axis
        Ids of the axis.
    """

    node: int
    name: str
    value: float
    axis: np.ndarray
