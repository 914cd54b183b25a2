"""Tensors in which a model and its pruned form are compared.

These are the outputs, except where the pruned model may choose other rows: the rows after a
NonMaxSuppression have another number or another order, so that their values do not correspond. The
tensors in front of the choice are compared in place of such outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto, ValueInfoProto

from onnxprune.errors import ModelError
from onnxprune.ir.dependencies import SIZES, Dependencies
from onnxprune.ir.extract import reads
from onnxprune.ir.inference import infer
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import label, nested, subgraphs
from onnxprune.ir.shapes import Shapes

ROW_OPS = frozenset("NonMaxSuppression NonZero Compress Unique TopK".split())
_GATHERS = frozenset("Gather GatherElements GatherND".split())
# operators that sum over channels, by parts of their names: quantized and fused forms count too
_SUMS = "Conv MatMul Gemm LSTM GRU RNN Einsum Attention".split()
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UNDEFINED)


@dataclass(frozen=True)
class Compared:
    """Tensors to compare.

    Attributes
    ----------
    tensors
        Names: outputs in their order, then tensors in front of those that are left out.
    inner
        Those of `tensors` that are no outputs.
    warnings
        Outputs that are left out and what takes their place, as sentences.
    """

    tensors: tuple[str, ...]
    inner: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def tensors_to_compare(model: ModelView, start: int = 0, shapes: Shapes | None = None) -> Compared:
    """Return the tensors in which a model and a pruned form of it are compared.

    Parameters
    ----------
    start
        Position in the node list: both models have equal values in front of it, so that only the
        nodes from there on choose other rows.
    shapes
        Inferred shapes of the model; computed if None and needed.
    """
    outputs = list(model.proto.graph.output)
    nodes = list(model.proto.graph.node)
    # row choices in front of the position are the same in both models
    candidates = [node for node in nodes[start:] if may_choose_rows(node)]
    plain = any(map(_is_float, outputs)) and all(map(is_tensor, outputs))
    if plain and not candidates:
        return Compared(tuple(o.name for o in outputs))
    graph = _Choices(model, nodes, shapes)
    choosing = [node for node in candidates if graph.chooses_rows(node)]
    after = graph.descendants({o for node in choosing for o in node.output if o}, SIZES)
    # as everywhere, outputs of other types do not count if floats can be compared
    fixed = any(_is_float(o) for o in outputs if o.name not in after)
    lost = [o.name for o in outputs if o.name in after and (_is_float(o) or not fixed)]
    front = graph.floats_before(after, lost) if lost else []
    warnings = []
    if lost:
        needed = graph.ancestors(lost)
        labels = [f"{n.op_type} {label(n)!r}" for n in choosing if needed & set(n.output)]
        names = ", ".join(map(repr, lost))
        verb = "output {}: its rows depend" if len(lost) == 1 else "outputs {}: their rows depend"
        cause = f"{verb.format(names)} on the data ({', '.join(labels[:3])})"
        warnings.append(_warn(cause, front))
    tensors = [o for o in outputs if o.name not in lost]
    # outputs that are no float tensors: if nothing else can be compared
    floats = [o for o in tensors if is_tensor(o) and _is_float(o)]
    for output in tensors:
        if is_tensor(output) and (_is_float(output) or floats or front):
            continue
        kind = "it holds no floating-point values" if is_tensor(output) else "it is no tensor"
        ahead = graph.floats_in_front(output.name)
        warnings.append(_warn(f"output {output.name!r}: {kind}", ahead))
        front += [name for name in ahead if name not in front]
    kept = [o.name for o in tensors if is_tensor(o)]
    # a tensor that is compared as an output already is not listed twice
    inner = tuple(name for name in front if name not in kept)
    return Compared((*kept, *inner), inner, tuple(warnings))


def rows_from_data(model: ModelView, shapes: Shapes | None = None) -> frozenset[str]:
    """Return the tensors whose rows a node chooses by values that pruning can change."""
    nodes = list(model.proto.graph.node)
    candidates = [node for node in nodes if may_choose_rows(node)]
    if not candidates:
        return frozenset()
    graph = _Choices(model, nodes, shapes)
    choosing = [node for node in candidates if graph.chooses_rows(node)]
    return frozenset(graph.descendants({o for node in choosing for o in node.output if o}, SIZES))


def _warn(cause: str, front: Sequence[str]) -> str:
    """Return the sentence on outputs that are left out."""
    if not front:
        return f"{cause}; not compared, since no floating-point tensor in front can be"
    names = ", ".join(map(repr, front[:4])) + (", ..." if len(front) > 4 else "")
    return f"{cause}; compared in front instead: {names}"


def is_tensor(value: ValueInfoProto) -> bool:
    """Return True unless an output is declared as a sequence, a map or an optional."""
    return value.type.WhichOneof("value") in (None, "tensor_type")


def _is_float(value: ValueInfoProto) -> bool:
    """Return True if the declared type is a float of numpy, or none is declared."""
    return is_tensor(value) and value.type.tensor_type.elem_type in FLOATS


def may_choose_rows(node: NodeProto) -> bool:
    """Return True if a node, or one in its bodies, can choose rows."""
    if node.op_type in ROW_OPS:
        return True
    inner = (n for body in subgraphs(node) for g in nested(body) for n in g.node)
    return any(n.op_type in ROW_OPS and n.op_type != "TopK" for n in inner)


def sums_over_channels(node: NodeProto) -> bool:
    """Return True if a node sums over channels, so that pruning changes its values."""
    return any(part in node.op_type for part in _SUMS)


class _Choices(Dependencies):
    """Choices of rows in a main graph, and what depends on their values."""

    def __init__(self, model: ModelView, nodes: Sequence[NodeProto], shapes: Shapes | None) -> None:
        super().__init__(nodes)
        self.model, self.shapes = model, shapes
        # values that pruning can change
        self.learned = self.descendants(
            {o for n in nodes if sums_over_channels(n) for o in n.output if o}, SIZES
        )

    def chooses_rows(self, node: NodeProto) -> bool:
        """Return True if pruning can change the rows that a node chooses.

        TopK counts where its indices gather rows of the outputs. If sums over channels follow, as
        in a mixture of experts, the rows are no order of results.
        """
        # only values that pruning can change make the choice differ
        if not self.learned & reads(node):
            return False
        if node.op_type != "TopK":
            return True
        after = self.descendants({node.output[1]}, SIZES) if len(node.output) > 1 else set()
        following = [n for n in self.nodes if after & set(n.output)]
        gathers = any(
            n.op_type in _GATHERS and len(n.input) > 1 and n.input[1] in after for n in following
        )
        return gathers and not any(sums_over_channels(n) for n in following if n is not node)

    def floats_before(self, after: Collection[str], outputs: Iterable[str]) -> list[str]:
        """Return what tensors in `after`, as far as outputs need them, read from the rest."""
        inside = self.ancestors(outputs).intersection(after)
        return self._select_floats((self.frontier(inside) & self.learned).difference(after))

    def floats_in_front(self, output: str) -> list[str]:
        """Return the nearest floating-point tensors that an output is computed from."""
        types = self._infer_types()
        front: set[str] = set()
        seen, waiting = {output}, [output]
        while waiting:
            index = self.producers.get(waiting.pop())
            if index is None:
                continue
            for name in (self.reads[index] & self.learned) - seen:
                seen.add(name)
                if types.get(name) in FLOATS[:3]:
                    front.add(name)
                else:
                    waiting.append(name)
        return self._in_order(front)

    def _select_floats(self, names: Iterable[str]) -> list[str]:
        """Return the floating-point tensors among others, in the order of their producers."""
        types = self._infer_types()
        return self._in_order(n for n in names if types.get(n) in FLOATS[:3])

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Return tensors in the order of their producers."""
        return sorted(names, key=lambda name: (self.producers.get(name, -1), name))

    def _infer_types(self) -> dict[str, int]:
        """Return the element types of the main graph's activations, as far as they are known."""
        try:
            shapes = self.shapes or infer(self.model)
        # without types nothing can be selected, and the caller warns that nothing is compared
        except ModelError:
            return {}
        return {name: shapes.dtype(name) or 0 for name in self.producers}
