"""Draw README's picture: the demo network before and after `onnxprune demo`, coupled channels in one color.

usage: python tools/draw_readme.py [--out docs/picture.svg]
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

# Okabe and Ito's palette, told apart by color-blind readers; groups that touch one layer only are gray
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
ALONE = "#8a8f98"
WIDTH, BAR, GAP, TOP, HEIGHT = 900, 34, 16, 92, 176
LEFT = (WIDTH - 16 * (BAR + GAP) + GAP) // 2


class Segment(NamedTuple):
    """Output channels of a layer that belong to one group, before and after."""

    group: str
    before: int
    after: int


class Layer(NamedTuple):
    """A convolution: what is written under it, and its output channels by group in their order."""

    kind: str
    segments: list[Segment]

    @property
    def before(self) -> int:
        """Output channels of the original."""
        return sum(s.before for s in self.segments)

    @property
    def after(self) -> int:
        """Output channels that stay."""
        return sum(s.after for s in self.segments)


def layers(source: Model, result: Result) -> list[Layer]:
    """The convolutions in graph order."""
    analysis = analyze(source)
    made: dict[str, list[tuple[int, Segment]]] = {}
    for group in analysis.groups:
        kept = set(result.plan.kept.get(group.name, range(group.size)))
        for member in analysis.members(group.name):
            if member.site.axis == 0:
                after = sum(c in kept for c in member.channels.tolist())
                made.setdefault(member.site.tensor, []).append(
                    (int(member.positions.min()), Segment(group.name, len(member.positions), after))
                )
    found = []
    for node in analysis.model.proto.graph.node:
        if node.op_type == "Conv":
            before, per_group, size = analysis.model.weights[node.input[1]].shape[:3]
            depthwise = " dw" if per_group == 1 and before > 32 else ""
            found.append(
                Layer(
                    f"{size}x{size}{depthwise}",
                    [segment for _, segment in sorted(made[node.input[1]])],
                )
            )
    return found


def picture(found: list[Layer], headline: str) -> str:
    """The SVG."""
    users = [segment.group for layer in found for segment in layer.segments]
    coupled = [g for g in dict.fromkeys(users) if users.count(g) > 1]
    colors = {g: COLORS[i % len(COLORS)] for i, g in enumerate(coupled)}
    scale = HEIGHT / max(layer.before for layer in found)
    base = TOP + HEIGHT
    parts = []
    for i, layer in enumerate(found):
        x, foot = LEFT + i * (BAR + GAP), float(base)
        for segment in layer.segments:
            color = colors.get(segment.group, ALONE)
            for width, style in (
                (
                    segment.before,
                    f'fill="{color}" fill-opacity="0.15" stroke="{color}" stroke-dasharray="3 2"',
                ),
                (segment.after, f'fill="{color}"'),
            ):
                parts.append(
                    f'<rect x="{x}" y="{foot - width * scale:.1f}" width="{BAR}" height="{width * scale:.1f}" {style}/>'
                )
            foot -= segment.before * scale
        label = (
            f"{layer.before}" if layer.before == layer.after else f"{layer.after}/{layer.before}"
        )
        parts.append(f'<text x="{x + BAR / 2}" y="{foot - 6:.1f}" font-size="10.5">{label}</text>')
        parts.append(
            f'<text x="{x + BAR / 2}" y="{base + 15}" font-size="10.5" class="soft">{layer.kind}</text>'
        )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {base + 62}" font-family="system-ui, sans-serif" text-anchor="middle" role="img">
<title>Widths of the demo network's convolutions before and after pruning</title>
<style>text {{ fill: #1f2328 }} .soft {{ fill: #57606a }}</style>
<rect width="100%" height="100%" fill="#ffffff" rx="8"/>
<text x="{WIDTH / 2}" y="30" font-size="17" font-weight="600">{escape(headline)}</text>
<text x="{WIDTH / 2}" y="51" font-size="12.5" class="soft">output channels of every convolution, in graph order: filled bars stay, outlines went</text>
{chr(10).join(parts)}
<text x="{WIDTH / 2}" y="{base + 44}" font-size="12.5" class="soft">one color = the same channels in several layers, cut together; gray = in one layer only</text>
</svg>
"""


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
    headline = f"onnxprune demo: {share:.0%} of the MACs stay, top-1 {top1['before']:.1%} → {top1['after']:.1%}, no training"

    out.write_text(picture(layers(load(files.model), result), headline), encoding="utf-8")
    print(f"{headline}\nwritten to {out}")


if __name__ == "__main__":
    main()
