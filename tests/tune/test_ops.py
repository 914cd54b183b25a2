"""Every row of the torch table equals onnxruntime and has a gradient for float data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session

pytest.importorskip("torch")
import torch

from onnxprune.tune.bridge import as_feeds, to_module
from onnxprune.tune.ops import OPS

RTOL = 1e-4  # float32, two implementations of transcendental functions and of long sums
RNG = np.random.default_rng(0)


def x(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One node: data, initializers (None = absent), attributes."""

    op: str
    data: np.ndarray
    rest: tuple[np.ndarray | None, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1


def model_of(case: Case) -> Model:
    names = ["x", *(f"w{i}" if w is not None else "" for i, w in enumerate(case.rest))]
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, **case.attributes)
    held = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(case.rest) if w is not None]
    given = helper.make_tensor_value_info(
        "x", helper.np_dtype_to_tensor_dtype(case.data.dtype), case.data.shape
    )
    graph = helper.make_graph(
        [node], "case", [given], [helper.make_empty_tensor_value_info(o) for o in outputs], held
    )
    return load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=9)
    )


image, flat, token = x(2, 4, 7, 9), x(3, 5), x(2, 6, 8)
PLAIN = [
    "Abs",
    "Ceil",
    "Cos",
    "Cosh",
    "Erf",
    "Exp",
    "Floor",
    "Neg",
    "Reciprocal",
    "Round",
    "Sign",
    "Sin",
    "Sinh",
    "Sqrt",
    "Tan",
    "Tanh",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "HardSwish",
    "Atan",
]
CASES = [
    *(Case(op, np.abs(flat) + 0.1 if op == "Sqrt" else flat) for op in PLAIN),
    *(Case(op, np.tanh(flat)) for op in ("Acos", "Asin")),
    Case("Log", np.abs(flat) + 0.1),
    Case("Mish", flat),
    Case("Identity", flat),
    *(
        Case(op, flat, (), {"alpha": 0.3})
        for op in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "HardSigmoid")
    ),
    Case("Selu", flat),
    Case("Gelu", flat, opset=20),
    Case("Gelu", flat, (), {"approximate": "tanh"}, 20),
    Case("Shrink", flat, (), {"lambd": 0.4, "bias": 0.1}),
    Case("PRelu", image, (x(4, 1, 1),)),
    Case("Clip", flat, (np.float32(-0.5), np.float32(0.5))),
    Case("Clip", flat, (None, np.float32(0.5))),
    Case("Clip", flat, (), {"min": -0.2, "max": 0.7}, 6),
    Case("Cast", flat, (), {"to": TensorProto.INT32}),
    Case("Dropout", flat),
    *(
        Case(op, flat, (x(5),))
        for op in (
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Min",
            "Max",
            "Sum",
            "Mean",
            "Greater",
            "LessOrEqual",
        )
    ),
    Case("Pow", np.abs(flat), (np.float32(1.7),)),
    Case("Mod", ints(-7, 7, 5), (ints(3, -3, 2),)),
    Case("Mod", flat, (x(5),), {"fmod": 1}),
    Case("Div", ints(-7, 7, 5), (ints(3, 3, 2),)),
    Case("Where", flat > 0, (x(3, 5), x(5))),
    Case("Not", flat > 0),
    Case("And", flat > 0, (x(5) > 0,)),
    Case("Softmax", image, (), {"axis": 1}),
    Case("Softmax", image, (), {"axis": 1}, 11),
    Case("LogSoftmax", flat),
    *(
        Case(op, np.abs(image) + 0.1, (), {"axes": [1, -1], "keepdims": 0}, 17)
        for op in OPS
        if op.startswith("Reduce") and op != "ReduceSum"
    ),
    Case("ReduceSum", image, (ints(2, 3),)),
    Case("ReduceMean", image),
    Case("ReduceMax", image, (ints(1),)),
    Case("ReduceSum", image, (), {"noop_with_empty_axes": 1}),
    Case("ArgMax", flat, (), {"axis": 1}),
    Case("ArgMin", flat, (), {"axis": 1, "keepdims": 0}),
    Case("Reshape", image, (ints(0, -1, 9),)),
    Case("Flatten", image, (), {"axis": 2}),
    Case("Flatten", image, (), {"axis": 0}),
    Case("Transpose", token, (), {"perm": [2, 0, 1]}),
    Case("Squeeze", x(1, 3, 1), (ints(0, -1),)),
    Case("Squeeze", x(1, 3, 1), (), {"axes": [2]}, 11),
    Case("Unsqueeze", flat, (ints(0, -1),)),
    Case("Concat", image, (x(2, 3, 7, 9),), {"axis": 1}),
    Case("Split", image, (ints(1, 3),), {"axis": 1}, outputs=2),
    Case("Split", image, (), {"axis": 2, "num_outputs": 3}, outputs=3),
    Case("Slice", image, (ints(1, -1), ints(6, -8), ints(2, 3), ints(2, -3))),
    Case("Slice", image, (ints(-1), ints(-(2**62)), ints(1), ints(-1))),
    Case("Slice", image, (), {"starts": [1], "ends": [2**31], "axes": [2]}, 9),
    Case("Gather", image, (np.array([[0, -1], [2, 1]]),), {"axis": 1}),
    Case("Gather", image, (np.array(2),), {"axis": -1}),
    Case("GatherElements", flat, (np.array([[0, 1], [2, 2], [-1, 0]]),), {"axis": 0}),
    Case("GatherND", image, (np.array([[0, 1], [1, 3]]),)),
    Case("GatherND", image, (np.array([[1], [3]]),), {"batch_dims": 1}),
    Case("ScatterElements", flat, (np.array([[1, 0]]), x(1, 2)), {"axis": 1}),
    Case("ScatterElements", flat, (np.array([[1, 0]]), x(1, 2)), {"axis": 1, "reduction": "add"}),
    Case("ScatterND", flat, (np.array([[1], [2]]), x(2, 5))),
    Case("Expand", x(3, 1), (ints(2, 1, 4),)),
    Case("Tile", flat, (ints(2, 3),)),
    Case("Shape", image),
    Case("Shape", image, (), {"start": 1, "end": 3}),
    Case("Size", image),
    Case(
        "ConstantOfShape",
        ints(2, 3),
        (),
        {"value": numpy_helper.from_array(np.array([1.5], np.float32))},
    ),
    Case("Pad", image, (ints(0, 1, 2, 0, 0, 0, 1, 3), np.float32(0.5))),
    *(
        Case("Pad", image, (ints(0, 0, 2, 3, 0, 0, 1, 4),), {"mode": m})
        for m in ("reflect", "edge")
    ),
    Case("Pad", image, (ints(1, -1), None, ints(3))),
    Case("Pad", image, (ints(1, 2), None, ints(-1)), {"mode": "wrap"}, 19),
    Case("CumSum", flat, (np.array(1),)),
    Case("CumSum", flat, (np.array(1),), {"exclusive": 1, "reverse": 1}),
    *(Case("DepthToSpace", image, (), {"blocksize": 2, "mode": m}) for m in ("DCR", "CRD")),
    Case("SpaceToDepth", x(1, 2, 4, 6), (), {"blocksize": 2}),
    Case("TopK", flat, (ints(2),), outputs=2),
    *(
        Case(op, abs(x(2, 3)), (ints(),), {"noop_with_empty_axes": 1})
        for op in ("ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceProd")
    ),
    Case("ReduceL1", x(2, 3), (ints(),), {"noop_with_empty_axes": 1}),
    Case("SimplifiedLayerNormalization", x(2, 3, 8), (x(8),), {"axis": -1, "epsilon": 0.1}),
    Case("OneHot", ints(0, 2, -1), (np.array(4), np.array([0.5, 2], np.float32))),
    Case("OneHot", ints(4, -4, -5, 9, 3), (np.array(4), np.array([0.5, 2], np.float32))),
    Case("NonZero", flat),
    Case("Trilu", flat, (np.array(1),), {"upper": 0}),
    Case("Col2Im", x(1, 8, 12), (ints(4, 5), ints(2, 2)), {"strides": [1, 1]}),
    Case("Range", np.array(2), (np.array(9), np.array(3))),
    Case(
        "Conv",
        image,
        (x(6, 2, 3, 3), x(6)),
        {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
    ),
    Case("Conv", x(1, 3, 9), (x(4, 3, 3),), {"pads": [1, 1]}),
    *(
        Case("Conv", image, (x(3, 4, 2, 3), x(3)), {"auto_pad": a, "strides": [2, 2]})
        for a in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    Case("Conv", x(1, 2, 4, 4, 4), (x(3, 2, 2, 2, 2),)),
    Case(
        "ConvTranspose",
        image,
        (x(4, 3, 3, 3), x(6)),
        {"group": 2, "strides": [2, 2], "pads": [1, 1, 0, 1], "output_padding": [1, 1]},
    ),
    Case("ConvTranspose", image, (x(4, 3, 3, 4),), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    Case(
        "ConvTranspose", image, (x(4, 3, 3, 3), x(3)), {"strides": [2, 2], "output_shape": [14, 18]}
    ),
    Case("ConvTranspose", image, (x(4, 2, 2, 2), x(2)), {"strides": [2, 2], "dilations": [2, 1]}),
    Case("Gemm", flat, (x(4, 5), x(4)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", flat, (x(3, 2),), {"transA": 1}),
    Case("MatMul", token, (x(8, 3),)),
    Case("MatMul", token, (x(2, 8, 3),)),
    Case("Einsum", token, (x(8, 6),), {"equation": "b i j, j k -> b k i"}),
    Case(
        "MaxPool",
        image,
        (),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2], "ceil_mode": 1},
    ),
    Case(
        "MaxPool", image, (), {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}
    ),
    *(
        Case(
            "AveragePool",
            image,
            (),
            {
                "kernel_shape": [3, 3],
                "strides": [2, 2],
                "pads": [1, 0, 1, 2],
                "count_include_pad": c,
            },
        )
        for c in (0, 1)
    ),
    Case("AveragePool", x(1, 2, 9), (), {"kernel_shape": [3], "strides": [2]}),
    Case("AveragePool", image, (), {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER"}),
    Case("GlobalAveragePool", image),
    Case("GlobalMaxPool", image),
    Case("BatchNormalization", image, (x(4), x(4), x(4), np.abs(x(4)) + 0.5), {"epsilon": 1e-3}),
    Case("LayerNormalization", token, (x(8), x(8))),
    Case("LayerNormalization", token, (x(6, 8),), {"axis": 1}),
    Case("InstanceNormalization", image, (x(4), x(4))),
    Case("GroupNormalization", image, (x(2), x(2)), {"num_groups": 2}),
    Case("GroupNormalization", image, (x(4), x(4)), {"num_groups": 2}, 21),
    Case("LpNormalization", image, (), {"axis": 1, "p": 2}),
    Case("LRN", image, (), {"size": 3, "alpha": 0.1}),
    *(
        Case(
            "Resize",
            image,
            (None, np.array([1, 1, 2, 1.5], np.float32)),
            {"mode": m, "coordinate_transformation_mode": c},
        )
        for m in ("nearest", "linear", "cubic")
        for c in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    Case(
        "Resize",
        image,
        (None, None, ints(2, 4, 5, 20)),
        {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
    ),
    Case(
        "Resize",
        image,
        (None, None, ints(2, 4, 3, 4)),
        {"mode": "nearest", "nearest_mode": "floor"},
    ),
    Case("Resize", image, (np.array([1, 1, 2, 2], np.float32),), {"mode": "nearest"}, 10),
    Case("Upsample", image, (np.array([1, 1, 2, 2], np.float32),), {"mode": "linear"}, 9),
    Case("GridSample", image, (np.tanh(x(2, 3, 5, 2)),), {"mode": "linear"}, 20),
    Case(
        "LSTM",
        x(5, 2, 3),
        (x(2, 16, 3), x(2, 16, 4), x(2, 32)),
        {"hidden_size": 4, "direction": "bidirectional"},
        outputs=3,
    ),
    Case(
        "LSTM",
        x(5, 2, 3),
        (x(1, 16, 3), x(1, 16, 4), x(1, 32), None, x(1, 2, 4), x(1, 2, 4), x(1, 12)),
        {"hidden_size": 4},
        outputs=3,
    ),
    *(
        Case(
            "GRU",
            x(5, 2, 3),
            (x(1, 12, 3), x(1, 12, 4), x(1, 24)),
            {"hidden_size": 4, "linear_before_reset": k, "direction": "reverse"},
            outputs=2,
        )
        for k in (0, 1)
    ),
    Case("RNN", x(5, 2, 3), (x(1, 4, 3), x(1, 4, 4)), {"hidden_size": 4}, outputs=2),
    Case(
        "DequantizeLinear",
        np.array([[3, -4], [5, 6]], np.int8),
        (np.array([0.1, 0.2], np.float32), np.array([1, 0], np.int8)),
        {"axis": 1},
    ),
    Case("CastLike", flat, (ints(0),)),
    Case("IsNaN", flat),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_row_equals_onnxruntime(case: Case) -> None:
    model = model_of(case)
    module = to_module(model)
    feeds = as_feeds({"x": case.data}, module)
    if case.data.dtype == np.float32:
        feeds["x"].requires_grad_()
    found = module(feeds)
    for name, expected in Session(model, optimize=False).run({"x": case.data}).items():
        value = found[name].detach().numpy()
        assert value.shape == expected.shape
        np.testing.assert_allclose(
            value, expected, rtol=RTOL, atol=RTOL * max(1.0, float(np.abs(expected).max(initial=0)))
        )
    if feeds["x"].requires_grad and found["y0"].requires_grad:
        found["y0"].float().square().sum().backward()
        assert torch.isfinite(feeds["x"].grad).all()


def test_every_row_has_a_case() -> None:
    """Other tests cover constants, which are folded, quantization and newer opsets."""
    elsewhere = {
        "Constant",
        "QuantizeLinear",
        "RMSNormalization",
        "Swish",
        "IsInf",
        "Or",
        "Xor",
        "Equal",
        "GreaterOrEqual",
        "Less",
    }
    assert set(OPS) - {c.op for c in CASES} == elsewhere


def test_quantization_passes_gradients() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    held = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(3), "z")]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 5]) for n in "xy"]
    model = load(
        helper.make_model(
            helper.make_graph(nodes, "q", info[:1], info[1:], held),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
    )
    module = to_module(model)
    feed = torch.from_numpy(flat).requires_grad_()
    found = module(feed)["y"]
    np.testing.assert_allclose(
        found.detach().numpy(), Session(model).run({"x": flat})["y"], atol=1e-6
    )
    found.sum().backward()
    assert (feed.grad == 1).all()


def test_an_unknown_operator_is_named() -> None:
    model = model_of(Case("Bernoulli", flat))
    with pytest.raises(ModelError, match=r"Bernoulli \(node 'y0'\)"):
        to_module(model)
