"""A graph prepared to run in torch: node calls, roles of initializers, folded constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, helper

from onnxprune.errors import ModelError
from onnxprune.ir.io import Model
from onnxprune.tune.call import BatchState, Call, Row, Tensor, torch
from onnxprune.tune.ops import find
from onnxprune.tune.ops_shape import from_numpy

Gates = Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
NO_GATES: Gates = {}
STATISTICS = {"BatchNormalization": (3, 4)}  # inputs that a training pass updates
# what torch raises for inputs that an operator does not take
_TORCH_ERRORS = (RuntimeError, IndexError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class NodeCall:
    """One node, ready to run.

    Attributes
    ----------
    row : Row or None
        Torch function of the operator; None for an If.
    call : Call
        Attributes and state that the function reads.
    inputs, outputs : tuple of str
        Tensor names.
    drop : tuple of str
        Values that no later node reads.
    bodies : mapping or None
        Branches of an If: name -> (nodes, output names).
    """

    row: Row | None
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drop: tuple[str, ...] = ()
    bodies: Mapping[str, tuple[tuple[NodeCall, ...], tuple[str, ...]]] | None = None


@dataclass(frozen=True)
class PreparedGraph:
    """A graph ready to run.

    Attributes
    ----------
    steps : tuple of NodeCall
        Nodes in graph order.
    inputs, outputs : tuple of str
        Names of the graph's inputs and outputs.
    values : mapping of str to Tensor
        Initializers and constants that nodes read.
    trainable, running : frozenset of str
        Names of the parameters and of the running statistics.
    batch : BatchState
        Batch size, shared by all nodes.
    mode : dict
        Mode of the module, shared by all nodes.
    """

    steps: tuple[NodeCall, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Tensor]
    trainable: frozenset[str]
    running: frozenset[str]
    batch: BatchState
    mode: dict[str, bool]


def prepare_graph(model: Model) -> PreparedGraph:
    """Return the graph of `model` ready to run; nodes on constants only are folded.

    Raises
    ------
    ModelError
        An operator without a row, named with its node.
    """
    graph, mode = model.proto.graph, {"training": False}
    if graph.sparse_initializer:
        raise ModelError(
            "tune-unsupported",
            f"initializer {graph.sparse_initializer[0].values.name!r} is stored sparse; "
            "make it dense first",
        )
    values = {t.name: from_numpy(model.weights[t.name].array()) for t in graph.initializer}
    # files of old versions list initializers among the inputs
    inputs = [i for i in graph.input if i.name not in values]
    batch = BatchState(declared=_read_declared_batch(inputs))
    steps = [_prepare_node(n, model.opset, batch, mode) for n in graph.node]
    trainable, running, shared = _assign_roles(steps, values)
    steps = [_fix_shared_statistics(s, shared) for s in steps]
    steps = _fold_constants(steps, values, trainable | running)
    names, outputs = tuple(i.name for i in inputs), tuple(o.name for o in graph.output)
    # folding leaves initializers without a consumer; they must not become parameters
    read = frozenset(outputs).union(*(_find_read_names(s) for s in steps))
    return PreparedGraph(
        _add_drops(steps, names),
        names,
        outputs,
        values={n: v for n, v in values.items() if n in read},
        trainable=read & trainable,
        running=read & running,
        batch=batch,
        mode=mode,
    )


def _read_declared_batch(inputs: Sequence[Any]) -> int:
    """Return the batch size that the first input declares, 0 if it is dynamic."""
    shape = inputs[0].type.tensor_type.shape.dim if inputs else []
    return shape[0].dim_value if len(shape) else 0


def _prepare_node(
    node: NodeProto, opset: int, batch: BatchState, mode: Mapping[str, bool]
) -> NodeCall:
    """Return a node ready to run."""
    attributes = {a.name: _read_attribute(a) for a in node.attribute}
    first = node.output[0] if node.output else ""
    named_outputs = len([o for o in node.output if o])
    call = Call(
        node.op_type, node.name or first, first, attributes, opset, named_outputs, batch, mode
    )
    inputs, outputs = tuple(node.input), tuple(node.output)
    # the only operator with bodies that runs here
    if node.op_type == "If" and node.domain in ("", "ai.onnx"):
        bodies = {
            name: _prepare_body(graph, opset, batch, mode)
            for name, graph in attributes.items()
            if isinstance(graph, GraphProto)
        }
        return NodeCall(None, call, inputs, outputs, bodies=bodies)
    row = find(node.op_type, node.domain)
    if row is None:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise ModelError(
            "tune-unsupported",
            f"{name} (node {call.node!r}) has no torch implementation in onnxprune/tune/ops.py; "
            "add a row there, or prune without fine-tuning",
        )
    return NodeCall(row, call, inputs, outputs)


def _prepare_body(
    graph: GraphProto, opset: int, batch: BatchState, mode: Mapping[str, bool]
) -> tuple[tuple[NodeCall, ...], tuple[str, ...]]:
    """Return nodes and outputs of a branch; its initializers become Constant nodes."""
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    nodes = tuple(_prepare_node(n, opset, batch, mode) for n in (*constants, *graph.node))
    return nodes, tuple(o.name for o in graph.output)


def _read_attribute(attribute: AttributeProto) -> Any:
    """Return an attribute's value as plain Python."""
    value = helper.get_attribute_value(attribute)
    # ONNX stores text as bytes
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return list(value)
    return [v.decode() for v in value] if attribute.type == AttributeProto.STRINGS else value


