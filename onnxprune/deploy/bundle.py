"""What leaves for a machine that is not here: a target, the model as it wants it, and what it says about each node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from onnx import NodeProto, helper

from onnxprune.deploy.opset import convert_opset
from onnxprune.engines.base import fix_shapes
from onnxprune.errors import DataError, OnnxpruneError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.node_inference import QONNX_OPS
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label, set_attribute
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array
from onnxprune.moved import old_names

Files = Mapping[str, bytes]
Samples = Mapping[str, np.ndarray]
NEWEST_IR = 8  # of ONNX 1.13; every flow's own reader takes it
SEVERITIES = ("unsupported", "fallback", "slow", "note")

if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {
            "Node": "GraphNode",
            "Option": "TargetOption",
            "Prepared": "PreparedModel",
            "Result": "TargetResult",
            "Target": "HandoffTarget",
            "Test": "NodeTest",
        },
    )


@dataclass(frozen=True)
class Check:
    """What a target says about one node. severity: unsupported (its compiler refuses or goes wrong), fallback (runs on another
    device), slow (array cells idle), note (has to be known); node "" = the whole model.
    """

    node: str
    op: str
    severity: str
    text: str


@dataclass(frozen=True)
class GraphNode:
    """A node as check lists look at it. shapes: of every tensor that is known; fixed: initializers, and what only rounds one."""

    proto: NodeProto
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    model: Model = field(repr=False)
    constants: frozenset[str] = field(repr=False)

    @property
    def op(self) -> str:
        """Operator, with its domain where that is not ONNX's."""
        return (
            self.proto.op_type
            if self.proto.domain in STANDARD_DOMAINS
            else f"{self.proto.domain}.{self.proto.op_type}"
        )

    @property
    def name(self) -> str:
        """The node's name, else its first output."""
        return label(self.proto)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return attribute(self.proto, name, default)

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Of an input; None where absent or unknown."""
        return self.shapes.get(self.proto.input[index]) if index < len(self.proto.input) else None

    @property
    def out_shape(self) -> tuple[int, ...] | None:
        """Of the first output."""
        return self.shapes.get(self.proto.output[0])

    def constant(self, index: int) -> bool:
        """Whether an input is an initializer (rounded or not), or absent."""
        return (
            index >= len(self.proto.input)
            or self.proto.input[index] in self.constants
            or not self.proto.input[index]
        )

    def value(self, index: int) -> np.ndarray | None:
        """Values of an input that is an initializer."""
        name = self.proto.input[index] if index < len(self.proto.input) else ""
        return self.model.weights[name].array() if name in self.model.weights else None

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size of a convolution or pooling; () elsewhere."""
        given = self.get("kernel_shape")
        weight = self.shape(1) if self.op in ("Conv", "ConvTranspose") else None
        return tuple(given) if given else tuple(weight[2:]) if weight else ()

    @property
    def channels(self) -> tuple[int, int] | None:
        """(in, out) of a convolution or fully connected layer with constant weights."""
        weight, group = self.shape(1), self.get("group", 1)
        if weight is None or not self.constant(1) or len(weight) < 2:
            return None
        if self.op == "Conv":
            return weight[1] * group, weight[0]
        if self.op == "ConvTranspose":
            return weight[0], weight[1] * group
        if self.op == "Gemm":
            return (weight[1], weight[0]) if self.get("transB", 0) else (weight[0], weight[1])
        return (weight[-2], weight[-1]) if self.op == "MatMul" else None

    @property
    def depthwise(self) -> bool:
        """A convolution with as many groups as channels."""
        return (
            self.op == "Conv"
            and self.get("group", 1) > 1
            and self.channels is not None
            and self.channels[0] == self.get("group", 1)
        )


NodeTest = Callable[[GraphNode], Iterator[tuple[str, str]]]  # yields (severity, sentence)


