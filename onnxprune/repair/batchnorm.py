"""Re-estimation of the running statistics of BatchNormalization in the pruned network."""

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

MEAN_SLOT, VARIANCE_SLOT = 3, 4  # inputs of BatchNormalization


def batchnorm(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Set the mean and variance of every BatchNormalization to those of its input.

    In graph order, so that each node sees inputs that are normalized already.

    Raises
    ------
    UsageError
        The graph has no BatchNormalization: the exporter folded them.
    """
    data = context.repair_data("repair 'batchnorm'")
    model = with_means(analysis, plan, pruned, context).edit()
    nodes = [
        n
        for n in model.proto.graph.node
        if n.op_type == "BatchNormalization" and all(i in model.weights for i in n.input[3:5])
    ]
    # constants of removed branches are repaired even without a normalization
    if not nodes and not constants_of(analysis, pruned):
        raise UsageError(
            "no-batchnorm",
            "repair 'batchnorm' needs BatchNormalization in the graph, and it is folded here; use "
            "least-squares or bias",
        )
    for node in nodes:
        for slot in (MEAN_SLOT, VARIANCE_SLOT):
            name = node.input[slot]
            # nodes that share statistics get their own, since their inputs differ
            if sum(list(n.input).count(name) for n in nodes) > 1:
                values = np.array(model.weights[name].array())
                node.input[slot] = add_initializer(model, f"{name}_own", values)
    run = SegmentedRun(model, list(data.batches(context.batch_size)), threads=context.threads)
    for node in run.nodes:
        if node.op_type != "BatchNormalization" or node.input[MEAN_SLOT] not in model.weights:
            continue
        run.advance(run.place(node.output[0]))
        mean, square = _compute_moments(run.values(node.input[0]))
        set_values(model, node.input[MEAN_SLOT], mean)
        set_values(model, node.input[VARIANCE_SLOT], np.maximum(square - mean**2, 0.0))
    return model.freeze()


def _compute_moments(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and mean square per channel (axis 1), float64."""
    count = sum(x.size // x.shape[1] for x in batches)
    axes = tuple(i for i in range(batches[0].ndim) if i != 1)
    total = sum(x.sum(axes, dtype=np.float64) for x in batches)
    squares = sum(np.square(x, dtype=np.float64).sum(axes) for x in batches)
    return total / count, squares / count
