"""Inference of shapes, types and small constant values for every tensor, in one forward pass.

onnx's own inference handles each node. In addition the small integer tensors that shapes are
computed from are evaluated, so that a chain of Shape, Gather, Concat and Reshape is followed
whatever its arithmetic. A dimension is an int, a symbol (str), or None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod

import numpy as np
from onnx import GraphProto, NodeProto, TypeProto, helper

from onnxprune.errors import ModelError
from onnxprune.ir.contrib import CONTRIB_DOMAIN, DTYPE_SLOTS
from onnxprune.ir.equations import solve, substitute
from onnxprune.ir.model import ModelView
from onnxprune.ir.node_inference import (
    FIRST_INPUT_FALLBACK,
    Versions,
    equal_products,
    evaluate,
    infer_node,
    like_first_input,
    type_from_values,
    value_type,
)
from onnxprune.ir.nodes import nested, subgraphs
from onnxprune.ir.shapes import Shapes, dimension, has_shape
from onnxprune.ir.subgraphs import (
    Binding,
    bindings,
    branch,
    drop_axis,
    merge_types,
    refine_type,
    stack_axis,
    trip_count,
)
from onnxprune.ir.values import LARGEST_VALUE, VALUE_TYPES, Dim

_UNKNOWN = "?"  # first character of the symbol that replaces an unknown length
# (node, what is known) -> shape of each output or None
ShapeFallback = Callable[[NodeProto, Shapes], Sequence[tuple[Dim, ...] | None]]


def infer(
    model: ModelView, fallback: ShapeFallback | None = None, example_length: int | None = None
) -> Shapes:
    """Return the shapes of every tensor of the main graph and of all nested bodies.

    Parameters
    ----------
    model
        Model with names that are unique across all graphs, as `canonicalize` makes them.
    fallback
        Asked for the output shapes of nodes that no other rule infers.
    example_length
        Replaces each length that the shapes of the inputs do not determine; None keeps a symbol.

    Raises
    ------
    ModelError
        A node contradicts its operator's definition.
    """
    run = _Inference(model, fallback, example_length)
    with reject_contradictions():
        run.visit_graph(model.proto.graph)
    return run.known


@contextlib.contextmanager
def reject_contradictions() -> Iterator[None]:
    """Raise ModelError for what attributes and operands of an unexpected kind cause.

    Inference and passes read them without checking each against the operator's definition.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        raise ModelError(
            "model-invalid", f"a node contradicts its operator's definition: {problem}"
        ) from problem


