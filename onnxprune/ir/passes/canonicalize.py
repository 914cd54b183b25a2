"""One form for what exporters write in many: functions inlined, constants as initializers, known shape arithmetic folded.

Only what is known whatever the inputs are is folded, so nothing dynamic becomes static. Each step is Model -> Model on a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnxprune.errors import ModelError
from onnxprune.ir.edit import add_initializer, add_weight, free_name, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.limits import check_functions, check_sizes
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, captured, label, nested, subgraphs
from onnxprune.ir.passes.fold_weight_standardization import standardize
from onnxprune.ir.passes.slice_assign import assign
from onnxprune.ir.passes.split_fused_qkv import unfuse
from onnxprune.ir.shapes import Shapes, infer
from onnxprune.ir.subgraphs import branch
from onnxprune.ir.weights import Scattered, Weight, from_array, from_proto

OLDEST_OPSET = 7
DENSE_BYTES = 1 << 28  # a sparse initializer of more stays as it is, and what it touches is frozen


def canonicalize(model: Model) -> Model:
    """The model in canonical form; equal outputs for equal inputs.

    Raises
    ------
    ModelError
        Opset below 7, a name that nothing makes, a name made twice, or a graph that is not in topological order.
    """
    if model.opset < OLDEST_OPSET:
        raise ModelError(
            "opset-unsupported",
            f"opset {model.opset} is older than {OLDEST_OPSET}; convert with onnx.version_converter",
        )
    model = _inline(model.edit())
    try:
        _unique_names(model.proto.graph)
        _constants(model)
        _body_outputs(model.proto.graph)
        _check(model)
        _drop_identities(model)
        shapes = infer(model)
        check_sizes(shapes)
        if _decided(model.proto.graph, shapes):
            _drop_identities(model)
        fold(model, shapes)
        standardize(model, shapes)
        if assign(model, shapes):
            _drop_identities(model)
        shapes = infer(model)
        _shuffles(model, shapes)
        if unfuse(model, shapes):
            _drop_identities(model)
    except RecursionError:
        raise ModelError("model-invalid", "graphs are nested too deep") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        raise ModelError(
            "model-invalid", f"a node is not used as its definition says: {problem}"
        ) from problem
    remove_dead(model)
    return model


def _inline(model: Model) -> Model:
    """Local functions expanded."""
    if not model.proto.functions:
        return model
    check_functions(model.proto)
    try:
        from onnx import inliner

        proto = ModelProto()
        proto.CopyFrom(inliner.inline_local_functions(model.proto))
    except Exception as problem:  # onnx's C++ errors have no common type
        raise ModelError(
            "model-invalid", f"local functions cannot be inlined: {str(problem).splitlines()[0]}"
        ) from problem
    return Model(proto, dict(model.weights), model.path)


def _unique_names(graph: GraphProto) -> None:
    """Give tensors of sibling bodies names of their own, so that one name means one tensor in the whole model."""
    taken: set[str] = set()
    for inner in nested(graph):
        made = [
            i.name
            for i in (
                *inner.input,
                *inner.initializer,
                *(s.values for s in inner.sparse_initializer),
            )
        ] + [o for n in inner.node for o in n.output]
        rename: dict[str, str] = {}
        if inner is not graph:
            for name in filter(None, made):
                if name in taken:
                    rename[name] = free_name(name, taken | set(made))
                    taken.add(rename[name])
            if rename:
                _rename(inner, rename)
        taken |= set(made)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a body, inner bodies included."""
    for inner in nested(graph):
        for item in (
            *inner.input,
            *inner.output,
            *inner.initializer,
            *(s.values for s in inner.sparse_initializer),
            *inner.value_info,
        ):
            item.name = names.get(item.name, item.name)
        for node in inner.node:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]


