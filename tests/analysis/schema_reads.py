"""What the rule of an operator reads of its schema, found by applying the rule to nodes.

The nodes are those of the graphs of every row and movement operator, with the opset of each version
of the schema, and with one attribute or operand more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from cases import no_kernel
from graph_text import net
from graphs import CASES, Case
from indexed import INDEXED
from new_rows import BY_REFERENCE, NEW_ROWS
from onnx import NodeProto, TensorProto, defs, helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from onnxprune.analysis.movement import MOVES
from onnxprune.analysis.notation import parse
from onnxprune.analysis.rule import Misfit, Rule
from onnxprune.analysis.rule_shapes import INVALID_NODE
from onnxprune.analysis.rules import RULES, row
from onnxprune.analysis.state import Node, Record, Tensor
from onnxprune.analysis.walk import analyze
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.contrib import CONTRIB_DOMAIN
from onnxprune.ir.io import load
from onnxprune.ir.nodes import set_attribute
from onnxprune.ir.passes.canonicalize import OLDEST_OPSET
from onnxprune.ir.values import Dim

# DecoderMaskedSelfAttention has a kernel for CUDA alone, so no other graph has it
_WITHOUT_KERNEL = Case(
    "float[2,1,8] x, float[2,2,4,9,2] p | float[8,24] w1, float[24] b1, int32[1] n = {3}, "
    "float[8,5] w2 | a, s = com.microsoft.DecoderMaskedSelfAttention"
    "<num_heads=4, scale=0.3>(x, w1, b1, , p, , n); y = MatMul(a, w2)"
)
_GRAPHS = CASES | INDEXED | NEW_ROWS | BY_REFERENCE | no_kernel.CASES
_EXTRA = "an operand more"  # name of the operand that a node is given
_EXAMPLES: dict[str, object] = {
    "INT": 1,
    "FLOAT": 0.5,
    "STRING": "x",
    "INTS": [1],
    "FLOATS": [0.5],
    "STRINGS": ["x"],
    "TENSOR": helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5]),
}


@dataclass(frozen=True, eq=False)
class Version:
    """One version of an operator's schema.

    Attributes
    ----------
    op, domain
        The operator.
    opsets
        Opsets of the standard domain that a node of this version may be in.
    attributes
        Type of each attribute, see `_EXAMPLES`.
    inputs
        Names of the operands.
    variadic
        Whether the last operand stands for any number of them.
    """

    op: str
    domain: str
    opsets: range
    attributes: dict[str, str]
    inputs: tuple[str, ...]
    variadic: bool

    @property
    def label(self) -> str:
        """Name for messages: `Pad-13`, or `com.microsoft.Pad`."""
        return f"{self.domain}.{self.op}" if self.domain else f"{self.op}-{self.opsets.start}"


def _kind(attribute: object) -> str:
    """Return the name of the type of an attribute of a schema."""
    return str(getattr(attribute, "type", "")).rpartition(".")[2]


def _version(schema: defs.OpSchema, opsets: range) -> Version:
    """Return what the tests need of a schema, of onnx or of onnxruntime."""
    attributes = {str(name): _kind(a) for name, a in schema.attributes.items()}
    inputs = tuple(str(i.name) for i in schema.inputs)
    variadic = bool(inputs) and "Variadic" in str(schema.inputs[-1].option)
    domain = "" if schema.domain in ("", "ai.onnx") else str(schema.domain)
    return Version(str(schema.name), domain, opsets, attributes, inputs, variadic)


@cache
def versions() -> tuple[Version, ...]:
    """Return every version of the schema of every operator of the table."""
    names = {*RULES, *MOVES}
    standard: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in names and not schema.deprecated:
            standard.setdefault(schema.name, []).append(schema)
    found: list[Version] = []
    for schemas in standard.values():
        schemas.sort(key=lambda s: s.since_version)
        ends = [s.since_version for s in schemas[1:]] + [defs.onnx_opset_version() + 1]
        for schema, end in zip(schemas, ends, strict=True):
            if end > OLDEST_OPSET:
                found.append(_version(schema, range(max(schema.since_version, OLDEST_OPSET), end)))
    every = range(OLDEST_OPSET, defs.onnx_opset_version() + 1)
    for schema in runtime.get_all_operator_schema():
        if schema.domain == CONTRIB_DOMAIN and schema.name in names:
            found.append(_version(schema, every))
    return tuple(sorted(found, key=lambda v: (v.op, v.domain, v.opsets.start)))


@dataclass
class Probe(Node):
    """A node that records which attributes and operands are read of it.

    Attributes
    ----------
    at
        Opset of the node.
    read
        Names of attributes and numbers of operands.
    """

    at: int = 0
    read: set[str | int] = field(default_factory=set)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.at

    @property
    def index(self) -> int:
        """Index of the node that this is a variant of."""
        return 0

    def attribute(self, name: str, default: object = None) -> object:
        """Return an attribute and record that it is read."""
        self.read.add(name)
        return super().attribute(name, default)

    def operand(self, slot: int) -> Tensor:
        """Return an operand and record that it is read."""
        self.read.add(slot)
        return super().operand(slot)

    def rank(self, slot: int) -> int:
        """Return a rank and record that it is read."""
        self.read.add(slot)
        return super().rank(slot)

    def shape(self, slot: int) -> tuple[Dim, ...]:
        """Return a shape and record that it is read."""
        self.read.add(slot)
        return super().shape(slot)

    def value(self, slot: int) -> np.ndarray | None:
        """Return a value and record that it is read."""
        self.read.add(slot)
        return super().value(slot)

    def partial(self, slot: int) -> np.ndarray | None:
        """Return a partial value and record that it is read."""
        self.read.add(slot)
        return super().partial(slot)


@dataclass(frozen=True)
class Base:
    """A node of one of the graphs.

    Attributes
    ----------
    opset
        Opset of its graph.
    record
        Analysis of its graph.
    node
        The node.
    """

    opset: int
    record: Record
    node: NodeProto

    def reads(
        self, version: Version, opset: int, attribute: str = "", slot: int = -1
    ) -> set[str | int] | None:
        """Return what the rule reads of the node in a version, with one attribute or operand more.

        Returns
        -------
        read : set of attribute names and operand numbers, or None
            None if the rule does not take the node.
        """
        proto = NodeProto()
        proto.CopyFrom(self.node)
        proto.domain = version.domain
        if not version.variadic:
            del proto.input[len(version.inputs) :]
        if attribute:
            set_attribute(proto, attribute, _EXAMPLES[version.attributes[attribute]])
        given = slot < 0 or (slot < len(proto.input) and proto.input[slot])
        if not given:
            proto.input.extend([""] * (slot + 1 - len(proto.input)))
            proto.input[slot] = _EXTRA
        operands = [self.operand(name) for name in proto.input]
        probe = Probe(self.record, proto, operands, list(proto.input), at=opset)
        try:
            return _apply(probe)
        except (Misfit, OnnxpruneError, StopIteration, *INVALID_NODE):
            return None

    def operand(self, name: str) -> Tensor | None:
        """Return an operand with axes that nothing else has."""
        if not name:
            return None
        rank = len(self.record.shapes.shape(name) or ())
        return Tensor([None] * rank, name in self.record.model.weights)


def _apply(probe: Probe) -> set[str | int] | None:
    """Return what the row or the movement function of a node reads; None if none takes it."""
    entry = row(probe.op, probe.proto.domain)
    rule = entry(probe) if callable(entry) else entry
    if isinstance(rule, Rule):
        probe.read |= {s for s in rule.let.values() if isinstance(s, str)} | set(rule.refit)
        # an operand with an entry in the pattern is tied to the letters of it
        probe.read |= set(range(len(parse(rule.pattern).inputs)))
        return probe.read
    if probe.op not in MOVES:
        return None
    MOVES[probe.op](probe)
    return probe.read


@cache
def bases() -> dict[str, list[Base]]:
    """Return the nodes of all graphs by operator."""
    found: dict[str, list[Base]] = {}
    for case in (*_GRAPHS.values(), _WITHOUT_KERNEL):
        record = analyze(load(net(case.text, opset=case.opset))).record
        for node in record.nodes:
            found.setdefault(node.op_type, []).append(Base(case.opset, record, node))
    return found


def nodes_of(version: Version) -> Iterable[tuple[Base, int]]:
    """Return nodes of a version, each with an opset: of graphs of the version if there are any."""
    nodes = bases().get(version.op, [])
    domains = [b for b in nodes if b.node.domain == version.domain]
    nodes = domains or nodes
    exact = [(b, b.opset) for b in nodes if b.opset in version.opsets]
    return [*exact, *((b, version.opsets[-1]) for b in nodes if b.opset not in version.opsets)]


@cache
def unread(version: Version) -> tuple[str, ...]:
    """Return the attributes and operands of a version that the rule neither reads nor refuses."""
    return tuple(_unread(version))


def _unread(version: Version) -> Iterator[str]:
    """Yield what `unread` returns."""
    taken = [
        (base, opset) for base, opset in nodes_of(version) if base.reads(version, opset) is not None
    ]
    if not taken:
        yield "(no graph has a node that the rule takes in this version)"
    for name in version.attributes:
        reads = [base.reads(version, opset, attribute=name) for base, opset in taken]
        if not any(read is None or name in read for read in reads):
            yield name
    for slot, name in enumerate(version.inputs):
        reads = [base.reads(version, opset, slot=slot) for base, opset in taken]
        if not any(read is None or slot in read for read in reads):
            yield name