class _Inference:
    """State of one pass; `known` is a view of `types` and `values` while they grow."""

    def __init__(
        self, model: ModelView, fallback: ShapeFallback | None, example_length: int | None
    ) -> None:
        self.fallback = fallback
        self.example_length = example_length
        self.types: dict[str, TypeProto] = {}
        self.values: dict[str, np.ndarray] = {}
        self.assumed: set[str] = set()
        self.equal: dict[str, Dim] = {}
        self.open: set[str] = set()
        self.known = Shapes(self.types, self.values, self.assumed, self.equal, self.open)
        self.depth = 0  # of bodies around the node
        self.versions = Versions(
            model.opset, list(model.proto.opset_import), model.proto.ir_version
        )
        self.declared: dict[str, TypeProto] = {}
        self.unknown_count = 0
        for name, weight in model.weights.items():
            self.types[name] = _weight_type(weight.dtype, tuple(weight.shape))
            # large constants are data, not sizes
            if weight.dtype in VALUE_TYPES and prod(weight.shape) <= LARGEST_VALUE:
                self.values[name] = weight.array()
        for info in model.proto.graph.input:
            # lengths without a name get one, so that what the graph computes of them is followed
            if info.name not in self.types:
                named = info.type if example_length else self.name_unknowns(info.type)
                self.types[info.name] = named

    def visit_graph(self, graph: GraphProto) -> None:
        """Infer the nodes of a graph in order."""
        for info in graph.input:
            self.types.setdefault(info.name, info.type)
        # declared types may be wrong or missing, so they are used only where inference fails
        for info in (*graph.value_info, *graph.output):
            self.declared[info.name] = info.type
        for tensor in graph.initializer:
            if tensor.name not in self.types:
                self.types[tensor.name] = helper.make_tensor_type_proto(
                    tensor.data_type, tensor.dims
                )
        for node in graph.node:
            self.visit_node(node)

    def visit_node(self, node: NodeProto) -> None:
        """Infer the outputs of one node and of its bodies."""
        if subgraphs(node):
            inferred = self.visit_bodies(node)
        else:
            inferred = infer_node(node, self.known, self.versions)
        unsized = set()
        for name in node.output:
            kind = inferred.get(name)
            # by name in any domain: all of these are element-wise or normalize
            first = (node.output[0], *node.output[3:])  # the fourth is a sum
            like_input = node.op_type in FIRST_INPUT_FALLBACK and name in first
            if not _is_ranked(kind) and like_input and node.input:
                kind = like_first_input(node, self.types.get(node.input[0]))
            if name and not _is_ranked(kind):
                kind = self.declared.get(name, kind)
                # declared lengths may be symbols for which the fallback knows numbers
                if not _is_static(kind):
                    unsized.add(name)
            if name and kind is not None:
                self.types[name] = kind
        if node.input and unsized:
            self.open |= unsized
            if self.fallback is not None:
                self.ask_fallback(node, self.fallback, unsized)
        self.use_values(node)
        for name in node.output:
            if name in self.types and self.example_length is None:
                if None in (self.known.shape(name) or ()):
                    self.types[name] = self.name_unknowns(self.types[name])
            elif name in self.types:
                self.types[name] = self.assume_lengths(name, self.types[name])
        # a body may never run, so that nothing follows from it
        if not self.depth:
            for a, b in equal_products(node, self.known):
                self.learn(a, b)

    def learn(self, a: Sequence[Dim], b: Sequence[Dim]) -> None:
        """Keep what two lists of lengths with equal products say of dynamic lengths."""
        values = solve(substitute(a, self.equal), substitute(b, self.equal))
        if values:
            for symbol, value in self.equal.items():
                self.equal[symbol] = substitute([value], values)[0]
            self.equal |= values

    def ask_fallback(
        self, node: NodeProto, fallback: ShapeFallback, unsized: Collection[str]
    ) -> None:
        """Take missing lengths from the fallback, and missing element types from an input."""
        slot = DTYPE_SLOTS.get(node.op_type, 0) if node.domain == CONTRIB_DOMAIN else 0
        source = node.input[slot] if slot < len(node.input) else node.input[0]
        for name, dims in zip(node.output, fallback(node, self.known), strict=False):
            if name not in unsized or dims is None:
                continue
            dtype = self.known.dtype(name) or self.known.dtype(source)
            declared = self.known.shape(name)
            # another rank: one of the two is wrong, and the declared one is kept
            if declared is not None and len(declared) != len(dims):
                continue
            if declared is not None:
                pairs = zip(dims, declared, strict=True)
                dims = tuple(d if isinstance(d, int) else known for d, known in pairs)
            self.types[name] = helper.make_tensor_type_proto(dtype, dims)

    def use_values(self, node: NodeProto) -> None:
        """Evaluate the node if it computes a shape, and refine its type by known values."""
        value = evaluate(node, self.known)
        if value is not None:
            self.values[node.output[0]] = value
            kind = value_type(value, self.types.get(node.output[0]))
            if kind is not None:
                self.types[node.output[0]] = kind
        kind = type_from_values(node, self.known)
        if kind is not None:
            self.types[node.output[0]] = kind

    def name_unknowns(self, kind: TypeProto) -> TypeProto:
        """Name each unknown dimension, so that lengths computed from it can be compared."""
        if not has_shape(kind) or all(dimension(d) is not None for d in kind.tensor_type.shape.dim):
            return kind
        copy = TypeProto()
        copy.CopyFrom(kind)
        for d in copy.tensor_type.shape.dim:
            if dimension(d) is None:
                self.unknown_count += 1
                d.dim_param = f"{_UNKNOWN}{self.unknown_count}"
        return copy

    def assume_lengths(self, name: str, kind: TypeProto) -> TypeProto:
        """Replace each length that is no number by the example length."""
        if not has_shape(kind) or all(d.HasField("dim_value") for d in kind.tensor_type.shape.dim):
            return kind
        copy = TypeProto()
        copy.CopyFrom(kind)
        for d in copy.tensor_type.shape.dim:
            if not d.HasField("dim_value"):
                d.dim_value = self.example_length or 1
        self.assumed.add(name)
        return copy

    def visit_bodies(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Infer the bodies of a node and return the types of its outputs.

        The types of loop states are widened until an iteration changes none of them.
        """
        graphs, crossing = subgraphs(node), bindings(node, self.versions.opset) or []
        declared = {i.name: i.type for g in graphs for i in g.input}
        # collected first, because the assignments below may change the types of operands
        operands = {
            b.inside: (b.axis, self.types.get(node.input[b.slot]))
            for b in crossing
            if b.inside and node.input[b.slot]
        }
        for name, (axis, kind) in operands.items():
            if kind is not None and axis is not None:
                kind = drop_axis(kind, axis)
            # the declared type fills in what the operand leaves open
            self.types[name] = declared[name] if kind is None else refine_type(kind, declared[name])
        while True:
            self.depth += 1
            for graph in graphs:
                self.visit_graph(graph)
            self.depth -= 1
            wider = self.widen_states(crossing)
            if not wider:
                return self.output_types(node, crossing)
            # repeat with the wider states, and forget what the last iteration inferred
            kept = {name: self.types[name] for name in operands}
            for name in _list_names_inside(graphs):
                self.types.pop(name, None)
                # values of an earlier iteration would pass for constants
                self.values.pop(name, None)
            self.types.update(kept | wider)

    def widen_states(self, crossing: Sequence[Binding]) -> dict[str, TypeProto]:
        """Return the new types of the states that the last iteration changed."""
        wider = {}
        for binding in crossing:
            if binding.inside not in self.types or not binding.yields:
                continue
            before = self.types[binding.inside]
            # lengths that differ between iterations become unknown, so this ends
            after = merge_types([before, self.types.get(binding.yields)])
            if after is not None and after != before:
                wider[binding.inside] = after
        return wider

    def output_types(self, node: NodeProto, crossing: Sequence[Binding]) -> Mapping[str, TypeProto]:
        """Return the types of a node's outputs by what its bodies yield."""
        condition = self.values.get(node.input[0]) if node.op_type == "If" and node.input else None
        if crossing and condition is not None and condition.dtype != object and condition.size == 1:
            # only the chosen branch counts, and its constants become those of the node
            names = {o.name for o in branch(node, condition.item()).output}
            crossing = [b for b in crossing if b.yields in names]
            for binding in crossing:
                if binding.result and binding.yields in self.values:
                    self.values[binding.result] = self.values[binding.yields]
        length = None
        if any(b.axis is not None for b in crossing):
            length = trip_count(node, crossing, self.types, self.values)
        yielded: dict[str, list[TypeProto | None]] = {}
        for binding in crossing:
            if binding.result:
                kind = self.types.get(binding.inside or binding.yields)
                if kind is not None and binding.axis is not None:
                    kind = stack_axis(kind, binding.axis, length)
                yielded.setdefault(binding.result, []).append(kind)
        types = {}
        for name, kinds in yielded.items():
            declared, merged = self.declared.get(name), merge_types(kinds)
            kind = declared if merged is None else refine_type(merged, declared)
            if kind is not None:
                types[name] = kind
        return types


@lru_cache(4096)
def _weight_type(dtype: int, shape: tuple[int, ...]) -> TypeProto:
    """Return a type that is shared by the weights of a shape; types do not change in place."""
    return helper.make_tensor_type_proto(dtype, shape)


def _is_ranked(kind: TypeProto | None) -> bool:
    return kind is not None and has_shape(kind)


def _is_static(kind: TypeProto | None) -> bool:
    """Return whether all lengths of a type are numbers."""
    if kind is None or not has_shape(kind):
        return False
    return all(d.HasField("dim_value") for d in kind.tensor_type.shape.dim)


def _list_names_inside(graphs: Sequence[GraphProto]) -> list[str]:
    """Return the names of all tensors that graphs and their bodies define."""
    names: list[str] = []
    for graph in graphs:
        for inner in nested(graph):
            names += [i.name for i in inner.input]
            for node in inner.node:
                names += node.output
    return names
