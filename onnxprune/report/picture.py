"""Picture of a network: boxes and arrows from top to bottom, coupled groups in color.

Graphviz would draw better layouts, but is a program that users would have to install. Networks are
nearly chains, for which longest paths (rows) and mean input positions (columns) suffice.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from onnxprune.errors import plural
from onnxprune.report.data import GraphBox
from onnxprune.report.plots import figure
from onnxprune.report.text import clip

# beyond these the picture is too large to read and slows the page down
MOST_BOXES = 400
MOST_ARROWS = 2000
MOST_LETTERS = 20  # of a box's text
_BOX = (150, 34)
_PITCH = (176, 62)  # of columns and rows
_MARGIN = 24
_LANE = 5  # distance of arrows that pass next to the boxes
_MOST_LANES = 16
# light enough for black text (contrast above 12); neighbors also differ with color blindness
TINTS = ("#BBDDF2", "#FFD8A8", "#B5E8D5", "#F5CFE3", "#FFF3A3", "#D9D2F5", "#F9C6B4", "#D5DBE1")


def tints(graph: Sequence[GraphBox]) -> dict[str, str]:
    """Return group -> color, for groups that several boxes carry; neighbors differ."""
    boxes = Counter(name for box in graph for name in box.groups)
    shared = [name for name in boxes if boxes[name] > 1]  # in graph order
    return {name: TINTS[i % len(TINTS)] for i, name in enumerate(shared)}


def picture(
    graph: Sequence[GraphBox],
    numbers: Mapping[str, int],
    widths: Mapping[str, tuple[int, int]],
    most_name: int,
) -> str:
    """Return the SVG of the boxes of `collect.graph_rows`.

    Parameters
    ----------
    numbers
        Group -> its number in the table next to the picture.
    widths
        Group -> channels before and after.
    most_name
        Characters shown of a node's name.
    """
    rows, columns = layout([box.inputs for box in graph])
    left = min(columns)
    x = [_MARGIN + _BOX[0] / 2 + (column - left) * _PITCH[0] for column in columns]
    y = [_MARGIN + _BOX[1] / 2 + row * _PITCH[1] for row in rows]
    # from the graph, as the table of groups does, so that both have the same colors
    colors = tints(graph)
    group = ET.Element("g")
    arrows = [(i, j) for j, box in enumerate(graph) for i in box.inputs][:MOST_ARROWS]
    right = _draw_arrows(group, arrows, rows, x, y)
    for box, box_x, box_y in zip(graph, x, y, strict=True):
        group.append(_draw_box(box, (box_x, box_y), colors, numbers, widths, most_name))
    nodes = sum(1 for box in graph if box.op not in ("input", "output"))
    label = (
        f"the network as {plural(nodes, 'box', 'boxes')} from input to output, "
        f"{plural(len(colors), 'group')} with a color; the tables on this page have the same "
        "figures"
    )
    width = round(max(right, max(x) + _BOX[0] / 2) + _MARGIN)
    height = round(max(y) + _BOX[1] / 2 + _MARGIN)
    return figure(group, width, height, label, scaled=False)


def layout(inputs: Sequence[Sequence[int]]) -> tuple[list[int], list[float]]:
    """Return (row, column) of each box: a row below its inputs, near their mean column."""
    rows: list[int] = []
    for sources in inputs:
        # boxes are in topological order, so that all inputs have their row
        rows.append(max((rows[i] + 1 for i in sources), default=0))
    columns = [0.0] * len(inputs)
    by_row: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_row.setdefault(row, []).append(i)
    for row in sorted(by_row):
        ideal = {i: _compute_mean(columns, inputs[i]) for i in by_row[row]}
        # by index at equal places, so that the picture is the same at each run
        members = sorted(by_row[row], key=lambda i: (ideal[i], i))
        columns[members[0]] = ideal[members[0]]
        for left, i in pairwise(members):
            columns[i] = max(ideal[i], columns[left] + 1)
        # boxes were only pushed to the right: move the row back by the mean push
        shift = sum(columns[i] - ideal[i] for i in members) / len(members)
        for i in members:
            columns[i] -= shift
    return rows, columns


def _compute_mean(columns: Sequence[float], boxes: Sequence[int]) -> float:
    """Return the mean column of boxes, 0 of none."""
    return sum(columns[i] for i in boxes) / len(boxes) if boxes else 0.0


def _draw_arrows(
    group: ET.Element,
    arrows: Sequence[tuple[int, int]],
    rows: Sequence[int],
    x: Sequence[float],
    y: Sequence[float],
) -> float:
    """Draw the arrows, and return how far to the right they reach.

    An arrow that boxes are in the way of passes them on the right, in a lane of its own.
    """
    half_width, half_height = _BOX[0] / 2, _BOX[1] / 2
    lanes, reach = Counter[int](), 0.0
    edges: dict[int, float] = {}  # row -> right edge of its boxes
    for row, box_x in zip(rows, x, strict=True):
        edges[row] = max(edges.get(row, 0.0), box_x + half_width)
    for i, j in arrows:
        start, end = (x[i], y[i]), (x[j], y[j])
        between = [edges[row] for row in range(rows[i] + 1, rows[j])]
        # nothing is in the way: rows are adjacent, or both boxes are right of all others
        if not between or min(x[i], x[j]) - half_width > max(between):
            path = _draw_direct_path(
                (start[0], start[1] + half_height), (end[0], end[1] - half_height)
            )
        else:
            # outside the arrows that pass these rows already; lanes repeat to limit the width
            lane = max(lanes[row] for row in range(rows[i], rows[j])) % _MOST_LANES
            lanes.update(range(rows[i], rows[j]))
            side = max(*between, x[i] + half_width, x[j] + half_width) + 12 + lane * _LANE
            path = _draw_lane_path(
                (start[0] + half_width, start[1]), (end[0] + half_width, end[1]), side
            )
            reach = max(reach, side)
        ET.SubElement(group, "path", {"class": "arrow", "d": path})
    return reach


def _draw_direct_path(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Return an SVG path straight down, bent in the middle."""
    (x0, y0), (x1, y1) = start, end
    # halfway between the centers of the boxes, which are as far from both ends
    middle = (y0 + y1) / 2
    return f"M{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"


