"""Statistics of each channel as its consumers see it, reduced inside the graph and streamed over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session

Place = tuple[str, int]  # tensor, axis
_REDUCED = ("mean", "absolute", "square", "positive")


@dataclass(frozen=True)
class ChannelStatistics:
    """Per position of an axis, over all samples and all other axes; float64 (length,).

    mean of x, of |x|, of x squared, and the share of x > 0.
    """

    mean: np.ndarray
    absolute: np.ndarray
    square: np.ndarray
    positive: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Of x."""
        return np.maximum(self.square - self.mean**2, 0.0)


def consumed(analysis: Analysis) -> list[Place]:
    """(tensor, axis) of every activation axis that some node sums over and that can be cut, in graph order; those in bodies cannot be asked for."""
    places = {
        (analysis.record.nodes[m.node].input[m.slot], m.axis): None
        for m in analysis.record.masks
        if not m.recurrent and analysis.record.outermost(m.node)
    }
    return list(places)


def channel_statistics(
    analysis: Analysis,
    data: Data,
    *,
    batch_size: int = 16,
    threads: int = 1,
    most_batches: int | None = None,
) -> Mapping[Place, ChannelStatistics]:
    """Statistics of all consumed axes; one pass over the data, memory independent of the number of samples.

    Raises
    ------
    DataError, ModelError
        The data do not fit, or the model does not run on them.
    """
    places = consumed(analysis)
    if not places:
        return {}
    model, outputs = _instrumented(analysis, places)
    session = Session(model, outputs, threads=threads)
    sums: dict[str, np.ndarray] = {}
    total = 0.0
    for feeds in islice(data.batches(batch_size), most_batches):
        weight = float(max((len(a) for a in feeds.values() if a.ndim), default=1))
        for name, value in session.run(feeds).items():
            sums[name] = sums.get(name, 0.0) + weight * value.astype(np.float64)
        total += weight
    return {
        place: ChannelStatistics(*(sums[f"{_name(place)}_{what}"] / total for what in _REDUCED))
        for place in places
    }


def _name(place: Place) -> str:
    return f"{place[0]}_axis{place[1]}"


def _instrumented(analysis: Analysis, places: list[Place]) -> tuple[Model, list[str]]:
    """A copy with the reductions added, and their names."""
    model = analysis.model.edit()
    one = add_initializer(model, "onnxprune_zero", np.zeros((), np.float32))
    nodes: list[NodeProto] = []
    outputs: list[str] = []
    for tensor, axis in places:
        base = _name((tensor, axis))
        rank = len(analysis.shapes.shape(tensor) or ())
        others = [i for i in range(rank) if i != axis]
        real = f"{base}_f32"
        nodes.append(helper.make_node("Cast", [tensor], [real], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Abs", [real], [f"{base}_abs"]))
        nodes.append(helper.make_node("Mul", [real, real], [f"{base}_sq"]))
        nodes.append(helper.make_node("Greater", [real, one], [f"{base}_gt"]))
        nodes.append(
            helper.make_node("Cast", [f"{base}_gt"], [f"{base}_gt_f32"], to=TensorProto.FLOAT)
        )
        for what, source in zip(
            _REDUCED, (real, f"{base}_abs", f"{base}_sq", f"{base}_gt_f32"), strict=False
        ):
            nodes.append(reduce_mean(model, source, f"{base}_{what}", others))
            outputs.append(f"{base}_{what}")
    model.proto.graph.node.extend(nodes)
    return model, outputs


def reduce_mean(model: Model, source: str, out: str, axes: list[int]) -> NodeProto:
    """A ReduceMean without keepdims in the form of the model's opset."""
    if model.opset < 18:
        return helper.make_node("ReduceMean", [source], [out], axes=axes, keepdims=0)
    return helper.make_node(
        "ReduceMean",
        [source, add_initializer(model, f"{out}_axes", np.array(axes, np.int64))],
        [out],
        keepdims=0,
    )