def _assign_roles(
    steps: Iterable[NodeCall], values: Mapping[str, Tensor]
) -> tuple[set[str], set[str], set[str]]:
    """Sort the float initializers by their use.

    Returns
    -------
    trainable : set of str
        Parameters.
    running : set of str
        Running statistics.
    shared : set of str
        Running statistics with several consumers, which none of them may update.
    """
    learned: set[str] = set()
    fixed: set[str] = set()
    uses: Counter[str] = Counter()
    for step in steps:
        for position, name in enumerate(step.inputs):
            if name not in values or not values[name].is_floating_point():
                continue
            if position in STATISTICS.get(step.call.op, ()):
                uses[name] += 1
            elif _is_parameter(step.row, position, values[name]):
                learned.add(name)
            else:
                fixed.add(name)
    running = set(uses)
    # two updates per step would move shared statistics twice
    shared = {n for n, count in uses.items() if count > 1 or n in learned | fixed}
    # what one node reads as a constant is constant for all
    return learned - fixed - running, running, shared


def _is_parameter(row: Row | None, position: int, value: Tensor) -> bool:
    """Return True if an initializer at this position is learned."""
    if row is None or position not in row.trainable:
        return False
    return not (row.elementwise and value.numel() == 1)


def _fix_shared_statistics(step: NodeCall, shared: set[str]) -> NodeCall:
    """Return a normalization that does not update statistics with other consumers."""
    positions = STATISTICS.get(step.call.op, ())
    if not shared & {step.inputs[i] for i in positions}:
        return step
    attributes = {**step.call.attributes, "fixed_statistics": True}
    return replace(step, call=replace(step.call, attributes=attributes))


def _fold_constants(
    steps: list[NodeCall], values: dict[str, Tensor], moving: set[str]
) -> list[NodeCall]:
    """Return the nodes that depend on an input or a parameter.

    The outputs of the others are added to `values`.
    """
    fixed, remaining = set(values) - moving, []
    for step in steps:
        # an If reads more than its inputs name
        if step.row is not None and all(not n or n in fixed for n in step.inputs):
            env = dict(values)
            with torch.no_grad():
                run_nodes((step,), env, frozenset(step.outputs))
            values.update({n: env[n] for n in step.outputs if n})
            fixed.update(n for n in step.outputs if n)
        else:
            remaining.append(step)
    return remaining


def _find_read_names(step: NodeCall) -> set[str]:
    """Return the names that a node reads, captures of its bodies included."""
    names = {n for n in step.inputs if n}
    for steps, outputs in (step.bodies or {}).values():
        inner = set(outputs).union(*(_find_read_names(s) for s in steps))
        names |= inner - {o for s in steps for o in s.outputs}
    return names


def _add_drops(steps: list[NodeCall], inputs: Sequence[str]) -> tuple[NodeCall, ...]:
    """Return each node with the values that no later node reads."""
    # initializers and constants belong to the module and outlive a run
    droppable = set(inputs) | {o for s in steps for o in s.outputs}
    read_later: set[str] = set()
    result = []
    # from the end: the first node that is met here is the last one that reads a value
    for step in reversed(steps):
        reads = _find_read_names(step) & droppable
        result.append(replace(step, drop=tuple(sorted(reads - read_later))))
        read_later |= reads
    return tuple(reversed(result))


def run_nodes(
    steps: Sequence[NodeCall],
    env: dict[str, Tensor],
    keep: frozenset[str],
    gates: Gates = NO_GATES,
) -> None:
    """Run nodes in order.

    Parameters
    ----------
    env
        Values by name; updated, and values that are no longer read are removed.
    keep
        Names that are never removed.
    gates
        Functions on inputs of the outermost nodes.
    """
    for step in steps:
        if step.row is None:
            result: Any = _run_branch(step, env)
        else:
            arguments = [env[n] if n else None for n in step.inputs]
            result = _call(step.row, step.call, _apply_gates(step.call.node, arguments, gates))
        results = result if isinstance(result, (tuple, list)) else (result,)
        # a node may name fewer outputs than its function returns
        for name, value in zip(step.outputs, results, strict=False):
            if name:
                env[name] = value
        for name in step.drop:
            if name not in keep:
                env.pop(name, None)


def _apply_gates(
    node: str, arguments: Sequence[Tensor | None], gates: Gates
) -> Sequence[Tensor | None]:
    """Return a node's arguments after their gates."""
    if not gates:
        return arguments
    result = []
    for i, argument in enumerate(arguments):
        gate = gates.get((node, i))
        result.append(argument if argument is None or gate is None else gate(argument))
    return result


def _call(row: Row, call: Call, arguments: Sequence[Tensor | None]) -> Any:
    """Call a node's torch function; name the node if it fails."""
    try:
        return row.function(call, *arguments)
    except _TORCH_ERRORS as problem:
        shapes = ", ".join("-" if a is None else str(tuple(a.shape)) for a in arguments)
        reason = str(problem).partition("\n")[0]
        raise ModelError(
            "tune-failed",
            f"{call.op} node {call.node!r} fails in torch on inputs {shapes}: {reason}",
        ) from problem


def _run_branch(step: NodeCall, env: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs of the branch that an If's condition selects."""
    name = "then_branch" if bool(env[step.inputs[0]].item()) else "else_branch"
    steps, outputs = (step.bodies or {})[name]
    # names inside a branch are its own
    inner = dict(env)
    run_nodes(steps, inner, frozenset(outputs))
    return tuple(inner[n] for n in outputs)
