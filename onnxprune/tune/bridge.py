"""An ONNX graph as a differentiable torch module, and its values back in the same graph.

Nothing is exported again: the parameters are the graph's own initializers, by name. An operator is a row of `ops.OPS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper

from onnxprune.errors import DataError, ModelError
from onnxprune.ir.io import Model
from onnxprune.ir.weights import Array
from onnxprune.tune.call import Batch, Call, Row, Tensor, torch
from onnxprune.tune.ops import find
from onnxprune.tune.ops_shape import from_numpy

_NEXT = "add one, or prune without --tune"
Transform = Callable[[str, Tensor], Tensor]
Gates = Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
STATISTICS = {"BatchNormalization": (3, 4)}  # inputs that a training pass updates


@dataclass(frozen=True)
class Step:
    """One node, ready to run. drop: values that nothing reads after it; bodies: the branches of an If."""

    row: Row | None
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drop: tuple[str, ...] = ()
    bodies: Mapping[str, tuple[tuple[Step, ...], tuple[str, ...]]] | None = None


@dataclass(frozen=True)
class Prepared:
    """A graph ready to run.

    values: of the initializers and constants that are read; trainable, running: names of the parameters and of the running statistics.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Tensor]
    trainable: frozenset[str]
    running: frozenset[str]
    batch: Batch
    mode: dict[str, bool]


