"""Concrete lengths of all axes, at which costs are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxprune.analysis.folded import Places
from onnxprune.analysis.rule_shapes import shapes_by_rule
from onnxprune.analysis.state import Record
from onnxprune.errors import printable
from onnxprune.ir.dictated import input_shapes
from onnxprune.ir.example_sizes import LENGTH, example_input_shapes, name_shapes
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.subgraphs import bindings, trip_count
from onnxprune.ir.values import Dim

MOST_NAMED = 8  # inputs in a description


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes of a model at given shapes of its inputs.

    Attributes
    ----------
    record
        Record of the pass, with symbolic shapes.
    given
        Input name -> shape; -1 and missing inputs take example lengths for dynamic axes.
    origin
        Where the lengths of dynamic axes come from; "" = derived from `given`.
    """

    record: Record
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)
    origin: str = ""

    @cached_property
    def _declared(self) -> dict[str, tuple[Dim, ...]]:
        """Declared shape of every input that is a tensor of known rank."""
        return input_shapes(self.record.model, self.record.shapes)

    @cached_property
    def _named(self) -> dict[str, Sequence[int]]:
        """The given shapes, that without a name under that of the only input."""
        return name_shapes(self.given, self._declared)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of every input that is a tensor of known rank."""
        return self._sized[0]

    @cached_property
    def shapes(self) -> Shapes:
        """Shapes of all tensors; lengths that depend on the data are example lengths."""
        inputs, shapes = self._sized
        # inferred once: this takes a good part of the time of an analysis
        return shapes or sized_shapes(self.record.model, inputs, self.record.shapes)

    @cached_property
    def _sized(self) -> tuple[dict[str, tuple[int, ...]], Shapes | None]:
        """Shapes of the inputs, and those of all tensors where they were tried."""
        declared = self._declared
        inputs = example_input_shapes(declared, self._named)
        if all(not shape or isinstance(shape[0], int) for shape in declared.values()):
            return inputs, None
        # a leading axis of time, not of samples, is too short for windows at length 1
        shapes = sized_shapes(self.record.model, inputs, self.record.shapes)
        if _can_exist(shapes):
            return inputs, shapes
        return example_input_shapes(declared, self._named, LENGTH), None

    def length(self, places: Places) -> int:
        """Return the length of axes that broadcast: the largest of them."""
        return max(self.at(tensor)[axis] for tensor, axis in places)

    def at(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor of known rank; the example length where it is unknown."""
        symbolic = self.record.shapes.shape(tensor)
        # numbers alone are the same at every size
        if symbolic is not None and all(isinstance(d, int) for d in symbolic):
            return _filled(symbolic)
        shape = self.shapes.shape(tensor)
        # axes are numbered by the symbolic shape, so that its rank decides
        if shape is None or (symbolic is not None and len(shape) != len(symbolic)):
            shape = symbolic
        return _filled(shape or ())

    def knows(self, tensor: str) -> bool:
        """Return whether the rank of a tensor is known."""
        return any(s.shape(tensor) is not None for s in (self.record.shapes, self.shapes))

    def iterations(self, node: int) -> int:
        """Return the number of iterations of a Loop or Scan; 1 if it depends on the data."""
        proto = self.record.nodes[node]
        links = bindings(proto, self.record.model.opset) or []
        return trip_count(proto, links, self.shapes.types, self.shapes.values) or 1

    @property
    def assumed(self) -> tuple[str, ...]:
        """Tensors whose lengths depend on the data and were replaced by example lengths."""
        return tuple(sorted(self.shapes.assumed))

    def describe(self) -> str:
        """Return the shapes and their origin, e.g. "image 1x3x640x640 (calibration data)"."""
        parts = [
            f"{printable(name)} {'x'.join(map(str, shape)) or 'scalar'}"
            for name, shape in self.inputs.items()
        ]
        text = ", ".join(parts[:MOST_NAMED])
        if len(parts) > MOST_NAMED:
            text += f" and {len(parts) - MOST_NAMED} more inputs"
        notes = [self.origin_of_lengths]
        if self.assumed:
            notes.append(f"lengths that depend on the data counted as {LENGTH}")
        note = "; ".join(filter(None, notes))
        return f"{text} ({note})" if note else text

    @property
    def origin_of_lengths(self) -> str:
        """Where the lengths of dynamic axes come from; "" if they are given or only the batch."""
        if self.origin:
            return self.origin
        for name, shape in self._declared.items():
            # -1 is what an input that is not listed takes on every axis
            given = self._named.get(name, (-1,) * len(shape))
            for axis, (dim, size) in enumerate(zip(shape, given, strict=False)):
                # one sample per inference, unless a shape says otherwise
                if axis and not isinstance(dim, int) and size < 0:
                    return "example lengths"
        return ""


def _can_exist(shapes: Shapes) -> bool:
    """Return whether no length is negative."""
    return not any(
        dim.dim_value < 0 for kind in shapes.types.values() for dim in kind.tensor_type.shape.dim
    )


def sized_shapes(
    model: Model, inputs: Mapping[str, Sequence[int]], symbolic: Shapes | None = None
) -> Shapes:
    """Return the shapes of all tensors at given shapes of the inputs.

    Parameters
    ----------
    inputs
        Input name -> shape without dynamic axes.
    symbolic
        Inferred shapes if there are any: returned if none of them is dynamic.
    """
    # inference at given sizes would give the same
    if symbolic is not None and not any(_is_open(symbolic, name) for name in symbolic.types):
        return symbolic
    copy = model.edit()
    for info in copy.proto.graph.input:
        if info.name not in inputs:
            continue
        dims = info.type.tensor_type.shape
        del dims.dim[:]
        for length in inputs[info.name]:
            dims.dim.add(dim_value=length)
    frozen = copy.freeze()
    return infer(frozen, shapes_by_rule(frozen), LENGTH)


def _is_open(shapes: Shapes, name: str) -> bool:
    """Return whether a tensor has a dynamic axis."""
    return any(not isinstance(d, int) for d in shapes.shape(name) or ())


def _filled(shape: Sequence[Dim]) -> tuple[int, ...]:
    """Return a shape with the example length for every unknown length."""
    return tuple(d if isinstance(d, int) else LENGTH for d in shape)