def _constants(model: Model) -> None:
    """Constant nodes, the initializers of bodies and sparse ones become plain initializers of the main graph."""
    weights: dict[str, Weight] = dict(model.weights)
    for graph in nested(model.proto.graph):
        kept = []
        for node in graph.node:
            value = _constant(node)
            if value is None:
                kept.append(node)
            else:
                add_weight(model.proto.graph, weights, node.output[0], value)
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)
        if graph is not model.proto.graph:
            for tensor in graph.initializer:
                add_weight(model.proto.graph, weights, tensor.name, from_proto(tensor))
            del graph.initializer[:]
        for i, sparse in reversed(list(enumerate(graph.sparse_initializer))):
            value = _dense(sparse)
            if value is not None:
                add_weight(model.proto.graph, weights, sparse.values.name, value)
                del graph.sparse_initializer[i]
    object.__setattr__(model, "weights", weights)


def _constant(node: NodeProto) -> Weight | None:
    """Value of a Constant node; None for other nodes, for strings, and for large sparse values."""
    if (
        node.op_type != "Constant"
        or node.domain not in STANDARD_DOMAINS
        or len(node.attribute) != 1
    ):
        return None
    name, value = node.attribute[0].name, helper.get_attribute_value(node.attribute[0])
    if name == "sparse_value":
        return _dense(value)
    if name == "value" and value.data_type != TensorProto.STRING:
        return from_proto(value)
    dtypes = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    return from_array(np.array(value, dtypes[name])) if name in dtypes else None


def _body_outputs(graph: GraphProto) -> None:
    """What a body returns is made inside of it: onnxruntime refuses bodies that return an outer tensor."""
    _, *bodies = graphs = list(nested(graph))
    taken = (
        {
            n
            for g in graphs
            for n in (
                *(i.name for i in (*g.input, *g.initializer)),
                *(o for node in g.node for o in node.output),
            )
        }
        if bodies
        else set()
    )
    for body in bodies:
        made = {i.name for i in body.input} | {o for n in body.node for o in n.output}
        for output in body.output:
            if output.name not in made:
                name = free_name(output.name, taken)
                taken.add(name)
                body.node.append(helper.make_node("Identity", [output.name], [name], name=name))
                output.name = name


def _decided(graph: GraphProto, shapes: Shapes) -> bool:
    """The nodes of the branch that is always taken in the place of its If; whether there was one."""
    nodes: list[NodeProto] = []
    inside = False
    for node in graph.node:
        for body in subgraphs(node):
            inside |= _decided(body, shapes)
        condition = (
            shapes.value(node.input[0])
            if node.op_type == "If" and node.domain in STANDARD_DOMAINS and node.input
            else None
        )
        taken = (
            branch(node, condition.item())
            if condition is not None and condition.size == 1
            else None
        )
        if taken is None or len(taken.output) != len(node.output):
            nodes.append(node)
            continue
        graph.value_info.extend(taken.value_info)
        graph.sparse_initializer.extend(taken.sparse_initializer)
        nodes += [
            *taken.node,
            *(
                helper.make_node("Identity", [o.name], [name])
                for o, name in zip(taken.output, node.output, strict=False)
                if name
            ),
        ]
    here = len(nodes) != len(graph.node) or any(
        a is not b for a, b in zip(nodes, graph.node, strict=False)
    )
    if here:
        replace_nodes(graph, nodes)
    return here or inside


