"""Geometry of sliding windows: kernel, strides, dilations and padding per spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.autodiff.step import BackwardStep


@dataclass(frozen=True)
class Windows:
    """How a sliding window reads its input; all fields hold one entry per spatial axis.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
        As the attributes of the node.
    before : tuple of int
        Padding before the first element.
    inputs, outputs : tuple of int
        Lengths of the axes that windows read and that they produce.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Lengths of a window, dilation included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def rest(self) -> tuple[int, ...]:
        """Lengths by which windows exceed the end of the input; negative if they end before it."""
        result = []
        for axis, extent in enumerate(self.extent):
            span = (self.outputs[axis] - 1) * self.strides[axis] + extent
            result.append(span - self.before[axis] - self.inputs[axis])
        return tuple(result)


def windows(
    s: BackwardStep, kernel: Sequence[int], wide: Sequence[int], narrow: Sequence[int]
) -> Windows:
    """Return the windows of a node, with auto_pad resolved by the lengths.

    Parameters
    ----------
    wide, narrow
        Lengths of the axes that windows read and that they produce.
    """
    rank = len(kernel)
    strides, dilations = s.attribute("strides", [1] * rank), s.attribute("dilations", [1] * rank)
    auto = s.attribute("auto_pad", "NOTSET")
    # the padding at the end follows from the lengths, see `rest`
    before = list(s.attribute("pads", [0] * 2 * rank))[:rank]
    if auto == "VALID":
        before = [0] * rank
    elif auto.startswith("SAME"):
        for axis in range(rank):
            extent = (kernel[axis] - 1) * dilations[axis] + 1
            # strides longer than the window skip input instead of padding it
            extra = max(0, (narrow[axis] - 1) * strides[axis] + extent - wide[axis])
            # SAME_UPPER has the odd element at the end, SAME_LOWER at the beginning
            before[axis] = extra // 2 if auto == "SAME_UPPER" else extra - extra // 2
    return Windows(
        tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(wide), tuple(narrow)
    )
