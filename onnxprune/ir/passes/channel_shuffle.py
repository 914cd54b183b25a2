"""Channel shuffles as one Gather.

A shuffle is exported as Reshape (c) -> (g, c/g), Transpose, Reshape -> (c). Written as a Gather,
which permutes the one axis, any channel can be removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim


def replace_shuffles(model: EditableModel, shapes: Shapes) -> bool:
    """Replace the last node of each shuffle by a Gather; the others become dead.

    Returns
    -------
    bool
        Whether there was any.
    """
    graph, changed = model.proto.graph, False
    uses = Counter(o.name for o in graph.output)
    # bodies read by name, so that their consumers count too
    for inner in nested(graph):
        for node in inner.node:
            uses.update(node.input)
    producers = {o: node for node in graph.node for o in node.output}
    for last in graph.node:
        # the Gather takes the place of the last node, so that its output keeps its name
        chain = _match_chain(last, producers, uses)
        if chain is None:
            continue
        first, middle = chain
        before = shapes.shape(first.input[0])
        permutation = _match_permutation(
            before,
            shapes.shape(first.output[0]),
            attribute(middle, "perm"),
            shapes.shape(last.output[0]),
        )
        if permutation is None:
            continue
        axis, order = permutation
        index = add_initializer(model, last.output[0] + "_order", order)
        gather = helper.make_node(
            "Gather",
            [first.input[0], index],
            list(last.output),
            name=last.name,
            # from the end: before a Conv, OpenVINO (2026.4) inverts a Gather on axis 1
            axis=axis - len(before or ()),
            doc_string=last.doc_string,
        )
        last.CopyFrom(gather)
        changed = True
    return changed


def _match_chain(
    last: NodeProto, producers: Mapping[str, NodeProto], uses: Counter[str]
) -> tuple[NodeProto, NodeProto] | None:
    """Return the Reshape and Transpose that precede a Reshape, if they have no other consumers."""
    if last.op_type != "Reshape" or last.domain not in STANDARD_DOMAINS:
        return None
    middle = producers.get(last.input[0])
    # with another consumer the inner tensor would be needed as well
    if middle is None or middle.op_type != "Transpose" or uses[middle.output[0]] != 1:
        return None
    first = producers.get(middle.input[0])
    if first is None or first.op_type != "Reshape" or uses[first.output[0]] != 1:
        return None
    return first, middle


def _match_permutation(
    before: tuple[Dim, ...] | None,
    inside: tuple[Dim, ...] | None,
    perm: Sequence[int] | None,
    after: tuple[Dim, ...] | None,
) -> tuple[int, np.ndarray] | None:
    """Return (axis, order) if the chain splits one axis, swaps the two parts and merges them.

    Parameters
    ----------
    before, inside, after
        Shapes of the input, of the split tensor, and of the output.
    perm
        Permutation of the Transpose between.
    """
    if before is None or inside is None or perm is None or after is None:
        return None
    if len(inside) != len(before) + 1 or before != after:
        return None
    # the Transpose must swap two neighboring axes and keep the others
    moved = [i for i, p in enumerate(perm) if p != i]
    if len(moved) != 2 or moved[1] != moved[0] + 1 or None in before:
        return None
    axis = moved[0]
    outer, inner, size = inside[axis], inside[axis + 1], before[axis]
    if not isinstance(outer, int) or not isinstance(inner, int) or outer * inner != size:
        return None
    if inside[:axis] + inside[axis + 2 :] != before[:axis] + before[axis + 1 :]:
        return None
    return axis, np.arange(size, dtype=np.int64).reshape(outer, inner).T.ravel()
