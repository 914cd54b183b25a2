"""The staircase: a ResNet-8 of base width 16, cut to 12, 11 and 8 channels in 16, timed side by side; and what --round-to auto makes of it.

    python -m benchmarks.alignment --engine onnxruntime,openvino,ncnn

Engines compute channels in blocks. 11 channels of 16 are half of the MACs and, where blocks are of 16, no gain; 8 are a quarter, and one.
The last rows are cuts to half of the MACs by l2 norms, once with any width (free) and once with multiples of the engine's (auto).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.engines.bench import bench, machine
from onnxprune.engines.measure import Schedule
from onnxprune.files import write_json
from onnxprune.ir.io import Model, load
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

BASE, SIZE = 16, 32
HALF = 0.5
WIDTHS = (16, 12, 11, 8)


def resnet8(seed: int = 0) -> Model:
    """Three residual blocks of 16, 32 and 64 channels on 32 x 32 images, random weights."""
    generator = np.random.default_rng(seed)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []

    def conv(x: str, y: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> str:
        scale = np.sqrt(2 / (inputs * kernel * kernel))
        values = (generator.standard_normal((outputs, inputs, kernel, kernel)) * scale).astype(
            np.float32
        )
        weights.extend(
            [
                numpy_helper.from_array(values, f"{y}.w"),
                numpy_helper.from_array(np.zeros(outputs, np.float32), f"{y}.b"),
            ]
        )
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{y}.w", f"{y}.b"],
                [y],
                name=y,
                strides=[stride] * 2,
                pads=pads,
                kernel_shape=[kernel] * 2,
            )
        )
        return y

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"], name=f"{x}.relu"))
        return f"{x}.relu"

    x, inputs = relu(conv("image", "stem", 3, BASE)), BASE
    for index, outputs in enumerate((BASE, 2 * BASE, 4 * BASE)):
        stride = 1 if index == 0 else 2
        inner = conv(
            relu(conv(x, f"block{index}.a", inputs, outputs, 3, stride)),
            f"block{index}.b",
            outputs,
            outputs,
        )
        shortcut = (
            x if index == 0 else conv(x, f"block{index}.shortcut", inputs, outputs, 1, stride)
        )
        nodes.append(
            helper.make_node("Add", [inner, shortcut], [f"block{index}"], name=f"block{index}")
        )
        x, inputs = relu(f"block{index}"), outputs
    weights += [
        numpy_helper.from_array(
            generator.standard_normal((10, inputs)).astype(np.float32), "head.w"
        ),
        numpy_helper.from_array(np.zeros(10, np.float32), "head.b"),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"], name="pooled"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["classes"], name="head", transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    graph = helper.make_graph(
        nodes,
        "resnet8",
        [image],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def at_width(width: int) -> Model:
    """The network with `width` channels for every 16."""
    analysis = analyze(resnet8())
    sizes = {g.name: g.size for g in analysis.groups}
    kept = {name: tuple(range(size * width // BASE)) for name, size in sizes.items()}
    plan = Plan(analysis.digest, {} if width == BASE else kept, sizes, {}, analysis.options)
    return replace(cut(analysis, plan), path=Path(f"width {width}"))


def halved(round_to: int, name: str) -> Model:
    """The network at half of its MACs, widths chosen by l2 norms among multiples of `round_to` and half of it."""
    context = Context(analysis := analyze(resnet8()))
    limits = Constraints({"macs": HALF * analysis.cost().macs}, round_to=round_to, half_block=True)
    plan = allocate("knapsack", context, CRITERIA.get("l2")(context), limits)
    return replace(cut(analysis, plan), path=Path(name))


def widths(model: Model) -> list[int]:
    """Output channels of the convolutions, in order."""
    return [
        model.weights[n.input[1]].shape[0] for n in model.proto.graph.node if n.op_type == "Conv"
    ]


def contenders(engine: str) -> list[Model]:
    """The original first."""
    multiple = ENGINES.get(engine).channel_multiple()
    return [
        *(at_width(width) for width in WIDTHS),
        halved(1, "free"),
        *([halved(multiple, f"auto = {multiple}")] if multiple > 1 else []),
    ]


def table(engines: Sequence[str], threads: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each engine and model, those of one engine interleaved."""
    rows = []
    for engine in engines:
        models = contenders(engine)
        macs = [analyze(model).cost().macs for model in models]
        found = bench(
            models,
            [engine],
            options=EngineOptions(threads=threads),
            schedule=Schedule(seconds=seconds, max_rounds=1000),
            layers=False,
        )
        ratios = {r.contender: r for r in found.ratios[engine]}
        for model, count in zip(models, macs, strict=False):
            name = str(model.path)
            measured, ratio = found.of(engine, name), ratios.get(name)
            row = {
                "engine": engine,
                "model": name,
                "macs": count / macs[0],
                "min_ms": measured.min_ms,
                "median_ms": measured.median_ms,
                "widths": widths(model),
            }
            spread = (
                {"speedup": ratio.median, "low": ratio.low, "high": ratio.high}
                if ratio
                else {"speedup": 1.0, "low": 1.0, "high": 1.0}
            )
            rows.append({**row, **spread})
    return rows


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--engine", default="onnxruntime,openvino,ncnn,mnn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = table(
        [name for name in given.engine.split(",") if ENGINES.get(name).available() is None],
        given.threads,
        given.seconds,
    )
    print("engine       model      MACs   min ms  median ms  speed-up               widths")
    for row in rows:
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        head = f"{row['engine']:12} {row['model']:9} {row['macs']:5.2f} {row['min_ms']:8.3f} {row['median_ms']:10.3f} {row['speedup']:6.2f}x {interval}"
        print(head, " ".join(map(str, row["widths"])))
    if given.json:
        write_json(given.json, {"machine": machine(), "threads": given.threads, "rows": rows})


if __name__ == "__main__":
    main()
