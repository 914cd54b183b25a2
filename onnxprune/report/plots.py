"""Plots as SVG elements for a page: leather draws, without scripts or fonts of its own; without it, axes, scales and ticks would be ours to write."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import leather

# Okabe and Ito (2008), which color-blind readers tell apart; the first two are before and after everywhere
BEFORE, AFTER = "#0072B2", "#D55E00"
COLORS = (BEFORE, AFTER, "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#555555", "#882255")
WIDTH, HEIGHT = 720, 340
_DASHES = ("none", "7 3", "2 3")  # curves beyond the first turn of colors


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in ascending x; dots: without a line between them; large: drawn to be seen first."""

    points: Sequence[tuple[float, float]]
    color: str
    dots: bool = False
    large: bool = False
    dash: str = "none"


class _Line(leather.Line):  # type: ignore[misc]
    """Without an entry in the legend: names are long, and the page has them below the plot."""

    def legend_to_svg(self, series: object, palette: object) -> list[object]:
        return []


class _Dots(leather.Dots):  # type: ignore[misc]
    """Without an entry in the legend."""

    def legend_to_svg(self, series: object, palette: object) -> list[object]:
        return []


def curves(points: Sequence[Sequence[tuple[float, float]]]) -> list[Curve]:
    """A color, and beyond eight a dash, for each line."""
    n = len(COLORS)
    return [
        Curve(p, COLORS[i % n], dash=_DASHES[i // n % len(_DASHES)]) for i, p in enumerate(points)
    ]


def plot(drawn: Sequence[Curve], x: str, y: str, label: str, from_zero: bool = True) -> str:
    """SVG of curves over x from 0 to 1, which is shown in per cent.

    Parameters
    ----------
    x, y
        Names of the axes.
    label
        What a reader who sees no picture is told.
    from_zero
        Whether the other axis begins at 0; else around the values.
    """
    values = [v for curve in drawn for _, v in curve.points]
    low, high = (min(0.0, *values), max(values)) if from_zero else (min(values), max(values))
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    chart = leather.Chart()
    chart.add_x_scale(0.0, 1.0)
    chart.add_y_scale(low if from_zero else low - room, high + room)
    chart.add_x_axis(
        ticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], tick_formatter=lambda v, i, n: f"{float(v):.0%}", name=x
    )
    chart.add_y_axis(tick_formatter=lambda v, i, n: f"{float(v):.4g}", name=y)
    for curve in drawn:
        shape = (
            _Dots(curve.color, 7 if curve.large else 4)
            if curve.dots
            else _Line(curve.color, 2, curve.dash)
        )
        chart.add_series(leather.Series(curve.points), shape)
    return figure(chart.to_svg_group(WIDTH, HEIGHT), WIDTH, HEIGHT, label)


def figure(content: ET.Element, width: int, height: int, label: str, scaled: bool = True) -> str:
    """An inline SVG that says what it shows; scaled: as wide as the page, else in its own size."""
    root = ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": label,
            "class": "plot" if scaled else "picture",
        },
    )
    if not scaled:
        root.set("width", str(width))
        root.set("height", str(height))
    root.append(content)
    for element in root.iter():
        for key in ("font-family", "font-size", "dy", "transform"):
            if element.get(key) == "" or key.startswith("font"):
                element.attrib.pop(key, None)
    return ET.tostring(root, encoding="unicode")
