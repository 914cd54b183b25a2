"""Parts of a graph between named tensors: cut out as models of their own, and put back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from onnxprune.errors import MOST_NEAR, ModelError, UsageError, unknown
from onnxprune.ir.dependencies import Dependencies, sort_nodes
from onnxprune.ir.edit import copy_message, free_name, replace_nodes
from onnxprune.ir.extract import reads
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model, Source, load
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import nested
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.passes.names import rename
from onnxprune.ir.shapes import dimension, has_shape

_MOST_LISTED = 5  # tensors in a message


def extract(model: Source, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Model:
    """Return the part of a model that computes some tensors from others.

    Documentation, metadata, versions and annotations of what remains are kept; weights are shared,
    not copied.

    Parameters
    ----------
    inputs
        Tensors that become the inputs; by default those inputs of the model that are needed.
    outputs
        Tensors that become the outputs; by default those of the model.

    Raises
    ------
    UsageError
        A tensor does not exist, an input is not used, or the outputs depend on more inputs.
    ModelError
        The type of a new input is unknown.
    """
    whole = load(model)
    graph = whole.proto.graph
    given = [i.name for i in graph.input if i.name not in whole.weights]
    outputs = list(dict.fromkeys(outputs)) or [o.name for o in graph.output]
    known = [*given, *(name for node in graph.node for name in node.output if name)]
    for name in (*inputs, *outputs):
        if name not in set(known):
            raise unknown("tensor", name, known, most=MOST_NEAR)
    region = _find_region(graph.node, inputs or given, outputs)
    if not region:
        raise UsageError(
            "extract-inputs", f"no node is between the inputs and the outputs {_list(outputs)}"
        )
    needed = {name for node in region for name in reads(node)} | set(outputs)
    defined = {name for node in region for name in node.output}
    front = needed - defined - whole.weights.keys() - _sparse_names(whole)
    missing = [name for name in given if name in front and name not in (inputs or given)]
    if missing:
        raise UsageError(
            "extract-inputs",
            f"the outputs also depend on {_list(missing)}: add {_list(missing)} to the inputs",
        )
    unused = [name for name in inputs if name not in front]
    if unused:
        raise UsageError("extract-inputs", f"no output depends on input {_list(unused)}: omit it")
    order = list(inputs) or [name for name in given if name in front]
    infos = _describe(whole, [*order, *outputs])
    part = whole.edit()
    replace_nodes(part.proto.graph, map(copy_message, region))
    _set(part.proto.graph.input, [infos[name] for name in order])
    _set(part.proto.graph.output, [infos[name] for name in outputs])
    _remove_unused(part, {*order, *outputs})
    part.path = None
    return part.freeze()


def join(whole: Source, part: Source) -> Model:
    """Return a model in which a part replaces the nodes between its inputs and its outputs.

    Parameters
    ----------
    whole
        Model that the part was extracted from.
    part
        The part, pruned or changed; its inputs and outputs are tensors of `whole`.

    Raises
    ------
    ModelError
        Names, types or lengths of the part's inputs and outputs, or versions of operators differ
        from those of `whole`.
    """
    model, inner = load(whole), load(part).edit()
    graph = model.proto.graph
    inputs = [i.name for i in inner.proto.graph.input if i.name not in inner.weights]
    outputs = [o.name for o in inner.proto.graph.output]
    _check_interface(model, inner, inputs, outputs)
    result = model.edit()
    _import_versions(result.proto, inner.proto)
    replaced = {tuple(node.output) for node in _find_region(graph.node, inputs, outputs)}
    # of the part's outputs the part's nodes are the producers, of other tensors the model's
    kept = [
        copy_message(node)
        for node in graph.node
        if tuple(node.output) not in replaced or not set(node.output) & set(outputs)
    ]
    kept = _find_region(kept, outputs, [*(o.name for o in graph.output), *inputs])
    names = {name for node in kept for name in (*reads(node), *node.output)}
    names |= {item.name for item in (*graph.input, *graph.output)}
    fixed = {*inputs, *outputs, *_find_equal(model, inner)}
    _rename_inner(inner, names, fixed, {node.name for node in kept})
    _take_weights(result, inner)
    try:
        nodes = sort_nodes([*kept, *map(copy_message, inner.proto.graph.node)])
    except ValueError as problem:
        raise ModelError(
            "join-cycle",
            "an input of the part depends on one of its outputs: extract a part without paths that "
            "leave it and return",
        ) from problem
    replace_nodes(result.proto.graph, nodes)
    _check_defined(result.proto.graph)
    _remove_unused(result, {item.name for item in (*graph.input, *graph.output)})
    return result.freeze()


def _list(names: Sequence[str]) -> str:
    """Return the first names of a list, quoted."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(map(repr, names[:_MOST_LISTED])) + more


