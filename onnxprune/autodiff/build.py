"""A copy of the model with a backward graph: activation gradients as ONNX nodes, reduced to channels inside of the graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxprune.autodiff.losses import Feed, Loss, seed, start_tensor
from onnxprune.autodiff.rules import EXTRA_OUTPUT, TABLE, ZERO
from onnxprune.autodiff.step import NoGradient, Step
from onnxprune.autodiff.tape import PREFIX, Tape, Value
from onnxprune.errors import ModelError, OnnxpruneError, UsageError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS, captured, label
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array

ROWS, MOMENTS, WHOLE = "rows", "moments", "whole"
OLDEST_OPSET = 9  # Where, Expand and Scatter are all there
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Place:
    """An activation and its channel axis.

    node, slot: as that node reads it at that input; with node "" the tensor with all its uses. form: what is wanted of the gradient there, ROWS a sample
    and channel, MOMENTS (channels, channels), its products of two channels summed over samples and positions, or WHOLE, as it is.
    """

    tensor: str
    axis: int
    node: str = ""
    slot: int = 0
    form: str = ROWS


@dataclass(frozen=True)
class Blocked:
    """A node that no gradient passes, and the places that would have needed it. op "" = a place that cannot be reduced to samples and channels."""

    node: str
    op: str
    reason: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Gradient:
    """model: the graph to run; outputs: the output's name of each place, in its form; feeds: inputs that the losses add;
    blocked: what has no gradient; samples: rows of an output; sizes: elements of each place's tensor.
    """

    model: Model
    outputs: Mapping[Place, str]
    feeds: Mapping[str, Feed]
    blocked: tuple[Blocked, ...]
    samples: int
    sizes: Mapping[Place, int] = field(default_factory=dict)


def gradient_model(
    model: Model,
    places: Sequence[Place],
    losses: Sequence[Loss],
    input_shapes: Mapping[str, Sequence[int]],
    samples: int,
    values: Sequence[str] = (),
) -> Gradient:
    """The model with mask gradients as outputs.

    For a place (activation A, channel axis k) in its plain form the output is, a sample n and channel c, the sum over all other axes of A * dL_n/dA: the derivative of
    the loss by a factor on that channel, and minus the first-order change when it is removed. A place that names a node means the activation as that
    node reads it; without one it means the tensor with all its uses.

    Parameters
    ----------
    model
        In canonical form, opset 9 or newer.
    losses
        Summed; all heads in one backward pass. One pass a head gives importance by task.
    input_shapes
        Of every graph input. The graph is built for these shapes alone.
    samples
        Batch size: the length of axis 0 of the inputs, and a divisor of axis 0 of every place. Rows are a sample's own as long as the
        model does not mix samples.
    values
        Activations that are outputs too, as they are.

    Raises
    ------
    ModelError
        Opset too old, or a head or place that the model does not have.

    Notes
    -----
    Cost: one forward pass, and about as much again for the contractions after the first place; no weight gradients. A node without a rule is
    recorded, and everything before it that needs it is left out of the outputs: no output is ever a part of a gradient.
    """
    if model.opset < OLDEST_OPSET:
        raise ModelError(
            "opset-unsupported",
            f"gradients need opset {OLDEST_OPSET} or newer, the model has {model.opset}",
        )
    return _Builder(model, losses, input_shapes, samples, values).build(places)


@dataclass
class _Builder:
    """State of one build. copy: the model that is extended; partial: gradients by tensor, to be summed; stopped: why a tensor has none."""

    model: Model
    losses: Sequence[Loss]
    input_shapes: Mapping[str, Sequence[int]]
    samples: int
    values: Sequence[str] = ()
    partial: dict[str, list[Value]] = field(default_factory=lambda: defaultdict(list))
    stopped: dict[str, dict[str, tuple[str, str]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    outputs: dict[Place, str] = field(default_factory=dict)

    def build(self, places: Sequence[Place]) -> Gradient:
        self.copy = self.model.edit()
        self.graph = self.copy.proto.graph
        _fix_inputs(self.graph, self.input_shapes, self.copy.weights)
        tensors = self.split_uses(places)
        self.add_outputs()
        self.shapes = _complete(self.copy, infer(self.copy))
        self.tape = Tape(
            self.copy.opset,
            {name for node in self.graph.node for name in node.output} | set(self.copy.weights),
        )
        feeds = self.start()
        wanted: dict[str, list[Place]] = defaultdict(list)
        for place, tensor in tensors.items():
            wanted[tensor].append(place)
        self.sweep(wanted)
        self.finish(feeds)
        outputs = {place: self.outputs[place] for place in tensors if place in self.outputs}
        sizes = {
            place: prod(n for n in self.shapes.shape(tensor) or () if isinstance(n, int))
            for place, tensor in tensors.items()
        }
        return Gradient(
            self.copy.freeze(), outputs, feeds, self.blocked(tensors), self.samples, sizes
        )

    def split_uses(self, places: Sequence[Place]) -> dict[Place, str]:
        """The tensor of each place, in its own copy where one node's use is meant."""
        nodes = {label(node): node for node in self.graph.node}
        tensors: dict[Place, str] = {}
        made: dict[tuple[str, int], NodeProto] = {}
        for place in dict.fromkeys(places):
            if not place.node:
                tensors[place] = place.tensor
                continue
            key, reader = (place.node, place.slot), nodes.get(place.node)
            if key not in made:
                if (
                    reader is None
                    or place.slot >= len(reader.input)
                    or reader.input[place.slot] != place.tensor
                ):
                    raise ModelError(
                        "place-unknown",
                        f"input {place.slot} of node {place.node!r} is not {place.tensor!r}",
                    )
                name = f"{PREFIX}use/{len(made)}"
                made[key] = helper.make_node("Identity", [place.tensor], [name], name=name)
                reader.input[place.slot] = name
            tensors[place] = made[key].output[0]
        copies = {node.output[0]: node for node in made.values()}
        ordered = []
        for node in self.graph.node:
            ordered += [copies[name] for name in node.input if name in copies]
            ordered.append(node)
        _replace(self.graph.node, ordered)
        return tensors

    def add_outputs(self) -> None:
        for node in self.graph.node:
            place = EXTRA_OUTPUT.get(node.op_type)
            if place is not None and len(node.output) == place and node.domain in STANDARD_DOMAINS:
                node.output.append(f"{PREFIX}{node.output[0]}/{place}")

    def value(self, name: str) -> Value | None:
        """The tensor as an operand; None where its shape is not known."""
        shape, dtype = self.shapes.shape(name), self.shapes.dtype(name)
        if not name or not dtype or shape is None or not all(isinstance(n, int) for n in shape):
            return None
        return Value(self.tape, name, tuple(int(n) for n in shape if isinstance(n, int)), dtype)

    def known(self, name: str) -> np.ndarray | None:
        if name in self.copy.weights:
            return self.copy.weights[name].array()
        return self.shapes.value(name)

    def start(self) -> dict[str, Feed]:
        feeds = {}
        for loss in self.losses:
            head = self.value(loss.head)
            if head is None:
                raise ModelError(
                    "head-unknown", f"the model has no tensor {loss.head!r} of known shape"
                )
            begin = start_tensor(self.copy, loss, self.shapes)
            start = self.value(begin)
            if start is None:
                raise ModelError(
                    "head-unknown", f"the tensor {begin!r} behind {loss.head!r} has no known shape"
                )
            grad, feed = seed(loss, self.tape, start, head if begin != loss.head else None)
            self.partial[begin].append(grad)
            feeds[feed.name] = feed
        return feeds

    def sweep(self, wanted: Mapping[str, Sequence[Place]]) -> None:
        """All nodes between the wanted tensors and the losses, last first. A wanted tensor is reduced as soon as its gradient is whole,
        while it is still in the processor's cache.
        """
        after = set(wanted)
        for node in self.graph.node:
            if after.intersection((*node.input, *captured(node))):
                after.update(node.output)
        left = dict(wanted)
        for node in reversed(self.graph.node):
            for name in node.output:
                self.reduce(name, left.pop(name, ()))
            inputs = [*node.input, *captured(node)]
            if not after.intersection(inputs) or (
                node.op_type in ZERO and node.domain in STANDARD_DOMAINS
            ):
                continue
            inherited = {
                key: why for name in node.output for key, why in self.stopped.get(name, {}).items()
            }
            flows = [self.gradient(name) for name in node.output]
            if not any(flows) and not inherited:
                continue
            reasons = inherited or self.apply(node, flows, after)
            for name in inputs:
                if reasons and name in after:
                    self.stopped[name].update(reasons)
        for name, places in left.items():
            self.reduce(name, places)

    def gradient(self, name: str) -> Value | None:
        """The sum of what has come back to a tensor."""
        parts = self.partial.get(name)
        if not parts:
            return None
        first, *rest = parts
        for part in rest:
            first = first + part
        self.partial[name] = [first]
        return first

    def apply(
        self, node: NodeProto, flows: Sequence[Value | None], after: set[str]
    ) -> dict[str, tuple[str, str]]:
        """Add the gradients of a node's inputs; why not, where there is no way."""
        needs = tuple(
            name in after and self.shapes.dtype(name) in (*_FLOATS, 0) for name in node.input
        )
        if not any(needs) and not captured(node):
            return {}
        rule = TABLE.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
        try:
            if rule is None:
                raise NoGradient("the op has no gradient rule")
            inputs = tuple(self.value(name) for name in node.input)
            outputs = tuple(self.value(name) for name in node.output)
            step = Step(
                node,
                self.tape,
                inputs,
                outputs,
                tuple(flows),
                needs,
                lambda i: self.known(node.input[i]),
            )
            grads = rule(step)
        except NoGradient as problem:
            return {label(node): (node.op_type, str(problem))}
        for name, need, grad in zip(node.input, needs, grads, strict=False):
            if need and grad is not None:
                self.partial[name].append(grad)
        return {}

    def reduce(self, tensor: str, places: Sequence[Place]) -> None:
        """Nodes that sum A * dL/dA over all but samples and channels, for places on one tensor."""
        if not places or self.stopped.get(tensor):
            return
        grad, value = self.gradient(tensor), self.value(tensor)
        if value is None or value.dtype not in _FLOATS:
            self.stopped[tensor][tensor] = (
                "",
                "the activation has no known shape, or is not of a float type",
            )
            return
        for place in places:
            if place.form == MOMENTS:
                self.outputs[place] = self.moments(grad, value, place.axis % len(value.shape)).name
            elif place.form == WHOLE:
                self.outputs[place] = (grad or self.tape.filled(value.shape, 0.0, value.dtype)).name
        if not (places := [p for p in places if p.form == ROWS]):
            return
        lead = value.shape[0] // self.samples if value.shape else 0
        if self.samples > 1 and (
            not lead
            or lead * self.samples != value.shape[0]
            or any(p.axis % len(value.shape) == 0 for p in places)
        ):
            self.stopped[tensor][tensor] = (
                "",
                f"axis 0 of shape {value.shape} is not {self.samples} samples; use a batch of 1",
            )
            return
        product = (grad * value).cast(_wide(value.dtype)) if grad is not None else None
        for place in places:
            axis = place.axis % len(value.shape)
            if product is None:
                rows = self.tape.filled([self.samples, value.shape[axis]], 0.0, TensorProto.FLOAT)
            elif axis == 1 and self.samples == value.shape[0]:
                rows = product.sum_space()
            else:  # the sample axis stands apart; what was merged behind it is summed
                shape = (
                    [self.samples, lead, *value.shape[1:]]
                    if self.samples > 1
                    else [1, *value.shape]
                )
                rows = product.reshape(shape).reduce(
                    "ReduceSum", [i for i in range(1, len(shape)) if i != axis + 1], keepdims=False
                )
            self.outputs[place] = rows.name

    def moments(self, grad: Value | None, value: Value, axis: int) -> Value:
        """Sum of g g' over all but one axis."""
        width, dtype = value.shape[axis], _wide(value.dtype)
        if grad is None:
            return self.tape.filled([width, width], 0.0, dtype)
        order = [axis, *(i for i in range(len(value.shape)) if i != axis)]
        flat = (
            grad.cast(dtype).transpose(order).reshape([width, prod(value.shape) // max(width, 1)])
        )
        return flat.matmul(flat.swap_last())

    def finish(self, feeds: Mapping[str, Feed]) -> None:
        read = {name for node in (*self.graph.node, *self.tape.nodes) for name in node.input}
        for node in self.graph.node:
            if (
                node.op_type in EXTRA_OUTPUT
                and node.output[-1].startswith(PREFIX)
                and node.output[-1] not in read
            ):
                node.output.pop()  # indices cost onnxruntime its fast pool
        self.graph.node.extend(self.tape.nodes)
        for name, array in self.tape.constants.items():
            weight = from_array(array)
            self.copy.weights[name] = weight
            self.graph.initializer.append(
                TensorProto(name=name, data_type=weight.dtype, dims=weight.shape)
            )
        self.graph.input.extend(
            helper.make_tensor_value_info(f.name, f.dtype, f.shape) for f in feeds.values()
        )
        _replace(
            self.graph.output,
            [
                helper.make_empty_tensor_value_info(name)
                for name in dict.fromkeys((*self.outputs.values(), *self.values))
            ],
        )
        del self.graph.value_info[:]
        remove_dead(self.copy)

    def blocked(self, tensors: Mapping[Place, str]) -> tuple[Blocked, ...]:
        found: dict[tuple[str, str, str], list[Place]] = defaultdict(list)
        for place, tensor in tensors.items():
            for node, (op, reason) in self.stopped.get(tensor, {}).items():
                found[node, op, reason].append(place)
        return tuple(Blocked(*key, tuple(held)) for key, held in found.items())


def _fix_inputs(
    graph: GraphProto, shapes: Mapping[str, Sequence[int]], weights: Mapping[str, object]
) -> None:
    """Write the given shapes into the graph's inputs; what was inferred for others goes."""
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
        info.type.tensor_type.ClearField("shape")


def _complete(model: ModelView, shapes: Shapes) -> Shapes:
    """Shapes with those that inference does not know taken from a run: ops of other domains, sizes that are computed in unusual ways."""
    made = [name for node in model.proto.graph.node for name in node.output if name]
    unknown = [
        n
        for n in made
        if not shapes.dtype(n) or not all(isinstance(d, int) for d in shapes.shape(n) or (None,))
    ]
    unknown = [n for n in unknown if shapes.shape(n) != ()]
    if not unknown:
        return shapes
    try:
        found = Session(model, unknown, optimize=False).run(example_feeds(model, 0))
    except (
        OnnxpruneError
    ):  # it may not run on random inputs; what stays unknown is reported where it is needed
        return shapes
    arrays = {n: v for n, v in found.items() if isinstance(v, np.ndarray)}
    types = {
        n: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in arrays.items()
    }
    return Shapes({**shapes.types, **types}, shapes.values)


def _wide(dtype: int) -> int:
    return TensorProto.DOUBLE if dtype == TensorProto.DOUBLE else TensorProto.FLOAT


def _replace(messages: Any, items: Sequence[Any]) -> None:
    """Fill a repeated field anew; the items may have been in it."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del messages[:]
    messages.extend(copies)
