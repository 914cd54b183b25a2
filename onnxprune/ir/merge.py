"""Three-way merge of ONNX messages: restores what another representation of a model loses.

`base` is what the other representation makes of the original if nothing is changed, `new` what it
makes of the changed model. Wherever both agree, the original's field is taken; what is missing from
both was lost on the way and is put back; what only `new` has was changed on purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.ir.edit import copy_message

# repeated fields of messages -> what identifies an element; nodes have their own
_KEYS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda item: item.name,
    "attribute_proto": lambda item: item.name,
    "functions": lambda item: (item.domain, item.name, item.overload),
    "initializer": lambda item: item.name,
    "input": lambda item: item.name,
    "metadata_props": lambda item: item.key,
    "opset_import": lambda item: item.domain,
    "output": lambda item: item.name,
    "quantization_annotation": lambda item: item.tensor_name,
    "sparse_initializer": lambda item: item.values.name,
    "value_info": lambda item: item.name,
}
# their order is that of the original, whatever was added or removed
_UNORDERED = ("initializer", "sparse_initializer", "value_info", "metadata_props", "opset_import")
# entries on tensors, which are put back only while there is a tensor of that name
_OF_TENSORS = ("value_info", "quantization_annotation", "input")
_TENSORS = ("initializer", "sparse_initializer")


@dataclass
class _Scope:
    """Tensors of the innermost graph, and copies of outer weights that bodies had."""

    tensors: Collection[str] = ()
    copies: dict[str, Any] = field(default_factory=dict)


def merge_models(new: ModelProto, base: ModelProto, original: ModelProto) -> dict[str, TensorProto]:
    """Restore in `new` what is in `original`, but in neither `base` nor the changes.

    Values of initializers are those of `new`; `base` and `original` need not have any.

    Returns
    -------
    dict
        Copies of weights of the main graph that were in its bodies, and were removed there.
    """
    scope = _Scope()
    _merge(new, base, original, scope)
    return scope.copies


def _merge(new: Any, base: Any, original: Any, scope: _Scope) -> None:
    """Merge the fields of a message."""
    if isinstance(new, GraphProto):
        tensors = {name for node in new.node for name in (*node.input, *node.output)}
        tensors |= {item.name for item in (*new.input, *new.output)}
        scope = _Scope(tensors, scope.copies)
    for item in new.DESCRIPTOR.fields:
        name = item.name
        if _is_repeated(new, name):
            if name == "node" or (name in _KEYS and item.message_type is not None):
                _merge_list(name, new, base, original, scope)
            elif list(getattr(new, name)) == list(getattr(base, name)):
                _replace(getattr(new, name), getattr(original, name))
        # a graph is merged even where it is equal, for nodes that lost something
        elif name in ("graph", "g") and all(m.HasField(name) for m in (new, base, original)):
            _merge(getattr(new, name), getattr(base, name), getattr(original, name), scope)
        elif _read(new, name) == _read(base, name):
            _copy_field(new, original, item)


def _merge_list(
    name: str, parent: Any, base_parent: Any, original_parent: Any, scope: _Scope
) -> None:
    """Merge a list of messages by what identifies them."""
    new, base, original = (
        getattr(message, name) for message in (parent, base_parent, original_parent)
    )
    if name == "node":
        new_keys, base_keys, keys = _match_nodes(new, base, original)
    else:
        new_keys, base_keys, keys = (_identify(name, items) for items in (new, base, original))
    before, known = dict(zip(base_keys, base, strict=True)), dict(zip(keys, original, strict=True))
    results: dict[Any, Any] = {}
    for key, item in zip(new_keys, new, strict=True):
        if key in before and key not in known and (name in _TENSORS or item == before[key]):
            # invented on the way, such as a copy of an outer weight in a body
            if name == "initializer":
                scope.copies.setdefault(item.name, copy_message(item))
            continue
        if key in before and key in known:
            if name in _TENSORS:
                _merge_tensor(item, known[key])
            else:
                _merge(item, before[key], known[key], scope)
        results[key] = item
    # weights that no node uses are put back with their values by the caller; nodes are never lost
    if name not in (*_TENSORS, "node"):
        for key, item in known.items():
            if key not in before and (name not in _OF_TENSORS or key in scope.tensors):
                results[key] = item
    order = list(results)
    if name in _UNORDERED or new_keys == base_keys:
        order = [key for key in keys if key in results]
        order += [key for key in results if key not in known]
    copies = [copy_message(results[key]) for key in order]
    del new[:]
    new.extend(copies)


def _merge_tensor(new: Any, original: Any) -> None:
    """Restore documentation and metadata of an initializer whose values were set anew."""
    for name in ("doc_string", "metadata_props"):
        if name in new.DESCRIPTOR.fields_by_name and not getattr(new, name):
            _copy_field(new, original, new.DESCRIPTOR.fields_by_name[name])


def _identify(name: str, items: Sequence[Any]) -> list[Any]:
    """Return a key per element; elements with equal keys are numbered."""
    counts: Counter[Any] = Counter()
    result = []
    for item in items:
        key = _KEYS[name](item)
        counts[key] += 1
        result.append(key if counts[key] == 1 else (key, counts[key]))
    return result


def _match_nodes(
    new: Sequence[NodeProto], base: Sequence[NodeProto], original: Sequence[NodeProto]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return a key per node of each list: nodes are the same by their names, else by outputs.

    Nodes of `base` are those of the original in their order.
    """
    names = Counter(node.name for node in base)
    by_name = {node.name: i for i, node in enumerate(base) if node.name and names[node.name] == 1}
    by_outputs = {tuple(node.output): i for i, node in enumerate(base)}
    matches: dict[int, int] = {}
    used: set[int] = set()
    for find in (
        lambda node: by_name.get(node.name),
        lambda node: by_outputs.get(tuple(node.output)),
    ):
        for position, node in enumerate(new):
            index = find(node)
            # a node that was copied keeps its name, and only the first has the original's rest
            if index is not None and position not in matches and index not in used:
                matches[position] = index
                used.add(index)
    keys = [matches.get(position, ("new", position)) for position in range(len(new))]
    return keys, list(range(len(base))), list(range(len(original)))


def _is_repeated(message: Any, name: str) -> bool:
    """Return whether a field is a list; descriptors say so by names that depend on the version."""
    return hasattr(getattr(message, name), "extend")


def _read(message: Any, name: str) -> Any:
    """Return a field's value; None if it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def _copy_field(new: Any, original: Any, item: Any) -> None:
    """Set a field to that of the original, or clear it."""
    name = item.name
    if _is_repeated(new, name):
        _replace(getattr(new, name), getattr(original, name))
    elif not original.HasField(name):
        new.ClearField(name)
    elif item.message_type is not None:
        getattr(new, name).CopyFrom(getattr(original, name))
    else:
        setattr(new, name, getattr(original, name))


def _replace(new: Any, original: Any) -> None:
    """Set a repeated field."""
    copies = list(original)
    del new[:]
    new.extend(copies)