@dataclass(frozen=True)
class PreparedModel:
    """A model as it goes into a bundle: fixed shapes, inferred shapes written down, opset and IR version as the target reads them."""

    name: str
    model: Model
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    notes: tuple[str, ...] = ()

    def nodes(self) -> tuple[GraphNode, ...]:
        """The graph's nodes for looking at."""
        nodes, weights = self.model.proto.graph.node, self.model.weights
        rounded = {
            o
            for n in nodes
            if n.op_type in (*QONNX_OPS, "DequantizeLinear") and n.input[0] in weights
            for o in n.output
        }
        return tuple(
            GraphNode(n, self.shapes, self.model, frozenset({*weights, *rounded})) for n in nodes
        )

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the graph's inputs."""
        return {
            v.name: self.shapes[v.name]
            for v in self.model.proto.graph.input
            if v.name not in self.model.weights
        }

    def feeds(self, samples: Samples) -> list[dict[str, np.ndarray]]:
        """The samples, input name -> (n, ...), as feeds of the model's batch; what fills no batch is left out.

        Raises
        ------
        DataError
            They fill none.
        """
        shapes = self.inputs()
        count = min(len(samples[n]) // _batch(s) for n, s in shapes.items())
        if not count:
            batch = ", ".join(f"{n} {list(s)}" for n, s in shapes.items())
            raise DataError(
                "samples-few",
                f"there are fewer samples than one run of the model takes ({batch}); give more",
            )
        return [
            {
                n: np.asarray(samples[n])[i * _batch(s) : (i + 1) * _batch(s)].reshape(s)
                for n, s in shapes.items()
            }
            for i in range(count)
        ]

    def random_samples(self, runs: int) -> dict[str, np.ndarray]:
        """Samples for so many runs: seeded numbers, uniform in [0, 1)."""
        generator = np.random.default_rng(0)
        return {
            n: generator.random((runs * _batch(s), *s[1:]), np.float32)
            for n, s in self.inputs().items()
        }


@dataclass(frozen=True)
class TargetOption:
    """A choice of a target. default: used when nothing is said; choices: () = free text."""

    default: str
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetResult:
    """What a target reported for one model. figures: name with unit -> value; layers: name -> value in `layer_unit`."""

    model: str
    figures: Mapping[str, float]
    layers: Mapping[str, float] = field(default_factory=dict)
    layer_unit: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HandoffTarget:
    """A hand-off target.

    script: module of onnxprune.deploy.scripts that becomes run.py; needs: what has to be there, one line each;
    ops: operator -> tests of its limits, an operator that is not listed is `otherwise` (a severity); everywhere: tests of every node;
    whole: of the model;
    rewrite: the graph with known shapes -> the same function in ops that the target has, on the given copy;
    options: choices by name; files: (prepared models, chosen options, real inputs or None) -> further files;
    parse: (results folder, model name) -> Result; opset: that its reader takes, 0 = as it is; multiple: of channels, for the report;
    sources: where the limits are stated.
    """

    name: str
    title: str
    script: str
    needs: tuple[str, ...]
    ops: Mapping[str, tuple[NodeTest, ...]]
    parse: Callable[[Path, str], TargetResult]
    otherwise: str = "unsupported"
    everywhere: tuple[NodeTest, ...] = ()
    whole: Callable[[PreparedModel], Iterator[tuple[str, str]]] | None = None
    options: Mapping[str, TargetOption] = field(default_factory=dict)
    files: Callable[[Sequence[PreparedModel], Mapping[str, str], Samples | None], Files] | None = (
        None
    )
    rewrite: Callable[[Model, Shapes], None] | None = None
    opset: int = 13
    multiple: int = 1
    sources: tuple[str, ...] = ()


def prepare(
    model: Model,
    name: str,
    target: HandoffTarget,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> PreparedModel:
    """The model as a target reads it.

    Parameters
    ----------
    shapes
        Input name -> shape; a free first axis is a batch of 1.

    Raises
    ------
    UsageError
        An input has other free axes and no shape was given.
    """
    notes: list[str] = []
    ready = canonicalize(fix_shapes(model, shapes or {}))
    if target.opset and ready.opset != target.opset:
        ready = _convert_opset(ready, target, notes)
    copy = make_explicit(ready)
    copy.proto.ir_version = min(copy.proto.ir_version, NEWEST_IR)
    if target.rewrite is not None:
        target.rewrite(copy, infer(copy))
    known = infer(copy)
    del copy.proto.graph.value_info[:]
    io_names = {v.name for v in (*copy.proto.graph.input, *copy.proto.graph.output)}
    for value in copy.proto.graph.output:
        if known.shape(value.name) is not None:
            value.type.CopyFrom(known.types[value.name])
    made = {o for n in copy.proto.graph.node for o in n.output if o}
    copy.proto.graph.value_info.extend(
        helper.make_value_info(n, t)
        for n, t in known.types.items()
        if n in made and n not in io_names
    )
    sizes = {n: s for n in known.types if (s := _known_shape(known.shape(n))) is not None}
    unknown = sorted(made - set(sizes))
    if unknown:
        notes.append(
            f"{len(unknown)} tensors have no fixed shape, the first is {unknown[0]!r}: compilers for fixed hardware refuse them"
        )
    return PreparedModel(name, copy, sizes, tuple(notes))


def make_explicit(model: Model) -> Model:
    """A copy whose layers say everything: default attributes written out, weights of Gemm as (out, in). Importers of
    accelerators read attributes where they stand and know few defaults.
    """
    copy = model.edit()
    for node in copy.proto.graph.node:
        weight = (
            copy.weights.get(node.input[1]) if node.op_type in _WINDOWS and node.input[1:] else None
        )
        rank = len(weight.shape) - 2 if weight is not None else 0
        if node.op_type in (*_WINDOWS, "MaxPool", "AveragePool"):
            rank = rank or len(attribute(node, "kernel_shape", ()))
        defaults: dict[str, Any] = dict(_DEFAULTS.get(node.op_type, {}))
        if rank > 0:
            defaults |= {"strides": [1] * rank} | (
                {"dilations": [1] * rank, "group": 1} if node.op_type in _WINDOWS else {}
            )
            defaults |= {"kernel_shape": list(weight.shape[2:])} if weight is not None else {}
            defaults |= (
                {"pads": [0] * (2 * rank)}
                if attribute(node, "auto_pad", "NOTSET") == "NOTSET"
                else {}
            )
        for name, value in defaults.items():
            if attribute(node, name) is None:
                set_attribute(node, name, value)
        if (
            node.op_type == "Gemm"
            and not attribute(node, "transB")
            and node.input[1] in copy.weights
        ):
            _transpose_weight(copy, node)
    remove_dead(copy)
    return copy


def _transpose_weight(model: Model, node: NodeProto) -> None:
    """Give a Gemm its weight as (out, in), in place; other users keep theirs."""
    old = node.input[1]
    values = np.ascontiguousarray(model.weights[old].array().T)
    name = f"{old}_out_in"
    while name in model.weights and not np.array_equal(model.weights[name].array(), values):
        name += "_"
    if name not in model.weights:
        model.proto.graph.initializer.add(
            name=name, data_type=model.weights[old].dtype, dims=values.shape
        )
        cast(dict[str, Any], model.weights)[name] = from_array(values)
    node.input[1] = name
    set_attribute(node, "transB", 1)


_WINDOWS = ("Conv", "ConvTranspose")
_RUNTIME_DOMAINS = ("com.microsoft", "ai.onnx.ml")
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Flatten": {"axis": 1},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0},
}


def _batch(shape: tuple[int, ...]) -> int:
    """Samples in one run, of an input of that shape."""
    return max(shape[0], 1) if shape else 1


def find_foreign_ops(model: Model) -> tuple[str, ...]:
    """Operators of domains that onnxruntime has no kernels for, such as QONNX's Quant."""
    return tuple(
        dict.fromkeys(
            n.op_type
            for n in model.proto.graph.node
            if n.domain not in (*STANDARD_DOMAINS, *_RUNTIME_DOMAINS)
        )
    )


def check(prepared: PreparedModel, target: HandoffTarget) -> tuple[Check, ...]:
    """What the target says about every node, in graph order, notes on the whole model first."""
    found = [Check("", "", "note", text) for text in prepared.notes]
    if unknown := find_foreign_ops(prepared.model):
        found.append(
            Check(
                "",
                "",
                "note",
                f"onnxruntime has no {', '.join(unknown)}: the bundle holds no outputs to compare with",
            )
        )
    found += [
        Check("", "", severity, text)
        for severity, text in (target.whole(prepared) if target.whole else ())
    ]
    for node in prepared.nodes():
        if node.op not in target.ops:
            found.append(
                Check(
                    node.name, node.op, target.otherwise, f"{target.title} does not run {node.op}"
                )
            )
        for test in (*target.ops.get(node.op, ()), *target.everywhere):
            found += [Check(node.name, node.op, severity, text) for severity, text in test(node)]
    return tuple(found)


def script(name: str) -> bytes:
    """A file of onnxprune.deploy.scripts, as it goes into a bundle."""
    return resources.files("onnxprune.deploy.scripts").joinpath(name + ".py").read_bytes()


def _convert_opset(model: Model, target: HandoffTarget, notes: list[str]) -> Model:
    """The model in the target's opset, or as it is with a note where that cannot be."""
    try:
        return convert_opset(model, target.opset)
    except OnnxpruneError as problem:
        notes.append(
            f"opset {model.opset} stays, {target.title} reads {target.opset} best: {problem.message}"
        )
        return model


def _known_shape(shape: tuple[int | str | None, ...] | None) -> tuple[int, ...] | None:
    """The shape where every axis is a number."""
    if shape is None:
        return None
    found = tuple(d for d in shape if isinstance(d, int))
    return found if len(found) == len(shape) else None
