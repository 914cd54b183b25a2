"""Plots as inline SVG: no scripts, no fonts, and colors of the page's theme by class."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, isfinite, log10

# classes s0 to s7 of page.css, after Okabe and Ito (2008); the first two are before and after
SERIES = 8
BEFORE, AFTER = "s0", "s1"
WIDTH, HEIGHT = 720, 340
MARGIN = 0.05  # of the value axis above and below the values
_SIDES = (16, 30, 52, 86)  # top, right, bottom, left of the plotting area
_TICKS = 6  # at most about so many per axis
_DASHES = ("none", "7 3", "2 3")  # one per pass through the colors


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in ascending x.

    Attributes
    ----------
    color
        Class of the color.
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


def curves(lines: Sequence[Sequence[tuple[float, float]]]) -> list[Curve]:
    """Return a curve per line, each with another color or dash pattern."""
    result = []
    for i, points in enumerate(lines):
        # the dash pattern changes only when the colors are used up
        turn, color = divmod(i, SERIES)
        result.append(Curve(points, f"s{color}", dash=_DASHES[turn % len(_DASHES)]))
    return result


@dataclass(frozen=True)
class Axis:
    """Range of one axis.

    Attributes
    ----------
    low, high
        Values at its ends.
    name
        Its title.
    format
        Text of a tick.
    """

    low: float
    high: float
    name: str
    format: Callable[[float], str] = field(default=lambda v: f"{v:.4g}")

    def ticks(self) -> list[float]:
        """Return round values within the range, at most about _TICKS.

        >>> Axis(0.0, 1.0, "x").ticks()
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        """
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** floor(log10(rough))
        # the next round step: 1, 2, 5 or 10 times a power of ten
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        # rounded to the step's digits, because multiples of 0.1 are not exact
        digits = max(0, 1 - floor(log10(step)))
        return [round(i * step, digits) for i in range(first, last + 1)]


def spanning(values: Sequence[float], name: str, from_zero: bool = False) -> Axis:
    """Return the axis that holds all values with a margin; `from_zero` starts it at 0."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(0.0, low)
    # equal values need a range too, also if all of them are 0
    margin = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
    return Axis(low if from_zero else low - margin, high + margin, name)


class Canvas:
    """SVG group with two axes, into which marks are drawn by value.

    Parameters
    ----------
    x, y
        The axes.
    size
        Width and height in pixels.
    """

    def __init__(self, x: Axis, y: Axis, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        self.x, self.y, self.size = x, y, size
        self.group = ET.Element("g")
        top, right, bottom, left = _SIDES
        self._area = (left, top, size[0] - right, size[1] - bottom)
        self._draw_axes()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a value."""
        left, top, right, bottom = self._area
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return left + across * (right - left), bottom - up * (bottom - top)

    def line(self, points: Sequence[tuple[float, float]], color: str, dash: str = "none") -> None:
        """Draw a line through values."""
        places = [self.at(*point) for point in points]
        path = "M " + " L ".join(f"{x:.4f} {y:.4f}" for x, y in places)
        attributes = {"class": f"line {color}", "d": path}
        if dash != "none":
            attributes["stroke-dasharray"] = dash
        ET.SubElement(self.group, "path", attributes)

    def dot(
        self, x: float, y: float, color: str, radius: float = 4, title: str = "", label: str = ""
    ) -> None:
        """Draw a dot with a tooltip, and a short label at its upper right."""
        left, top = self.at(x, y)
        place = {"cx": f"{left:.2f}", "cy": f"{top:.2f}", "r": f"{radius:g}"}
        mark = ET.SubElement(self.group, "circle", {"class": f"dot {color}", **place})
        if title:
            ET.SubElement(mark, "title").text = title
        if label:
            # inside of the plot: at the right edge, the text ends at the dot
            is_right = left > self._area[2] - 40
            attributes = {
                "x": f"{left + (-radius - 3 if is_right else radius + 3):.1f}",
                "y": f"{top - radius - 2:.1f}",
                "text-anchor": "end" if is_right else "start",
                "class": "mark",
            }
            ET.SubElement(self.group, "text", attributes).text = label

    def bar(self, x: tuple[float, float], y: float, color: str) -> None:
        """Fill a bar from the axis to a value."""
        left, top = self.at(x[0], y)
        right, bottom = self.at(x[1], self.y.low)
        size = {"width": f"{max(right - left, 0.5):.2f}", "height": f"{bottom - top:.2f}"}
        place = {"x": f"{left:.2f}", "y": f"{top:.2f}", **size}
        ET.SubElement(self.group, "rect", {"class": f"bar {color}", **place})

    def error(self, x: float, y: tuple[float, float], color: str) -> None:
        """Draw an interval of the value axis."""
        places = [self.at(x, value) for value in y]
        path = f"M{places[0][0]:.2f} {places[0][1]:.2f}V{places[1][1]:.2f}"
        ET.SubElement(self.group, "path", {"class": f"line {color}", "d": path})

    def svg(self, label: str) -> str:
        """Return the plot with a description for screen readers."""
        return figure(self.group, *self.size, label)

    def _draw_axes(self) -> None:
        """Draw grid, ticks and titles."""
        left, top, right, bottom = self._area
        for value in self.x.ticks():
            x = self.at(value, self.y.low)[0]
            self._rule((x, top), (x, bottom))
            self._text((x, bottom + 18), self.x.format(value), "middle")
        for value in self.y.ticks():
            y = self.at(self.x.low, value)[1]
            self._rule((left, y), (right, y))
            self._text((left - 8, y + 4), self.y.format(value), "end")
        self._text(((left + right) / 2, self.size[1] - 8), self.x.name, "middle")
        middle = (top + bottom) / 2
        title = self._text((15, middle), self.y.name, "middle")
        title.set("transform", f"rotate(-90 15 {middle:g})")

    def _rule(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a line of the grid."""
        ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
        ET.SubElement(self.group, "line", {key: f"{value:.1f}" for key, value in ends.items()})

    def _text(self, place: tuple[float, float], text: str, anchor: str) -> ET.Element:
        """Draw a text."""
        position = {"x": f"{place[0]:.1f}", "y": f"{place[1]:.1f}", "text-anchor": anchor}
        element = ET.SubElement(self.group, "text", position)
        element.text = text
        return element


def percent(value: float) -> str:
    """Return a share as text of a tick."""
    return f"{100 * value:.4g}%"


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
    # what is not finite has no place, and would leave the axis without a range
    drawn = [replace(c, points=[p for p in c.points if all(map(isfinite, p))]) for c in drawn]
    values = [value for curve in drawn for _, value in curve.points] or [0.0]
    canvas = Canvas(Axis(0.0, 1.0, x, percent), spanning(values, y, from_zero))
    # later ones are drawn on top: the point that matters comes last
    for curve in drawn:
        if not curve.dots and curve.points:
            canvas.line(curve.points, curve.color, curve.dash)
        for point in curve.points if curve.dots else ():
            canvas.dot(*point, curve.color, 7 if curve.large else 4)
    return canvas.svg(label)


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
    return ET.tostring(root, encoding="unicode")
