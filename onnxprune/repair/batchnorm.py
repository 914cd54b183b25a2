"""Running statistics of BatchNormalization estimated anew on the cut network."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.errors import UsageError
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import Model
from onnxprune.repair.constants import with_means
from onnxprune.repair.fits import set_values
from onnxprune.statistics.segmented_run import SegmentedRun
from onnxprune.surgery.fold import constants_of
from onnxprune.types import Plan


def batchnorm(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Mean and variance of every BatchNormalization as its input has them in the cut network, front to back.

    Raises
    ------
    UsageError
        The graph has none: the exporter folded them.
    """
    data = context.repair_data("repair 'batchnorm'")
    model = with_means(analysis, plan, pruned, context).edit()
    nodes = [
        n
        for n in model.proto.graph.node
        if n.op_type == "BatchNormalization" and all(i in model.weights for i in n.input[3:5])
    ]
    if not nodes and not constants_of(analysis, pruned):
        raise UsageError(
            "no-batchnorm",
            "repair 'batchnorm' needs BatchNormalization in the graph, and it is folded here; use least-squares or bias",
        )
    for node in nodes:
        for slot in (3, 4):
            if sum(list(n.input).count(node.input[slot]) for n in nodes) > 1:
                node.input[slot] = add_initializer(
                    model,
                    f"{node.input[slot]}_own",
                    np.array(model.weights[node.input[slot]].array()),
                )
    run = SegmentedRun(model, list(data.batches(context.batch_size)), threads=context.threads)
    for node in run.nodes:
        if node.op_type != "BatchNormalization" or node.input[3] not in model.weights:
            continue
        run.advance(run.place(node.output[0]))
        mean, square = _moments(run.values(node.input[0]))
        set_values(model, node.input[3], mean)
        set_values(model, node.input[4], np.maximum(square - mean**2, 0.0))
    return model.freeze()


def _moments(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square a channel (axis 1)."""
    count = sum(x.size // x.shape[1] for x in batches)
    axes = tuple(i for i in range(batches[0].ndim) if i != 1)
    total = sum(x.sum(axes, dtype=np.float64) for x in batches)
    squares = sum(np.square(x, dtype=np.float64).sum(axes) for x in batches)
    return total / count, squares / count
