"""Second moments over taps: numpy on activations that onnxruntime returns, against nodes that sum them inside the graph.

    python -m benchmarks.moments [--json FILE]

The inputs of ResNet-50's convolutions at 224 x 224, a batch of 16, the same grid of positions for both, one thread. Inside of the graph: a strided
depthwise Conv with one-hot filters lays out the taps, then Transpose, Reshape and MatMul give X X^T. A variant is a process of its own; CPU seconds a
batch are the median of the runs, memory is the growth of the peak over that after one start. Claim: numpy needs less
time and the same memory (0.33 against 0.49 CPU s, 100 against 99 MB), because onnxruntime has no symmetric product; see onnxprune/statistics/im2col.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

SHAPES = (
    (64, 56, 1),
    (64, 56, 3),
    (256, 56, 1),
    (128, 28, 3),
    (512, 28, 1),
    (256, 14, 1),
    (1024, 14, 1),
    (512, 7, 1),
    (2048, 7, 1),
)  # channels, side, kernel
BATCH, INPUTS, OVERSAMPLE = 16, 256, 32  # of a run, of the whole calibration, positions a column
RUNS = 5
VARIANTS = ("numpy", "graph")


def stride_of(channels: int, side: int, kernel: int) -> int:
    """Of a grid with the positions that calibration samples, or all where there are fewer."""
    wanted = max(OVERSAMPLE * channels * kernel**2 / INPUTS, 1)
    return max(1, round(side / min(side, wanted**0.5)))


def by_numpy(channels: int, side: int, kernel: int) -> Callable[[np.ndarray], np.ndarray]:
    """The product's own: taps laid out, one symmetric product; the activation is passed through a session, as it would be returned by one."""
    from onnxprune.statistics.im2col import Geometry, columns

    how = Geometry(2, (kernel, kernel), (1, 1), (1, 1), (kernel // 2,) * 2, (kernel // 2,) * 2)
    at = (np.arange(0, side, stride_of(channels, side, kernel)),) * 2
    run = session([("Identity", ["x"], "y", {})], {})

    def moments(x: np.ndarray) -> np.ndarray:
        found = columns(run(x), how, at)
        return np.asarray(found @ found.T)

    return moments


def in_graph(channels: int, side: int, kernel: int) -> Callable[[np.ndarray], np.ndarray]:
    """Nodes that give the same matrix."""
    one = np.tile(
        np.eye(kernel**2, dtype=np.float32).reshape(kernel**2, 1, kernel, kernel),
        (channels, 1, 1, 1),
    )
    k, stride = channels * kernel**2, stride_of(channels, side, kernel)
    nodes = [
        (
            "Conv",
            ["x", "one"],
            "taps",
            {"group": channels, "pads": [kernel // 2] * 4, "strides": [stride] * 2},
        ),
        ("Transpose", ["taps"], "first", {"perm": [1, 0, 2, 3]}),
        ("Reshape", ["first", "shape"], "columns", {}),
        ("Transpose", ["columns"], "rows", {"perm": [1, 0]}),
        ("MatMul", ["columns", "rows"], "y", {}),
    ]
    return session(nodes, {"one": one, "shape": np.array([k, -1], np.int64)})


def session(
    nodes: list[tuple[str, list[str], str, dict[str, object]]], weights: dict[str, np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """X -> y of a small graph."""
    from onnx import helper, numpy_helper

    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session

    made = [
        helper.make_node(op, inputs, [out], **attributes) for op, inputs, out, attributes in nodes
    ]
    ends = (
        [helper.make_tensor_value_info("x", 1, [None] * 4)],
        [helper.make_empty_tensor_value_info("y")],
    )
    graph = helper.make_graph(
        made, "moments", *ends, [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    found = Session(
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    )
    return lambda x: np.asarray(found.run({"x": x})["y"])


def measure(variant: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """CPU seconds a batch, growth of the peak in MB, and a sum to compare the two by."""
    x = np.random.default_rng(0).standard_normal((BATCH, shape[0], shape[1], shape[1]), np.float32)
    moments = {"numpy": by_numpy, "graph": in_graph}[variant](*shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        found = moments(x)
        times.append(time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"cpu_s": median(times), "peak_mb": grown, "norm": float(np.linalg.norm(found))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], SHAPES[int(options.one[1])])))
        return
    rows = []
    for i, shape in enumerate(SHAPES):
        row: dict[str, object] = {
            "channels": shape[0],
            "side": shape[1],
            "kernel": shape[2],
            "stride": stride_of(*shape),
        }
        for variant in VARIANTS:
            row[variant] = json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.moments", "--one", variant, str(i)],
                    check=True,
                    capture_output=True,
                ).stdout
            )
        a, b = (row[v] for v in VARIANTS)
        assert abs(a["norm"] - b["norm"]) <= 1e-4 * a["norm"], row  # type: ignore[index]
        print(
            f"{shape!s:14} stride {row['stride']}: "
            + ", ".join(
                f"{v} {row[v]['cpu_s'] * 1e3:.0f} ms, {row[v]['peak_mb']:.0f} MB" for v in VARIANTS
            )
        )  # type: ignore[index]
        rows.append(row)
    print(
        "all: "
        + ", ".join(
            f"{v} {sum(r[v]['cpu_s'] for r in rows):.2f} CPU s a batch, largest peak {max(r[v]['peak_mb'] for r in rows):.0f} MB"
            for v in VARIANTS
        )
    )  # type: ignore[index]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
