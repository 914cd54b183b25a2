"""One pass over the graph in topological order: what each axis of each tensor hangs on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import numpy as np
from onnx import GraphProto, NodeProto

from onnxprune.analysis.apply import Misfit, apply, shapes
from onnxprune.analysis.bodies import follow
from onnxprune.analysis.causes import Axis
from onnxprune.analysis.groups import Analysis, collect
from onnxprune.analysis.movement import MOVES, literals
from onnxprune.analysis.rules import RULES, Rule, row
from onnxprune.analysis.state import Node, Record, Tensor, Use
from onnxprune.errors import OnnxpruneError, UsageError, unknown
from onnxprune.ir.contrib import CONTRIB_DOMAIN
from onnxprune.ir.inference import ShapeFallback, infer
from onnxprune.ir.io import Model
from onnxprune.ir.limits import LONGEST_AXIS
from onnxprune.ir.nodes import STANDARD_DOMAINS, captured, label, subgraphs
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim

GROUPED = ("both", "group", "position")


def analyze(
    model: Model,
    *,
    freeze: Collection[str] = (),
    allow_mixing: Collection[str] = (),
    grouped: str = "both",
) -> Analysis:
    """Find the channels of a model that must be cut together.

    Parameters
    ----------
    model
        Any model; it is brought to canonical form first.
    freeze
        Globs over node and tensor names whose channels stay.
    allow_mixing
        Ops along whose mixed axis channels may go although that changes the kept ones ("LayerNormalization").
    grouped
        What may go from a grouped convolution: whole groups ("group"), the same position of each ("position"), or both.

    Raises
    ------
    ModelError
        The model is invalid.
    UsageError
        An unknown op in allow_mixing, an unknown policy, or a freeze pattern that matches nothing.
    """
    for op in allow_mixing:
        if op not in RULES:
            raise unknown("op", op, RULES)
    if grouped not in GROUPED:
        raise unknown("grouped policy", grouped, GROUPED)
    canonical = canonicalize(model)
    record = Record(canonical, infer(canonical, _by_rule(canonical)))
    walk = _Walk(record, frozenset(allow_mixing), grouped)
    walk.graph(canonical.proto.graph)
    walk.ends(canonical.proto.graph)
    walk.freeze_named(freeze)
    return collect(
        record, {"freeze": sorted(freeze), "allow_mixing": sorted(allow_mixing), "grouped": grouped}
    )


def _by_rule(model: Model) -> ShapeFallback:
    """Shapes by rows of the table, for ops that onnx's inference does not know."""
    records: list[Record] = []

    def told(node: NodeProto, known: Shapes) -> Sequence[tuple[Dim, ...] | None]:
        try:
            found = row(node.op_type, node.domain)
            if found is None or any(n and known.shape(n) is None for n in node.input):
                return ()
            records[:] = records or [Record(model, known)]
            view = Node(
                records[0],
                node,
                [Tensor([None] * len(known.shape(n) or ())) if n else None for n in node.input],
                list(node.input),
            )
            rule = found(view) if callable(found) else found
            return shapes(view, rule) if rule is not None else ()
        except (
            Misfit,
            OnnxpruneError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):  # the walk says what is wrong
            return ()

    return told