def _sparse_names(model: Model) -> set[str]:
    """Return the names of weights that are stored sparse."""
    return {item.values.name for item in model.proto.graph.sparse_initializer}


def _find_region(
    nodes: Sequence[NodeProto], inputs: Collection[str], outputs: Collection[str]
) -> list[NodeProto]:
    """Return the nodes that compute outputs from inputs, in their order."""
    graph = Dependencies(nodes)
    # an input ends the search, also where it is computed by other nodes
    waiting = [name for name in outputs if name not in inputs]
    found: set[int] = set()
    while waiting:
        index = graph.producers.get(waiting.pop())
        if index is not None and index not in found:
            found.add(index)
            waiting += [name for name in graph.reads[index] if name not in inputs]
    return [node for index, node in enumerate(nodes) if index in found]


def _describe(model: Model, names: Sequence[str]) -> dict[str, ValueInfoProto]:
    """Return declarations of tensors: those of the model, else inferred ones.

    Raises
    ------
    ModelError
        The element type of a tensor is unknown.
    """
    graph = model.proto.graph
    declared = {i.name: i for i in (*graph.value_info, *graph.input, *graph.output)}
    inferred = infer(canonicalize(model)).types if not set(names) <= declared.keys() else {}
    infos = {}
    for name in names:
        info = ValueInfoProto(name=name)
        kind = declared[name].type if name in declared else inferred.get(name, TypeProto())
        # as declared, with documentation, unless that says less
        if name in declared:
            info.CopyFrom(declared[name])
        else:
            info.type.CopyFrom(kind)
        if not kind.WhichOneof("value"):
            raise ModelError("type-unknown", f"the element type of tensor {name!r} is unknown")
        infos[name] = info
    return infos


