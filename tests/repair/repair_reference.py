"""Ridge regression of a linear node by its definition, the reference of repairs.

The matrix of a node comes from onnxruntime: the node is run once per entry of a filter with a
weight that is one there and zero elsewhere. It does not depend on the product's code for strides,
dilations, groups or transposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from graph_text import net
from onnx import NodeProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, synthetic
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.repair import REPAIRS, least_squares, problem
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

BATCH = 8


@dataclass(frozen=True)
class Repaired:
    """A model cut at random to a share of every group, and repaired.

    before: the cut model; data: samples of the repair.
    """

    analysis: Analysis
    plan: Plan
    before: Model
    after: Model
    data: Data

    @staticmethod
    def of(
        model: str | Model,
        repair: str = "least-squares",
        *,
        samples: int = 24,
        share: float = 0.5,
        seed: int = 0,
        passes: int = 0,
        held_out: int = 0,
    ) -> Repaired:
        """Cut and repair a model or a graph text.

        passes: solutions after the linear one that respect a saturating activation; held_out:
        samples that validate joint refits, 0 for no joint refits.
        """
        analysis = analyze(load(net(model)) if isinstance(model, str) else model)
        rng = np.random.default_rng(seed)
        kept = {
            g.name: tuple(
                sorted(rng.choice(g.size, max(1, round(g.size * share)), replace=False).tolist())
            )
            for g in analysis.groups
        }
        plan = Plan(
            analysis.digest, kept, {g.name: g.size for g in analysis.groups}, {}, analysis.options
        )
        data = synthetic(input_types(analysis.model), samples=samples, seed=seed + 1)
        before = cut(analysis, plan)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(problem, "SATURATION_PASSES", passes)
            patch.setattr(least_squares, "MAX_HELD_OUT", held_out)
            return Repaired(
                analysis,
                plan,
                before,
                REPAIRS.get(repair)(
                    analysis, plan, before, Context(analysis, data, batch_size=BATCH)
                ),
                data,
            )

    @property
    def original(self) -> Model:
        """Return the original model."""
        return self.analysis.model

    def values(self, model: Model, *names: str) -> tuple[np.ndarray, ...]:
        """Return tensors of one of the models over all samples."""
        runs = [Session(model, names, optimize=False).run(b) for b in self.data.batches(BATCH)]
        return tuple(np.concatenate([r[n] for r in runs]).astype(np.float64) for n in names)

    def kept_of(self, tensor: str, axis: int) -> np.ndarray:
        """Return the kept positions of an activation's axis."""
        ids = self.analysis.record.array(self.analysis.record.tensors[tensor].axes[axis])
        length = (self.analysis.shapes.shape(tensor) or ())[axis]
        return (
            np.arange(length)
            if ids is None
            else np.flatnonzero(self.analysis.keep(ids, self.analysis.removed(self.plan.kept)))
        )

    def error(self, model: Model) -> float:
        """Return the summed squared error of the outputs."""
        names = [o.name for o in self.original.proto.graph.output]
        return sum(
            float(np.square(a - b).sum())
            for a, b in zip(
                self.values(self.original, *names), self.values(model, *names), strict=False
            )
        )

    @property
    def noise(self) -> float:
        """Return the squared rounding error of the outputs in single precision."""
        return 1e-12 * sum(
            float(np.square(v).sum())
            for v in self.values(self.original, *(o.name for o in self.original.proto.graph.output))
        )


def node_of(model: Model, out: str) -> NodeProto:
    """Return the node that produces a tensor."""
    return next(n for n in model.proto.graph.node if out in n.output)


def filters(node: NodeProto, weight: np.ndarray, groups: int) -> np.ndarray:
    """Return a weight as (outputs, entries of one filter)."""
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    if node.op_type == "ConvTranspose":
        inputs, outs = weight.shape[0] // groups, weight.shape[1]
        return np.stack(
            [
                weight[g * inputs : (g + 1) * inputs, o].ravel()
                for g in range(groups)
                for o in range(outs)
            ]
        )
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weight if transposed else weight.T


def design(node: NodeProto, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return (outputs, positions, entries): the factor of each filter entry at each position."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    entries = filters(node, weight, groups).shape[1]
    plain = NodeProto()
    plain.CopyFrom(node)
    del plain.input[:], plain.output[:]
    plain.input.extend(["x", "w"])
    plain.output.append("y")
    kinds = [
        helper.make_tensor_value_info(n, 1, [None] * a.ndim) for n, a in (("x", x), ("w", weight))
    ]
    graph = helper.make_graph([plain], "one", kinds, [helper.make_empty_tensor_value_info("y")])
    session = Session(
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    )
    columns = []
    for k in range(entries):
        one = np.zeros(weight.shape, np.float32)
        for index in range(len(filters(node, weight, groups))):
            marks = filters(node, np.arange(weight.size).reshape(weight.shape), groups)
            one.ravel()[marks[index, k]] = 1.0
        y = session.run({"x": x.astype(np.float32), "w": one})["y"].astype(np.float64)
        columns.append(by_channel(y, node))
    return np.stack(columns, -1)


def by_channel(y: np.ndarray, node: NodeProto) -> np.ndarray:
    """Return a node's output as (outputs, positions)."""
    axis = 1 if node.op_type.startswith("Conv") else y.ndim - 1
    return np.moveaxis(y, axis, 0).reshape(y.shape[axis], -1)


def ridge(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, share: float, centered: bool
) -> np.ndarray:
    """Return argmin |y - x w - c|^2 + share * mean diagonal * |w - start|^2 per output.

    The constant c is free if `centered`, else 0.
    """
    solved = []
    for xo, yo, wo in zip(x, y, start, strict=False):
        if centered:
            xo, yo = xo - xo.mean(0), yo - yo.mean()
        lift = np.sqrt(share * np.square(xo).sum() / xo.shape[1])
        rows, values = np.vstack([xo, lift * np.eye(xo.shape[1])]), np.concatenate([yo, lift * wo])
        solved.append(np.linalg.lstsq(rows, values, rcond=None)[0])
    return np.stack(solved)


def initializer(model: Model, name: str) -> np.ndarray:
    """Return values in double precision."""
    return model.weights[name].array().astype(np.float64)
