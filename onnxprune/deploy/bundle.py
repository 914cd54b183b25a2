"""Types of hand-off targets: target description, prepared model, compatibility checks, results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.deploy.nodes import GraphNode, find_foreign_ops
from onnxprune.errors import DataError
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.node_inference import QONNX_OPS
from onnxprune.ir.shapes import Shapes
from onnxprune.moved import old_names

Files = Mapping[str, bytes]
"""Path in the bundle -> content."""
Samples = Mapping[str, np.ndarray]
"""Input name -> array of shape (n, ...)."""
Finding = Iterator[tuple[str, str]]
"""(severity, sentence) pairs."""
NodeTest = Callable[[GraphNode], Finding]
# from the worst on, as they are counted and listed
SEVERITIES = ("unsupported", "fallback", "slow", "note")

if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {
            "Node": "onnxprune.deploy.nodes:GraphNode",
            "Option": "TargetOption",
            "Prepared": "PreparedModel",
            "Result": "TargetResult",
            "Target": "HandoffTarget",
            "Test": "NodeTest",
            "explicit": "onnxprune.deploy.prepare:make_explicit",
            "foreign": "onnxprune.deploy.nodes:find_foreign_ops",
            "prepare": "onnxprune.deploy.prepare:prepare",
        },
    )


@dataclass(frozen=True)
class Check:
    """Result of a compatibility check of one node.

    Attributes
    ----------
    node
        Name of the node; "" = the model.
    op
        Its operator.
    severity
        "unsupported" (the target's compiler rejects it or compiles it wrongly), "fallback" (runs on
        another device), "slow" (part of the array is idle) or "note".
    text
        One sentence.
    """

    node: str
    op: str
    severity: str
    text: str


@dataclass(frozen=True)
class PreparedModel:
    """A model in the form that a target reads.

    Attributes
    ----------
    name
        "original" or "pruned".
    model
        Static input shapes, inferred shapes in value_info, opset and IR version of the target.
    shapes
        Shapes of all tensors with static axes.
    notes
        What could not be prepared, one sentence each.
    """

    name: str
    model: Model
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    notes: tuple[str, ...] = ()

    def nodes(self) -> tuple[GraphNode, ...]:
        """Return views of the graph's nodes."""
        nodes, weights = self.model.proto.graph.node, self.model.weights
        # a Quant or DequantizeLinear of an initializer is as constant as the initializer
        quantized = {
            output
            for node in nodes
            if node.op_type in (*QONNX_OPS, "DequantizeLinear") and node.input[0] in weights
            for output in node.output
        }
        # checks for constant weights must accept the weights of quantized layers
        constants = frozenset({*weights, *quantized})
        return tuple(GraphNode(n, self.shapes, self.model, constants) for n in nodes)

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the graph's inputs."""
        return {
            v.name: self.shapes[v.name]
            # graphs of IR version 3 list their initializers as inputs too
            for v in self.model.proto.graph.input
            if v.name not in self.model.weights
        }

    def feeds(self, samples: Samples) -> list[dict[str, np.ndarray]]:
        """Split samples into feeds of the model's batch size; an incomplete batch is dropped.

        Raises
        ------
        DataError
            There are fewer samples than one batch.
        """
        shapes = self.inputs()
        # inputs may hold different numbers of samples
        count = min(len(samples[n]) // _batch_size(s) for n, s in shapes.items())
        # no batch at all would give empty expected outputs
        if not count:
            batch = ", ".join(f"{n} {list(s)}" for n, s in shapes.items())
            raise DataError(
                "samples-few",
                f"{min(map(len, samples.values()))} samples are fewer than one batch of the model "
                f"({batch}); pass more, or a smaller batch with --shape",
            )
        return [
            {n: _slice_batch(samples[n], s, index) for n, s in shapes.items()}
            for index in range(count)
        ]

    def random_samples(self, batches: int) -> dict[str, np.ndarray]:
        """Return seeded samples for so many batches, uniform in [0, 1)."""
        # seeded: the same model gives the same bundle
        generator = np.random.default_rng(0)
        return {
            n: generator.random((batches * _batch_size(s), *s[1:]), np.float32)
            for n, s in self.inputs().items()
        }


def _batch_size(shape: tuple[int, ...]) -> int:
    """Return the samples per run of an input of that shape."""
    # a scalar input and an empty batch count as one sample per run
    return max(shape[0], 1) if shape else 1


def _slice_batch(values: np.ndarray, shape: tuple[int, ...], index: int) -> np.ndarray:
    """Return batch `index` of the samples of one input."""
    # reshape gives a scalar input its shape without axes
    size = _batch_size(shape)
    return np.asarray(values)[index * size : (index + 1) * size].reshape(shape)


@dataclass(frozen=True)
class TargetOption:
    """Option of a target.

    Attributes
    ----------
    default
        Value if the user gives none.
    text
        Help text.
    choices
        Allowed values; () = any text.
    """

    default: str
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetResult:
    """Figures that a target reported for one model.

    Attributes
    ----------
    model
        "original" or "pruned".
    figures
        Name with unit -> value.
    layers
        Layer -> value in `layer_unit`.
    layer_unit
        Unit of `layers`.
    notes
        Sentences about the run.
    """

    model: str
    figures: Mapping[str, float]
    layers: Mapping[str, float] = field(default_factory=dict)
    layer_unit: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HandoffTarget:
    """A device or tool flow that a bundle is written for.

    Attributes
    ----------
    name, title
        Name on the command line, name in sentences.
    script
        Module of onnxprune.deploy.scripts that becomes run.py.
    needs
        Requirements of the target's machine, one line each.
    ops
        Supported operators -> tests of their limits.
    any_op
        Whether operators that `ops` does not list are supported as well.
    parse
        (results folder, model name) -> figures; DataError for missing or invalid reports.
    otherwise
        Severity of operators that are not in `ops`.
    everywhere
        Tests of every node.
    whole
        Test of the model.
    options
        Options by name.
    files
        (prepared models, option values, samples or None) -> further files of the bundle.
    rewrite
        Changes a copy with known shapes, in place, to operators that the target has.
    opset
        Operator set that the target reads; 0 = any.
    multiple
        Channels that fill the array, for the report.
    sources
        Documents that state the limits.
    """

    name: str
    title: str
    script: str
    needs: tuple[str, ...]
    ops: Mapping[str, tuple[NodeTest, ...]]
    parse: Callable[[Path, str], TargetResult]
    otherwise: str = "unsupported"
    everywhere: tuple[NodeTest, ...] = ()
    whole: Callable[[PreparedModel], Finding] | None = None
    options: Mapping[str, TargetOption] = field(default_factory=dict)
    files: Callable[[Sequence[PreparedModel], Mapping[str, str], Samples | None], Files] | None = (
        None
    )
    rewrite: Callable[[EditableModel, Shapes], None] | None = None
    opset: int = 13
    multiple: int = 1
    any_op: bool = False
    sources: tuple[str, ...] = ()


def check(prepared: PreparedModel, target: HandoffTarget) -> tuple[Check, ...]:
    """Return the target's checks: notes on the model first, then the nodes in graph order."""
    checks = [Check("", "", "note", text) for text in prepared.notes]
    # a note only: targets such as FINN read these operators
    foreign = find_foreign_ops(prepared.model)
    if foreign:
        text = (
            f"onnxruntime does not implement {', '.join(foreign)}: "
            "the bundle has no expected outputs to compare with"
        )
        checks.append(Check("", "", "note", text))
    if target.whole is not None:
        checks += [Check("", "", severity, text) for severity, text in target.whole(prepared)]
    for node in prepared.nodes():
        if node.op not in target.ops and not target.any_op:
            text = f"{target.title} does not support {node.op}"
            checks.append(Check(node.name, node.op, target.otherwise, text))
        # tests of every node also run on operators that the target lacks
        for test in (*target.ops.get(node.op, ()), *target.everywhere):
            checks += [Check(node.name, node.op, severity, text) for severity, text in test(node)]
    return tuple(checks)


def script(name: str) -> bytes:
    """Return the content of a module of onnxprune.deploy.scripts, for a bundle."""
    # by importlib.resources: the package may be installed as an archive
    return resources.files("onnxprune.deploy.scripts").joinpath(name + ".py").read_bytes()