def _check_interface(
    model: Model, part: EditableModel, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Raise ModelError if a part's inputs and outputs are not tensors of the model."""
    graph = model.proto.graph
    known = [i.name for i in graph.input]
    known += [name for node in graph.node for name in node.output if name]
    for name in (*inputs, *outputs):
        if name not in set(known):
            problem = unknown("tensor", name, known, most=MOST_NEAR)
            raise ModelError("join-interface", f"the part does not fit: {problem.message}")
    expected = _describe(model, [*inputs, *outputs])
    own = {i.name: i for i in (*part.proto.graph.input, *part.proto.graph.output)}
    for name in (*inputs, *outputs):
        before, after = _spell(expected[name].type), _spell(own[name].type)
        if not _is_compatible(before, after):
            raise ModelError(
                "join-interface",
                f"tensor {name!r} is {_name_type(own[name].type)} in the part and "
                f"{_name_type(expected[name].type)} in the model: the part must keep its ends",
            )


def _spell(kind: TypeProto) -> tuple[int, tuple[int | str | None, ...] | None]:
    """Return element type and lengths."""
    lengths = tuple(map(dimension, kind.tensor_type.shape.dim)) if has_shape(kind) else None
    return kind.tensor_type.elem_type, lengths


def _name_type(kind: TypeProto) -> str:
    """Return a type for a message: "float Nx3x32x32"."""
    element, lengths = _spell(kind)
    shape = "x".join(str(d or "?") for d in lengths) if lengths is not None else "of any shape"
    return f"{TensorProto.DataType.Name(element).lower()} {shape}"


def _is_compatible(
    before: tuple[int, tuple[int | str | None, ...] | None],
    after: tuple[int, tuple[int | str | None, ...] | None],
) -> bool:
    """Return whether types and fixed lengths agree; unknown ones do with any."""
    if before[0] and after[0] and before[0] != after[0]:
        return False
    one, other = before[1], after[1]
    if one is None or other is None:
        return True
    fixed = [(a, b) for a, b in zip(one, other, strict=False) if type(a) is type(b) is int]
    return len(one) == len(other) and all(a == b for a, b in fixed)


def _import_versions(proto: ModelProto, part: ModelProto) -> None:
    """Add operator sets and functions of a part; ModelError if versions differ."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for entry in part.opset_import:
        if versions.setdefault(entry.domain, entry.version) != entry.version:
            raise ModelError(
                "join-versions",
                f"the part uses version {entry.version} of operator set "
                f"{entry.domain or 'ai.onnx'!r}, the model {versions[entry.domain]}: convert one",
            )
    known = {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(e for e in part.opset_import if e.domain not in known)
    proto.ir_version = max(proto.ir_version, part.ir_version)
    functions = {(f.domain, f.name) for f in proto.functions}
    proto.functions.extend(f for f in part.functions if (f.domain, f.name) not in functions)


def _find_equal(model: Model, part: EditableModel) -> list[str]:
    """Return the names of weights that are the same in both."""
    names = []
    for name, weight in part.weights.items():
        other = model.weights.get(name)
        if other is None or (weight.dtype, weight.shape) != (other.dtype, other.shape):
            continue
        if bytes(weight.raw()) == bytes(other.raw()):
            names.append(name)
    return names


def _rename_inner(
    part: EditableModel, taken: Collection[str], fixed: Collection[str], nodes: Collection[str]
) -> None:
    """Give tensors, weights and nodes of a part names that the model does not use."""
    graph = part.proto.graph
    own = {name for inner in nested(graph) for node in inner.node for name in node.output if name}
    own |= {t.name for inner in nested(graph) for t in inner.initializer}
    own |= {i.name for inner in nested(graph) for i in inner.input}
    own |= {s.values.name for s in graph.sparse_initializer}
    names: dict[str, str] = {}
    for name in sorted(own - set(fixed)):
        if name in taken:
            names[name] = free_name(name, {*taken, *own, *names.values()})
    rename(graph, names)
    part.weights.update({names[n]: part.weights.pop(n) for n in names if n in part.weights})
    labels = {node.name for node in graph.node}
    for node in graph.node:
        if node.name and node.name in nodes:
            node.name = free_name(node.name, {*nodes, *labels})
            labels.add(node.name)


def _take_weights(result: EditableModel, part: EditableModel) -> None:
    """Add the weights of a part; those of the same names, which only the old part used, leave."""
    graph, own = result.proto.graph, part.proto.graph
    names = {tensor.name for tensor in own.initializer}
    others = [tensor for tensor in graph.initializer if tensor.name not in names]
    _set(graph.initializer, [*others, *own.initializer])
    graph.sparse_initializer.extend(own.sparse_initializer)
    graph.value_info.extend(own.value_info)
    result.weights.update(part.weights)


def _check_defined(graph: GraphProto) -> None:
    """Raise ModelError for a tensor that only the nodes inside the old part computed."""
    defined = {i.name for i in (*graph.input, *graph.initializer)}
    defined |= {s.values.name for s in graph.sparse_initializer}
    defined |= {name for node in graph.node for name in node.output}
    for name in sorted({name for node in graph.node for name in reads(node)} - defined):
        raise ModelError(
            "join-interface",
            f"tensor {name!r}, which other nodes read, is computed together with an output of the "
            "part: extract a part that has it as an output too",
        )


def _remove_unused(model: EditableModel, ends: Collection[str]) -> None:
    """Remove weights and entries on tensors that the graph no longer has."""
    graph = model.proto.graph
    used = set(ends)
    for node in graph.node:
        used |= reads(node)
    named = used | {name for node in graph.node for name in node.output}
    for items in (graph.initializer, graph.input):
        _set(items, [item for item in items if item.name in used])
    sparse = graph.sparse_initializer
    _set(sparse, [item for item in sparse if item.values.name in used])
    # of a tensor that is declared twice, the part's declaration comes last
    infos = {info.name: info for info in graph.value_info}
    _set(graph.value_info, [i for n, i in infos.items() if n in named and n not in ends])
    annotations = graph.quantization_annotation
    _set(annotations, [a for a in annotations if a.tensor_name in named])
    for name in [name for name in model.weights if name not in used]:
        del model.weights[name]


def _set(field: Any, items: Iterable[Any]) -> None:
    """Set a list of messages; its own may be among the new ones."""
    copies = [copy_message(item) for item in items]
    del field[:]
    field.extend(copies)
