"""Growth of the time and memory of every stage with nodes, channels, samples, image size, threads.

    python -m benchmarks.scaling --json FILE [--rounds 3] [--picture docs/pictures/scaling.svg]
    python -m benchmarks.scaling --json FILE --picture FILE --draw      # from an earlier run

Each run is a process of its own on a generated residual network of 3x3 convolutions with random
weights, on random images; one property at a time grows. The default method runs with engine
none; `l2` is the criterion of that name without repair and data, on networks of 1x1 convolutions
with up to 20,000 nodes. `analysis` is `analyze` alone, on up to 100,000 nodes. CPU seconds are user
and system time of all threads from one stage to the next; memory is the peak of the process. A
figure is the median over rounds that take turns. The exponent is that between the last two
values: 1 is linear.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.runner import ONE_THREAD, ROOT, Row, make_parser, markdown, write_results
from benchmarks.speed import chain

BASE = {"blocks": 4, "channels": 32, "size": 16, "samples": 64, "threads": 1}
SWEEPS: Mapping[str, Sequence[int]] = {
    "blocks": (2, 4, 8, 16),
    "channels": (16, 32, 64, 128),
    "size": (8, 16, 32, 64),
    "samples": (64, 128, 256, 512),
    "threads": (1, 2, 4),
    "l2": (500, 1000, 2000, 4000),  # blocks of five nodes
    "analysis": (1000, 4000, 20000),
}
LABELS = {
    "blocks": "blocks of 5 nodes, default method",
    "channels": "channels",
    "size": "image height and width",
    "samples": "calibration samples",
    "threads": "threads",
    "l2": "blocks of 5 nodes, l2",
    "analysis": "blocks of 5 nodes, analyze alone",
}
STAGES = ("load", "analyze", "score", "plan", "cut", "verify", "repair", "evaluate", "report")
# palette of Okabe and Ito, which color-blind people can distinguish
COLORS = "#000000 #0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #8a8f98 #b8a800 #7a4a1e".split()
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, COLUMNS = 250, 170, 48, 34, 4


def network(blocks: int, channels: int, size: int) -> bytes:
    """Return a residual network of blocks of Conv, Relu, Conv, Add and Relu, with 10 classes."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = []

    def weight(name: str, *shape: int) -> str:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        values = rng.normal(0, scale, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    make: Any = helper.make_node
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [make("Conv", ["x", weight("w", channels, 3, 3, 3)], ["t0"], **pads)]
    for b in range(blocks):
        first, second = (weight(f"w{b}_{i}", channels, channels, 3, 3) for i in (1, 2))
        nodes += [
            make("Conv", [f"t{b}", first], [f"a{b}"], **pads),
            make("Relu", [f"a{b}"], [f"b{b}"]),
            make("Conv", [f"b{b}", second], [f"c{b}"], **pads),
            make("Add", [f"t{b}", f"c{b}"], [f"d{b}"]),
            make("Relu", [f"d{b}"], [f"t{b + 1}"]),
        ]
    nodes += [
        make("GlobalAveragePool", [f"t{blocks}"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", weight("head", 10, channels)], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10]),
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def run(sweep: str, value: int) -> Row:
    """Return CPU seconds per stage and the peak of memory in MB; for a process of its own."""
    # before the clock starts
    import onnxruntime  # noqa: F401

    import onnxprune
    import onnxprune.run.pipeline

    settings = dict(BASE)
    if sweep in settings:
        settings[sweep] = value
    marks: list[tuple[str, float]] = []

    def listen(event: Any) -> None:
        if event.state == "end":
            marks.append((event.stage, time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        if sweep in settings:
            size, samples = settings["size"], settings["samples"]
            model = network(settings["blocks"], settings["channels"], size)
            rng = np.random.default_rng(0)
            options: dict[str, Any] = {
                "data": rng.normal(size=(samples, 3, size, size)).astype(np.float32),
                "samples": samples,
                "threads": settings["threads"],
            }
        else:
            model = chain(value)
            options = {"criterion": "l2", "repair": "none"}
        start = time.process_time()
        if sweep == "analysis":
            onnxprune.analyze(model)
        else:
            path = str(Path(folder, "out.onnx"))
            more = {"target": "macs=60%", "round_to": 1, "engine": "none", **options}
            onnxprune.optimize(model, path, on_event=listen, **more)
        end = time.process_time()
    stages: dict[str, float] = {}
    before = start
    for name, at in marks:
        stages[name] = stages.get(name, 0.0) + at - before
        before = at
    if marks:
        stages["report"] = end - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"stages": stages, "total": end - start, "peak_mb": peak}


def measure(rounds: int, sweeps: Mapping[str, Sequence[int]] = SWEEPS) -> list[Row]:
    """Return a row per sweep and value, its figures the medians over rounds."""
    places = [(sweep, value) for sweep, values in sweeps.items() for value in values]
    found: dict[tuple[str, int], list[Row]] = {place: [] for place in places}
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    for _ in range(rounds):
        for sweep, value in places:
            command = [sys.executable, "-m", "benchmarks.scaling", "--run", sweep, str(value)]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            found[sweep, value].append(json.loads(done.stdout.splitlines()[-1]))
            print(sweep, value, f"{found[sweep, value][-1]['total']:.2f} s", flush=True)
    return [{"sweep": s, "value": v, **_take_medians(runs)} for (s, v), runs in found.items()]


def _take_medians(runs: Sequence[Row]) -> Row:
    names = {name for row in runs for name in row["stages"]}
    return {
        "stages": {n: median(r["stages"].get(n, 0.0) for r in runs) for n in sorted(names)},
        "total": median(r["total"] for r in runs),
        "peak_mb": median(r["peak_mb"] for r in runs),
    }


def exponent(rows: Sequence[Row], key: str) -> float | None:
    """Return the exponent of the growth of a figure between the last two values."""
    (a, b) = rows[-2:]
    if not (a[key] > 0 and b[key] > 0):
        return None
    return math.log(b[key] / a[key]) / math.log(b["value"] / a["value"])


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of all runs."""
    lines = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        own = [row for row in rows if row["sweep"] == sweep]
        grown = [exponent(own, key) for key in ("total", "peak_mb")]
        lines.append(
            [
                LABELS[sweep],
                ", ".join(f"{row['value']:,}" for row in own),
                ", ".join(f"{row['total']:.2f}" for row in own),
                ", ".join(f"{row['peak_mb']:.0f}" for row in own),
                *("" if g is None else f"{g:.2f}" for g in grown),
            ]
        )
    head = ["property", "values", "CPU s", "peak MB", "exponent of CPU", "of memory"]
    return markdown(head, lines)


def draw(rows: Sequence[Row]) -> str:
    """Return an SVG picture: CPU seconds of every stage against each property, both logarithmic."""
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    height = -(-len(sweeps) // COLUMNS) * (PANEL_HEIGHT + 60) + 50
    width = COLUMNS * (PANEL_WIDTH + LEFT) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        "<title>CPU seconds of every stage against the size of the task</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, name in enumerate(("total", *STAGES)):
        color, x = COLORS[number], LEFT + number * 85
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="17">{name}</text>')
    for number, sweep in enumerate(sweeps):
        x = LEFT + number % COLUMNS * (PANEL_WIDTH + LEFT)
        y = TOP + 20 + number // COLUMNS * (PANEL_HEIGHT + 60)
        parts += _draw_panel([row for row in rows if row["sweep"] == sweep], sweep, x, y)
    return "\n".join([*parts, "</svg>", ""])


def _draw_panel(rows: Sequence[Row], sweep: str, x: int, y: int) -> Iterable[str]:
    """Yield the elements of one property."""
    lines = {"total": [row["total"] for row in rows]}
    for stage in STAGES:
        lines[stage] = [row["stages"].get(stage, 0.0) for row in rows]
    # below a hundredth of a second, the clock says little
    shown = {n: v for n, v in lines.items() if max(v) >= 0.01}
    top = math.ceil(math.log10(max(v for values in shown.values() for v in values)) * 2) / 2
    low, first, last = -2.0, math.log(rows[0]["value"]), math.log(rows[-1]["value"])

    def place(value: float, seconds: float) -> str:
        at = (math.log(value) - first) / (last - first)
        level = (max(math.log10(max(seconds, 1e-9)), low) - low) / (top - low)
        return f"{x + at * PANEL_WIDTH:.1f},{y + (1 - level) * PANEL_HEIGHT:.1f}"

    yield f'<text x="{x}" y="{y - 6}" font-weight="bold">{escape(LABELS[sweep])}</text>'
    for power in range(-2, math.floor(top) + 1):
        at = float(place(rows[0]["value"], 10.0**power).split(",")[1])
        yield f'<path d="M{x},{at}h{PANEL_WIDTH}" stroke="#ddd"/>'
        label = f"{10.0**power:g} s"
        yield f'<text x="{x - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
    for row in rows:
        across, text = place(row["value"], 1).split(",")[0], f"{row['value']:,}"
        yield f'<text x="{across}" y="{y + PANEL_HEIGHT + 14}" text-anchor="middle">{text}</text>'
    for number, name in enumerate(("total", *STAGES)):
        if name not in shown:
            continue
        points = " ".join(place(r["value"], s) for r, s in zip(rows, shown[name], strict=True))
        weight = 2.5 if name == "total" else 1.5
        yield (
            f'<polyline points="{points}" fill="none" stroke="{COLORS[number]}" '
            f'stroke-width="{weight}"/>'
        )


def main() -> None:
    """Parse the command line, and print the table."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the times into FILE")
    parser.add_argument("--draw", action="store_true", help="only draw the results in --json")
    parser.add_argument("--run", nargs=2, metavar=("PROPERTY", "VALUE"), help="one run only")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run[0], int(options.run[1]))))
        return
    if options.draw:
        rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    else:
        # what is recorded ends at a tenth of a millisecond
        text = json.dumps(measure(options.rounds))
        rows = json.loads(text, parse_float=lambda digits: round(float(digits), 4))
        write_results(options.json, {"base": BASE, "rounds": options.rounds, "rows": rows})
    if options.picture:
        options.picture.write_text(draw(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
