"""Construction of the backward graph: a copy of the model with activation gradients as outputs.

Gradients are reduced to channels inside the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxprune.autodiff.losses import Feed, Loss, seed, start_tensor, weigh
from onnxprune.autodiff.places import MOMENTS, ROWS, WHOLE, Blocked, Gradient, Place
from onnxprune.autodiff.rules import EXTRA_OUTPUT, TABLE, ZERO
from onnxprune.autodiff.step import BackwardStep, NoGradient
from onnxprune.autodiff.tape import PREFIX, Tape, Value
from onnxprune.errors import ModelError, OnnxpruneError, UsageError
from onnxprune.ir.edit import add_weight
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, captured, label
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array

MIN_OPSET = 9  # the first with Where, Expand and Scatter
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
Reasons = dict[str, tuple[str, str]]  # node -> (operator, reason)


def gradient_model(
    model: Model,
    places: Sequence[Place],
    losses: Sequence[Loss],
    input_shapes: Mapping[str, Sequence[int]],
    samples: int,
    values: Sequence[str] = (),
) -> Gradient:
    """Return the model with mask gradients as outputs.

    For a place with activation A and channel axis k in the form ROWS the output is, per sample n
    and channel c, the sum over all other axes of A * dL_n/dA: the derivative of the loss by a
    factor on this channel, and minus the first-order change of the loss if it is removed.

    Parameters
    ----------
    model
        In canonical form, opset 9 or newer.
    places
        Requested gradients.
    losses
        Summed, all heads in one backward pass. One pass per head gives importance per task.
    input_shapes
        Shape of every graph input. The graph is built for these shapes only.
    samples
        Batch size: the length of axis 0 of the inputs, and a divisor of axis 0 of every place.
        Rows belong to single samples as long as the model does not mix samples.
    values
        Activations that become outputs too.

    Raises
    ------
    ModelError
        The opset is too old, or the model has no such head or place.

    Notes
    -----
    Cost: one forward pass, and about the same again for the contractions after the first place;
    no weight gradients. A node without a rule is recorded, and every place that needs it gets no
    output: an output is never part of a gradient.
    """
    if model.opset < MIN_OPSET:
        raise ModelError(
            "opset-unsupported",
            f"gradients need opset {MIN_OPSET} or newer, the model has {model.opset}",
        )
    return _Builder(model, losses, input_shapes, samples, values).build(places)


@dataclass
class _Builder:
    """State of one construction.

    Attributes
    ----------
    model : Model
        Original model; `copy` is the one that is extended.
    losses, input_shapes, samples, values
        As in `gradient_model`.
    partial : dict
        Gradients of each tensor that are still to be summed.
    stopped : dict
        Tensors without a gradient, with the reasons.
    outputs : dict
        Output name of each place.
    """

    model: Model
    losses: Sequence[Loss]
    input_shapes: Mapping[str, Sequence[int]]
    samples: int
    values: Sequence[str] = ()
    partial: dict[str, list[Value]] = field(default_factory=lambda: defaultdict(list))
    stopped: dict[str, Reasons] = field(default_factory=lambda: defaultdict(dict))
    outputs: dict[Place, str] = field(default_factory=dict)

    def build(self, places: Sequence[Place]) -> Gradient:
        """Build the model."""
        self.copy = self.model.edit()
        self.graph = self.copy.proto.graph
        _fix_inputs(self.graph, self.input_shapes, self.copy.weights)
        tensors = self.split_uses(places)
        self.add_outputs()
        # after the copies of uses and outputs were added, which need shapes too
        self.shapes = _complete_shapes(self.copy, infer(self.copy))
        names = {name for node in self.graph.node for name in node.output}
        self.tape = Tape(self.copy.opset, names | set(self.copy.weights))
        feeds = self.start()
        places_of: dict[str, list[Place]] = defaultdict(list)
        for place, tensor in tensors.items():
            places_of[tensor].append(place)
        self.sweep(places_of)
        self.finish(feeds)
        outputs = {place: self.outputs[place] for place in tensors if place in self.outputs}
        sizes = {place: self.size(tensor) for place, tensor in tensors.items()}
        blocked = self.blocked(tensors)
        return Gradient(self.copy.freeze(), outputs, feeds, blocked, self.samples, sizes)

    def split_uses(self, places: Sequence[Place]) -> dict[Place, str]:
        """Return the tensor of each place; a place that names a node gets a copy of its own."""
        nodes = {label(node): node for node in self.graph.node}
        tensors: dict[Place, str] = {}
        copies: dict[tuple[str, int], NodeProto] = {}
        for place in dict.fromkeys(places):
            if not place.node:
                tensors[place] = place.tensor
                continue
            key = (place.node, place.slot)
            if key not in copies:
                inputs: Any = nodes[place.node].input if place.node in nodes else []
                if place.slot >= len(inputs) or inputs[place.slot] != place.tensor:
                    raise ModelError(
                        "place-unknown",
                        f"input {place.slot} of node {place.node!r} is not {place.tensor!r}",
                    )
                name = f"{PREFIX}use/{len(copies)}"
                copies[key] = helper.make_node("Identity", [place.tensor], [name], name=name)
                inputs[place.slot] = name
            tensors[place] = copies[key].output[0]
        # a copy stands just before the node that reads it
        by_output = {node.output[0]: node for node in copies.values()}
        ordered = []
        for node in self.graph.node:
            ordered += [by_output[name] for name in node.input if name in by_output]
            ordered.append(node)
        _replace(self.graph.node, ordered)
        return tensors

    def add_outputs(self) -> None:
        """Add outputs that gradients need and exporters omit."""
        for node in self.graph.node:
            position = EXTRA_OUTPUT.get(node.op_type)
            if position == len(node.output) and node.domain in STANDARD_DOMAINS:
                node.output.append(f"{PREFIX}{node.output[0]}/{position}")

    def value(self, name: str) -> Value | None:
        """Return the tensor as an operand, None if its shape is not known."""
        shape, dtype = self.shapes.shape(name), self.shapes.dtype(name)
        if not name or not dtype or shape is None or not all(isinstance(n, int) for n in shape):
            return None
        return Value(self.tape, name, tuple(int(n) for n in shape if isinstance(n, int)), dtype)

    def size(self, name: str) -> int:
        """Return the number of elements; unknown lengths count as one."""
        return prod(n for n in self.shapes.shape(name) or () if isinstance(n, int))

    def known(self, name: str) -> np.ndarray | None:
        """Return the value of a constant, else None."""
        if name in self.copy.weights:
            return self.copy.weights[name].array()
        return self.shapes.value(name)

    def start(self) -> dict[str, Feed]:
        """Record the gradients of the losses at their heads; return the inputs that they read."""
        feeds = {}
        for loss in self.losses:
            head = self.value(loss.head)
            if head is None:
                raise ModelError(
                    "head-unknown", f"the model has no tensor {loss.head!r} of known shape"
                )
            name = start_tensor(self.copy, loss, self.shapes)
            logits = self.value(name)
            if logits is None:
                raise ModelError(
                    "head-unknown",
                    f"the tensor {name!r}, which computes {loss.head!r}, has no known shape",
                )
            probabilities = head if name != loss.head else None
            grad, feed = seed(loss, self.tape, logits, probabilities)
            score = self.value(loss.weight[0]) if loss.weight else None
            if score is not None:
                grad = weigh(loss, grad, score)
            self.partial[name].append(grad)
            feeds[feed.name] = feed
        return feeds

    def sweep(self, places_of: Mapping[str, Sequence[Place]]) -> None:
        """Visit all nodes between the places and the losses, last first.

        A tensor is reduced as soon as its gradient is complete, while it is still in the
        processor's cache.
        """
        # only gradients of tensors that depend on a place are needed
        after = set(places_of)
        for node in self.graph.node:
            if after.intersection((*node.input, *captured(node))):
                after.update(node.output)
        remaining = dict(places_of)
        for node in reversed(self.graph.node):
            for name in node.output:
                self.reduce(name, remaining.pop(name, ()))
            inputs = [*node.input, *captured(node)]
            # a gradient of zero adds nothing and blocks nothing
            zero = node.op_type in ZERO and node.domain in STANDARD_DOMAINS
            if zero or not after.intersection(inputs):
                continue
            inherited: Reasons = {}
            for name in node.output:
                inherited.update(self.stopped.get(name, {}))
            flows = [self.gradient(name) for name in node.output]
            if not any(flows) and not inherited:
                continue
            # part of a gradient would be worse than none: a blocked output blocks the inputs
            reasons = inherited or self.apply(node, flows, after)
            for name in inputs:
                if reasons and name in after:
                    self.stopped[name].update(reasons)
        # graph inputs have no producer
        for name, places in remaining.items():
            self.reduce(name, places)

    def gradient(self, name: str) -> Value | None:
        """Return the sum of all gradients of a tensor, None if there are none."""
        parts = self.partial.get(name)
        if not parts:
            return None
        first, *rest = parts
        for part in rest:
            first = first + part
        # several consumers may ask for the sum: its nodes are recorded once
        self.partial[name] = [first]
        return first

    def apply(self, node: NodeProto, flows: Sequence[Value | None], after: set[str]) -> Reasons:
        """Add the gradients of a node's inputs; return the reason if there are none."""
        # 0 is an unknown type, which may be a float
        needs = tuple(
            name in after and self.shapes.dtype(name) in (*_FLOATS, 0) for name in node.input
        )
        # bodies capture tensors without listing them as inputs
        if not any(needs) and not captured(node):
            return {}
        rule = TABLE.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
        try:
            if rule is None:
                raise NoGradient("the op has no gradient rule")
            step = BackwardStep(
                node,
                self.tape,
                inputs=tuple(self.value(name) for name in node.input),
                outputs=tuple(self.value(name) for name in node.output),
                grads=tuple(flows),
                needs=needs,
                known=lambda i: self.known(node.input[i]),
            )
            grads = rule(step)
        except NoGradient as problem:
            return {label(node): (node.op_type, str(problem))}
        # rules whose first input alone has a gradient return just that
        for name, need, grad in zip(node.input, needs, grads, strict=False):
            if need and grad is not None:
                self.partial[name].append(grad)
        return {}

    def reduce(self, tensor: str, places: Sequence[Place]) -> None:
        """Record the outputs of all places on one tensor."""
        if not places or self.stopped.get(tensor):
            return
        grad, value = self.gradient(tensor), self.value(tensor)
        # rows are sums over axes, which must be known when the graph is built
        if value is None or value.dtype not in _FLOATS:
            reason = "the activation has no known shape, or is not of a float type"
            self.stopped[tensor][tensor] = "", reason
            return
        for place in places:
            if place.form == MOMENTS:
                self.outputs[place] = self.moments(grad, value, place.axis % len(value.shape)).name
            elif place.form == WHOLE:
                self.outputs[place] = (grad or self.tape.filled(value.shape, 0.0, value.dtype)).name
        by_rows = [place for place in places if place.form == ROWS]
        if not by_rows:
            return
        if not self.has_sample_axis(value, by_rows):
            reason = f"axis 0 of shape {value.shape} is not {self.samples} samples"
            self.stopped[tensor][tensor] = "", f"{reason}; use a batch of 1"
            return
        product = (grad * value).cast(_accumulation_type(value.dtype)) if grad is not None else None
        for place in by_rows:
            self.outputs[place] = self.rows(product, value, place.axis % len(value.shape)).name

    def has_sample_axis(self, value: Value, places: Sequence[Place]) -> bool:
        """Return True if axis 0 holds the samples, possibly merged with another axis."""
        if self.samples == 1:
            return True
        length = value.shape[0] if value.shape else 0
        if not length or length % self.samples:
            return False
        return all(place.axis % len(value.shape) for place in places)

    def rows(self, product: Value | None, value: Value, axis: int) -> Value:
        """Return (samples, channels): the sum of A * dL/dA over all other axes."""
        if product is None:
            return self.tape.filled([self.samples, value.shape[axis]], 0.0, TensorProto.FLOAT)
        if axis == 1 and self.samples == value.shape[0]:
            return product.sum_space()
        # split the samples from axis 0 and sum over the axis that was merged with them
        shape = [1, *value.shape]
        if self.samples > 1:
            shape = [self.samples, value.shape[0] // self.samples, *value.shape[1:]]
        others = [i for i in range(1, len(shape)) if i != axis + 1]
        return product.reshape(shape).reduce("ReduceSum", others, keepdims=False)

    def moments(self, grad: Value | None, value: Value, axis: int) -> Value:
        """Return the sum of g g' over all but one axis."""
        width, dtype = value.shape[axis], _accumulation_type(value.dtype)
        if grad is None:
            return self.tape.filled([width, width], 0.0, dtype)
        order = [axis, *(i for i in range(len(value.shape)) if i != axis)]
        rows = grad.cast(dtype).transpose(order)
        flat = rows.reshape([width, prod(value.shape) // max(width, 1)])
        return flat.matmul(flat.swap_last())

    def finish(self, feeds: Mapping[str, Feed]) -> None:
        """Write recorded nodes, constants, inputs and outputs into the copy."""
        read = {name for node in (*self.graph.node, *self.tape.nodes) for name in node.input}
        for node in self.graph.node:
            extra = node.op_type in EXTRA_OUTPUT and node.output[-1].startswith(PREFIX)
            # indices that nothing reads would cost onnxruntime its fast pool
            if extra and node.output[-1] not in read:
                node.output.pop()
        self.graph.node.extend(self.tape.nodes)
        for name, array in self.tape.constants.items():
            add_weight(self.copy, name, from_array(array))
        self.graph.input.extend(
            helper.make_tensor_value_info(f.name, f.dtype, f.shape) for f in feeds.values()
        )
        names = dict.fromkeys((*self.outputs.values(), *self.values))
        _replace(self.graph.output, [helper.make_empty_tensor_value_info(name) for name in names])
        # they may name tensors that are removed with dead nodes
        del self.graph.value_info[:]
        remove_dead(self.copy)

    def blocked(self, tensors: Mapping[Place, str]) -> tuple[Blocked, ...]:
        """Return the nodes without a gradient, with the places that needed them."""
        places: dict[tuple[str, str, str], list[Place]] = defaultdict(list)
        for place, tensor in tensors.items():
            for node, (op, reason) in self.stopped.get(tensor, {}).items():
                places[node, op, reason].append(place)
        return tuple(Blocked(*key, tuple(group)) for key, group in places.items())


def _fix_inputs(
    graph: GraphProto, shapes: Mapping[str, Sequence[int]], weights: Mapping[str, object]
) -> None:
    """Write the given shapes into the graph's inputs; remove shapes inferred for others."""
    for info in graph.input:
        if info.name in weights:
            continue
        if info.name not in shapes:
            raise UsageError("input-shape-missing", f"no shape is given for input {info.name!r}")
        _replace(info.type.tensor_type.shape.dim, [])
        for length in shapes[info.name]:
            info.type.tensor_type.shape.dim.add().dim_value = int(length)
    del graph.value_info[:]
    for info in graph.output:
        # the declared sizes may be those of other inputs
        info.type.tensor_type.ClearField("shape")


def _complete_shapes(model: ModelView, shapes: Shapes) -> Shapes:
    """Return shapes, completed by a run if inference does not know all of them.

    Inference does not know operators of other domains and sizes computed in unusual ways.
    """
    names = [name for node in model.proto.graph.node for name in node.output if name]
    unknown = [name for name in names if not _is_known(shapes, name)]
    if not unknown:
        return shapes
    try:
        values = Session(model, unknown, optimize=False).run(example_feeds(model, 0))
    except OnnxpruneError:
        # it may fail on random inputs; unknown shapes are reported where they are needed
        return shapes
    types = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
            types[name] = helper.make_tensor_type_proto(dtype, value.shape)
    return Shapes({**shapes.types, **types}, shapes.values)


def _is_known(shapes: Shapes, name: str) -> bool:
    """Return True if a tensor's type and all its lengths are known; a scalar needs no type."""
    shape = shapes.shape(name)
    if shape == ():
        return True
    return bool(shapes.dtype(name) and shape and all(isinstance(n, int) for n in shape))


def _accumulation_type(dtype: int) -> int:
    """Return the type in which products are summed: at least float32."""
    return TensorProto.DOUBLE if dtype == TensorProto.DOUBLE else TensorProto.FLOAT


def _replace(messages: Any, items: Sequence[Any]) -> None:
    """Replace the content of a repeated field; the items may be its present content."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del messages[:]
    messages.extend(copies)
