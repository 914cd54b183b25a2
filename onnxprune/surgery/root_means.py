"""Scale and epsilon of normalizations by the root mean square after a cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from onnx import helper

from onnxprune.analysis.averages import RootMean
from onnxprune.analysis.groups import Analysis
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.model import Model
from onnxprune.ir.nodes import attribute, nested, set_attribute
from onnxprune.ir.weights import Weight, from_array
from onnxprune.surgery.size_literals import Editor

# Values of the attribute `epsilon` if it is absent
_DEFAULT_EPSILON = 1e-5
_PRODUCT = "_product"  # suffix of the name of the node that _insert_product adds


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
    for name, operands, alike in _group_by_tensor(editor):
        if name in editor.model.weights:
            _multiply_initializer(editor, name, operands, alike)
        else:
            for operand in operands:
                _insert_product(editor, name, operand)


def round_scales(analysis: Analysis, removed: np.ndarray, reference: Model) -> Model:
    """Return a masked original with its scales rounded as those of the cut model are.

    Parameters
    ----------
    analysis, removed
        Analysis of the original, and the causes that are removed.
    reference
        The masked original, widened from half precision. Where a cut multiplies a scale, it rounds
        the product to the half type; over many layers that is more than the tolerance of sums in
        float32. A wrong factor still shows: the reference is divided by it again.
    """
    if not analysis.record.root_means:
        return reference
    result = reference.edit()
    for name, operands, alike in _group_by_tensor(Editor(analysis, analysis.model.edit(), removed)):
        if alike and name in analysis.model.weights:
            factor = operands[0].factor
            rounded = _multiply(analysis.model.weights[name], factor)
            values = np.asarray(rounded, np.float64) / factor
            dtype = helper.tensor_dtype_to_np_dtype(result.weights[name].dtype)
            result.weights[name] = from_array(values.astype(dtype))
    return result.freeze()


def _group_by_tensor(editor: Editor) -> Iterator[tuple[str, list[_Operand], bool]]:
    """Multiply epsilons that are attributes; yield the tensors to multiply.

    Yields
    ------
    name, operands, alike
        Operands that are the tensor, and whether these are all its consumers, with one factor.
        Several normalizations may share a scale, and an epsilon may serve elsewhere too.
    """
    uses: dict[str, list[_Operand]] = {}
    for root_mean in editor.analysis.record.root_means:
        for operand in _rescale(editor, root_mean):
            uses.setdefault(editor.nodes[operand.node].input[operand.slot], []).append(operand)
    if not uses:
        return
    consumers: Counter[str] = Counter()
    for graph in nested(editor.model.proto.graph):
        consumers.update(name for node in graph.node for name in node.input)
        consumers.update(output.name for output in graph.output)
    for name, operands in uses.items():
        factors = {operand.factor for operand in operands}
        yield name, operands, len(operands) == consumers[name] and len(factors) == 1


def _rescale(editor: Editor, root_mean: RootMean) -> Iterator[_Operand]:
    """Multiply an epsilon that is an attribute; yield the operands to multiply."""
    kept = math.prod(editor.length(a) for a in root_mean.axes)
    length = math.prod(len(a) for a in root_mean.axes)
    if kept in (0, length):  # without positions, the branch is removed
        return
    ratio = length / kept
    # absent in some formulas: then there is nothing to rescale but the scale
    if root_mean.epsilon is not None:
        index, place = root_mean.epsilon
        if isinstance(place, int):
            yield _Operand(index, place, ratio)
        else:
            node = editor.nodes[index]
            set_attribute(node, place, attribute(node, place, _DEFAULT_EPSILON) * ratio)
    yield _Operand(*root_mean.scale, ratio**root_mean.exponent)


def _multiply_initializer(editor: Editor, name: str, operands: list[_Operand], alike: bool) -> None:
    """Multiply an initializer; in place if all its consumers need the same product."""
    weight = editor.model.weights[name]
    # several normalizations may share a scale: one initializer per factor that they need
    for factor in sorted({operand.factor for operand in operands}):
        values = _multiply(weight, factor)
        # a factor for all consumers can be part of the values themselves
        if alike:
            editor.model.weights[name] = from_array(values)
            return
        product = add_initializer(editor.model, name, values)
        for operand in operands:
            if operand.factor == factor:
                editor.nodes[operand.node].input[operand.slot] = product


def _multiply(weight: Weight, factor: float) -> np.ndarray:
    """Return the product, computed in float64 so that half types are rounded once."""
    values = weight.array()
    return (np.asarray(values, np.float64) * factor).astype(values.dtype)


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
    output = editor.name_tensor(f"{constant}{_PRODUCT}")
    multiply = helper.make_node("Mul", [name, constant], [output], name=output)
    editor.insert(operand.node, multiply)
    editor.nodes[operand.node].input[operand.slot] = output
