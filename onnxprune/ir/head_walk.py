"""Walk from an output back to the heads that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from onnxprune.ir.compared import sums_over_channels
from onnxprune.ir.dependencies import SIZES, Dependencies
from onnxprune.ir.head_parts import (
    BINARY,
    CLASSES,
    SCORES,
    VALUES,
    Found,
    Head,
    Part,
    find_axis,
    guess_axis,
    has_one_row,
    merge,
)
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute
from onnxprune.ir.shapes import Shapes

_UNARY = frozenset("Identity Cast Dropout".split())
_RESHAPES = frozenset("Reshape Flatten Squeeze Unsqueeze".split())
_ARITHMETIC = frozenset("Add Sub Mul Div Pow Exp Neg Sqrt".split())
WALKED = frozenset("Transpose Concat Split Slice Gather Sigmoid Softmax LogSoftmax".split()).union(
    _UNARY, _RESHAPES, _ARITHMETIC
)
_COERCED_BEFORE = 13  # Softmax of older opsets flattens all axes from its own on

MOST_VISITS, MOST_DEPTH = 20_000, 150  # of nodes per output, and between an output and a head


@dataclass(frozen=True)
class _State:
    """What lies between a tensor and the output, as far as it was walked.

    Attributes
    ----------
    kind
        None as long as only data movement follows.
    axis
        Class axis of this tensor, for `CLASSES`.
    part
        Range of this tensor that reaches the output; None for all of it. Without an axis (-1) it
        is not known which.
    selected
        The tensor that is this part, as a head.
    """

    kind: str | None = None
    axis: int = -1
    part: Part | None = None
    selected: Head | None = None


class Walk(Dependencies):
    """Walk from outputs back to heads."""

    def __init__(self, model: ModelView, shapes: Shapes) -> None:
        super().__init__(list(model.proto.graph.node))
        self.model, self.shapes = model, shapes
        sums = {o for n in self.nodes if sums_over_channels(n) for o in n.output if o}
        # values that pruning can change; others are grids, anchors and other constants
        self.learned = self.descendants(sums, SIZES)
        self._visited = self._depth = 0
        self._steps: dict[str, Callable[[NodeProto, str, _State], list[Found]]] = {
            "Transpose": self._transpose,
            "Concat": self._concat,
            "Split": self._split,
            "Slice": self._slice,
            "Gather": self._gather,
            "Sigmoid": self._sigmoid,
            "Softmax": self._softmax,
            "LogSoftmax": self._softmax,
            **dict.fromkeys(_UNARY, self._pass),
            **dict.fromkeys(_RESHAPES, self._reshape),
            **dict.fromkeys(_ARITHMETIC, self._combine),
        }

    def heads(self, output: str) -> list[Head]:
        """Return the heads of a tensor."""
        self._visited = 0
        found = merge(self.walk(output, _State()), self.shapes)
        own = Head(output, output=output)
        shape = self.shapes.shape(output)
        # given up: of a part of the walk, heads would be missing
        if self._visited > MOST_VISITS:
            return [own]
        plain = all(h.kind == VALUES for h in found)
        if has_one_row(shape) and (plain or [h.kind for h in found] == [CLASSES]):
            return [replace(own, kind=SCORES)]
        # one head that is a plain transformation of the output is the output
        if len(found) < 2 and plain:
            return [replace(own, axis=guess_axis(shape))]
        return [replace(head, output=output) for head in found]

    def walk(self, name: str, state: _State) -> list[Found]:
        """Return the heads that a tensor is computed from."""
        if name not in self.learned:
            return []
        node = self.nodes[self.producers[name]]
        step = self._steps.get(node.op_type)
        self._visited += 1
        # a file may join a tensor with itself again and again
        too_many = self._visited > MOST_VISITS or self._depth >= MOST_DEPTH
        if step is None or node.domain not in STANDARD_DOMAINS or too_many:
            return self._end(name, state)
        self._depth += 1
        result = step(node, name, state)
        self._depth -= 1
        return result

    def _end(self, name: str, state: _State) -> list[Found]:
        """Return the head at which a walk ends."""
        if state.part is not None and state.selected is not None:
            return [Found(state.selected, name, state.part)]
        axis = state.axis
        if state.kind != CLASSES:
            node = self.nodes[self.producers[name]]
            shape = self.shapes.shape(name)
            axis = 1 if node.op_type.startswith("Conv") else guess_axis(shape)
        return [Found(Head(name, state.kind or VALUES, axis), name, None)]

    def _pass(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Pass a node that keeps values and axes."""
        return self.walk(node.input[0], state)

    def _transpose(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Pass a Transpose."""
        perm = attribute(node, "perm") or list(reversed(range(self._rank(name))))
        if len(perm) != self._rank(name):
            return self._end(name, state)
        return self._move(node.input[0], name, state, lambda axis: perm[axis])

    def _reshape(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Pass a change of shape."""
        before, after = self.shapes.shape(node.input[0]), self.shapes.shape(name)
        if before is None or after is None:
            return self._end(name, state)
        return self._move(node.input[0], name, state, lambda axis: find_axis(before, after, axis))

    def _move(
        self, source: str, name: str, state: _State, place: Callable[[int], int | None]
    ) -> list[Found]:
        """Walk on from the operand of a node that moves axes.

        Parameters
        ----------
        place
            Axis of the operand by axis of the result, None if it is split or joined.
        """
        if state.kind == CLASSES:
            axis = place(state.axis)
            if axis is None:
                return self._end(name, state)
            state = replace(state, axis=axis)
        if state.part is not None and state.part[0] >= 0:
            axis = place(state.part[0])
            # what the part is remains known, where it is not
            part = (-1, 0, 0) if axis is None else (axis, *state.part[1:])
            state = replace(state, part=part)
        return self.walk(source, state)

    def _concat(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Walk on from the operands that reach the output."""
        axis = attribute(node, "axis", 1) % max(self._rank(name), 1)
        if state.part is not None and state.part[0] == -1:
            return self._end(name, state)
        if state.part is None or state.part[0] != axis:
            # a distribution over several operands has no logits of its own before
            if state.kind == CLASSES and axis == state.axis:
                return self._end(name, state)
            return [found for operand in node.input for found in self.walk(operand, state)]
        result: list[Found] = []
        position, (_, start, stop) = 0, state.part
        for operand in node.input:
            length = self._length(operand, axis)
            if length is None:
                return self._end(name, state)
            first, last = max(start - position, 0), min(stop - position, length)
            position += length
            if first >= last:
                continue
            inner = replace(state, part=(axis, first, last))
            if (first, last) == (0, length):
                inner = replace(state, part=None, selected=None)
            # classes may not be divided
            if state.kind == CLASSES and axis == state.axis and last - first < stop - start:
                return self._end(name, state)
            result += self.walk(operand, inner)
        return result

    def _select(self, name: str, source: str, part: Part | None, state: _State) -> list[Found]:
        """Walk on from the operand of a node that selects a part of one axis.

        Parameters
        ----------
        part
            None if it is no range of one axis.
        """
        if state.part is not None:
            if part is None or part[0] != state.part[0]:
                return self._end(name, state)
            # a part of a part
            _, start, stop = state.part
            moved = (part[0], part[1] + start, part[1] + stop)
            return self.walk(source, replace(state, part=moved))
        if state.kind == CLASSES and part is None:
            return self._end(name, state)
        axis = part[0] if part is not None else guess_axis(self.shapes.shape(name))
        if state.kind == CLASSES:
            axis = state.axis
        selected = Head(name, state.kind or VALUES, axis)
        return self.walk(source, replace(state, part=part or (-1, 0, 0), selected=selected))

    def _split(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Walk on from the operand of a Split."""
        axis = attribute(node, "axis", 0) % max(self._rank(name), 1)
        lengths = [self._length(out, axis) for out in node.output if out]
        before = lengths[: list(node.output).index(name)]
        own = self._length(name, axis)
        if own is None or any(length is None for length in before):
            return self._select(name, node.input[0], None, state)
        start = sum(length for length in before if length is not None)
        return self._select(name, node.input[0], (axis, start, start + own), state)

    def _slice(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Walk on from the operand of a Slice."""
        return self._select(name, node.input[0], self._range_of_slice(node, name), state)

    def _range_of_slice(self, node: NodeProto, name: str) -> Part | None:
        """Return the range of a Slice along one axis; None for others."""
        rank = self._rank(name)
        if len(node.input) > 1:
            values = [self.shapes.value(n) if n else None for n in node.input[1:]]
            if any(v is None for v in values[:2]):
                return None
            starts, ends = ([int(v) for v in value.ravel()] for value in values[:2])  # type: ignore[union-attr]  # checked above
            axes = values[2].ravel().tolist() if len(values) > 2 and values[2] is not None else []
            steps = values[3].ravel().tolist() if len(values) > 3 and values[3] is not None else []
        else:
            starts, ends = attribute(node, "starts", []), attribute(node, "ends", [])
            axes, steps = attribute(node, "axes", []), []
        axes = list(axes) or list(range(len(starts)))
        if len(starts) != 1 or len(ends) != 1 or any(step != 1 for step in steps):
            return None
        axis = int(axes[0]) % max(rank, 1)
        length = self._length(node.input[0], axis)
        if length is None:
            return None
        start, stop, _ = slice(starts[0], ends[0]).indices(length)
        return axis, start, max(stop, start)

    def _gather(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Walk on from the operand of a Gather with constant indices."""
        indices = self.shapes.value(node.input[1])
        if indices is None and node.input[1] in self.model.weights:
            indices = self.model.weights[node.input[1]].array()
        if indices is None or indices.ndim > 1:
            return self._end(name, state)
        axis = attribute(node, "axis", 0) % max(self._rank(node.input[0]), 1)
        length = self._length(node.input[0], axis)
        rows = [int(i) for i in indices.ravel()]
        if length is None or not rows:
            return self._end(name, state)
        rows = [i % length for i in rows]
        if indices.ndim == 0:
            return self._take_one(node, name, (axis, rows[0]), state)
        dense = rows == list(range(rows[0], rows[0] + len(rows)))
        part = (axis, rows[0], rows[-1] + 1) if dense else None
        return self._select(name, node.input[0], part, state)

    def _take_one(
        self, node: NodeProto, name: str, at: tuple[int, int], state: _State
    ) -> list[Found]:
        """Walk on from the operand of a Gather of one index, which removes the axis."""
        axis, index = at
        if state.part is not None:
            return self._end(name, state)
        if state.kind == CLASSES:
            state = replace(state, axis=state.axis + (state.axis >= axis))
        own = state.axis if state.kind == CLASSES else guess_axis(self.shapes.shape(name))
        selected = Head(name, state.kind or VALUES, own)
        part = (axis, index, index + 1)
        return self.walk(node.input[0], replace(state, part=part, selected=selected))

    def _sigmoid(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Read probabilities in front of a Sigmoid; in the arithmetic of boxes it is a value."""
        if state.kind is not None:
            return self._end(name, state)
        selected = state.selected
        if selected is not None:
            selected = replace(selected, kind=BINARY, probabilities=True)
        return self.walk(node.input[0], replace(state, kind=BINARY, selected=selected))

    def _softmax(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Read a distribution in front of a Softmax."""
        shape = self.shapes.shape(name)
        if state.kind is not None or not shape:
            return self._end(name, state)
        old = self.model.opset < _COERCED_BEFORE
        axis = attribute(node, "axis", 1 if old else -1) % len(shape)
        # an old Softmax over several axes is no softmax over the classes
        if old and any(n != 1 for n in shape[axis + 1 :]):
            return self._end(name, state)
        state = replace(state, kind=CLASSES, axis=axis)
        if state.part is not None and state.part[0] == axis:
            # a part of a distribution is given by all of it
            state = replace(state, part=None, selected=None)
        if state.selected is not None:
            selected = replace(state.selected, kind=CLASSES, probabilities=True)
            if node.op_type == "LogSoftmax":
                selected = replace(selected, probabilities=False)
            state = replace(state, selected=selected)
        return self.walk(node.input[0], state)

    def _combine(self, node: NodeProto, name: str, state: _State) -> list[Found]:
        """Pass arithmetic with constants, and products and sums of the parts of one head."""
        operands = list(dict.fromkeys(i for i in node.input if i in self.learned))
        if state.kind in (BINARY, CLASSES) or self._is_bias(node, operands):
            return self._end(name, state)
        if len(operands) == 1:
            selected = state.selected
            if selected is not None:
                selected = replace(selected, kind=VALUES)
            return self.walk(operands[0], replace(state, kind=VALUES, selected=selected))
        if state.kind is None and node.op_type == "Mul":
            flat = [found for operand in operands for found in self.walk(operand, state)]
            # objectness times classes; gates of activations have a factor without a sigmoid
            return flat if all(f.head.kind != VALUES for f in flat) else self._end(name, state)
        inner = replace(state, kind=VALUES)
        flat = [found for operand in operands for found in self.walk(operand, inner)]
        # distances to two sides of the same boxes
        if len({found.source for found in flat}) == 1:
            return flat
        return self._end(name, state)

    def _is_bias(self, node: NodeProto, operands: Sequence[str]) -> bool:
        """Return True for an Add of a constant to what a linear node computes."""
        if node.op_type != "Add" or len(operands) != 1:
            return False
        return sums_over_channels(self.nodes[self.producers[operands[0]]])

    def _rank(self, name: str) -> int:
        """Return the rank of a tensor, 0 if unknown."""
        return len(self.shapes.shape(name) or ())

    def _length(self, name: str, axis: int) -> int | None:
        """Return the length of an axis, None if it is not known."""
        shape = self.shapes.shape(name)
        if shape is None or axis >= len(shape):
            return None
        length = shape[axis]
        return length if isinstance(length, int) else None