def _check(model: Model) -> None:
    """Every name is made once, before it is used; nodes have the operands that their definition asks for."""
    least: dict[tuple[str, str], tuple[int, int]] = {}

    def count(node: NodeProto) -> None:
        key = (node.domain, node.op_type)
        if key not in least:
            known = node.domain in STANDARD_DOMAINS and onnx.defs.has(node.op_type, model.opset)
            schema = onnx.defs.get_schema(node.op_type, model.opset) if known else None
            least[key] = (schema.min_input, schema.min_output) if schema is not None else (0, 0)
        inputs, outputs = least[key]
        if len(node.input) < inputs or len(node.output) < outputs:
            given = f"{len(node.input)} inputs and {len(node.output)} outputs"
            raise ModelError(
                "model-invalid",
                f"node {label(node)!r} has {given}; {node.op_type} needs {inputs} and {outputs}",
            )

    def visit(graph: GraphProto, outer: set[str]) -> None:
        known = (
            outer
            | {i.name for i in graph.input}
            | {i.name for i in graph.initializer}
            | {i.values.name for i in graph.sparse_initializer}
        )
        for node in graph.node:
            count(node)
            for name in node.input:
                if name and name not in known:
                    raise ModelError(
                        "model-invalid",
                        f"node {node.name or node.op_type!r} reads {name!r}, which nothing before it makes",
                    )
            for body in subgraphs(node):
                visit(body, known)
            for name in node.output:
                if name and name in known:
                    raise ModelError("model-invalid", f"tensor {name!r} is made twice")
                known.add(name)
        for output in graph.output:
            if output.name not in known:
                raise ModelError(
                    "model-invalid", f"graph output {output.name!r} is made by no node"
                )

    visit(model.proto.graph, {""})


def _drop_identities(model: Model) -> None:
    """Identity and inference Dropout of tensors that are no graph outputs are passed by."""
    for graph in nested(model.proto.graph):
        outputs = {o.name for o in graph.output}
        rename: dict[str, str] = {}
        kept = []
        for node in graph.node:
            inputs = [rename.get(n, n) for n in node.input]
            if inputs != list(node.input):
                node.input[:] = inputs
            if (
                _is_identity(node)
                and node.output[0] not in outputs
                and not any(o for o in node.output[1:])
            ):
                rename[node.output[0]] = node.input[0]
            else:
                kept.append(node)
                for body in subgraphs(node) if rename else ():
                    _rename(body, rename)
        if rename:
            replace_nodes(graph, kept)


def _is_identity(node: NodeProto) -> bool:
    return node.domain in STANDARD_DOMAINS and node.op_type == "Identity"


def fold(model: Model, shapes: Shapes) -> None:
    """Replace nodes by their values where those are known whatever the inputs are."""
    for graph in nested(model.proto.graph):
        outputs = {o.name for o in graph.output}
        kept = []
        for node in graph.node:
            value = shapes.value(node.output[0]) if len(node.output) == 1 else None
            if value is None or node.output[0] in outputs:
                kept.append(node)
                continue
            dtype = shapes.dtype(node.output[0])
            if dtype and helper.np_dtype_to_tensor_dtype(value.dtype) != dtype:
                value = value.astype(helper.tensor_dtype_to_np_dtype(dtype))
            add_weight(model.proto.graph, model.weights, node.output[0], from_array(value))  # type: ignore[arg-type]
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)


def _dense(sparse: SparseTensorProto) -> Weight | None:
    """A sparse tensor as a plain one; None where it is larger than DENSE_BYTES or lies elsewhere. Indices are places in the flat tensor, or a row each."""
    if TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        return None
    values, places, size = (
        numpy_helper.to_array(sparse.values),
        numpy_helper.to_array(sparse.indices),
        prod(sparse.dims),
    )
    if size * values.itemsize > DENSE_BYTES:
        return None
    flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), tuple(sparse.dims))
    if len(flat) != len(values) or len(flat) and not 0 <= flat.min() <= flat.max() < size:
        raise ValueError(
            f"sparse tensor {sparse.values.name!r} of shape {tuple(sparse.dims)} has values at other places"
        )
    return Scattered(sparse.values.data_type, tuple(sparse.dims), values, flat)