class OnnxModule(torch.nn.Module):
    """A graph that runs in torch. Made by `to_module`.

    Attributes
    ----------
    names : tuple of str
        Initializers that are parameters, in the order of `parameters()`.
    statistics : tuple of str
        Running means and variances of BatchNormalization: buffers, updated in training mode.
    transform : function or None
        (initializer name, parameter) -> the value to compute with; how masks of weights come in. `values` gives transformed values.
    gates : mapping
        (label of a node, position of an input) -> what that input passes on its way into the node; how masks of activations come in.
    """

    def __init__(self, graph: Prepared) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = graph.steps, graph.inputs, graph.outputs
        self.names = tuple(n for n in graph.values if n in graph.trainable)
        self.statistics = tuple(n for n in graph.values if n in graph.running)
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(graph.values[n]) for n in self.names]
        )
        for i, name in enumerate(self.statistics):
            self.register_buffer(f"statistic{i}", graph.values[name].clone())
        self.constants = {
            n: v for n, v in graph.values.items() if n not in graph.trainable | graph.running
        }
        self.transform: Transform | None = None
        self.gates: Gates = {}
        self._batch, self._mode = graph.batch, graph.mode

    @property
    def declared_batch(self) -> int:
        """The batch size that the graph spells out, 0 where it is open."""
        return self._batch.declared

    def named(self) -> dict[str, Tensor]:
        """The parameters by initializer name."""
        return dict(zip(self.names, self.weights, strict=False))

    def buffers_by_name(self) -> dict[str, Tensor]:
        """The running statistics by initializer name."""
        return {n: getattr(self, f"statistic{i}") for i, n in enumerate(self.statistics)}

    def forward(
        self, feeds: Mapping[str, Tensor] | Tensor, outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Run the graph.

        Parameters
        ----------
        feeds
            Input tensors by name, or the one input; any batch size.
        outputs
            Tensors to return, inner ones too; None = the graph's outputs.
        """
        feeds = {self.inputs[0]: feeds} if isinstance(feeds, torch.Tensor) else feeds
        missing = [n for n in self.inputs if n not in feeds]
        if missing:
            raise DataError(
                "data-input",
                f"the graph reads {', '.join(map(repr, missing))}, the data has {', '.join(map(repr, feeds)) or 'nothing'}",
            )
        wanted = tuple(self.outputs if outputs is None else outputs)
        self._mode["training"] = self.training
        self._set_batch(feeds)
        change = self.transform or (lambda name, value: value)
        env: dict[str, Tensor] = {**self.constants, **self.buffers_by_name()}
        env.update({n: change(n, w) for n, w in self.named().items()})
        env.update(
            {
                n: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
                for n, v in feeds.items()
            }
        )
        _run(self.steps, env, frozenset(wanted), {} if self._batch.recording else self.gates)
        absent = [n for n in wanted if n not in env]
        if absent:
            raise ModelError("tensor-unknown", f"the graph has no tensor {absent[0]!r}")
        return {n: env[n] for n in wanted}

    def _set_batch(self, feeds: Mapping[str, Tensor]) -> None:
        """Note the batch; where the graph spells out another, run once at that one to learn what its literals stand for."""
        batch, shapes = self._batch, tuple(tuple(feeds[n].shape[1:]) for n in self.inputs)
        batch.actual = feeds[self.inputs[0]].shape[0] if feeds and feeds[self.inputs[0]].ndim else 0
        if not batch.rebased or batch.inputs == shapes or batch.recording:
            return
        actual, mode = batch.actual, self._mode["training"]
        batch.recording, self.training = True, False
        try:
            with torch.no_grad():
                self.forward(
                    {n: v.new_zeros(batch.declared, *v.shape[1:]) for n, v in feeds.items()}, ()
                )
        finally:
            batch.recording, self.training, batch.actual, self._mode["training"] = (
                False,
                mode,
                actual,
                mode,
            )
        batch.inputs = shapes

    def values(self) -> dict[str, np.ndarray]:
        """Parameters and running statistics by initializer name, as the graph would hold them (float32 or float64)."""
        change = self.transform or (lambda name, value: value)
        with torch.no_grad():
            found = {n: change(n, w).detach().cpu().numpy().copy() for n, w in self.named().items()}
        return found | {
            n: b.detach().cpu().numpy().copy() for n, b in self.buffers_by_name().items()
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxModule:
        """Float constants follow the parameters to a device; scalars, shapes and indices stay on the host."""
        super()._apply(fn, recurse)
        self.constants = {
            n: fn(v) if v.is_floating_point() and v.ndim else v for n, v in self.constants.items()
        }
        return self


def to_module(model: Model) -> OnnxModule:
    """The graph of `model` in torch.

    Float initializers that an operator learns from (weights, biases, scales, tables) are parameters; running statistics are buffers;
    shapes, indices, limits and the scalars of formulas are constants. What depends on constants alone is computed once.
    Half precision is computed in float32.

    Raises
    ------
    ModelError
        An operator without a row, named with its node.
    """
    graph, mode = model.proto.graph, {"training": False}
    if graph.sparse_initializer:
        raise ModelError(
            "tune-unsupported",
            f"initializer {graph.sparse_initializer[0].values.name!r} is sparse; make it dense first",
        )
    values = {t.name: from_numpy(model.weights[t.name].array()) for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in values]
    batch = Batch(declared=_declared(inputs))
    steps = [_step(n, model.opset, batch, mode) for n in graph.node]
    trainable, running, shared = _roles(steps, values)
    steps = _folded([_with_fixed(s, shared) for s in steps], values, trainable | running)
    names, outputs = tuple(i.name for i in inputs), tuple(o.name for o in graph.output)
    read = frozenset(outputs).union(*(_reads(s) for s in steps))
    values = {n: v for n, v in values.items() if n in read}
    return OnnxModule(
        Prepared(
            _with_drops(steps, names),
            names,
            outputs,
            values,
            read & trainable,
            read & running,
            batch,
            mode,
        )
    ).eval()


def write_back(model: Model, module: OnnxModule) -> Model:
    """`model` with the module's values: same graph, same names, same types."""
    weights = dict(model.weights)
    for name, value in module.values().items():
        weight = weights[name]
        weights[name] = Array(
            weight.dtype,
            value.astype(helper.tensor_dtype_to_np_dtype(weight.dtype)).reshape(weight.shape),
        )
    return replace(model, weights=weights)


def _declared(inputs: Sequence[Any]) -> int:
    """The batch that the first input spells out, 0 where it is open."""
    shape = inputs[0].type.tensor_type.shape.dim if inputs else []
    return shape[0].dim_value if len(shape) else 0


def _step(node: NodeProto, opset: int, batch: Batch, mode: Mapping[str, bool]) -> Step:
    """A node ready to run."""
    attributes = {a.name: _attribute(a) for a in node.attribute}
    first = node.output[0] if node.output else ""
    call = Call(
        node.op_type,
        node.name or first,
        first,
        attributes,
        opset,
        len([o for o in node.output if o]),
        batch,
        mode,
    )
    inputs, outputs = tuple(node.input), tuple(node.output)
    if node.op_type == "If" and node.domain in ("", "ai.onnx"):
        bodies = {
            n: _body(g, opset, batch, mode)
            for n, g in attributes.items()
            if isinstance(g, GraphProto)
        }
        return Step(None, call, inputs, outputs, bodies=bodies)
    row = find(node.op_type, node.domain)
    if row is None:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise ModelError(
            "tune-unsupported",
            f"{name} (node {call.node!r}) cannot be tuned through: it has no row in onnxprune/tune/ops.py; {_NEXT}",
        )
    return Step(row, call, inputs, outputs)


def _body(
    graph: GraphProto, opset: int, batch: Batch, mode: Mapping[str, bool]
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """(steps, outputs) of a branch; its initializers become constants of it."""
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    return tuple(_step(n, opset, batch, mode) for n in (*constants, *graph.node)), tuple(
        o.name for o in graph.output
    )


def _attribute(attribute: AttributeProto) -> Any:
    """An attribute's value as plain Python."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return list(value)
    return [v.decode() for v in value] if attribute.type == AttributeProto.STRINGS else value


def _roles(
    steps: Iterable[Step], values: Mapping[str, Tensor]
) -> tuple[set[str], set[str], set[str]]:
    """(parameters, running statistics, statistics that several nodes share and none may update)."""
    learn: set[str] = set()
    fixed: set[str] = set()
    running: Counter[str] = Counter()
    for step in steps:
        for position, name in enumerate(step.inputs):
            if name not in values or not values[name].is_floating_point():
                continue
            if position in STATISTICS.get(step.call.op, ()):
                running[name] += 1
            elif (
                step.row is None
                or position not in step.row.trainable
                or (step.row.elementwise and values[name].numel() == 1)
            ):
                fixed.add(name)
            else:
                learn.add(name)
    shared = {n for n, uses in running.items() if uses > 1 or n in learn | fixed}
    return learn - fixed - set(running), set(running), shared


def _with_fixed(step: Step, shared: set[str]) -> Step:
    """A normalization whose statistics others use too must not update them."""
    if step.call.op not in STATISTICS or not shared & {
        step.inputs[i] for i in STATISTICS[step.call.op]
    }:
        return step
    return replace(
        step, call=replace(step.call, attributes={**step.call.attributes, "fixed_statistics": True})
    )


def _folded(steps: list[Step], values: dict[str, Tensor], moving: set[str]) -> list[Step]:
    """The steps that depend on an input or a parameter; results of the others join `values`."""
    fixed, left = set(values) - moving, []
    for step in steps:
        if step.row is not None and all(not n or n in fixed for n in step.inputs):
            env = dict(values)
            with torch.no_grad():
                _run((step,), env, frozenset(step.outputs))
            values.update({n: env[n] for n in step.outputs if n})
            fixed.update(n for n in step.outputs if n)
        else:
            left.append(step)
    return left


def _reads(step: Step) -> set[str]:
    """Names that a step reads, the captures of its bodies included."""
    names = {n for n in step.inputs if n}
    for steps, outputs in (step.bodies or {}).values():
        inner = set(outputs).union(*(_reads(s) for s in steps)) if steps else set(outputs)
        names |= inner - {o for s in steps for o in s.outputs}
    return names


def _with_drops(steps: list[Step], inputs: Sequence[str]) -> tuple[Step, ...]:
    """Each step with the values that are not read after it."""
    made = set(inputs) | {o for s in steps for o in s.outputs}
    seen: set[str] = set()
    out = []
    for step in reversed(steps):
        reads = _reads(step) & made
        out.append(replace(step, drop=tuple(sorted(reads - seen))))
        seen |= reads
    return tuple(reversed(out))


def _run(
    steps: Sequence[Step], env: dict[str, Tensor], keep: frozenset[str], gates: Gates = {}
) -> None:  # noqa: B006 - never written to
    """Run steps in order; `env` holds the values by name and loses those that are no longer read. Gates are of the outermost nodes."""
    for step in steps:
        if step.row is None:
            result = _branch(step, env)
        else:
            arguments = [env[n] if n else None for n in step.inputs]
            if gates:
                arguments = [
                    gates[key](a) if a is not None and (key := (step.call.node, i)) in gates else a
                    for i, a in enumerate(arguments)
                ]
            try:
                result = step.row.function(step.call, *arguments)
            except (
                RuntimeError,
                IndexError,
                TypeError,
                ValueError,
                KeyError,
                AttributeError,
            ) as problem:
                shapes, why = (
                    ", ".join("-" if a is None else str(tuple(a.shape)) for a in arguments),
                    str(problem).partition("\n")[0],
                )
                raise ModelError(
                    "tune-failed",
                    f"{step.call.op} node {step.call.node!r} fails in torch on inputs {shapes}: {why}",
                ) from problem
        for name, value in zip(
            step.outputs, result if isinstance(result, (tuple, list)) else (result,), strict=False
        ):
            if name:
                env[name] = value
        for name in step.drop:
            if name not in keep:
                env.pop(name, None)


def _branch(step: Step, env: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The results of the branch that an If's condition chooses."""
    steps, outputs = (step.bodies or {})[
        "then_branch" if bool(env[step.inputs[0]].item()) else "else_branch"
    ]
    inner = dict(env)
    _run(steps, inner, frozenset(outputs))
    return tuple(inner[n] for n in outputs)


def as_feeds(value: Any, module: OnnxModule) -> dict[str, Tensor]:
    """Numpy arrays by input name, or one array, as tensors on the module's device."""
    device = next(iter(module.parameters()), torch.empty(0)).device
    arrays = {module.inputs[0]: value} if isinstance(value, np.ndarray) else value
    return {
        n: from_numpy(np.asarray(a)).to(device) for n, a in arrays.items() if n in module.inputs
    }
