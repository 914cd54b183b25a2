"""Single topological pass that computes the causes of every axis of every tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from onnx import GraphProto, NodeProto

from onnxprune.analysis.apply import apply
from onnxprune.analysis.bodies import follow
from onnxprune.analysis.causes import Axis
from onnxprune.analysis.collect import collect
from onnxprune.analysis.copies import find_copies, share_copies
from onnxprune.analysis.decomposed import find_decomposed
from onnxprune.analysis.defects import explain_failure
from onnxprune.analysis.folded import Folded
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.literals import first_literal
from onnxprune.analysis.movement import KEEPS_FACTORS, MOVES
from onnxprune.analysis.no_rule import explain
from onnxprune.analysis.notation import SPATIAL, Token, parse
from onnxprune.analysis.rule import GROUP, Misfit, Rule
from onnxprune.analysis.rule_shapes import INVALID_NODE, shapes_by_rule
from onnxprune.analysis.rules import RULES, row
from onnxprune.analysis.sharing import tie
from onnxprune.analysis.state import Node, Record, Tensor, Use
from onnxprune.errors import OnnxpruneError, UsageError, unknown
from onnxprune.garbage import rare_collections
from onnxprune.ir.contrib import CONTRIB_DOMAIN
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model, Source, load
from onnxprune.ir.limits import LONGEST_AXIS
from onnxprune.ir.nodes import STANDARD_DOMAINS, captured, label, subgraphs
from onnxprune.ir.passes.canonicalize import canonicalize_with_shapes
from onnxprune.ir.shapes import Shapes

# Of onnxruntime: weights are reordered for the vector width of the machine
_BLOCKED_DOMAIN = "com.microsoft.nchwc"
GROUPED = ("both", "group", "position")


@rare_collections()
def analyze(
    model: Source,
    *,
    freeze: Collection[str] = (),
    allow_mixing: Collection[str] = (),
    grouped: str = "both",
    untie: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Analysis:
    """Find the channels of a model that must be cut together.

    Parameters
    ----------
    model
        Any model, as `load` takes it; it is brought to canonical form first.
    freeze
        Globs over node and tensor names whose channels are kept.
    allow_mixing
        Operators along whose mixed axes channels may be cut although that changes the kept ones
        ("LayerNormalization").
    grouped
        What may be cut from a grouped convolution: whole groups ("group"), the same position of
        each group ("position"), or both.
    untie
        Cut each use of a shared weight on its own, at the price of storing the weight once per use.
    shapes
        Input name -> shape that costs are counted at; -1 and inputs that are not listed take
        example lengths for dynamic axes (see `ir.example_sizes`). Groups do not depend on them.

    Returns
    -------
    analysis
        Groups of coupled channels, with their costs.

    Raises
    ------
    ModelError
        The model is invalid.
    UsageError
        An operator in `allow_mixing` or the policy is unknown, or a freeze pattern matches
        nothing.
    """
    _check_options(allow_mixing, grouped)
    canonical, inferred = canonicalize_with_shapes(load(model))
    record = _follow(canonical, freeze, allow_mixing, grouped, inferred)
    if not untie:
        tie(record)
        copies = find_copies(record)
        if copies:
            record = _follow(share_copies(canonical, copies), freeze, allow_mixing, grouped)
            record.copies = copies
            tie(record)
    options = {
        "freeze": sorted(freeze),
        "allow_mixing": sorted(allow_mixing),
        "grouped": grouped,
        **({"untie": True} if untie else {}),
    }
    analysis = collect(record, options)
    return analysis.at(shapes) if shapes else analysis


def _follow(
    canonical: Model,
    freeze: Collection[str],
    allow_mixing: Collection[str],
    grouped: str,
    shapes: Shapes | None = None,
) -> Record:
    """Return the record of a pass over a canonical model; its shapes are inferred if None."""
    record = Record(canonical, shapes or infer(canonical, shapes_by_rule(canonical)))
    walk = _Walk(record, frozenset(allow_mixing), grouped)
    walk.graph(canonical.proto.graph)
    walk.freeze_outputs(canonical.proto.graph)
    # names are matched last, when all tensors and uses are known
    walk.freeze_named(freeze)
    # reads the masks and averages of all reductions, and what was opened or frozen around them
    find_decomposed(record, walk.allow_mixing)
    return record


def _check_options(allow_mixing: Collection[str], grouped: str) -> None:
    """Raise UsageError for an unknown operator or policy."""
    for op in allow_mixing:
        if op not in RULES:
            raise unknown("op", op, RULES)
    if grouped not in GROUPED:
        raise unknown("grouped policy", grouped, GROUPED)


class _Walk:
    """The pass; all results are in the record."""

    def __init__(self, record: Record, allow_mixing: frozenset[str], grouped: str) -> None:
        self.record = record
        self.allow_mixing = allow_mixing
        self.grouped = grouped
        self.weights = record.model.weights

    def graph(self, graph: GraphProto) -> None:
        """Analyze the inputs, then the nodes in order."""
        tensors = self.record.tensors
        for info in graph.input:
            # initializers are inputs too before IR version 4; those of bodies have axes already
            if info.name not in self.weights and info.name not in tensors:
                why = self.record.reason("graph input", None, info.name)
                tensors[info.name] = self.frozen(info.name, why)
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            tensors[name] = self.frozen(name, self.record.reason("sparse initializer", None, name))
        for node in graph.node:
            self.node(node)

    def node(self, proto: NodeProto) -> None:
        """Analyze one node: by its bodies, a movement function or a row, or freeze it."""
        operands = [self.operand(proto, slot, name) for slot, name in enumerate(proto.input)]
        node = Node(self.record, proto, operands, list(proto.input))
        try:
            outputs = self.bodies(node) if subgraphs(proto) else self.outputs(node)
        except (Misfit, OnnxpruneError) as problem:
            self.freeze_node(node, str(problem))
            return
        # an invalid node, or a defect of its rule: the node is kept, and the pass continues
        except INVALID_NODE as problem:
            text, defect = explain_failure(node, problem)
            self.record.defects += [defect] if defect else []
            self.freeze_node(node, text)
            return
        given = [t for t in operands if t is not None]
        # bodies may read activations that are no operands
        constant = bool(given) and all(t.constant for t in given) and not subgraphs(proto)
        # so that roles that consumers find reach the initializers behind a constant
        origins = tuple(dict.fromkeys(o for t in given for o in t.origins)) if constant else ()
        for name, axes in zip(proto.output, outputs, strict=False):
            if name:
                self.record.tensors[name] = Tensor(
                    [*self.freeze_single(name, node, axes)], constant, origins
                )
        # a row describes the outputs that carry channels; the further ones are masks or statistics
        for name in list(proto.output)[len(outputs) :]:
            if name:
                self.record.tensors[name] = self.frozen(name, node.why("an output without a rule"))

    def bodies(self, node: Node) -> list[list[Axis]]:
        """Return the axes of the outputs of a node with bodies."""
        self.freeze_factors(node)
        return follow(node, self.graph)

    def freeze_single(self, name: str, node: Node, axes: list[Axis]) -> list[Axis]:
        """Return the axes with those of length 1 frozen.

        Without its only position a tensor is empty, and it no longer broadcasts.
        """
        out: list[Axis] = list(axes)
        for i, size in enumerate(self.record.shapes.shape(name) or ()):
            if size == 1 and i < len(out) and isinstance(out[i], np.ndarray):
                self.record.causes.freeze(out[i], node.single())
                out[i] = node.single()
        return out

    def outputs(self, node: Node) -> list[list[Axis]]:
        """Return the axes of the outputs by rule; Misfit if there is none."""
        if not self.ranks_known(node):
            raise Misfit("the rank of an input is unknown")
        standard = node.proto.domain in STANDARD_DOMAINS
        # a row first: movement functions take the forms that it leaves, as Resize by sizes
        entry = row(node.op, node.proto.domain)
        rule = entry(node) if callable(entry) else entry
        if rule is not None:
            outputs = apply(node, rule, node.op in self.allow_mixing)
            self.restrict_groups(node, rule, outputs)
            return outputs
        # in other domains the same name may be any operator
        if (standard or node.proto.domain == CONTRIB_DOMAIN) and node.op in MOVES:
            if node.op not in KEEPS_FACTORS:
                self.freeze_factors(node)
            self.freeze_literals(node)
            self.check_length(node)
            return MOVES[node.op](node)
        if node.proto.domain == _BLOCKED_DOMAIN:
            raise Misfit(
                "onnxruntime interleaves blocks of channels here, as wide as the vectors of the "
                "machine that saved the graph; save it at ORT_ENABLE_EXTENDED instead"
            )
        name = node.op if standard else f"{node.proto.domain}::{node.op}"
        known = entry is not None or node.op in MOVES
        ending = " in this form" if known else explain(node.op, standard)
        raise Misfit(f"no rule for {name}{ending}")

    def freeze_factors(self, node: Node) -> None:
        """Freeze the factors of dynamic axes, for operators that do not follow them."""
        for tensor in node.operands:
            for i, axis in enumerate(tensor.axes if tensor is not None else ()):
                if tensor is not None and isinstance(axis, Folded):
                    self.record.causes.freeze(axis, int(axis))
                    # an int: code that knows nothing of factors must not find them any more
                    tensor.axes[i] = int(axis)

    def ranks_known(self, node: Node) -> bool:
        """Return whether the rank of every operand is known."""
        for tensor, name in zip(node.operands, node.names, strict=True):
            if name and (tensor is None or self.record.shapes.shape(name) is None):
                return False
        return True

    def check_length(self, node: Node) -> None:
        """Misfit if an output axis has more positions than are followed one by one."""
        shapes = [self.record.shapes.shape(n) or () for n in node.proto.output]
        longest = max((d for shape in shapes for d in shape if isinstance(d, int)), default=0)
        if longest > LONGEST_AXIS:
            raise Misfit(
                f"an output axis has {longest} positions; at most {LONGEST_AXIS} are followed"
            )

    def freeze_literals(self, node: Node) -> None:
        """Freeze the operands that spell sizes."""
        why = node.why("its values are sizes or positions")
        for tensor in node.operands[first_literal(node.op) :]:
            if tensor is None:
                continue
            for axis in tensor.axes:
                self.record.causes.freeze(why if axis is None else axis, why)

    def restrict_groups(self, node: Node, rule: Rule, outputs: list[list[Axis]]) -> None:
        """Freeze the groups of a grouped convolution, or the positions in each group."""
        if self.grouped == "both" or rule.let.get("g") != GROUP["g"]:
            return
        pattern, groups = parse(rule.pattern), node.integer("group", 1)
        operands = [tensor.axes if tensor is not None else [] for tensor in node.operands]
        # trailing operands may be absent
        places: list[tuple[tuple[Token, ...], Sequence[Axis | None]]] = [
            *zip(pattern.inputs, operands, strict=False),
            *zip(pattern.outputs, outputs, strict=False),
        ]
        for tokens, axes in places:
            for i, token in enumerate(tokens):
                if not axes or not isinstance(token, tuple):
                    continue
                # the mark stands for any number of axes: those after it are counted from the end
                axis = axes[i - len(tokens) if SPATIAL in tokens[:i] else i]
                # with one channel per group, groups and positions are the same
                if isinstance(axis, np.ndarray) and len(axis) > groups > 1:
                    self.restrict_axis(node, axis, groups)

    def restrict_axis(self, node: Node, axis: np.ndarray, groups: int) -> None:
        """Freeze the groups of an axis, or the positions in each."""
        rows, columns = self.record.causes.split(axis, groups, len(axis) // groups, node.single())
        frozen = columns if self.grouped == "group" else rows
        self.record.causes.freeze(frozen, node.why(f"grouped={self.grouped}"))

    def operand(self, proto: NodeProto, slot: int, name: str) -> Tensor | None:
        """Return the state of an input; every use of an initializer gets axes of its own."""
        if not name:
            return None
        if name not in self.weights:
            return self.record.tensors.get(name)
        # None until a rule follows an axis: most constants need no causes
        axes: list[Axis | None] = [None] * len(self.weights[name].shape)
        roles = ["carries"] * len(axes)
        self.record.uses.append(Use(name, self.record.index(proto), slot, axes, roles))
        return Tensor(axes, True, (len(self.record.uses) - 1,))

    def frozen(self, name: str, why: int) -> Tensor:
        """Return the state of a tensor of which all axes are frozen."""
        return Tensor([why] * len(self.record.shapes.shape(name) or ()))

    def freeze_node(self, node: Node, text: str) -> None:
        """Freeze all tensors that a node reads or writes."""
        why = node.why(text)
        # names of initializers have no tensor here: they are uses of the nodes that read them
        inside = [self.record.tensors.get(n) for n in sorted(captured(node.proto))]
        for tensor in (*node.operands, *inside):
            if tensor is not None:
                for axis in tensor.freeze_unset(why):
                    self.record.causes.freeze(axis, why)
        for name in node.proto.output:
            if name:
                self.record.tensors[name] = self.frozen(name, why)
        for body in subgraphs(node.proto):
            self.isolated_body(body)

    def isolated_body(self, body: GraphProto) -> None:
        """Analyze a body with frozen inputs and outputs: channels inside it can still be cut."""
        self.graph(body)
        self.freeze_outputs(body, "body output")

    def freeze_outputs(self, graph: GraphProto, text: str = "graph output") -> None:
        """Freeze the outputs of a graph, whose shapes are its interface."""
        for output in graph.output:
            why = self.record.reason(text, None, output.name)
            tensor = self.record.tensors.get(output.name)
            # an initializer that is an output stays complete, next to the cut ones of its uses
            if output.name in self.weights or tensor is None:
                continue
            for axis in tensor.axes:
                if axis is not None:
                    self.record.causes.freeze(axis, why)

    def freeze_named(self, patterns: Collection[str]) -> None:
        """Freeze what the user named: the outputs of a node, or a tensor."""
        for pattern in patterns:
            why = self.record.reason(f"frozen by {pattern!r}", None, pattern)
            for tensor in self.matches(pattern):
                for axis in tensor.axes:
                    if axis is not None:
                        self.record.causes.freeze(axis, why)

    def matches(self, pattern: str) -> list[Tensor]:
        """Return the tensors and uses that a freeze pattern names; UsageError if there is none."""
        nodes = [n for n in self.record.nodes if fnmatchcase(label(n), pattern)]
        outputs = {o for n in nodes for o in n.output}
        tensors = [
            t for n, t in self.record.tensors.items() if n in outputs or fnmatchcase(n, pattern)
        ]
        # initializers have no tensor of their own, only uses
        tensors += [Tensor(u.axes) for u in self.record.uses if fnmatchcase(u.tensor, pattern)]
        if not tensors:
            raise UsageError(
                "freeze-unmatched",
                f"freeze pattern {pattern!r} matches no node and no tensor; "
                "list their names with: onnxprune inspect MODEL",
            )
        return tensors