def remove_dead(model: Model) -> None:
    """Nodes whose outputs nothing reads, and initializers that nothing reads, go."""
    for graph in nested(model.proto.graph):
        wanted = {o.name for o in graph.output}
        kept = []
        for node in reversed(graph.node):
            if wanted.isdisjoint(node.output) and not _has_effect(node):
                continue
            kept.append(node)
            wanted |= set(node.input) | captured(node)
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept[::-1])
    used = {o.name for g in nested(model.proto.graph) for o in g.output} | {
        n for g in nested(model.proto.graph) for node in g.node for n in node.input
    }
    initializers = [i for i in model.proto.graph.initializer if i.name in used]
    gone = {i.name for i in model.proto.graph.initializer} - used
    if gone:
        del model.proto.graph.initializer[:]
        model.proto.graph.initializer.extend(initializers)
        inputs = [i for i in model.proto.graph.input if i.name not in gone]
        del model.proto.graph.input[:]
        model.proto.graph.input.extend(inputs)
        object.__setattr__(
            model, "weights", {n: w for n, w in model.weights.items() if n not in gone}
        )


def _has_effect(node: NodeProto) -> bool:
    """A node without outputs is there for something."""
    return not any(node.output)


# ---------------------------------------------------------------- channel shuffle


def _shuffles(model: Model, shapes: Shapes) -> None:
    """Reshape (c) -> (g, c/g), Transpose, Reshape -> (c) is a permutation of one axis: written as Gather, any channel can go."""
    graph = model.proto.graph
    readers = Counter(n for g in nested(graph) for node in g.node for n in node.input) + Counter(
        o.name for o in graph.output
    )
    makers = {o: node for node in graph.node for o in node.output}
    for last in graph.node:
        chain = _chain(last, makers, readers)
        if chain is None:
            continue
        first, middle = chain
        found = _permutation(
            shapes.shape(first.input[0]),
            shapes.shape(first.output[0]),
            attribute(middle, "perm"),
            shapes.shape(last.output[0]),
        )
        if found is None:
            continue
        axis, order = found
        axis -= len(
            shapes.shape(first.input[0]) or ()
        )  # from the end: OpenVINO (2026.4) applies the inverse of a Gather on axis 1 before a Conv
        source, index = first.input[0], add_initializer(model, last.output[0] + "_order", order)
        gather = helper.make_node(
            "Gather",
            [source, index],
            list(last.output),
            name=last.name,
            axis=axis,
            doc_string=last.doc_string,
        )
        last.CopyFrom(gather)


def _chain(
    last: NodeProto, makers: Mapping[str, NodeProto], readers: Counter[str]
) -> tuple[NodeProto, NodeProto] | None:
    """(first Reshape, Transpose) in front of a Reshape, where nothing else reads what is between."""
    if last.op_type != "Reshape" or last.domain not in STANDARD_DOMAINS:
        return None
    middle = makers.get(last.input[0])
    first = (
        makers.get(middle.input[0])
        if middle is not None and middle.op_type == "Transpose"
        else None
    )
    if (
        middle is None
        or first is None
        or first.op_type != "Reshape"
        or readers[middle.output[0]] != 1
        or readers[first.output[0]] != 1
    ):
        return None
    return first, middle


def _permutation(
    before: tuple | None, inside: tuple | None, perm: list[int] | None, after: tuple | None
) -> tuple[int, np.ndarray] | None:
    """(axis, order) where splitting one axis, swapping the parts and merging them permutes that axis alone."""
    if (
        before is None
        or inside is None
        or perm is None
        or after is None
        or len(inside) != len(before) + 1
        or before != after
    ):
        return None
    moved = [i for i, p in enumerate(perm) if p != i]
    if len(moved) != 2 or moved[1] != moved[0] + 1 or None in before:
        return None
    axis = moved[0]
    g, k, size = inside[axis], inside[axis + 1], before[axis]
    if (
        not (isinstance(g, int) and isinstance(k, int))
        or g * k != size
        or inside[:axis] + inside[axis + 2 :] != before[:axis] + before[axis + 1 :]
    ):
        return None
    return axis, np.arange(size, dtype=np.int64).reshape(g, k).T.ravel()
