"""Models in memory: a graph with its weights stored apart, frozen or editable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from onnx import ModelProto, ValueInfoProto

from onnxprune.errors import plural
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import Weight, size_bytes
from onnxprune.summary import Summarized

# Default operator set of models that import other sets alone, for nodes that a cut inserts
UNUSED_OPSET = 13


class ModelView(Summarized):
    """Read access that `Model` and `EditableModel` have in common.

    Attributes
    ----------
    proto
        The graph. Its top-level initializers carry name, type and shape but no values.
    weights
        Values of every top-level initializer by name.
    path
        File that the model was read from, None if it was not read from a file.
    """

    proto: ModelProto
    weights: Mapping[str, Weight]
    path: Path | None

    @property
    def opset(self) -> int:
        """Version of the default operator set; UNUSED_OPSET if only other sets are imported."""
        imports = self.proto.opset_import
        # a model without any import is of opset 1, as onnx reads it
        missing = UNUSED_OPSET if imports else 1
        return next((o.version for o in imports if o.domain in ("", "ai.onnx")), missing)

    def _title(self) -> str:
        """Return nodes, bytes of the weights, and the path."""
        where = f", from {self.path}" if self.path else ""
        nodes = plural(len(self.proto.graph.node), "node")
        return f"{nodes}, {self.size_bytes():,} bytes of weights, opset {self.opset}{where}"

    def _rows(self) -> Sequence[Sequence[str]]:
        """Return inputs and outputs with their shapes."""
        graph = self.proto.graph
        rows = [("tensor", "kind", "shape")]
        rows += [(i.name, "input", _spell(i)) for i in graph.input if i.name not in self.weights]
        return rows + [(o.name, "output", _spell(o)) for o in graph.output]

    def size_bytes(self) -> int:
        """Return the bytes of all initializers."""
        return sum(size_bytes(w) for w in self.weights.values())

    def edit(self) -> EditableModel:
        """Return a copy that can be changed; the values of its weights are shared."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return EditableModel(proto, dict(self.weights), self.path)


@dataclass(frozen=True, repr=False)
class Model(ModelView):
    """A model that does not change: `weights` is read-only, and `proto` must not be written to."""

    proto: ModelProto
    weights: Mapping[str, Weight] = field(repr=False)
    path: Path | None = None

    def __post_init__(self) -> None:
        """Guard the weights against changes, also through the mapping that was passed."""
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))


@dataclass(eq=False, repr=False)
class EditableModel(ModelView):
    """A model under construction, owned by the function that edits it; made by `edit()`."""

    proto: ModelProto
    weights: dict[str, Weight] = field(repr=False)
    path: Path | None = None
    _names: frozenset[str] | None = field(default=None, init=False, repr=False)

    def activation_names(self) -> frozenset[str]:
        """Return the names of all graph inputs and node outputs as of the first call.

        They are collected once: doing so for every new weight would take quadratic time. Weights
        must not get names that later nodes use.
        """
        if self._names is None:
            names: set[str] = set()
            for graph in nested(self.proto.graph):
                names.update(i.name for i in graph.input)
                for node in graph.node:
                    names.update(node.output)
            self._names = frozenset(names)
        return self._names

    def freeze(self) -> Model:
        """Return the result as a Model without copying the graph.

        The editable model cannot be used afterwards, because edits would change the result.
        """
        model = Model(self.proto, self.weights, self.path)
        # any later use fails at once, instead of changing a model that others take for constant
        del self.proto, self.weights
        return model


def _spell(info: ValueInfoProto) -> str:
    """Return the declared shape, "?" for what is not declared."""
    tensor = info.type.tensor_type
    lengths = (
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )
    return "x".join(lengths) if tensor.HasField("shape") else "?"
