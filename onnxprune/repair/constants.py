"""Constants that replace removed branches, set to the mean output of the branch.

Cutting a branch leaves the constant that its biases alone give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import samples_of
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.repair.fits import set_values
from onnxprune.statistics.channels import reduce_mean
from onnxprune.surgery.fold import constants_of
from onnxprune.types import Plan

# means of integers, such as shapes and indices, would have no meaning
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def with_means(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Set the constant of each removed branch to its mean in the original over all inputs.

    Returns `pruned` itself if no branch is removed.

    Notes
    -----
    Cost: one pass over the data if a branch is removed.
    """
    shapes = {
        name: shape
        for name, shape in constants_of(analysis, pruned).items()
        if analysis.shapes.dtype(name) in _FLOATS
    }
    if not shapes:
        return pruned
    reduced = {name: _find_reduced_axes(analysis, name, shape) for name, shape in shapes.items()}
    means = _original_means(analysis, reduced, context)
    model, removed = pruned.edit(), analysis.removed(plan.kept)
    for name, shape in shapes.items():
        values = np.expand_dims(means[name], reduced[name])
        mean = analysis.keep_values(name, values, removed)
        singular = tuple(i for i, n in enumerate(shape) if n == 1)
        set_values(model, name, mean.mean(singular, keepdims=True))
    return model.freeze()


def _find_reduced_axes(analysis: Analysis, name: str, shape: Sequence[int]) -> list[int]:
    """Return the axes over which a constant is one value: of length 1, and not channels."""
    return [
        i for i, ids in enumerate(analysis.tensor_axes(name) or ()) if shape[i] == 1 and ids is None
    ]


def _original_means(
    analysis: Analysis, axes: Mapping[str, Sequence[int]], context: Context
) -> dict[str, np.ndarray]:
    """Return means of activations of the original over all samples.

    Parameters
    ----------
    axes
        Activation -> axes that are reduced as well; they are dropped from the result.
    """
    model = analysis.model.edit()
    for name, reduced in axes.items():
        # a mean over many values is inexact in half precision
        real, mean = f"{name}/real", f"{name}/mean"
        model.proto.graph.node.append(
            helper.make_node("Cast", [name], [real], to=TensorProto.FLOAT)
        )
        # without axes, ReduceMean would reduce all of them
        identity = helper.make_node("Identity", [real], [mean])
        model.proto.graph.node.append(
            reduce_mean(model, real, mean, list(reduced)) if reduced else identity
        )
    session = Session(model, [f"{name}/mean" for name in axes], threads=context.threads)
    sums, total = dict.fromkeys(axes, 0.0), 0
    batches = context.repair_data("a removed branch").batches(context.batch_size)
    for feeds, values in session.run_each(batches):
        count = samples_of(feeds)
        total += count
        # batches can differ in size
        sums = {n: s + count * values[f"{n}/mean"].astype(np.float64) for n, s in sums.items()}
    return {name: np.asarray(s / total) for name, s in sums.items()}