def _draw_lane_path(start: tuple[float, float], end: tuple[float, float], side: float) -> str:
    """Return an SVG path to the right, down at x = `side`, and back."""
    (x0, y0), (x1, y1) = start, end
    return (
        f"M{x0:.0f} {y0:.0f}C{side:.0f} {y0:.0f} {side:.0f} {y0:.0f} {side:.0f} {y0 + 20:.0f}"
        f"V{y1 - 20:.0f}C{side:.0f} {y1:.0f} {side:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    )


def _draw_box(
    box: GraphBox,
    center: tuple[float, float],
    colors: Mapping[str, str],
    numbers: Mapping[str, int],
    widths: Mapping[str, tuple[int, int]],
    most_name: int,
) -> ET.Element:
    """Return one box: operator, number of the group and widths; its name as a tooltip."""
    x, y = center
    names = [name for name in box.groups if name in widths]
    fills = [colors[name] for name in names if name in colors]
    title = clip(box.node, most_name)
    text = f"{box.op}: {box.role}" if box.role else box.op
    if box.op in ("input", "output"):
        kind, text = "end", f"{box.op}: {title}"
    else:
        kind = "cut" if names else "fixed"
    group = ET.Element("g", {"class": f"box {kind}"})
    ET.SubElement(group, "title").text = title
    rectangle = {
        "x": f"{x - _BOX[0] / 2:.0f}",
        "y": f"{y - _BOX[1] / 2:.0f}",
        "width": str(_BOX[0]),
        "height": str(_BOX[1]),
        "rx": "5",
        "fill": fills[0] if fills else "#FFFFFF",
    }
    ET.SubElement(group, "rect", rectangle)
    if len(text) > MOST_LETTERS:
        text = text[: MOST_LETTERS - 1] + "…"
    # one line is centered, two share the height
    _add_text(group, (x, y - 3 if names else y + 4), text)
    if names:
        before, after = (sum(widths[name][i] for name in names) for i in (0, 1))
        more = f" +{len(names) - 1}" if len(names) > 1 else ""
        width = f"{before} → {after}" if before != after else str(before)
        line = f"#{numbers[names[0]]}{more}: {width}"
        _add_text(group, (x, y + 12), line, {"class": "small"})
    return group


def _add_text(
    group: ET.Element,
    place: tuple[float, float],
    text: str,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Add a centered line of text."""
    position = {"x": f"{place[0]:.0f}", "y": f"{place[1]:.0f}"}
    ET.SubElement(group, "text", {**position, **(attributes or {})}).text = text