class _Walk:
    """The pass; everything it finds is in the record."""

    def __init__(self, record: Record, allow_mixing: frozenset[str], grouped: str) -> None:
        self.record = record
        self.allow_mixing = allow_mixing
        self.grouped = grouped
        self.weights = record.model.weights

    def graph(self, graph: GraphProto) -> None:
        """Inputs, then nodes in order."""
        for info in graph.input:
            if info.name not in self.weights and info.name not in self.record.tensors:
                self.record.tensors[info.name] = self.frozen(
                    info.name, self.record.reason("graph input", None, info.name)
                )
        for sparse in graph.sparse_initializer:
            self.record.tensors[sparse.values.name] = self.frozen(
                sparse.values.name,
                self.record.reason("sparse initializer", None, sparse.values.name),
            )
        for node in graph.node:
            self.node(node)

    def node(self, proto: NodeProto) -> None:
        """One node: a body, a movement function, a row of the table, or frozen."""
        operands = [self.operand(proto, slot, name) for slot, name in enumerate(proto.input)]
        node = Node(self.record, proto, operands, list(proto.input))
        try:
            outputs = follow(node, self.graph) if subgraphs(proto) else self.outputs(node)
        except (Misfit, OnnxpruneError) as problem:
            self.stop(node, str(problem))
            return
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as problem:  # a graph that onnx would not accept, or a plug-in's row
            self.stop(node, f"{proto.op_type} is not used as its definition says ({problem})")
            return
        given = [t for t in operands if t is not None]
        constant = bool(given) and all(t.constant for t in given) and not subgraphs(proto)
        origins = tuple(dict.fromkeys(o for t in given for o in t.origins)) if constant else ()
        for name, axes in zip(proto.output, outputs, strict=False):
            if name:
                self.record.tensors[name] = Tensor(
                    [*self.lone(name, node, axes)], constant, origins
                )
        for name in list(proto.output)[len(outputs) :]:
            if name:
                self.record.tensors[name] = self.frozen(name, node.why("an output without a rule"))

    def lone(self, name: str, node: Node, axes: list[Axis]) -> list[Axis]:
        """Axes of length 1 are frozen: without its only position a tensor is empty, and it no longer broadcasts."""
        out: list[Axis] = list(axes)
        for i, size in enumerate(self.record.shapes.shape(name) or ()):
            if size == 1 and i < len(out) and isinstance(out[i], np.ndarray):
                self.record.causes.freeze(out[i], node.single())
                out[i] = node.single()
        return out

    def outputs(self, node: Node) -> list[list[Axis]]:
        """Axes of the outputs by rule; Misfit where there is none."""
        if any(t is None and n for t, n in zip(node.operands, node.names, strict=False)) or any(
            t is not None and self.record.shapes.shape(n) is None
            for t, n in zip(node.operands, node.names, strict=False)
        ):
            raise Misfit("the rank of an input is unknown")
        standard = node.proto.domain in STANDARD_DOMAINS
        found = row(node.op, node.proto.domain)
        rule = found(node) if callable(found) else found
        if rule is None and (standard or node.proto.domain == CONTRIB_DOMAIN) and node.op in MOVES:
            self.fix(node)
            self.followable(node)
            return MOVES[node.op](node)
        if rule is None:
            raise Misfit(
                f"no rule for {node.proto.domain + '::' if not standard else ''}{node.op}"
                + (" in this form" if found else "")
            )
        outputs = apply(node, rule, node.op in self.allow_mixing)
        self.policy(node, rule)
        return outputs

    def followable(self, node: Node) -> None:
        """Misfit where more positions are moved than can be followed one by one: a few nodes can ask for billions."""
        longest = max(
            (
                d
                for n in node.proto.output
                for d in self.record.shapes.shape(n) or ()
                if isinstance(d, int)
            ),
            default=0,
        )
        if longest > LONGEST_AXIS:
            raise Misfit(
                f"it makes an axis of {longest} positions; at most {LONGEST_AXIS} are followed"
            )

    def fix(self, node: Node) -> None:
        """Operands that spell sizes keep their length."""
        why = node.why("spells a shape")
        for tensor in node.operands[literals(node.op) :]:
            for axis in tensor.axes if tensor is not None else ():
                self.record.causes.freeze(why if axis is None else axis, why)

    def policy(self, node: Node, rule: Rule) -> None:
        """Of a grouped convolution, keep the groups or the positions whole."""
        if (
            self.grouped == "both"
            or "g" not in rule.refit.values()
            or not node.op.endswith("Conv")
            or int(node.attribute("group", 1)) == 1  # type: ignore[call-overload]
        ):  # type: ignore[call-overload]
            return
        groups = int(node.attribute("group", 1))  # type: ignore[call-overload]
        for slot in (0, 1):
            axis = node.operands[slot].axes[1 - slot]  # type: ignore[union-attr]
            if isinstance(axis, np.ndarray) and len(axis) > groups:
                rows, columns = self.record.causes.split(
                    axis, groups, len(axis) // groups, node.single()
                )
                self.record.causes.freeze(
                    columns if self.grouped == "group" else rows,
                    node.why(f"grouped={self.grouped}"),
                )

    def operand(self, proto: NodeProto, slot: int, name: str) -> Tensor | None:
        """State of an input; every use of an initializer is one of its own."""
        if not name:
            return None
        if name not in self.weights:
            return self.record.tensors.get(name)
        axes: list[Axis | None] = [None] * len(self.weights[name].shape)
        self.record.uses.append(
            Use(name, self.record.index(proto), slot, axes, ["carries"] * len(axes))
        )
        return Tensor(axes, True, (len(self.record.uses) - 1,))

    def frozen(self, name: str, why: int) -> Tensor:
        return Tensor([why] * len(self.record.shapes.shape(name) or ()))

    def stop(self, node: Node, text: str) -> None:
        """Freeze all that a node touches, and go on."""
        why = node.why(text)
        inside = [
            self.record.tensors.get(n) for n in sorted(captured(node.proto))
        ]  # initializers are uses of the nodes that read them
        for tensor in (*node.operands, *inside):
            if tensor is None:
                continue
            for i, axis in enumerate(tensor.axes):
                if axis is None:
                    tensor.axes[i] = why
                else:
                    self.record.causes.freeze(axis, why)
        for name in node.proto.output:
            if name:
                self.record.tensors[name] = self.frozen(name, why)
        for body in subgraphs(node.proto):
            self.body(body)

    def body(self, body: GraphProto) -> None:
        """A body whose inputs are frozen: what is made and used inside of it can still be cut."""
        self.graph(body)
        self.ends(body, "body output")

    def ends(self, graph: GraphProto, text: str = "graph output") -> None:
        """Outputs keep their shape."""
        for output in graph.output:
            why = self.record.reason(text, None, output.name)
            if output.name in self.weights:
                continue
            tensor = self.record.tensors.get(output.name)
            for axis in tensor.axes if tensor is not None else ():
                if axis is not None:
                    self.record.causes.freeze(axis, why)

    def freeze_named(self, patterns: Collection[str]) -> None:
        """Freeze what the user named: a node's outputs, or a tensor."""
        for pattern in patterns:
            why = self.record.reason(f"frozen by {pattern!r}", None, pattern)
            outputs = {
                o for n in self.record.nodes if fnmatchcase(label(n), pattern) for o in n.output
            }
            hit = [
                t for n, t in self.record.tensors.items() if n in outputs or fnmatchcase(n, pattern)
            ]
            hit += [Tensor(u.axes) for u in self.record.uses if fnmatchcase(u.tensor, pattern)]
            if not hit:
                raise UsageError(
                    "freeze-unmatched",
                    f"freeze pattern {pattern!r} matches no node and no tensor; see: onnxprune inspect MODEL",
                )
            for tensor in hit:
                for axis in tensor.axes:
                    if axis is not None:
                        self.record.causes.freeze(axis, why)
