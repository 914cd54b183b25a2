"""Time of a ResNet-8 at widths of 16, 12, 11 and 8 channels, and with --round-to auto.

    python -m benchmarks.alignment --engine onnxruntime,openvino,ncnn

Engines compute channels in blocks, so that time is a staircase of width: 11 of 16 channels are half
of the MACs and no gain with blocks of 16; 8 are a quarter, and one. The last rows are cuts to half
of the MACs by l2 norms, with any width (free) and with multiples of the engine's block (auto).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.runner import Row, available_engines, make_parser, write_results
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.engines.bench import bench, machine
from onnxprune.engines.measure import Schedule
from onnxprune.ir.io import Model, load
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

BASE, SIZE, CLASSES = 16, 32, 10
HALF = 0.5
WIDTHS = (16, 12, 11, 8)
MOST_ROUNDS = 1000


@dataclass
class Builder:
    """Nodes and random weights of a network under construction."""

    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; return its output, of the same name."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: np.ndarray) -> str:
        """Add a weight and return its name."""
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, y: str, inputs: int, outputs: int, kernel: int, stride: int) -> str:
        """Add a convolution with bias and He initialization."""
        scale = np.sqrt(2 / (inputs * kernel * kernel))
        values = self.rng.standard_normal((outputs, inputs, kernel, kernel)) * scale
        operands = [x, self.weight(f"{y}.w", values), self.weight(f"{y}.b", np.zeros(outputs))]
        window = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2}
        return self.add("Conv", operands, y, **window)

    def relu(self, x: str) -> str:
        """Add a Relu."""
        return self.add("Relu", [x], f"{x}.relu")

    def block(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        """Add a residual block, with a projection if its stride is not 1."""
        inner = self.relu(self.conv(x, f"{name}.a", inputs, outputs, 3, stride))
        inner = self.conv(inner, f"{name}.b", outputs, outputs, 3, 1)
        if stride != 1:
            x = self.conv(x, f"{name}.shortcut", inputs, outputs, 1, stride)
        return self.relu(self.add("Add", [inner, x], name))


def resnet8(seed: int = 0) -> Model:
    """Return three residual blocks of 16, 32 and 64 channels on 32 x 32 images, random weights."""
    net = Builder(np.random.default_rng(seed))
    x, inputs = net.relu(net.conv("image", "stem", 3, BASE, 3, 1)), BASE
    for index, outputs in enumerate((BASE, 2 * BASE, 4 * BASE)):
        x = net.block(x, f"block{index}", inputs, outputs, 2 if index else 1)
        inputs = outputs
    flat = net.add("Flatten", [net.add("GlobalAveragePool", [x], "pooled")], "flat")
    head = net.weight("head.w", net.rng.standard_normal((CLASSES, inputs)))
    net.add("Gemm", [flat, head, net.weight("head.b", np.zeros(CLASSES))], "classes", transB=1)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, 3, SIZE, SIZE]), ("classes", [1, CLASSES]))
    ]
    graph = helper.make_graph(net.nodes, "resnet8", ends[:1], ends[1:], net.weights)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def with_width(width: int) -> Model:
    """Return the network with `width` of every 16 channels."""
    analysis = analyze(resnet8())
    sizes = {g.name: g.size for g in analysis.groups}
    kept = {name: tuple(range(size * width // BASE)) for name, size in sizes.items()}
    plan = Plan(analysis.digest, {} if width == BASE else kept, sizes, {}, analysis.options)
    return replace(cut(analysis, plan), path=Path(f"width {width}"))


def with_half_macs(round_to: int, name: str) -> Model:
    """Return the network with half of its MACs, widths in multiples of `round_to` and its half."""
    analysis = analyze(resnet8())
    context = Context(analysis)
    limits = Constraints({"macs": HALF * analysis.cost().macs}, round_to=round_to, half_block=True)
    plan = allocate("knapsack", context, CRITERIA.get("l2")(context), limits)
    return replace(cut(analysis, plan), path=Path(name))


def widths(model: Model) -> list[int]:
    """Return the output channels of the convolutions, in order."""
    convs = [node for node in model.proto.graph.node if node.op_type == "Conv"]
    return [model.weights[node.input[1]].shape[0] for node in convs]


def contenders(engine: str) -> list[Model]:
    """Return the models to time, the original first."""
    models = [with_width(width) for width in WIDTHS]
    models.append(with_half_macs(1, "free"))
    multiple = ENGINES.get(engine).channel_multiple()
    if multiple > 1:
        models.append(with_half_macs(multiple, f"auto = {multiple}"))
    return models


def measure(engine: str, threads: int, seconds: float) -> list[Row]:
    """Time the models in alternation; return a row per model."""
    models = contenders(engine)
    macs = [analyze(model).cost().macs for model in models]
    result = bench(
        models,
        [engine],
        options=EngineOptions(threads=threads),
        schedule=Schedule(seconds=seconds, max_rounds=MOST_ROUNDS),
        layers=False,
    )
    ratios = {r.contender: r for r in result.ratios[engine]}
    rows = []
    for model, count in zip(models, macs, strict=True):
        name = str(model.path)
        measured = result.of(engine, name)
        row = {
            "engine": engine,
            "model": name,
            "macs": count / macs[0],
            "min_ms": measured.min_ms,
            "median_ms": measured.median_ms,
            "widths": widths(model),
            **dict.fromkeys(("speedup", "low", "high"), 1.0),
        }
        if name in ratios:
            ratio = ratios[name]
            row |= {"speedup": ratio.median, "low": ratio.low, "high": ratio.high}
        rows.append(row)
    return rows


def line(row: Row) -> str:
    """Return a row of the table."""
    head = f"{row['engine']:12} {row['model']:9} {row['macs']:5.2f}"
    times = f"{row['min_ms']:8.3f} {row['median_ms']:10.3f}"
    speed = f"{row['speedup']:6.2f}x [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{head} {times} {speed} {' '.join(map(str, row['widths']))}"


def main() -> None:
    """Print the table and write the results."""
    parser = make_parser(__doc__, "engine", "threads", "json", seconds=3.0)
    options = parser.parse_args()
    rows: list[Row] = []
    print("engine       model      MACs   min ms  median ms  speed-up               widths")
    for engine in available_engines(options.engine):
        of_engine = measure(engine, options.threads, options.seconds)
        rows += of_engine
        print("\n".join(map(line, of_engine)), flush=True)
    write_results(options.json, {"machine": machine(), "threads": options.threads, "rows": rows})


if __name__ == "__main__":
    main()
