"""State of the analysis pass and the records that it produces.

An axis is an int, the number of the reason that all of it is frozen for, or an int64 array with
one id per position (see causes.py). The arrays below that are called ids are such arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.analysis.averages import Average, Pin, RootMean
from onnxprune.analysis.causes import Axis, Causes
from onnxprune.analysis.products import Product
from onnxprune.analysis.rule import Attributes, Misfit
from onnxprune.errors import ModelError
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, label, nested
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim

KERNEL_POSITION = "kernel position"  # reason of the spatial axes of weights
FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)


@dataclass
class Tensor:
    """A tensor during the pass.

    Attributes
    ----------
    axes
        Axes; None for an axis of a constant that has no causes yet.
    constant
        Whether the tensor is computed from initializers alone.
    origins
        Indices of the uses of initializers that a constant is computed from.
    """

    axes: list[Axis | None]
    constant: bool = False
    origins: tuple[int, ...] = ()

    def freeze_unset(self, why: int) -> list[Axis]:
        """Freeze the axes without causes, in place; return all axes."""
        self.axes[:] = [why if axis is None else axis for axis in self.axes]
        return [axis for axis in self.axes if axis is not None]


@dataclass
class Use:
    """One initializer as one node reads it; each use is cut on its own.

    Attributes
    ----------
    tensor
        Name of the initializer.
    node
        Index of the node.
    slot
        Index of the operand.
    axes
        Axes of this use, shared with the `Tensor` that the node sees.
    roles
        Role per axis, see `types.Site`.
    """

    tensor: str
    node: int
    slot: int
    axes: list[Axis | None]
    roles: list[str]


@dataclass(frozen=True)
class SizeLiteral:
    """A list of sizes in a node that depends on the lengths of axes and is rewritten after a cut.

    Attributes
    ----------
    node
        Index of the node.
    where
        ("attribute", name) or ("input", slot).
    entries
        Per entry, the ids of the axis whose length it takes; None for an entry that is kept.
    scalar
        Whether the literal is a number instead of a list.
    watch
        Ids of axes whose cut invalidates the literal although no entry changes its length (bounds
        counted from the end).
    scaled
        Per entry of dynamic length, the ids of its factors; it is scaled by their kept shares.
    """

    node: int
    where: tuple[str, str | int]
    entries: tuple[np.ndarray | None, ...]
    scalar: bool = False
    watch: tuple[np.ndarray, ...] = ()
    scaled: tuple[tuple[np.ndarray, ...], ...] = ()


@dataclass(frozen=True)
class Select:
    """A node that picks positions of an axis: Gather by a constant, or a Slice with a step.

    Attributes
    ----------
    node
        Index of the node.
    axis
        Index of the axis of the input.
    source
        Ids of that axis.
    index
        Positions that are picked.
    """

    node: int
    axis: int
    source: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Restore:
    """A Shape node that must return the sizes from before the cut.

    Attributes
    ----------
    node
        Index of the node.
    axes
        Ids per entry; None for an axis that cannot be cut, or of dynamic length.
    scaled
        Per entry of dynamic length, the ids of its factors.
    """

    node: int
    axes: tuple[np.ndarray | None, ...]
    scaled: tuple[tuple[np.ndarray, ...], ...] = ()


@dataclass(frozen=True)
class Squeezed:
    """A Squeeze without a list of axes, which a cut to length 1 would make drop more of them.

    Attributes
    ----------
    node
        Index of the node.
    dropped
        Axes of length 1 of the original.
    axes
        Ids of the axes that can be cut.
    """

    node: int
    dropped: tuple[int, ...]
    axes: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Mask:
    """An operand of a node that sums over one of its axes: where the masked model multiplies.

    Attributes
    ----------
    node
        Index of the node.
    slot
        Index of the operand.
    tensor
        Name of the operand.
    axis
        Index of the axis.
    ids
        Ids of the axis.
    recurrent
        Whether the operand is a weight that feeds outputs back, instead of data.
    added
        Whether the operand is a constant that is added to data which has a mask of its own, or
        holds parameters of output channels.
    """

    node: int
    slot: int
    tensor: str
    axis: int
    ids: np.ndarray
    recurrent: bool = False
    added: bool = False


@dataclass(frozen=True)
class Reason:
    """Why an axis is frozen.

    Attributes
    ----------
    text
        What prevents the cut.
    node
        Label of the node that it was found at; "" if none.
    op
        Operator of that node.
    tensor
        Name of the tensor that it was first given for.
    axis
        Index of the axis.
    """

    text: str
    node: str
    op: str
    tensor: str
    axis: int


@dataclass
class Record:
    """Everything that the pass produces.

    Attributes
    ----------
    model
        Canonical model.
    shapes
        Shapes, types and small constant values of all tensors.
    causes
        Store of the causes.
    nodes
        All nodes, those of bodies included; other records refer to them by index.
    tensors
        Activations by name.
    uses
        Uses of initializers.
    literals
        Literals that spell sizes.
    selects, restores, averages, root_means, squeezed, pins
        Nodes that a cut must adapt in other ways.
    masks
        Operands that a node sums over.
    products
        Multiply-accumulates.
    hints
        (index of a use, ids of an axis, role): roles that consumers found for axes of initializers.
    mixed
        Ids of the axes along which an operator mixes that `allow_mixing` opened.
    reasons
        Reasons, numbered from 1.
    defects
        Rules that failed on valid nodes, to be reported.
    copies
        Weight -> further initializers of the file with equal bytes, which it replaces.
    """

    model: Model
    shapes: Shapes
    causes: Causes = field(default_factory=Causes)
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    literals: list[SizeLiteral] = field(default_factory=list)
    selects: list[Select] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    averages: list[Average] = field(default_factory=list)
    squeezed: list[Squeezed] = field(default_factory=list)
    root_means: list[RootMean] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    hints: list[tuple[int, np.ndarray, str]] = field(default_factory=list)
    mixed: list[np.ndarray] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _seen_reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    _index: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """List the nodes, and register the reason of axes that are frozen for no other."""
        self.nodes = [n for g in nested(self.model.proto.graph) for n in g.node]
        # by identity: nodes of equal content are different nodes
        self._index = {id(n): i for i, n in enumerate(self.nodes)}
        # number 1 is UNKNOWN of causes.py
        self.reason("coupled with frozen positions", None)

    def outermost(self, node: int) -> bool:
        """Return whether a node is in the main graph, whose tensors a run can output."""
        # bodies come after the main graph in the list
        return node < len(self.model.proto.graph.node)

    def index(self, node: NodeProto) -> int:
        """Return the index of a node among all nodes, bodies included."""
        return self._index[id(node)]

    def reason(self, text: str, node: NodeProto | None, tensor: str = "", axis: int = 0) -> int:
        """Return the number (from 1) of a reason; the first tensor it is given for is kept."""
        # all tensors of a node share a reason, whose first tensor stands for it in reports
        key = (text, label(node) if node is not None else tensor)
        if key not in self._seen_reasons:
            name, op = (label(node), node.op_type) if node is not None else ("", "")
            self.reasons.append(Reason(text, name, op, tensor, axis))
            self._seen_reasons[key] = len(self.reasons)
        return self._seen_reasons[key]

    def why(self, number: int) -> Reason:
        """Return the reason of a number; the first for an unknown number."""
        return self.reasons[number - 1 if 0 < number <= len(self.reasons) else 0]

    def array(self, axis: Axis | None) -> np.ndarray | None:
        """Return the ids of an axis that can be cut; None if it is frozen."""
        return axis if isinstance(axis, np.ndarray) else None


@dataclass
class Node(Attributes):
    """A node with its operands, as rows (`rule.View`) and movement functions read it.

    Attributes
    ----------
    record
        Record of the pass.
    proto
        The node.
    operands
        Tensors per input; None for one that is absent or of unknown rank.
    names
        Names of the inputs.
    """

    record: Record
    proto: NodeProto
    operands: list[Tensor | None]
    names: list[str]

    @property
    def op(self) -> str:
        """Operator type."""
        return self.proto.op_type

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.record.model.opset

    @property
    def inputs(self) -> int:
        """Number of operands, trailing absent ones not counted."""
        # an absent operand in front of a present one counts: slots are positions
        return max((i + 1 for i, t in enumerate(self.operands) if t is not None), default=0)

    @property
    def outputs(self) -> int:
        """Number of outputs with a name."""
        return sum(map(bool, self.proto.output))

    @property
    def index(self) -> int:
        """Index of the node in the record."""
        return self.record.index(self.proto)

    def attribute(self, name: str, default: object = None) -> object:
        """Return an attribute's value in Python form; `default` if absent."""
        return attribute(self.proto, name, default)

    def has_output(self, index: int) -> bool:
        """Return whether an output has a name."""
        return index < len(self.proto.output) and bool(self.proto.output[index])

    def operand(self, slot: int) -> Tensor:
        """Return an operand that must be present.

        Raises
        ------
        Misfit
            The operand is absent.
        """
        tensor = self.operands[slot]
        if tensor is None:
            raise Misfit(f"operand {slot} is missing")
        return tensor

    def rank(self, slot: int) -> int:
        """Return the number of axes of an operand; 0 if it is absent."""
        tensor = self.operands[slot] if slot < len(self.operands) else None
        return len(tensor.axes) if tensor is not None else 0

    def shape(self, slot: int) -> tuple[Dim, ...]:
        """Return the shape of an operand; () if its rank is unknown."""
        return self.record.shapes.shape(self.names[slot]) or ()

    def dim(self, slot: int, axis: int) -> int | None:
        """Return the length of an axis of an operand; None if it is dynamic."""
        size = self.shape(slot)[axis]
        return size if isinstance(size, int) else None

    def value(self, slot: int) -> np.ndarray | None:
        """Return the value of an operand of which every element is known, else None."""
        # an element that is unknown makes the value unknown here; see `partial`
        return self.record.shapes.value(self.names[slot]) if slot < len(self.names) else None

    def is_constant(self, slot: int) -> bool:
        """Return whether an operand is computed from initializers alone."""
        return self.operand(slot).constant

    def partial(self, slot: int) -> np.ndarray | None:
        """Return the value of an operand, elements of which may be unknown; None if absent."""
        if slot >= len(self.names) or not self.names[slot]:
            return None
        return self.record.shapes.values.get(self.names[slot])

    def out_shape(self, index: int = 0) -> tuple[Dim, ...]:
        """Return the shape of an output.

        Raises
        ------
        ModelError
            The rank of the output is unknown.
        """
        shape = self.record.shapes.shape(self.proto.output[index])
        if shape is None:
            raise ModelError("shape-unknown", f"rank of {self.proto.output[index]!r} is unknown")
        return shape

    def floating(self) -> bool:
        """Return whether the first operand holds floating-point numbers."""
        return self.record.shapes.dtype(self.names[0]) in FLOATS

    def why(self, text: str) -> int:
        """Return the number of a reason at this node."""
        return self.record.reason(text, self.proto, self.names[0] if self.names else "")

    def single(self) -> int:
        """Return the number of the reason of axes of length 1."""
        return self.record.reason("axis of length 1", None)
