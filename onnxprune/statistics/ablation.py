"""What removing one channel at a time does to the loss, by running the masked model: exact, for what no gradient reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import Mask
from onnxprune.autodiff import LABELS, VECTOR, Loss
from onnxprune.autodiff.losses import Feed, feeds_of, start_tensor
from onnxprune.data.dataset import Data
from onnxprune.ir.edit import replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import label
from onnxprune.ir.runtime import Session, with_outputs


def ablate(
    analysis: Analysis,
    data: Data,
    losses: Sequence[Loss],
    groups: Sequence[str],
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 16,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Loss of the whole model minus loss without the channel, a sample: group -> (samples, channels) float64.

    To first order the mask gradient of the channel, so that the two can stand in one ranking. Groups with a copy that cannot be masked
    (inside of a nested graph, recurrent) are left out.

    Notes
    -----
    Cost: one forward pass over the data a channel.
    """
    wanted = np.concatenate([analysis.causes[name] for name in groups])
    masks, hidden = _masks(analysis, wanted)
    starts = [start_tensor(analysis.model, loss) for loss in losses]
    session = Session(
        with_outputs(_maskable(analysis, masks), list(dict.fromkeys(starts))),
        threads=threads,
        arena=True,
    )
    generator = np.random.Generator(np.random.PCG64(seed))
    whole = {f"mask/{i}": np.ones(len(mask.ids), np.float32) for i, mask in enumerate(masks)}
    masked = {c: _factors(analysis, masks, c) for c in wanted.tolist() if c not in hidden}
    changes: dict[int, list[np.ndarray]] = {c: [] for c in masked}
    begin = 0
    for feeds in data.batches(batch_size):
        base = session.run({**feeds, **whole})
        count = len(base[starts[0]])
        given = None if labels is None else labels[begin : begin + count]
        targets = [
            _target(loss, base[start], generator, given)
            for loss, start in zip(losses, starts, strict=False)
        ]
        before = _total(losses, starts, base, targets)
        for cause, factors in masked.items():
            found = session.run({**feeds, **whole, **factors})
            changes[cause].append(before - _total(losses, starts, found, targets))
        begin += count
    rows = {cause: np.concatenate(parts) for cause, parts in changes.items()}
    return {
        name: np.stack([rows[c] for c in analysis.causes[name].tolist()], 1)
        for name in groups
        if not hidden.intersection(analysis.causes[name].tolist())
    }


def _masks(analysis: Analysis, causes: np.ndarray) -> tuple[list[Mask], set[int]]:
    """Masks that carry a cause, and causes that have a copy which cannot be masked by a feed."""
    outermost = {label(node) for node in analysis.model.proto.graph.node}
    found, hidden = [], set()
    for mask in analysis.record.masks:
        held = np.intersect1d(analysis.axes.table(mask.ids), causes)
        if mask.recurrent or label(analysis.record.nodes[mask.node]) not in outermost:
            hidden.update(held.tolist())
        elif len(held):
            found.append(mask)
    return found, hidden


def _factors(analysis: Analysis, masks: Sequence[Mask], cause: int) -> dict[str, np.ndarray]:
    """Values of the mask inputs that have the cause in them."""
    held = ((analysis.axes.table(mask.ids) == cause).any(1) for mask in masks)
    return {f"mask/{i}": (~gone).astype(np.float32) for i, gone in enumerate(held) if gone.any()}


def _maskable(analysis: Analysis, masks: Sequence[Mask]) -> Model:
    """A copy in which the operand of each mask is multiplied by a graph input."""
    model = analysis.model.edit()
    graph = model.proto.graph
    before: dict[str, list[NodeProto]] = {}
    nodes = {label(node): node for node in graph.node}
    for i, mask in enumerate(masks):
        node = nodes[label(analysis.record.nodes[mask.node])]
        tensor = node.input[mask.slot]
        rank, dtype = len(analysis.shapes.shape(tensor) or ()), analysis.shapes.dtype(tensor)
        shape = [len(mask.ids) if axis == mask.axis else 1 for axis in range(rank)]
        graph.input.append(helper.make_tensor_value_info(f"mask/{i}", 1, [len(mask.ids)]))
        made = [
            helper.make_node("Constant", [], [f"mask/{i}/shape"], value_ints=shape),
            helper.make_node("Cast", [f"mask/{i}"], [f"mask/{i}/cast"], to=dtype),
            helper.make_node(
                "Reshape", [f"mask/{i}/cast", f"mask/{i}/shape"], [f"mask/{i}/factor"]
            ),
            helper.make_node("Mul", [tensor, f"mask/{i}/factor"], [f"mask/{i}/masked"]),
        ]
        before.setdefault(label(node), []).extend(made)
        node.input[mask.slot] = f"mask/{i}/masked"
    replace_nodes(graph, [n for node in graph.node for n in (*before.get(label(node), ()), node)])
    return model


def _target(
    loss: Loss, head: np.ndarray, generator: np.random.Generator, labels: np.ndarray | None
) -> np.ndarray:
    """The vector, or the labels with an axis of length 1 for the classes."""
    axis = loss.axis % head.ndim
    if loss.kind == LABELS:
        feed = Feed(
            loss, tuple(n for i, n in enumerate(head.shape) if i != axis), TensorProto.INT64
        )
        return np.expand_dims(feeds_of({feed.name: feed}, generator, labels)[feed.name], axis)
    drawn = Feed(loss, head.shape, TensorProto.FLOAT).draw(generator)
    return drawn if loss.kind == VECTOR else (head + drawn).argmax(axis, keepdims=True)


def _total(
    losses: Sequence[Loss],
    starts: Sequence[str],
    values: Mapping[str, np.ndarray],
    targets: Sequence[np.ndarray],
) -> np.ndarray:
    """(samples,) sum of the losses."""
    return np.sum(
        [
            _loss(loss, values[start], target)
            for loss, start, target in zip(losses, starts, targets, strict=False)
        ],
        axis=0,
    )


def _loss(loss: Loss, head: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(samples,) float64."""
    values = head.astype(np.float64)
    if loss.kind == VECTOR:
        return np.asarray((values * target).reshape(len(values), -1).sum(1))
    axis = loss.axis % head.ndim
    shifted = values - values.max(axis, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    picked = np.take_along_axis(logs, np.maximum(target, 0), axis) * (target >= 0)
    return np.asarray(-picked.reshape(len(values), -1).mean(1))
