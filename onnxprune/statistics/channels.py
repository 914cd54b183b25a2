"""Per-channel activation statistics at each consumer, reduced inside the graph."""

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
from onnxprune.ir.model import EditableModel
from onnxprune.ir.runtime import Session

TensorAxis = tuple[str, int]
_STATISTICS = ("mean", "absolute", "square", "positive")  # fields of ChannelStatistics, in order


@dataclass(frozen=True)
class ChannelStatistics:
    """Means per position of an axis over all samples and all other axes; (length,) float64 each.

    Attributes
    ----------
    mean
        Mean of x.
    absolute
        Mean of abs(x).
    square
        Mean of x**2.
    positive
        Share of x > 0.
    """

    mean: np.ndarray
    absolute: np.ndarray
    square: np.ndarray
    positive: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Population variance of x."""
        # rounding may leave a negative variance
        return np.maximum(self.square - self.mean**2, 0.0)


def consumed(analysis: Analysis) -> list[TensorAxis]:
    """Return (tensor, axis) of every prunable activation axis that a node sums over.

    In graph order. Activations inside nested graphs are left out, since they cannot be outputs.
    """
    axes = {(m.tensor, m.axis): None for m in analysis.masks if analysis.measurable(m)}
    return list(axes)


def channel_statistics(
    analysis: Analysis,
    data: Data,
    *,
    batch_size: int = 16,
    threads: int = 1,
    most_batches: int | None = None,
) -> Mapping[TensorAxis, ChannelStatistics]:
    """Compute statistics of all consumed axes.

    Parameters
    ----------
    most_batches
        Stop after this many batches; None reads all data.

    Raises
    ------
    DataError
        A sample cannot be read or does not fit the model.
    ModelError
        onnxruntime cannot run the model.

    Notes
    -----
    Cost: one pass over the data; memory is independent of the number of samples.
    """
    axes = consumed(analysis)
    if not axes:
        return {}
    model, outputs = _insert_reductions(analysis, axes)
    session = Session(model, outputs, threads=threads)
    sums: dict[str, np.ndarray] = {}
    total = 0.0
    batches = islice(data.batches(batch_size), most_batches)
    for feeds, values in session.run_each(batches):
        # batches differ in size, so each mean is weighted by its samples
        weight = float(max((len(a) for a in feeds.values() if a.ndim), default=1))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + weight * value.astype(np.float64)
        total += weight
    return {
        axis: ChannelStatistics(*(sums[f"{_name(axis)}_{what}"] / total for what in _STATISTICS))
        for axis in axes
    }


def _name(axis: TensorAxis) -> str:
    """Return the prefix of the names of an axis's statistics."""
    return f"{axis[0]}_axis{axis[1]}"


def _insert_reductions(analysis: Analysis, axes: list[TensorAxis]) -> tuple[Model, list[str]]:
    """Return a copy with the reductions appended, and the names of their outputs."""
    model = analysis.model.edit()
    zero = add_initializer(model, "onnxprune_zero", np.zeros((), np.float32))
    nodes: list[NodeProto] = []
    outputs: list[str] = []
    for tensor, axis in axes:
        base = _name((tensor, axis))
        rank = len(analysis.shapes.shape(tensor) or ())
        others = [i for i in range(rank) if i != axis]
        real, positive = f"{base}_f32", f"{base}_gt_f32"
        # in float32, because means in half precision are inexact
        nodes += [
            helper.make_node("Cast", [tensor], [real], to=TensorProto.FLOAT),
            helper.make_node("Abs", [real], [f"{base}_abs"]),
            helper.make_node("Mul", [real, real], [f"{base}_sq"]),
            helper.make_node("Greater", [real, zero], [f"{base}_gt"]),
            helper.make_node("Cast", [f"{base}_gt"], [positive], to=TensorProto.FLOAT),
        ]
        sources = (real, f"{base}_abs", f"{base}_sq", positive)
        for what, source in zip(_STATISTICS, sources, strict=True):
            nodes.append(reduce_mean(model, source, f"{base}_{what}", others))
            outputs.append(f"{base}_{what}")
    model.proto.graph.node.extend(nodes)
    return model.freeze(), outputs


def reduce_mean(model: EditableModel, source: str, out: str, axes: list[int]) -> NodeProto:
    """Return a ReduceMean without kept dimensions, in the form of the model's opset."""
    if not axes:  # an empty list would stand for all axes
        return helper.make_node("Identity", [source], [out])
    if model.opset < 18:  # axes became an input in opset 18
        return helper.make_node("ReduceMean", [source], [out], axes=axes, keepdims=0)
    return helper.make_node(
        "ReduceMean",
        [source, add_initializer(model, f"{out}_axes", np.array(axes, np.int64))],
        [out],
        keepdims=0,
    )
