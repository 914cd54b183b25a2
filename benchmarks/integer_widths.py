"""Time of float and int8 convolutions at consecutive widths, by kind of convolution.

    python -m benchmarks.integer_widths --engine onnxruntime --json integer_widths.json

A model is a chain of DEPTH convolutions of one width with Relu, 1x1, 3x3 or 3x3 depthwise, in
float32 and in the engine's int8 form. Times are thread-CPU times where the engine has them, a low
quantile over rounds in which all widths alternate. The multiple of a kind is the least one whose
widths cost less per channel than all others do (by MARGIN); 1 if there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import numpy as np
from onnx import TensorProto, helper

from benchmarks.alignment import Builder
from benchmarks.runner import Row, available_engines, make_parser, markdown, write_results
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.engines.bench import machine
from onnxprune.engines.measure import CPU, Schedule, interleave
from onnxprune.ir.io import Model, load
from onnxprune.quantize.probe import quantize_to_time

KINDS = ("1x1", "3x3", "depthwise")
WIDTHS = tuple(range(32, 49))
MULTIPLES = (16, 8, 4, 2)
DEPTH, SIZE, MARGIN = 4, 14, 1.15
LOW = 0.1  # quantile of the times: other work makes inferences longer, never shorter


def chain(kind: str, width: int) -> Model:
    """Return convolutions of one width on random weights."""
    net = Builder(np.random.default_rng(width))
    x = "image"
    for index in range(DEPTH):
        if kind == "depthwise":
            values = net.rng.standard_normal((width, 1, 3, 3)) / 3
            operands = [x, net.weight(f"{index}.w", values)]
            operands.append(net.weight(f"{index}.b", np.zeros(width)))
            window = {"pads": [1] * 4, "kernel_shape": [3, 3], "group": width}
            x = net.relu(net.add("Conv", operands, f"conv{index}", **window))
        else:
            kernel = int(kind[0])
            x = net.relu(net.conv(x, f"conv{index}", width, width, kernel, 1))
    shape = [1, width, SIZE, SIZE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", x)]
    graph = helper.make_graph(net.nodes, kind, ends[:1], ends[1:], net.weights)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def measure(engine: str, kind: str, precision: str, seconds: float) -> dict[int, float]:
    """Return width -> microseconds."""
    options, samplers = EngineOptions(precision=precision), {}
    with ExitStack() as stack:
        for width in WIDTHS:
            model = chain(kind, width)
            image = np.random.default_rng(0).random((1, width, SIZE, SIZE), np.float32)
            if precision == "int8":
                model = quantize_to_time(model, {"image": image}, engine=engine)
            compiled = stack.enter_context(ENGINES.get(engine).compile(model, options))
            samplers[str(width)] = partial(compiled.sample_clocks, {"image": image})
        schedule = Schedule(seconds=seconds, warmup=3, min_rounds=20, max_rounds=400)
        times = interleave(samplers, schedule)
    return {int(w): 1e3 * float(np.quantile(t[..., CPU], LOW)) for w, t in times.items()}


def find_multiple(times: Mapping[int, float]) -> int:
    """Return the multiple of channels that runs without waste, see the docstring above."""
    best = 1
    for multiple in MULTIPLES[::-1]:
        # against the widths that the smaller multiple serves too
        fast = [us / w for w, us in times.items() if w % multiple == 0]
        slow = [us / w for w, us in times.items() if w % multiple and w % best == 0]
        if min(slow) > MARGIN * max(fast) or np.median(slow) > MARGIN * np.median(fast):
            best = multiple
    return best


def main() -> None:
    """Print times by width, and multiples."""
    parser = make_parser(__doc__, "engine", "json", seconds=2.0)
    options = parser.parse_args()
    rows: list[Row] = []
    for engine in available_engines(options.engine):
        for kind in KINDS:
            for precision in ("f32", "int8"):
                times = measure(engine, kind, precision, options.seconds)
                row = {"engine": engine, "kind": kind, "precision": precision}
                rows.append({**row, "multiple": find_multiple(times), "us": times})
    head = ["engine", "kind", "precision", "multiple", *map(str, WIDTHS)]
    cells = [
        [str(row[key]) for key in head[:4]] + [f"{us:.0f}" for us in row["us"].values()]
        for row in rows
    ]
    print(markdown(head, cells))
    write_results(options.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
