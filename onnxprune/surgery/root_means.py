"""Scale and epsilon of normalizations by the root mean square after a cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from onnx import helper

from onnxprune.analysis.averages import RootMean
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.nodes import attribute, nested, set_attribute
from onnxprune.ir.weights import from_array
from onnxprune.surgery.size_literals import Editor

# Values of the attribute `epsilon` if it is absent
_DEFAULT_EPSILON = 1e-5
_PRODUCT = "_product"  # suffix of the name of the node that _insert_product adds
_EPSILON = {"SkipSimplifiedLayerNormalization": 1e-12}


class _Operand(NamedTuple):
    """An operand that is multiplied.

    Attributes
    ----------
    node
        Index of the node.
    slot
        Index of the operand.
    factor
        Number that it is multiplied by.
    """

    node: int
    slot: int
    factor: float


def rescale_root_means(editor: Editor) -> None:
    """Multiply scale and epsilon so that means over the kept positions give the same results."""
    operands = [x for r in editor.analysis.record.root_means for x in _rescale(editor, r)]
    if not operands:
        return
    consumers: Counter[str] = Counter()
    for graph in nested(editor.model.proto.graph):
        consumers.update(name for node in graph.node for name in node.input)
        consumers.update(output.name for output in graph.output)
    # several normalizations may share an initializer, and an epsilon may serve elsewhere too
    uses: dict[str, list[_Operand]] = {}
    for operand in operands:
        uses.setdefault(editor.nodes[operand.node].input[operand.slot], []).append(operand)
    for name, alike in uses.items():
        if name in editor.model.weights:
            _multiply_initializer(editor, name, alike, len(alike) == consumers[name])
        else:
            for operand in alike:
                _insert_product(editor, name, operand)


def _rescale(editor: Editor, root_mean: RootMean) -> Iterator[_Operand]:
    """Multiply an epsilon that is an attribute; yield the operands to multiply."""
    kept = math.prod(editor.length(a) for a in root_mean.axes)
    length = math.prod(len(a) for a in root_mean.axes)
    if kept in (0, length):  # without positions, the branch is removed
        return
    ratio = length / kept
    if root_mean.epsilon is not None:
        index, place = root_mean.epsilon
        if isinstance(place, int):
            yield _Operand(index, place, ratio)
        else:
            node = editor.nodes[index]
            default = _EPSILON.get(node.op_type, _DEFAULT_EPSILON)
            set_attribute(node, place, attribute(node, place, default) * ratio)
    yield _Operand(*root_mean.scale, ratio**root_mean.exponent)


def _multiply_initializer(
    editor: Editor, name: str, operands: list[_Operand], everywhere: bool
) -> None:
    """Multiply an initializer; in place if it has no other consumers and no other factor."""
    weight = editor.model.weights[name].array()
    factors = sorted({operand.factor for operand in operands})
    for factor in factors:
        # in float64, so that half types are rounded once
        values = (np.asarray(weight, np.float64) * factor).astype(weight.dtype)
        if everywhere and len(factors) == 1:
            editor.model.weights[name] = from_array(values)
            return
        product = add_initializer(editor.model, name, values)
        for operand in operands:
            if operand.factor == factor:
                editor.nodes[operand.node].input[operand.slot] = product


def _insert_product(editor: Editor, name: str, operand: _Operand) -> None:
    """Multiply a computed operand by another node."""
    dtype = helper.tensor_dtype_to_np_dtype(editor.analysis.shapes.dtype(name))
    nodes = (node for graph in nested(editor.model.proto.graph) for node in graph.node)
    earlier = next((n for n in nodes if name in n.output and n.name.endswith(_PRODUCT)), None)
    if earlier is not None:  # the model was cut before
        factor = float(editor.model.weights[earlier.input[1]].array()) * operand.factor
        earlier.input[1] = add_initializer(editor.model, earlier.input[1], np.array(factor, dtype))
        return
    constant = add_initializer(editor.model, f"{name}_share", np.array(operand.factor, dtype))
    output = f"{constant}{_PRODUCT}"
    multiply = helper.make_node("Mul", [name, constant], [output], name=output)
    editor.insert(operand.node, multiply)
    editor.nodes[operand.node].input[operand.slot] = output
