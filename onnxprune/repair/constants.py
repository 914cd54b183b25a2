"""What stands for a branch that went whole: its mean in the whole network, in place of what its biases alone give."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import samples_of
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.repair.fits import kept_values, set_values
from onnxprune.statistics.channels import reduce_mean
from onnxprune.surgery.fold import constants_of
from onnxprune.types import Plan


def with_means(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """The cut model with the mean over all inputs in each constant that stands for a branch; one pass over the data where there is such."""
    wanted = {
        n: shape
        for n, shape in constants_of(analysis, pruned).items()
        if analysis.shapes.dtype(n) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    }
    if not wanted:
        return pruned
    model, removed = analysis.model.edit(), analysis.removed(plan.kept)
    free = {
        n: [
            i
            for i, ids in enumerate(analysis.record.tensors[n].axes)
            if shape[i] == 1 and not isinstance(ids, np.ndarray)
        ]
        for n, shape in wanted.items()
    }
    for name, axes in free.items():
        model.proto.graph.node.append(
            helper.make_node("Cast", [name], [f"{name}/real"], to=TensorProto.FLOAT)
        )
        node = (
            reduce_mean(model, f"{name}/real", f"{name}/mean", axes)
            if axes
            else helper.make_node("Identity", [f"{name}/real"], [f"{name}/mean"])
        )
        model.proto.graph.node.append(node)
    session = Session(model, [f"{n}/mean" for n in wanted], threads=context.threads)
    sums, total = dict.fromkeys(wanted, 0.0), 0
    for feeds in context.repair_data("a branch that went whole").batches(context.batch_size):
        found, count = session.run(feeds), samples_of(feeds)
        total += count
        sums = {n: s + count * found[f"{n}/mean"].astype(np.float64) for n, s in sums.items()}
    model = pruned.edit()
    for name, shape in wanted.items():
        mean = kept_values(
            analysis, removed, name, [np.expand_dims(sums[name] / total, free[name])]
        )[0]
        set_values(
            model, name, mean.mean(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
        )
    return model.freeze()
