"""Cases of every gradient rule, by kind of operator."""

from __future__ import annotations

import numpy as np
from gradient_case import IMAGE, Case, floats, ints, weight

ELEMENTWISE = [
    *(
        Case(op)
        for op in (
            "Relu",
            "LeakyRelu",
            "ThresholdedRelu",
            "Elu",
            "Selu",
            "Celu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "Softplus",
            "Softsign",
            "Erf",
            "Exp",
            "Reciprocal",
            "Neg",
            "Abs",
            "Sin",
            "Cos",
            "Atan",
            "Identity",
        )
    ),
    *(Case(op, positive=True) for op in ("Log", "Sqrt", "Tan")),
    *(Case(op, data=((2, 3, 5),), note="sequence") for op in ("Relu", "LeakyRelu", "Sigmoid")),
    Case("LeakyRelu", attributes={"alpha": -0.5}, note="negative"),
    Case("HardSigmoid", attributes={"alpha": 0.1, "beta": 0.3}, note="alpha"),
    Case("Elu", attributes={"alpha": 0.7}, note="alpha"),
    Case("Celu", attributes={"alpha": 0.7}, note="alpha"),
    Case("Swish", opset=24),
    Case("Swish", opset=24, attributes={"alpha": 0.6}, note="alpha"),
    Case("Mish", opset=18),
    Case("Gelu", opset=20),
    Case("Gelu", opset=20, attributes={"approximate": "tanh"}, note="tanh"),
    Case("Clip", constants=(floats(-1.5)[0], floats(1.7)[0])),
    Case("Clip", constants=("", floats(0.4)[0]), note="max"),
    Case("Clip", attributes={"min": -1.0, "max": 1.3}, opset=9),
    Case("Cast", attributes={"to": 11}),
    Case("Dropout"),
]

