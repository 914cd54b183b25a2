"""Exact change of the loss per removed channel, by running the masked model.

Used for channels that gradients cannot reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import Mask
from onnxprune.autodiff import BINARY, LABELS, VECTOR, Loss
from onnxprune.autodiff.losses import BACKGROUND, Feed, feeds_of, start_tensor
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
    """Compute the loss of the original model minus the loss without each channel.

    To first order this is the channel's mask gradient, so both can be compared in one ranking.

    Parameters
    ----------
    losses
        Summed per sample.
    groups
        Names of the groups to ablate.
    labels
        One entry per sample, for losses of kind "labels".
    seed
        Seed of drawn labels and sign vectors.

    Returns
    -------
    dict
        Group name -> (samples, channels) float64. Groups with a copy that cannot be masked by a
        feed (inside a nested graph, or recurrent) are left out.

    Notes
    -----
    Cost: one forward pass over the data per channel.
    """
    requested = np.concatenate([analysis.causes[name] for name in groups])
    masks, unmaskable = _select_masks(analysis, requested)
    starts = [start_tensor(analysis.model, loss) for loss in losses]
    # one session for all channels: a mask is a graph input, so only feeds change
    scores = [loss.weight[0] for loss in losses if loss.weight]
    model = with_outputs(_insert_masks(analysis, masks), list(dict.fromkeys([*starts, *scores])))
    session = Session(model, threads=threads, arena=True)
    # a named bit generator: the default of numpy may change
    generator = np.random.Generator(np.random.PCG64(seed))
    unmasked = {f"mask/{i}": np.ones(len(mask.ids), np.float32) for i, mask in enumerate(masks)}
    feeds_of_cause = {
        c: _build_mask_feeds(analysis, masks, c) for c in requested.tolist() if c not in unmaskable
    }
    changes = _measure_changes(
        session,
        data.batches(batch_size),
        losses,
        starts,
        unmasked,
        feeds_of_cause,
        labels,
        generator,
    )
    return _collect_groups(analysis, groups, changes)


def _measure_changes(
    session: Session,
    batches: Iterable[Mapping[str, np.ndarray]],
    losses: Sequence[Loss],
    starts: Sequence[str],
    unmasked: Mapping[str, np.ndarray],
    feeds_of_cause: Mapping[int, Mapping[str, np.ndarray]],
    labels: np.ndarray | None,
    generator: np.random.Generator,
) -> dict[int, list[np.ndarray]]:
    """Return the change of the loss by each cause, (samples,) per batch.

    Parameters
    ----------
    unmasked
        Values of all mask inputs that mask nothing.
    feeds_of_cause
        Cause -> values of the mask inputs that mask it.
    """
    changes: dict[int, list[np.ndarray]] = {c: [] for c in feeds_of_cause}
    begin = 0
    for feeds in batches:
        dense = session.run({**feeds, **unmasked})
        # labels belong to rows of the heads
        count = len(dense[starts[0]])
        batch_labels = None if labels is None else labels[begin : begin + count]
        # drawn once per batch, so that both losses are measured against the same targets
        targets = [
            _draw_target(loss, dense[start], generator, batch_labels)
            for loss, start in zip(losses, starts, strict=True)
        ]
        factors = [
            _weigh_positions(loss, dense, dense[start])
            for loss, start in zip(losses, starts, strict=True)
        ]
        loss_before = _sum_losses(losses, starts, dense, targets, factors)
        for cause, mask_feeds in feeds_of_cause.items():
            masked = session.run({**feeds, **unmasked, **mask_feeds})
            after = _sum_losses(losses, starts, masked, targets, factors)
            changes[cause].append(loss_before - after)
        begin += count
    return changes


def _collect_groups(
    analysis: Analysis, groups: Sequence[str], changes: Mapping[int, list[np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return (samples, channels) changes of the groups all of whose causes were measured.

    Parameters
    ----------
    changes
        Cause -> changes of the loss per batch.
    """
    rows = {cause: np.concatenate(parts) for cause, parts in changes.items()}
    result = {}
    for name in groups:
        causes = analysis.causes[name].tolist()
        if rows.keys() >= set(causes):
            result[name] = np.stack([rows[c] for c in causes], 1)
    return result


def _select_masks(analysis: Analysis, causes: np.ndarray) -> tuple[list[Mask], set[int]]:
    """Return the masks that carry a cause, and the causes with a copy that no feed can mask."""
    selected, unmaskable = [], set()
    for mask in analysis.masks:
        carried = np.intersect1d(analysis.axes.table(mask.ids), causes)
        if not analysis.measurable(mask):
            unmaskable.update(carried.tolist())
        elif len(carried):
            selected.append(mask)
    return selected, unmaskable


def _build_mask_feeds(
    analysis: Analysis, masks: Sequence[Mask], cause: int
) -> dict[str, np.ndarray]:
    """Return values of the mask inputs that carry a cause: 0 at its positions, 1 elsewhere."""
    positions = ((analysis.axes.table(mask.ids) == cause).any(1) for mask in masks)
    return {f"mask/{i}": (~at).astype(np.float32) for i, at in enumerate(positions) if at.any()}


