"""The network as boxes and arrows from top to bottom, coupled groups in color.

Graphviz would lay it out better, but is a program that a reader of reports would have to install; networks are nearly chains, where
longest paths for rows and the mean of what a box reads for columns are enough.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.errors import plural
from onnxprune.report.plots import figure

MOST_BOXES = 400
MOST_ARROWS = 2000
_BOX = (150, 34)
_PITCH = (176, 62)  # of columns and rows
_MARGIN = 24
_LANE = 5  # between arrows beside the boxes
_MOST_LANES = 16
# light enough for black text (contrast above 12), in an order in which neighbors differ for color-blind readers too
TINTS = ("#BBDDF2", "#FFD8A8", "#B5E8D5", "#F5CFE3", "#FFF3A3", "#D9D2F5", "#F9C6B4", "#D5DBE1")


def tints(graph: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Group -> color, of the groups that several boxes carry; neighbors in the graph differ."""
    boxes = Counter(name for box in graph for name in box["groups"])
    order = list(dict.fromkeys(name for box in graph for name in box["groups"]))
    return {name: TINTS[i % len(TINTS)] for i, name in enumerate(n for n in order if boxes[n] > 1)}


def picture(
    graph: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, int],
    widths: Mapping[str, tuple[int, int]],
) -> str:
    """SVG of the boxes of `collect.graph_rows`.

    Parameters
    ----------
    numbers
        Group -> its number in the table beside the picture.
    widths
        Group -> channels before and after.
    """
    rows, columns = layout([box["inputs"] for box in graph])
    left = min(columns)
    x = [_MARGIN + _BOX[0] / 2 + (c - left) * _PITCH[0] for c in columns]
    y = [_MARGIN + _BOX[1] / 2 + r * _PITCH[1] for r in rows]
    colors = tints(graph)
    group = ET.Element("g")
    arrows = [(i, j) for j, box in enumerate(graph) for i in box["inputs"]][:MOST_ARROWS]
    right = _arrows(group, arrows, rows, x, y)
    for box, bx, by in zip(graph, x, y, strict=False):
        group.append(_box(box, bx, by, colors, numbers, widths))
    joined = sum(1 for box in graph if box["op"] not in ("input", "output"))
    label = (
        f"the network as {plural(joined, 'box', 'boxes')} from input to output, "
        f"{plural(len(colors), 'group')} with a color; the tables on this page have the same "
        "figures"
    )
    return figure(
        group,
        round(max(right, max(x) + _BOX[0] / 2) + _MARGIN),
        round(max(y) + _BOX[1] / 2 + _MARGIN),
        label,
        scaled=False,
    )


def layout(inputs: Sequence[Sequence[int]]) -> tuple[list[int], list[float]]:
    """(row, column) of each box: a row below all that it reads, near the mean column of it."""
    rows: list[int] = []
    for sources in inputs:
        rows.append(max((rows[i] + 1 for i in sources), default=0))
    columns = [0.0] * len(inputs)
    by_row: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_row.setdefault(row, []).append(i)
    for row in sorted(by_row):
        wanted = {
            i: sum(columns[s] for s in inputs[i]) / len(inputs[i]) if inputs[i] else 0.0
            for i in by_row[row]
        }
        members = sorted(by_row[row], key=lambda i: (wanted[i], i))
        for place, i in enumerate(members):
            columns[i] = max(wanted[i], columns[members[place - 1]] + 1) if place else wanted[i]
        shift = sum(columns[i] - wanted[i] for i in members) / len(members)
        for i in members:
            columns[i] -= shift
    return rows, columns


def _arrows(
    group: ET.Element,
    arrows: Sequence[tuple[int, int]],
    rows: Sequence[int],
    x: Sequence[float],
    y: Sequence[float],
) -> float:
    """Draw them; returns how far to the right they reach. An arrow over boxes in between goes around them on the right."""
    half, lanes, right = _BOX[1] / 2, Counter[int](), 0.0
    edges: dict[int, float] = {}
    for row, box_x in zip(rows, x, strict=False):
        edges[row] = max(edges.get(row, 0.0), box_x + _BOX[0] / 2)
    for i, j in arrows:
        between = [edges[r] for r in range(rows[i] + 1, rows[j])]
        if not between or min(x[i], x[j]) - _BOX[0] / 2 > max(between):
            middle = (y[i] + y[j]) / 2
            d = f"M{x[i]:.0f} {y[i] + half:.0f}C{x[i]:.0f} {middle:.0f} {x[j]:.0f} {middle:.0f} {x[j]:.0f} {y[j] - half:.0f}"
        else:
            lane = max(lanes[r] for r in range(rows[i], rows[j])) % _MOST_LANES
            lanes.update(range(rows[i], rows[j]))
            side = max(*between, x[i] + _BOX[0] / 2, x[j] + _BOX[0] / 2) + 12 + lane * _LANE
            d = (
                f"M{x[i] + _BOX[0] / 2:.0f} {y[i]:.0f}C{side:.0f} {y[i]:.0f} {side:.0f} {y[i]:.0f} {side:.0f} {y[i] + 20:.0f}"
                f"V{y[j] - 20:.0f}C{side:.0f} {y[j]:.0f} {side:.0f} {y[j]:.0f} {x[j] + _BOX[0] / 2:.0f} {y[j]:.0f}"
            )
            right = max(right, side)
        ET.SubElement(group, "path", {"class": "arrow", "d": d})
    return right


def _box(
    box: Mapping[str, Any],
    x: float,
    y: float,
    colors: Mapping[str, str],
    numbers: Mapping[str, int],
    widths: Mapping[str, tuple[int, int]],
) -> ET.Element:
    """One box: operator, number of the group, widths; its name as a tooltip."""
    names = [n for n in box["groups"] if n in widths]
    fills = [colors[n] for n in names if n in colors]
    kind = "end" if box["op"] in ("input", "output") else "whole" if not names else "cut"
    group = ET.Element("g", {"class": f"box {kind}"})
    ET.SubElement(group, "title").text = box["node"]
    place = {
        "x": f"{x - _BOX[0] / 2:.0f}",
        "y": f"{y - _BOX[1] / 2:.0f}",
        "width": str(_BOX[0]),
        "height": str(_BOX[1]),
        "rx": "5",
    }
    ET.SubElement(group, "rect", {**place, "fill": fills[0] if fills else "#FFFFFF"})
    text = box["op"] if kind != "end" else f"{box['op']}: {box['node']}"
    ET.SubElement(group, "text", {"x": f"{x:.0f}", "y": f"{y - (3 if names else -4):.0f}"}).text = (
        text if len(text) <= 20 else text[:19] + "…"
    )
    if names:
        before, after = (sum(widths[n][i] for n in names) for i in (0, 1))
        which = f"#{numbers[names[0]]}" + (f" +{len(names) - 1}" if len(names) > 1 else "")
        width = f"{before} → {after}" if before != after else str(before)
        ET.SubElement(
            group, "text", {"x": f"{x:.0f}", "y": f"{y + 12:.0f}", "class": "small"}
        ).text = f"{which}: {width}"
    return group
