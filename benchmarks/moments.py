"""Second moments of convolution inputs: numpy on returned activations, or nodes inside the graph.

    python -m benchmarks.moments [--json FILE]

Inputs are those of ResNet-50's convolutions at 224 x 224, a batch of 16, with the same grid of
positions for both, on one thread. In the graph, a strided depthwise Conv with one-hot filters
unfolds the windows, then Transpose, Reshape and MatMul give X X^T. A variant runs in a process of
its own; CPU seconds per batch are the median of the runs, memory is the growth of the peak after
the start. Claim: numpy needs less time and the same memory (0.33 against 0.49 CPU s, 100 against
99 MB), because onnxruntime has no symmetric product; see onnxprune/statistics/im2col.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks.runner import make_parser, run_apart, write_results

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
BATCH = 16
INPUTS = 256  # of a calibration
OVERSAMPLE = 32  # positions per column of the moments
RUNS = 5
VARIANTS = ("numpy", "graph")
AGREES = 1e-4

Moments = Callable[[np.ndarray], np.ndarray]
Node = tuple[str, list[str], str, dict[str, Any]]  # operator, inputs, output, attributes


def stride_of(channels: int, side: int, kernel: int) -> int:
    """Return the stride of a grid with the positions that calibration samples."""
    positions = max(OVERSAMPLE * channels * kernel**2 / INPUTS, 1)
    return max(1, round(side / min(side, positions**0.5)))


def with_numpy(channels: int, side: int, kernel: int) -> Moments:
    """Return the function of the package: unfold windows, then one symmetric product.

    The activation passes through a session, since a session would return it.
    """
    from onnxprune.statistics.im2col import Geometry, columns

    pads = (kernel // 2,) * 2
    geometry = Geometry(2, (kernel, kernel), (1, 1), (1, 1), pads, pads)
    grid = (np.arange(0, side, stride_of(channels, side, kernel)),) * 2
    run = session([("Identity", ["x"], "y", {})], {})

    def moments(x: np.ndarray) -> np.ndarray:
        unfolded = columns(run(x), geometry, grid)
        return np.asarray(unfolded @ unfolded.T)

    return moments


def in_graph(channels: int, side: int, kernel: int) -> Moments:
    """Return nodes that compute the same matrix."""
    size, stride = kernel**2, stride_of(channels, side, kernel)
    one_hot = np.eye(size, dtype=np.float32).reshape(size, 1, kernel, kernel)
    filters = np.tile(one_hot, (channels, 1, 1, 1))
    window = {"group": channels, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
    nodes: list[Node] = [
        ("Conv", ["x", "filters"], "taps", window),
        ("Transpose", ["taps"], "first", {"perm": [1, 0, 2, 3]}),
        ("Reshape", ["first", "shape"], "columns", {}),
        ("Transpose", ["columns"], "rows", {"perm": [1, 0]}),
        ("MatMul", ["columns", "rows"], "y", {}),
    ]
    shape = np.array([channels * size, -1], np.int64)
    return session(nodes, {"filters": filters, "shape": shape})


def session(nodes: list[Node], weights: dict[str, np.ndarray]) -> Moments:
    """Return a small graph as a function from x to y."""
    from onnx import helper, numpy_helper

    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session

    graph = helper.make_graph(
        [
            helper.make_node(op, inputs, [out], **attributes)
            for op, inputs, out, attributes in nodes
        ],
        "moments",
        [helper.make_tensor_value_info("x", 1, [None] * 4)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    model = Session(load(helper.make_model(graph, opset_imports=[opset], ir_version=8)))
    return lambda x: np.asarray(model.run({"x": x})["y"])


def measure(variant: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Return CPU seconds per batch, growth of the peak in MB, and the norm of the moments."""
    channels, side, _ = shape
    x = np.random.default_rng(0).standard_normal((BATCH, channels, side, side), np.float32)
    moments = {"numpy": with_numpy, "graph": in_graph}[variant](*shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        result = moments(x)
        times.append(time.process_time() - start)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"cpu_s": median(times), "peak_mb": growth, "norm": float(np.linalg.norm(result))}


def main() -> None:
    """Print a line per shape, and write the results."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        variant, number = options.one
        print(json.dumps(measure(variant, SHAPES[int(number)])))
        return
    rows: list[dict[str, Any]] = []
    for number, shape in enumerate(SHAPES):
        measured = {v: run_apart("moments", "--one", v, str(number)) for v in VARIANTS}
        norms = [measured[v]["norm"] for v in VARIANTS]
        if not np.isclose(*norms, rtol=AGREES, atol=0):
            raise SystemExit(f"{shape}: the norms differ: {norms}")
        texts = [
            f"{v} {m['cpu_s'] * 1e3:.0f} ms, {m['peak_mb']:.0f} MB" for v, m in measured.items()
        ]
        print(f"{shape!s:14} stride {stride_of(*shape)}: {', '.join(texts)}", flush=True)
        head = dict(zip(("channels", "side", "kernel"), shape, strict=True))
        rows.append({**head, "stride": stride_of(*shape), **measured})
    for variant in VARIANTS:
        seconds = sum(row[variant]["cpu_s"] for row in rows)
        peak = max(row[variant]["peak_mb"] for row in rows)
        print(f"all: {variant} {seconds:.2f} CPU s per batch, largest peak {peak:.0f} MB")
    write_results(options.json, rows)


if __name__ == "__main__":
    main()