def _insert_masks(analysis: Analysis, masks: Sequence[Mask]) -> Model:
    """Return a copy in which the operand of each mask is multiplied by a new graph input."""
    model = analysis.model.edit()
    graph = model.proto.graph
    inserted: dict[str, list[NodeProto]] = {}
    # the copy has nodes of its own, with the labels of the original's
    nodes = {label(node): node for node in graph.node}
    for i, mask in enumerate(masks):
        original = analysis.nodes[mask.node]
        node = nodes[label(original)]
        # an operand with two masks is multiplied twice; only the original tensor has a shape
        tensor, unmasked = node.input[mask.slot], original.input[mask.slot]
        rank, dtype = len(analysis.shapes.shape(unmasked) or ()), analysis.shapes.dtype(unmasked)
        shape = [len(mask.ids) if axis == mask.axis else 1 for axis in range(rank)]
        graph.input.append(helper.make_tensor_value_info(f"mask/{i}", 1, [len(mask.ids)]))
        # a vector as the graph input, reshaped inside: feeds need not know the operand's rank
        multiply = [
            helper.make_node("Constant", [], [f"mask/{i}/shape"], value_ints=shape),
            helper.make_node("Cast", [f"mask/{i}"], [f"mask/{i}/cast"], to=dtype),
            helper.make_node(
                "Reshape", [f"mask/{i}/cast", f"mask/{i}/shape"], [f"mask/{i}/factor"]
            ),
            helper.make_node("Mul", [tensor, f"mask/{i}/factor"], [f"mask/{i}/masked"]),
        ]
        # several operands of a node may be masked
        inserted.setdefault(label(node), []).extend(multiply)
        node.input[mask.slot] = f"mask/{i}/masked"
    ordered: list[NodeProto] = []
    for node in graph.node:
        ordered += [*inserted.get(label(node), ()), node]
    replace_nodes(graph, ordered)
    return model.freeze()


def _draw_target(
    loss: Loss, head: np.ndarray, generator: np.random.Generator, labels: np.ndarray | None
) -> np.ndarray:
    """Return the sign vector of a loss, or its labels with a class axis of length 1."""
    axis = loss.axis % head.ndim
    if loss.kind == LABELS:
        shape = tuple(n for i, n in enumerate(head.shape) if i != axis)
        feed = Feed(loss, shape, TensorProto.INT64)
        return np.expand_dims(feeds_of({feed.name: feed}, generator, labels)[feed.name], axis)
    noise = Feed(loss, head.shape, TensorProto.FLOAT).draw(generator)
    if loss.kind == VECTOR:
        return noise
    if loss.kind == BINARY:
        return (noise < head) if loss.probabilities else (head + noise > 0)
    # Gumbel-max: the argmax of logits plus Gumbel noise is a draw from their softmax
    return (head + noise).argmax(axis, keepdims=True)


def _weigh_positions(
    loss: Loss, dense: Mapping[str, np.ndarray], head: np.ndarray
) -> np.ndarray | float:
    """Return the factor at each position of a head, as in the gradient graph."""
    if loss.weight is None:
        return 1.0
    name, axis, probabilities = loss.weight
    score = dense[name].astype(np.float64)
    p = score if probabilities else 0.5 + 0.5 * np.tanh(0.5 * score)
    most = p.max(axis % score.ndim, keepdims=True)
    fits = most.ndim == head.ndim and all(
        m in (1, n) for m, n in zip(most.shape, head.shape, strict=True)
    )
    return np.asarray(np.sqrt(most + BACKGROUND)) if fits else 1.0


def _sum_losses(
    losses: Sequence[Loss],
    starts: Sequence[str],
    values: Mapping[str, np.ndarray],
    targets: Sequence[np.ndarray],
    factors: Sequence[np.ndarray | float],
) -> np.ndarray:
    """Return the (samples,) sum of the losses."""
    terms = [
        _compute_loss(loss, values[start], target, factor)
        for loss, start, target, factor in zip(losses, starts, targets, factors, strict=True)
    ]
    return np.sum(terms, axis=0)


def _compute_loss(
    loss: Loss, head: np.ndarray, target: np.ndarray, factor: np.ndarray | float
) -> np.ndarray:
    """Return the (samples,) float64 loss of one head."""
    values = head.astype(np.float64)
    if loss.kind == VECTOR:
        return np.asarray((values * target * factor).reshape(len(values), -1).sum(1))
    if loss.kind == BINARY:
        return _compute_binary_loss(loss, values, target, factor)
    axis = loss.axis % head.ndim
    # exponentials must not overflow
    shifted = values - values.max(axis, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    # negative labels are ignored: they index class 0 and are multiplied by 0
    picked = np.take_along_axis(logs, np.maximum(target, 0), axis) * (target >= 0) * factor
    rows = -picked.reshape(len(values), -1)
    return np.asarray(rows.mean(1) if loss.scale is None else loss.scale * rows.sum(1))


def _compute_binary_loss(
    loss: Loss, values: np.ndarray, target: np.ndarray, factor: np.ndarray | float
) -> np.ndarray:
    """Return the (samples,) sum of binary cross-entropies."""
    if loss.probabilities:
        p = np.clip(values, 1e-7, 1 - 1e-7)
        values = np.log(p) - np.log1p(-p)
    terms = (np.logaddexp(0.0, values) - target * values) * factor * (loss.scale or 1.0)
    return np.asarray(terms.reshape(len(values), -1).sum(1))
