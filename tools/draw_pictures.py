"""Draw the pictures of the README and of the documentation from runs of the demo.

usage: python tools/draw_pictures.py [--out docs/pictures] [widths] [terminal] [report]

widths.svg       widths of the layers before and after, coupled channels in one color
terminal.svg     what `onnxprune demo` prints
report*.png      the top and sections of its report page; needs chromium
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
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
PICTURES = ("widths", "terminal", "report")
DEMO = "onnxprune demo"
# the demo, from its files
REPORTED = (
    "onnxprune optimize model.onnx -o digits.onnx --data calibration.npz --target macs=12% "
    "--round-to 8 --metric top1 --labeled evaluation.npz --candidate none --control 3"
)
COLUMNS = 100  # of the terminal
TERMINAL_TOP, TERMINAL_LEFT, LINE_HEIGHT, CHARACTER_WIDTH = 36, 20, 18, 7.85
# color by the start of a line
EMPHASIS = {
    "$": "#7ee787",
    "cost  ": "#7ee787",
    "quality": "#e3b341",
    "speed": "#7ee787",
    "  this model": "#79c0ff",
    "  random": "#ffa198",
}
PAGE_SIZE = (1280, 900)
MARGIN = 20  # pixels below the last line of a picture
SECTIONS = ("examples", "network", "time")  # of the report page, by their identifiers
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


def draw_widths(folder: Path) -> str:
    """Prune the demo network to half of its MACs in a folder; return the picture of its widths."""
    files = demo.files()
    result = optimize(
        files.model,
        str(folder / "small.onnx"),
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
    headline = f"demo network: {share:.0%} of the MACs remain, {accuracy}, no training"
    return draw(layers(load(files.model), result), headline)


def run(folder: Path, command: str) -> str:
    """Run a command of onnxprune in a folder; return what it prints on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=folder,
        env={**os.environ, "COLUMNS": str(COLUMNS)},
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    return done.stdout


def draw_terminal(printed: str) -> str:
    """Return a picture of a terminal with the demo, up to the commands that follow."""
    shown = printed.partition("\nWhat next")[0].strip("\n").splitlines()
    lines = [f"$ {DEMO}", *shown]
    height = TERMINAL_TOP + len(lines) * LINE_HEIGHT + 14
    width = 2 * TERMINAL_LEFT + max(map(len, lines)) * CHARACTER_WIDTH
    body = [
        f'<text xml:space="preserve" x="{TERMINAL_LEFT}" y="{TERMINAL_TOP + i * LINE_HEIGHT}"'
        f"{_style(line)}>{escape(line)}</text>"
        for i, line in enumerate(lines, 1)
        if line
    ]
    dots = [
        f'<circle cx="{20 + 18 * i}" cy="18" r="5.5" fill="{color}"/>'
        for i, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    font = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13"'
    view = f'viewBox="0 0 {width:.0f} {height}" role="img"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {view} {font}>',
            f"<title>{DEMO}</title>",
            "<style>text { fill: #d7dce2; white-space: pre }</style>",
            '<rect width="100%" height="100%" fill="#1b1f24" rx="8"/>',
            *dots,
            *body,
            "</svg>\n",
        ]
    )


def _style(line: str) -> str:
    """Return the attributes of a line: colors for the command, verdicts and controls."""
    for start, color in EMPHASIS.items():
        if line.startswith(start):
            return f' style="fill: {color}"'
    return ""


def photograph(page: Path, picture: Path, section: str = "") -> None:
    """Write a picture of the top of a report page, or of one of its sections.

    Parameters
    ----------
    section
        Identifier of the heading of the only section to show.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit(f"{picture.name} needs chromium")
    if section:
        only = f"header, nav, footer, section:not(:has(#{section})) {{ display: none }}"
        text = page.read_text(encoding="utf-8")
        page = page.with_name(f"{section}.html")
        page.write_text(text.replace("</head>", f"<style>{only}</style></head>"), encoding="utf-8")
    size = ",".join(map(str, PAGE_SIZE))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command = [browser, *options, f"--window-size={size}", f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    _reduce(picture)


def _reduce(picture: Path) -> None:
    """Cut off the empty part below, and store 128 colors, a third of the bytes."""
    from PIL import Image, ImageChops

    image = Image.open(picture).convert("RGB")
    blank = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    _, _, _, bottom = ImageChops.difference(image, blank).getbbox() or (0, 0, 0, image.height)
    image = image.crop((0, 0, image.width, min(bottom + MARGIN, image.height)))
    image.quantize(128).save(picture, optimize=True)


def main() -> None:
    """Run the demo and draw the pictures that are asked for, by default all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = Path(__file__).resolve().parents[1] / "docs" / "pictures"
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], default=[])
    arguments = parser.parse_args()
    names, out = arguments.names or PICTURES, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if "widths" in names:
            (out / "widths.svg").write_text(draw_widths(work), encoding="utf-8")
        if "terminal" in names:
            picture = draw_terminal(run(work, DEMO))
            (out / "terminal.svg").write_text(picture, encoding="utf-8")
        if "report" in names:
            # in a folder of its files, whose paths the page then shows
            run(work, f"{DEMO} --export . --overwrite")
            run(work, REPORTED)
            page = work / "digits.run" / "report.html"
            photograph(page, out / "report.png")
            for section in SECTIONS:
                photograph(page, out / f"report-{section}.png", section)
    print("\n".join(f"written to {path}" for path in sorted(out.iterdir())))


if __name__ == "__main__":
    main()