BROADCAST = [
    *(Case(op, data=(IMAGE, IMAGE)) for op in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")),
    *(Case(op, data=(IMAGE, (2, 4, 1, 1)), note="gate") for op in ("Add", "Sub", "Mul", "Max")),
    *(
        Case(op, data=(IMAGE,), constants=(weight(4, 1, 1),), note="constant")
        for op in ("Add", "Sub", "Mul", "Div")
    ),
    Case("Div", data=(IMAGE, (2, 4, 1, 1)), positive=True),
    Case("Pow", data=(IMAGE, (2, 4, 1, 1)), positive=True),
    Case("Pow", constants=(floats(3.0)[0],)),
    Case("Pow", constants=(floats(0.5)[0],), positive=True, note="root"),
    Case("Pow", constants=(ints(2)[0],), note="integer"),
    Case("PRelu", constants=(weight(4, 1, 1),)),
    Case("PRelu", constants=(weight(1),), note="one"),
    Case("PRelu", data=((2, 3, 4), (2, 3, 4)), note="data"),
    Case("Mul", data=((2, 5, 3), (3,)), note="trailing"),
]

CONTRACTIONS = [
    Case("Conv", constants=(weight(6, 4, 3, 3), weight(6)), attributes={"pads": [1, 1, 1, 1]}),
    Case(
        "Conv",
        constants=(weight(6, 4, 3, 3),),
        attributes={"strides": [2, 2], "pads": [1, 1, 1, 1]},
        note="strided",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 3, 3),),
        attributes={"strides": [2, 3], "pads": [0, 1, 2, 0]},
        note="uneven",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 3, 3),),
        attributes={"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        note="dilated",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 3, 3),),
        attributes={"strides": [2, 2], "dilations": [2, 1], "pads": [2, 1, 1, 1]},
        note="strided-dilated",
    ),
    Case(
        "Conv",
        constants=(weight(4, 1, 3, 3),),
        attributes={"group": 4, "pads": [1, 1, 1, 1]},
        note="depthwise",
    ),
    Case(
        "Conv",
        constants=(weight(4, 1, 3, 3),),
        attributes={"group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]},
        note="depthwise-strided",
    ),
    Case("Conv", constants=(weight(8, 1, 3, 3),), attributes={"group": 4}, note="multiplier"),
    Case(
        "Conv",
        constants=(weight(6, 2, 3, 3),),
        attributes={"group": 2, "pads": [1, 1, 1, 1]},
        note="grouped",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 1, 1),),
        attributes={"strides": [2, 2]},
        note="pointwise-strided",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 1, 1),),
        attributes={"pads": [1, 1, 1, 1]},
        note="pointwise-padded",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 3, 2),),
        attributes={"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        note="same-upper",
    ),
    Case(
        "Conv",
        constants=(weight(6, 4, 2, 2),),
        attributes={"auto_pad": "SAME_LOWER"},
        note="same-lower",
    ),
    Case("Conv", constants=(weight(6, 4, 3, 3),), attributes={"auto_pad": "VALID"}, note="valid"),
    Case(
        "Conv",
        data=((2, 3, 9),),
        constants=(weight(5, 3, 4),),
        attributes={"strides": [2], "pads": [1, 2]},
        note="1d",
    ),
    Case(
        "Conv",
        data=((2, 2, 4, 5, 3),),
        constants=(weight(3, 2, 2, 3, 2),),
        attributes={"pads": [0, 1, 0, 0, 1, 0]},
        note="3d",
    ),
    Case(
        "ConvTranspose",
        constants=(weight(4, 3, 3, 3), weight(3)),
        attributes={"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    Case(
        "ConvTranspose",
        constants=(weight(4, 3, 2, 2),),
        attributes={"strides": [2, 2]},
        note="doubling",
    ),
    Case(
        "ConvTranspose",
        constants=(weight(4, 3, 3, 3),),
        attributes={"strides": [2, 2], "output_padding": [1, 1]},
        note="padding",
    ),
    Case(
        "ConvTranspose",
        constants=(weight(4, 3, 3, 3),),
        attributes={"dilations": [2, 2], "pads": [1, 0, 1, 2]},
        note="dilated",
    ),
    Case("ConvTranspose", constants=(weight(4, 2, 3, 3),), attributes={"group": 2}, note="grouped"),
    Case("Gemm", data=((2, 5),), constants=(weight(5, 3), weight(3))),
    Case(
        "Gemm",
        data=((2, 5),),
        constants=(weight(3, 5), weight(3)),
        attributes={"transB": 1, "alpha": 0.5},
        note="transB",
    ),
    Case("Gemm", data=((2, 5), (2, 4)), attributes={"transA": 1}, note="transA", mixed=True),
    Case("Gemm", data=((2, 5), (5, 3), (2, 3)), attributes={"beta": 0.3}, note="all"),
    Case("MatMul", data=((2, 3, 4, 5),), constants=(weight(5, 6),)),
    Case("MatMul", data=((2, 3, 4, 5), (2, 3, 5, 6)), note="two"),
    Case("MatMul", data=((2, 1, 4, 5), (3, 5, 6)), note="broadcast"),
    Case("MatMul", data=((2, 4, 5), (5,)), note="vector"),
    Case("Einsum", data=((2, 3, 4), (2, 5, 4)), attributes={"equation": "nqd,nkd->nqk"}),
    Case("Einsum", data=((2, 3, 4), (4, 5)), attributes={"equation": "ncd,de->nec"}, note="weight"),
    Case("Einsum", data=((2, 3, 4), (4, 5)), attributes={"equation": "ncd,de->ne"}, note="summed"),
]

