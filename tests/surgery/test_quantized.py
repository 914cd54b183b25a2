"""Networks quantized by onnxruntime: the cut equals the masked original bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_laws import SEEN, assert_exact, plan_of
from networks import mobilenet_v2, resnet18
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.weights import from_array
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
FORMS = [("QDQ", "int8", False), ("QDQ", "uint8", True), ("QOperator", "mixed", True)]
MORE = [
    ("QDQ", "int8", True),
    ("QDQ", "uint8", False),
    ("QDQ", "mixed", True),
    ("QOperator", "mixed", False),
]
# Share of each group; outputs still depend on the inputs after eighteen layers of eight bits
KEPT = 0.75


class _Noise(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches = iter(
            [{"x": rng.standard_normal((1, 3, 64, 64)).astype(np.float32)} for _ in range(2)]
        )

    def get_next(self) -> dict | None:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("floats")
    for name, make in NETWORKS.items():
        onnx.save(make(), folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in NETWORKS}


def quantized(source: Path, target: Path, form: str, values: str, per_channel: bool) -> ModelProto:
    kinds = {
        "int8": (QuantType.QInt8, QuantType.QInt8),
        "uint8": (QuantType.QUInt8, QuantType.QUInt8),
        "mixed": (QuantType.QUInt8, QuantType.QInt8),
    }
    activation, weight = kinds[values]
    quantize_static(
        source,
        target,
        _Noise(),
        quant_format=QuantFormat[form],
        activation_type=activation,
        weight_type=weight,
        per_channel=per_channel,
    )
    return onnx.load(target)


def some(analysis: Analysis) -> Plan:
    rng = np.random.default_rng(0)
    return plan_of(
        analysis,
        {
            g.name: tuple(
                sorted(rng.choice(g.size, max(int(KEPT * g.size), 1), replace=False).tolist())
            )
            for g in analysis.groups
        },
    )


def without_what_goes(analysis: Analysis, plan: Plan) -> Model:
    """Return the original with the weights of removed channels at their zero point.

    The graph is the same, so that onnxruntime fuses it alike.
    """
    model, removed = analysis.model.edit(), analysis.removed(plan.kept)
    for use in analysis.record.uses:
        weight = model.weights[use.tensor]
        for axis, role in enumerate(use.roles):
            if role != "consumes" or not isinstance(use.axes[axis], np.ndarray):
                continue
            node = analysis.record.nodes[use.node]
            zero = analysis.model.weights[node.input[use.slot + 2]].array()
            values = weight.array().copy()
            gone = ~analysis.keep(use.axes[axis], removed)
            shape = [-1] + [1] * (values.ndim - 1) if zero.size > 1 else [1] * values.ndim
            values = np.where(
                np.expand_dims(gone, [i for i in range(values.ndim) if i != axis]),
                zero.reshape(shape),
                values,
            )
            model.weights[use.tensor] = from_array(values)
    return model


def run_fused(model: Model, x: np.ndarray) -> np.ndarray:
    """Run with integer kernels that do not saturate, which they may on CPUs without VNNI."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        to_bytes(model), options, providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("form", "values", "per_channel"),
    [*FORMS, *(pytest.param(*m, marks=pytest.mark.slow) for m in MORE)],
)
def test_whole_network(
    name: str, form: str, values: str, per_channel: bool, floats: dict[str, Path], tmp_path: Path
) -> None:
    analysis = analyze(
        load(quantized(floats[name], tmp_path / "int8.onnx", form, values, per_channel))
    )
    assert analysis.prunable_macs() == 1 and {f.reason for f in analysis.frozen} == {
        "graph input",
        "graph output",
    }
    plan = some(analysis)
    pruned, found = assert_exact(analysis, plan)
    assert found.difference == 0 and found.masked_difference > SEEN
    x = np.random.default_rng(1).standard_normal((1, 3, 64, 64)).astype(np.float32)
    mine, theirs = run_fused(pruned, x), run_fused(without_what_goes(analysis, plan), x)
    np.testing.assert_array_equal(mine, theirs)
    assert len(np.unique(mine)) > 3


@pytest.mark.parametrize("zeros", ["{0, 0, 0}", "{5, -3, 0}"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_zero_points_of_columns_follow_a_transposed_weight(zeros: str, transposed: int) -> None:
    """The masked original fills removed rows with them; both operands are constants here."""
    shape = "3, 2" if transposed else "2, 3"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[2] x) => (float[2] y)
        <float s = {{0.5}}, uint8 z = {{120}}, float[1,2] data = {{4, 3}},
         int8[{shape}] weight = {{1, 3, -1, -7, 7, -4}}, float[3] scales = {{0.25, 0.125, 0.25}},
         int8[3] zeros = {zeros}, float[1,3,2] last = {{-4, 2, -4, 4, 9, 0}}> {{
            [inner] q = QuantizeLinear(data, s, z)
            [outer] a = com.microsoft.QGemm<transB = {transposed}>(q, s, z, weight, scales, zeros)
            b = Einsum<equation = "i,ab->ab">(x, a)
            y = Einsum<equation = "ab,abo->o">(b, last)
        }}"""
    )
    analysis = analyze(load(model))
    assert sorted(group.size for group in analysis.groups) == [2, 3]
    for group in analysis.groups:
        plan = analysis.plan({group.name: list(range(1, group.size))})
        result = verify(analysis, plan, cut(analysis, plan))
        assert result.ok and not result.vacuous
