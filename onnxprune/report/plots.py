"""Plots as SVG elements of a page, drawn by leather, which needs no scripts or fonts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import leather

# Okabe and Ito (2008), distinguishable with color blindness; the first two are before and after
BEFORE, AFTER = "#0072B2", "#D55E00"
COLORS = (BEFORE, AFTER, "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#555555", "#882255")
WIDTH, HEIGHT = 720, 340
MARGIN = 0.05  # of the value axis above and below the values
_DASHES = ("none", "7 3", "2 3")  # one per pass through the colors


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in ascending x.

    Attributes
    ----------
    dots
        Draw dots instead of a line.
    large
        Draw large dots, for the point that matters.
    dash
        SVG dash pattern of the line.
    """

    points: Sequence[tuple[float, float]]
    color: str
    dots: bool = False
    large: bool = False
    dash: str = "none"


class _Line(leather.Line):  # type: ignore[misc]  # the base class is Any to mypy
    """Line without an entry in the legend, which the page shows below the plot."""

    def legend_to_svg(self, series: object, palette: object) -> list[object]:
        return []


class _Dots(leather.Dots):  # type: ignore[misc]  # the base class is Any to mypy
    """Dots without an entry in the legend."""

    def legend_to_svg(self, series: object, palette: object) -> list[object]:
        return []


def curves(lines: Sequence[Sequence[tuple[float, float]]]) -> list[Curve]:
    """Return a curve per line, each with another color or dash pattern."""
    result = []
    for i, points in enumerate(lines):
        # the dash pattern changes only when the colors are used up
        turn, color = divmod(i, len(COLORS))
        result.append(Curve(points, COLORS[color], dash=_DASHES[turn % len(_DASHES)]))
    return result


def plot(drawn: Sequence[Curve], x: str, y: str, label: str, from_zero: bool = True) -> str:
    """Return the SVG of curves over x from 0 to 1, shown in percent.

    Parameters
    ----------
    x, y
        Names of the axes.
    label
        Description for screen readers.
    from_zero
        Start the value axis at 0, else just below the values.
    """
    values = [value for curve in drawn for _, value in curve.points]
    low, high = min(values), max(values)
    if from_zero:
        low = min(0.0, low)
    # equal values need a range too, also if all of them are 0
    margin = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
    chart = leather.Chart()
    chart.add_x_scale(0.0, 1.0)
    chart.add_y_scale(low if from_zero else low - margin, high + margin)
    chart.add_x_axis(
        ticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], tick_formatter=lambda v, i, n: f"{float(v):.0%}", name=x
    )
    chart.add_y_axis(tick_formatter=lambda v, i, n: f"{float(v):.4g}", name=y)
    # later ones are drawn on top: the point that matters comes last
    for curve in drawn:
        shape = _Line(curve.color, 2, curve.dash)
        if curve.dots:
            shape = _Dots(curve.color, 7 if curve.large else 4)
        chart.add_series(leather.Series(curve.points), shape)
    return figure(chart.to_svg_group(WIDTH, HEIGHT), WIDTH, HEIGHT, label)


def figure(content: ET.Element, width: int, height: int, label: str, scaled: bool = True) -> str:
    """Return an inline SVG with a description for screen readers.

    Parameters
    ----------
    scaled
        Scale it to the width of the page.
    """
    attributes = {
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-label": label,
        "class": "plot" if scaled else "picture",
    }
    if not scaled:
        # a picture keeps its size and scrolls: text would be too small to read
        attributes |= {"width": str(width), "height": str(height)}
    root = ET.Element("svg", attributes)
    root.append(content)
    for element in root.iter():
        # fonts are those of the page; leather also writes attributes without a value
        for key in ("font-family", "font-size", "dy", "transform"):
            if element.get(key) == "" or key.startswith("font"):
                element.attrib.pop(key, None)
    return ET.tostring(root, encoding="unicode")
