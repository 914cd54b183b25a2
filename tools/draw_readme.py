"""Draw the picture of the README: layer widths of the demo network before and after pruning.

usage: python tools/draw_readme.py [--out docs/picture.svg]

Coupled channels have the same color.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from onnxprune import analyze, demo, load, optimize
from onnxprune.ir.io import Model
from onnxprune.run.results import Result

# palette of Okabe and Ito, which color-blind people can distinguish
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
ALONE = "#8a8f98"  # groups in one layer only
TITLE = "Widths of the convolutions of the demo network before and after pruning"
LEGEND = "output channels of each convolution in graph order: filled = kept, outlined = removed"
COLOR_LEGEND = "one color = the same channels in several layers, removed together; gray = one layer"
WIDTH, BAR, GAP, TOP, HEIGHT = 900, 34, 16, 92, 176
STEM_CHANNELS = 32  # the stem has one input channel but is not depthwise
LEFT = (WIDTH - 16 * (BAR + GAP) + GAP) // 2


class Segment(NamedTuple):
    """Output channels of a layer that belong to one group.

    Attributes
    ----------
    group
        Name of the group.
    before, after
        Number of channels in the original and pruned model.
    """

    group: str
    before: int
    after: int


class Layer(NamedTuple):
    """A convolution.

    Attributes
    ----------
    kind
        Label under its bar.
    segments
        Its output channels by group, in order.
    """

    kind: str
    segments: list[Segment]

    @property
    def before(self) -> int:
        """Number of output channels in the original."""
        return sum(s.before for s in self.segments)

    @property
    def after(self) -> int:
        """Number of output channels in the pruned model."""
        return sum(s.after for s in self.segments)


def layers(source: Model, result: Result) -> list[Layer]:
    """Return the convolutions in graph order."""
    analysis = analyze(source)
    segments: dict[str, list[tuple[int, Segment]]] = {}
    for group in analysis.groups:
        kept = set(result.plan.kept.get(group.name, range(group.size)))
        for member in analysis.members(group.name):
            if member.site.axis != 0:
                continue
            after = sum(c in kept for c in member.channels.tolist())
            segment = Segment(group.name, len(member.positions), after)
            first = int(member.positions.min())
            segments.setdefault(member.site.tensor, []).append((first, segment))
    rows = []
    for node in analysis.model.proto.graph.node:
        if node.op_type != "Conv":
            continue
        weight = node.input[1]
        outputs, per_group, size = analysis.model.weights[weight].shape[:3]
        depthwise = " dw" if per_group == 1 and outputs > STEM_CHANNELS else ""
        ordered = [segment for _, segment in sorted(segments[weight])]
        rows.append(Layer(f"{size}x{size}{depthwise}", ordered))
    return rows


def draw(rows: list[Layer], headline: str) -> str:
    """Return the picture as SVG."""
    users = [segment.group for layer in rows for segment in layer.segments]
    coupled = [g for g in dict.fromkeys(users) if users.count(g) > 1]
    colors = {g: COLORS[i % len(COLORS)] for i, g in enumerate(coupled)}
    scale = HEIGHT / max(layer.before for layer in rows)
    base = TOP + HEIGHT
    bars = []
    for i, layer in enumerate(rows):
        bars += draw_layer(layer, LEFT + i * (BAR + GAP), colors, scale)
    view = f'viewBox="0 0 {WIDTH} {base + 62}" text-anchor="middle" role="img"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view} font-family="system-ui, sans-serif">',
        f"<title>{TITLE}</title>",
        "<style>text { fill: #1f2328 } .soft { fill: #57606a }</style>",
        '<rect width="100%" height="100%" fill="#ffffff" rx="8"/>',
        text(WIDTH / 2, 30, escape(headline), 'font-size="17" font-weight="600"'),
        text(WIDTH / 2, 51, LEGEND, 'font-size="12.5" class="soft"'),
        *bars,
        text(WIDTH / 2, base + 44, COLOR_LEGEND, 'font-size="12.5" class="soft"'),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def draw_layer(layer: Layer, x: int, colors: dict[str, str], scale: float) -> list[str]:
    """Return the bar and the labels of a layer."""
    parts, foot = [], float(TOP + HEIGHT)
    for segment in layer.segments:
        color = colors.get(segment.group, ALONE)
        outline = f'fill="{color}" fill-opacity="0.15" stroke="{color}" stroke-dasharray="3 2"'
        for width, style in ((segment.before, outline), (segment.after, f'fill="{color}"')):
            height = width * scale
            place = f'x="{x}" y="{foot - height:.1f}" width="{BAR}" height="{height:.1f}"'
            parts.append(f"<rect {place} {style}/>")
        foot -= segment.before * scale
    widths = str(layer.before)
    if layer.before != layer.after:
        widths = f"{layer.after}/{layer.before}"
    parts.append(text(x + BAR / 2, f"{foot - 6:.1f}", widths, 'font-size="10.5"'))
    place = TOP + HEIGHT + 15
    parts.append(text(x + BAR / 2, place, layer.kind, 'font-size="10.5" class="soft"'))
    return parts


def text(x: float, y: object, content: str, style: str) -> str:
    """Return a text element."""
    return f'<text x="{x}" y="{y}" {style}>{content}</text>'


def main() -> None:
    """Run the demo and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "picture.svg"
    )
    out = parser.parse_args().out
    files = demo.files()
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "small.onnx")
        result = optimize(
            files.model,
            target,
            data=str(files.calibration),
            metric="top1",
            labeled=str(files.evaluation),
            candidate="none",
            engine="none",
        )
    report = result.report
    share = report.after["macs"] / report.before["macs"]
    top1 = report.quality["top1"]
    accuracy = f"top-1 {top1['before']:.1%} → {top1['after']:.1%}"
    headline = f"onnxprune demo: {share:.0%} of the MACs remain, {accuracy}, no training"
    out.write_text(draw(layers(load(files.model), result), headline), encoding="utf-8")
    print(f"{headline}\nwritten to {out}")


if __name__ == "__main__":
    main()
