"""Recognition of a detector's head in a run: the decoder is named, and unknown names fail early."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data.dataset import open_data
from onnxprune.errors import UsageError
from onnxprune.ir.io import load
from onnxprune.run.adapter import input_types
from onnxprune.run.detector import name_decoder
from onnxprune.run.recipe import Recipe
from onnxprune.run.validate import validate

CELLS = 16 + 4 + 1  # of a 32x32 input at strides 8, 16 and 32


def detector(values: np.ndarray) -> bytes:
    """A model that returns the same output for each image."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Reshape", ["z", "shape"], ["s"]),
        helper.make_node("Add", ["s", "values"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, *values.shape])],
        [
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            numpy_helper.from_array(np.array([1, 1, 1]), "shape"),
            numpy_helper.from_array(values.astype(np.float32), "values"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnx.ModelProto.SerializeToString(model)


def recognize(values: np.ndarray, **options: object) -> tuple[Recipe, str]:
    model = load(detector(values))
    data = open_data(None, input_types(model), samples=1)
    return name_decoder(model, data, Recipe.of(options))


def test_a_raw_head_gets_its_decoder_and_a_sentence():
    values = np.random.default_rng(0).random((84, CELLS))
    values[:4] *= 30
    recipe, text = recognize(values)
    assert recipe.decoder == "yolov8"
    assert text.startswith(f"outputs look like yolov8: output0 1x84x{CELLS}; decoding with yolov8")
    assert recognize(values, decoder="yolov9") == (Recipe.of({"decoder": "yolov9"}), "")
    # other metrics need no boxes, and other outputs have none
    assert recognize(values, metric=["miou"])[1] == ""
    assert recognize(values[:, :20])[0].decoder is None


def test_an_unknown_decoder_fails_before_any_work():
    with pytest.raises(UsageError, match="did you mean 'yolov8'"):
        validate(Recipe.of({"decoder": "yolo8"}), True)
