"""Pooling, resizing and rearrangements of blocks of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis.rule import Misfit, Rule, View, axes_letters


def max_pool(view: View) -> Rule | None:
    """Pool; a second output is followed where MaxUnpool restores the size (unpooling.py)."""
    return Rule("n c * -> n c *", freeze="*") if view.outputs < 2 else None


def resize(view: View) -> Rule | None:
    """Resize by scales; an axis of scale 1, of which no region is taken, is kept."""
    names = axes_letters(view)
    scales: Sequence[float] | np.ndarray | None = view.numbers("scales")
    # before opset 11, and in Upsample, there is no region of interest in front of the scales
    if view.inputs > 1:
        scales = view.value(1 if view.op == "Upsample" or view.opset < 11 else 2)
    if scales is None or len(scales) != len(names):  # by sizes: see movement.py
        return None
    cropped = cropped_axes(view, range(len(names)))
    resized = [s != 1 or i in cropped for i, s in enumerate(scales)]
    changed = "".join(n for n, r in zip(names, resized, strict=True) if r)
    # further operands are lists that are never cut: a letter each, none of the axes'
    rest = "".join(f", {chr(ord('p') + i)}" for i in range(view.inputs - 1))
    right = " ".join("1" if n in changed else n for n in names)
    return Rule(f"{' '.join(names)}{rest} -> {right}", freeze=changed)


def cropped_axes(view: View, order: Sequence[int]) -> set[int]:
    """Return the axes of which a Resize takes a region that is not all of them.

    `order` holds the axes that the bounds of the region are given for, all starts first.
    """
    if view.text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        return set()
    region = view.value(1)
    if region is None or len(region) != 2 * len(order):
        raise Misfit("its region of interest is computed from the input")
    starts, ends = region[: len(order)], region[len(order) :]
    bounds = zip(order, starts, ends, strict=True)
    # from 0 to 1 is all of the axis
    return {axis for axis, start, end in bounds if (start, end) != (0, 1)}


def grid_sample(view: View) -> Rule:
    """Sample each channel at positions of a grid, which has an axis per spatial axis of x."""
    grid = " ".join("hwt"[: view.rank(0) - 2])
    return Rule(f"n c *, n {grid} i -> n c *", freeze="*hwti")


def col2im(view: View) -> Rule | None:
    """Sum blocks of each channel into an image."""
    block, spatial = view.value(2), view.dim(1, 0)
    if block is None or not spatial:
        return None
    pattern = f"n (c k) l, i, j -> n c{' 1' * spatial}"
    return Rule(pattern, {"k": int(block.prod())}, freeze="k l")


def space_to_depth(view: View) -> Rule:
    """Lay out blocks of an image as channels, in the order of `mode`."""
    channels = "a b c" if view.text("mode", "DCR") == "DCR" else "c a b"
    return Rule(
        f"n c (h a) (w b) -> n ({channels}) h w",
        {"a": "blocksize", "b": "blocksize"},
        freeze="a b h w",
    )


def depth_to_space(view: View) -> Rule:
    """Lay out channels as blocks of an image, in the order of `mode`."""
    channels = "a b c" if view.text("mode", "DCR") == "DCR" else "c a b"
    return Rule(
        f"n ({channels}) h w -> n c (h a) (w b)",
        {"a": "blocksize", "b": "blocksize"},
        freeze="a b h w",
    )
