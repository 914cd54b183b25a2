"""Heads: tensors in front of what joins, rescales and saturates them on the way to the outputs.

Detectors and multi-task networks often leave as one tensor: objectness, classes and boxes,
concatenated after sigmoid, softmax and the arithmetic of anchors. The squared error of that tensor
is the error of its largest part. Heads are found by walking back from the compared tensors, so that
each can be measured in a unit of its own, at the same tensors whether heads are joined or apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from onnxprune.errors import ModelError
from onnxprune.ir.compared import FLOATS, Compared, tensors_to_compare
from onnxprune.ir.head_parts import BINARY, CLASSES, SCORES, VALUES, Dims, Head, has_one_row
from onnxprune.ir.head_walk import WALKED, Walk
from onnxprune.ir.inference import infer
from onnxprune.ir.model import ModelView
from onnxprune.ir.shapes import Shapes

__all__ = [
    "BINARY",
    "CLASSES",
    "SCORES",
    "VALUES",
    "Head",
    "find_heads",
    "has_one_row",
    "may_have_heads",
    "tensors_of",
]

LEAST_BOX_CHANNELS = 4  # of values that only count where something is detected


def find_heads(
    model: ModelView,
    start: int = 0,
    shapes: Shapes | None = None,
    compared: Compared | None = None,
) -> tuple[Head, ...]:
    """Return the heads of the tensors in which a model and its pruned form are compared.

    A tensor that is no combination of several parts, and has no saturating function in front, is
    its own head. Tensors that are no floats have none.

    Parameters
    ----------
    start
        As in `tensors_to_compare`.
    shapes
        Inferred shapes of the model; computed if None.
    compared
        Result of `tensors_to_compare`; computed if None.
    """
    compared = compared or tensors_to_compare(model, start, shapes)
    try:
        shapes = shapes or infer(model)
    except ModelError:
        # without shapes no axis can be followed
        return tuple(Head(name, output=name) for name in compared.tensors)
    walk = Walk(model, shapes)
    heads: dict[str, Head] = {}
    for name in compared.tensors:
        if shapes.dtype(name) in (*FLOATS, 0):
            for head in walk.heads(name):
                heads.setdefault(head.tensor, head)
    return tuple(_with_scores(list(heads.values()), shapes))


def may_have_heads(model: ModelView, compared: Compared) -> bool:
    """Return False if no compared tensor is computed by an operator that joins or saturates.

    Needs no shapes, unlike `find_heads`.
    """
    producers = {o: node for node in model.proto.graph.node for o in node.output}
    nodes = (producers.get(name) for name in compared.tensors)
    return any(node is not None and node.op_type in WALKED for node in nodes)


def tensors_of(heads: Iterable[Head]) -> list[str]:
    """Return the tensors that a comparison of heads reads, each once."""
    names: dict[str, None] = {}
    for head in heads:
        names[head.tensor] = None
        if head.score is not None:
            names[head.score.tensor] = None
    return list(names)


def _with_scores(heads: Sequence[Head], shapes: Shapes) -> list[Head]:
    """Return the heads with the one that says what is detected at their positions.

    It is the one with independent probabilities and the fewest channels: objectness, or else
    classes.
    """
    result = []
    scores = [head for head in heads if head.kind == BINARY]
    for head in heads:
        places = _list_positions(head, shapes)
        here = [s for s in scores if s is not head and _list_positions(s, shapes) == places]
        here = [s for s in here if _count_channels(s, shapes) <= _count_channels(head, shapes)]
        boxes = head.kind != VALUES or _count_channels(head, shapes) >= LEAST_BOX_CHANNELS
        if not places or not here or not boxes or head.kind == SCORES:
            result.append(head)
            continue
        score = min(here, key=lambda s: _count_channels(s, shapes))
        # of two heads with equally many channels none is the objectness
        if head.kind == BINARY and _count_channels(score, shapes) == _count_channels(head, shapes):
            result.append(head)
            continue
        result.append(replace(head, score=score))
    return result


def _list_positions(head: Head, shapes: Shapes) -> Dims:
    """Return the lengths of all axes but the first and that of the channels; () if unknown."""
    shape = shapes.shape(head.tensor)
    if shape is None or None in shape:
        return ()
    axis = head.axis % max(len(shape), 1)
    lengths = tuple(n for i, n in enumerate(shape) if i not in (0, axis))
    return lengths if lengths != (1,) * len(lengths) else ()


def _count_channels(head: Head, shapes: Shapes) -> int:
    """Return the number of channels or classes, 0 if unknown."""
    shape = shapes.shape(head.tensor)
    if not shape:
        return 0
    length = shape[head.axis % len(shape)]
    return length if isinstance(length, int) else 0
