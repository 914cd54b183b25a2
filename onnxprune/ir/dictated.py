"""Lengths of input axes that a file leaves dynamic although its weights dictate them."""

from __future__ import annotations

from onnxprune.ir.equations import substitute
from onnxprune.ir.example_sizes import declared_shapes
from onnxprune.ir.inference import infer
from onnxprune.ir.model import ModelView
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim, is_static


def input_shapes(model: ModelView, shapes: Shapes | None = None) -> dict[str, tuple[Dim, ...]]:
    """Return the declared shape of every input, with a number for each dictated length.

    Parameters
    ----------
    shapes
        Shapes of the model, with a symbol for each dynamic length; inferred if None.
    """
    declared = declared_shapes(model)
    # nothing is dynamic, so that the cost of an inference is saved
    if all(map(is_static, declared.values())):
        return declared
    known = infer(model) if shapes is None else shapes
    result = {}
    for name, dims in declared.items():
        # lengths without a name have one there
        solved = substitute(known.shape(name) or dims, known.equal)
        result[name] = tuple(
            new if isinstance(new, int) else old for old, new in zip(dims, solved, strict=True)
        )
    return result
