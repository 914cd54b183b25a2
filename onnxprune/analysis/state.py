"""What the walk knows and records."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.analysis.causes import Axis, Causes
from onnxprune.errors import ModelError
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, label, nested
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim

FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)


@dataclass
class Tensor:
    """A tensor as the walk meets it. axes: None where a constant's axis has no causes yet; origins: uses of initializers it comes from."""

    axes: list[Axis | None]
    constant: bool = False
    origins: tuple[int, ...] = ()


@dataclass
class Use:
    """One initializer read by one node; each use is cut on its own. roles: of each axis, see types.Site."""

    tensor: str
    node: int
    slot: int
    axes: list[Axis | None]
    roles: list[str]


@dataclass(frozen=True)
class Refit:
    """Literals of a node that spell sizes.

    where: ("attribute", name) or ("input", slot); entries: an id array (its new length), or None to leave the entry as it is;
    scalar: the literal is a number and not a list; watch: axes whose shrinking makes the literals wrong even where the entries keep
    their length (bounds counted from the end).
    """

    node: int
    where: tuple[str, str | int]
    entries: tuple[np.ndarray | None, ...]
    scalar: bool = False
    watch: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Select:
    """A node that picks positions `index` along `axis` of an input whose ids are `source`: Gather by a constant, a stepped Slice."""

    node: int
    axis: int
    source: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Average:
    """A node that divides by the lengths of axes that it sums over. axes: the ids of those that may be cut."""

    node: int
    axes: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Restore:
    """A Shape node whose output must go on telling the sizes from before the cut. axes: ids an entry, None where nothing can change."""

    node: int
    axes: tuple[np.ndarray | None, ...]


@dataclass(frozen=True)
class Mask:
    """Where the oracle multiplies: an operand of a node that sums over `axis`."""

    node: int
    slot: int
    axis: int
    ids: np.ndarray
    recurrent: bool = False  # of a weight that feeds outputs back, not of data


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of a node: factor times the kept lengths of the axes. summed: how many of the axes, from the end, are contracted."""

    node: int
    factor: int
    axes: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Reason:
    """Why something is frozen, and where that began."""

    text: str
    node: str
    op: str
    tensor: str
    axis: int


@dataclass
class Record:
    """All that a walk leaves."""

    model: Model
    shapes: Shapes
    causes: Causes = field(default_factory=Causes)
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    refits: list[Refit] = field(default_factory=list)
    selects: list[Select] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    averages: list[Average] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    hints: list[tuple[int, np.ndarray, str]] = field(default_factory=list)
    mixed: list[np.ndarray] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    _seen_reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    _index: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = [n for g in nested(self.model.proto.graph) for n in g.node]
        self._index = {id(n): i for i, n in enumerate(self.nodes)}
        self.reason("coupled with positions that stay", None)

    def outermost(self, node: int) -> bool:
        """Whether a node lies in the main graph, where its tensors can be asked for, and not in a body."""
        return node < len(self.model.proto.graph.node)

    def index(self, node: NodeProto) -> int:
        """Position of a node among all nodes, bodies included."""
        return self._index[id(node)]

    def reason(self, text: str, node: NodeProto | None, tensor: str = "", axis: int = 0) -> int:
        """Number (from 1) of a reason; the first tensor it is given for is kept."""
        key = (text, label(node) if node is not None else tensor)
        if key not in self._seen_reasons:
            self.reasons.append(
                Reason(
                    text,
                    label(node) if node is not None else "",
                    node.op_type if node is not None else "",
                    tensor,
                    axis,
                )
            )
            self._seen_reasons[key] = len(self.reasons)
        return self._seen_reasons[key]

    def why(self, number: int) -> Reason:
        """The reason of a number; unknown numbers give the first."""
        return self.reasons[number - 1 if 0 < number <= len(self.reasons) else 0]

    def array(self, axis: Axis | None) -> np.ndarray | None:
        """The ids of an axis that may be cut."""
        return axis if isinstance(axis, np.ndarray) else None


@dataclass
class Node:
    """A node with its operands, as rules and movement functions see it (rules.View)."""

    record: Record
    proto: NodeProto
    operands: list[Tensor | None]
    names: list[str]

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def opset(self) -> int:
        return self.record.model.opset

    @property
    def inputs(self) -> int:
        return max((i + 1 for i, t in enumerate(self.operands) if t is not None), default=0)

    @property
    def outputs(self) -> int:
        return sum(map(bool, self.proto.output))

    @property
    def index(self) -> int:
        return self.record.index(self.proto)

    def attribute(self, name: str, default: object = None) -> object:
        return attribute(self.proto, name, default)

    def rank(self, slot: int) -> int:
        tensor = self.operands[slot] if slot < len(self.operands) else None
        return len(tensor.axes) if tensor is not None else 0

    def shape(self, slot: int) -> tuple[Dim, ...]:
        return self.record.shapes.shape(self.names[slot]) or ()

    def dim(self, slot: int, axis: int) -> int | None:
        size = self.shape(slot)[axis]
        return size if isinstance(size, int) else None

    def value(self, slot: int) -> np.ndarray | None:
        return self.record.shapes.value(self.names[slot]) if slot < len(self.names) else None

    def partial(self, slot: int) -> np.ndarray | None:
        """A value of which some elements may be unknown."""
        return (
            self.record.shapes.values.get(self.names[slot])
            if slot < len(self.names) and self.names[slot]
            else None
        )

    def out_shape(self, index: int = 0) -> tuple[Dim, ...]:
        """Shape of an output; ModelError where its rank is unknown."""
        shape = self.record.shapes.shape(self.proto.output[index])
        if shape is None:
            raise ModelError("shape-unknown", f"rank of {self.proto.output[index]!r} is unknown")
        return shape

    def floating(self) -> bool:
        """Whether the first input holds floating-point numbers."""
        return self.record.shapes.dtype(self.names[0]) in FLOATS

    def why(self, text: str) -> int:
        """A reason that names this node."""
        return self.record.reason(text, self.proto, self.names[0] if self.names else "")

    def single(self) -> int:
        """The reason of an axis of length one."""
        return self.record.reason("axis of length 1", None)