WINDOWS = [
    Case("MaxPool", attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case(
        "MaxPool",
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        note="overlap",
    ),
    Case(
        "MaxPool",
        attributes={"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]},
        note="sppf",
    ),
    Case(
        "MaxPool",
        data=((2, 3, 7),),
        attributes={"kernel_shape": [3], "strides": [2], "ceil_mode": 1},
        note="ceil",
    ),
    Case(
        "MaxPool",
        attributes={"kernel_shape": [3, 2], "strides": [1, 2], "dilations": [2, 1]},
        note="dilated",
    ),
    Case(
        "MaxPool",
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        opset=9,
        note="overlap",
    ),
    Case("AveragePool", attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case(
        "AveragePool",
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        note="padded",
    ),
    Case(
        "AveragePool",
        attributes={
            "kernel_shape": [3, 3],
            "strides": [1, 2],
            "pads": [1, 1, 1, 1],
            "count_include_pad": 1,
        },
        note="counted",
    ),
    Case(
        "AveragePool",
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        note="same",
    ),
    Case("GlobalAveragePool"),
    Case("GlobalMaxPool"),
    Case(
        "Resize",
        constants=("", floats(1, 1, 2, 2)),
        attributes={
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
    ),
    Case(
        "Resize", constants=("", "", ints(2, 4, 9, 5)), attributes={"mode": "nearest"}, note="sizes"
    ),
    Case(
        "Resize", constants=("", floats(1, 1, 2, 1.5)), attributes={"mode": "linear"}, note="linear"
    ),
    Case(
        "Resize",
        constants=(floats(), floats(1, 1, 2, 2)),
        attributes={"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        opset=11,
        note="align",
    ),
    Case(
        "Resize", constants=("", "", ints(2, 4, 3, 5)), attributes={"mode": "cubic"}, note="cubic"
    ),
    Case(
        "Resize",
        constants=("", floats(2, 2)),
        attributes={"mode": "linear", "axes": [2, 3]},
        opset=18,
        note="axes",
    ),
    Case("Upsample", constants=(floats(1, 1, 2, 2),), attributes={"mode": "nearest"}, opset=9),
]

STATISTICS = [
    *(
        Case(op, attributes={"axes": [2, 3]}, opset=13)
        for op in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
    ),
    *(
        Case(op, constants=(ints(1, -1),), attributes={"keepdims": 0}, opset=18, note="input")
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2")
    ),
    Case("ReduceSum", constants=(ints(2),)),
    *(
        Case(
            op,
            constants=(ints(),),
            attributes={"noop_with_empty_axes": noop},
            opset=18,
            note=f"no axes, noop {noop}",
        )
        for op in ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceMax")
        for noop in (0, 1)
    ),
    Case("ReduceSum", attributes={"axes": [1]}, opset=11),
    Case("ReduceLogSum", attributes={"axes": [2]}, positive=True),
    Case("ReduceMean", data=((2, 3, 4),), note="all-but"),
    Case("Softmax", attributes={"axis": 1}),
    Case("Softmax", data=((2, 3, 4),), note="last"),
    Case("Softmax", data=((2, 3, 4),), opset=9, note="coerced"),
    Case("LogSoftmax", attributes={"axis": 1}),
    Case(
        "BatchNormalization",
        constants=(weight(4), weight(4) + 1, weight(4), np.abs(weight(4)) + 0.1),
    ),
    Case(
        "BatchNormalization",
        data=((2, 4),),
        constants=(weight(4), weight(4) + 1, weight(4), np.abs(weight(4)) + 0.1),
        opset=9,
        note="flat",
    ),
    Case("LayerNormalization", data=((2, 3, 8),), constants=(weight(8), weight(8))),
    Case(
        "LayerNormalization",
        data=((2, 3, 4, 5),),
        constants=(weight(4, 5),),
        attributes={"axis": 2, "epsilon": 0.1},
        note="axes",
    ),
    Case("RMSNormalization", data=((2, 3, 8),), constants=(weight(8),), opset=23),
    Case("SimplifiedLayerNormalization", data=((2, 3, 8),), constants=(weight(8),)),
    Case(
        "SimplifiedLayerNormalization",
        constants=(weight(6, 8),),
        attributes={"axis": 2, "epsilon": 0.5},
        note="axis",
    ),
    Case("InstanceNormalization", constants=(weight(4), weight(4) + 1)),
    Case(
        "GroupNormalization",
        constants=(weight(2), weight(2) + 1),
        attributes={"num_groups": 2},
        opset=18,
    ),
    Case(
        "GroupNormalization",
        constants=(weight(4), weight(4) + 1),
        attributes={"num_groups": 2},
        opset=21,
    ),
    Case("LpNormalization", attributes={"axis": 1, "p": 2}),
    Case("LRN", attributes={"size": 3, "alpha": 0.2}),
    Case("LRN", attributes={"size": 5, "alpha": 0.4, "beta": 0.5}, note="wide"),
]

MOVEMENT = [
    Case("Reshape", constants=(ints(2, 2, 2, -1),)),
    Case("Flatten"),
    Case("Squeeze", data=((2, 4, 1, 3),), constants=(ints(2),)),
    Case("Unsqueeze", data=((2, 4, 3),), attributes={"axes": [1]}, opset=11),
    Case("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    Case("Expand", data=((2, 4, 1, 3),), constants=(ints(2, 4, 5, 3),)),
    Case("Tile", data=((2, 4, 3),), constants=(ints(1, 3, 2),)),
    Case("Concat", data=((2, 4, 3), (2, 2, 3)), attributes={"axis": 1}),
    Case("Split", constants=(ints(1, 3),), attributes={"axis": 1}, outputs=2),
    Case("Split", attributes={"axis": 1, "split": [1, 3]}, outputs=2, head=1, opset=11),
    Case("Slice", constants=(ints(1, 0), ints(4, 100), ints(1, 2), ints(1, 2))),
    Case("Slice", constants=(ints(-1), ints(-1000), ints(3), ints(-2)), note="backwards"),
    Case("Slice", attributes={"starts": [1], "ends": [-1], "axes": [2]}, opset=9),
    Case("Pad", constants=(ints(0, 1, 0, 2, 0, 3, 0, 0),)),
    Case("Pad", constants=(ints(0, -1, 0, 2, 0, 0, 0, -3),), note="negative"),
    Case(
        "Pad",
        constants=(ints(0, 0, 2, 1, 0, 0, 1, 2),),
        attributes={"mode": "reflect"},
        note="reflect",
    ),
    Case(
        "Pad", constants=(ints(0, 0, 2, 1, 0, 0, 1, 2),), attributes={"mode": "edge"}, note="edge"
    ),
    Case("Pad", attributes={"pads": [0, 1, 0, 2, 0, 3, 0, 0]}, opset=9),
    Case("Pad", constants=(ints(1, 2), "", ints(3)), opset=18, note="axes"),
    Case("Gather", constants=(ints(3, 0, 2),), attributes={"axis": 1}),
    Case("Gather", constants=(ints(1, 1, -1, 0, 1),), attributes={"axis": 2}, note="repeated"),
    Case("Gather", constants=(ints(2)[0],), attributes={"axis": 1}, note="scalar"),
    Case("Gather", constants=(np.zeros((3, 4), np.int64),), attributes={"axis": 3}, note="many"),
    Case(
        "GatherND", data=((2, 3, 4),), constants=(np.array([[0, 1], [1, 2], [0, 1]]),), mixed=True
    ),
    Case("DepthToSpace", attributes={"blocksize": 2}),
    Case("DepthToSpace", attributes={"blocksize": 2, "mode": "CRD"}, note="CRD"),
    Case("SpaceToDepth", attributes={"blocksize": 2}),
    Case("CumSum", constants=(ints(2)[0],)),
    Case(
        "CumSum", constants=(ints(2)[0],), attributes={"reverse": 1, "exclusive": 1}, note="reverse"
    ),
    Case("Trilu", constants=(ints(1)[0],), attributes={"upper": 0}),
    Case("TopK", constants=(ints(3),), attributes={"axis": 3}, outputs=2),
]

CASES = [*ELEMENTWISE, *BROADCAST, *CONTRACTIONS, *WINDOWS, *STATISTICS, *MOVEMENT]
