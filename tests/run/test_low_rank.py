"""Ranks beside widths: layers that are written as two because it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_text import net
from onnx import TensorProto, helper, numpy_helper

from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import open_data
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.io import Model, digest, load
from onnxprune.run import low_rank
from onnxprune.run.adapter import input_types
from onnxprune.run.pipeline import optimize
from onnxprune.run.results import Result

RANK = 3
OPTIONS: dict[str, Any] = {"engine": "none", "round_to": 1, "target": "macs=60%", "samples": 96}


def network(rank: int) -> Model:
    """Return conv 3x3 to 24 channels of responses of this rank, relu, conv to 16, relu, classes."""
    r = np.random.default_rng(0)

    def low_rank(outputs: int, inputs: int) -> np.ndarray:
        left = r.standard_normal((outputs, min(rank, outputs)))
        right = r.standard_normal((min(rank, outputs), inputs, 3, 3))
        return np.tensordot(left, right, 1) / np.sqrt(inputs * 9 * rank)

    weights = {
        "wa": low_rank(24, 8),
        "ba": r.standard_normal(24) * 0.1,
        "wb": low_rank(24, 24),
        "bb": r.standard_normal(24) * 0.1,
        "wc": r.standard_normal((5, 24)),
    }
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "wa", "ba"], ["a"], name="first", **attributes),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "wb", "bb"], ["b"], name="second", **attributes),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("GlobalAveragePool", ["rb"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wc"], ["y"], name="classes", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return load(helper.make_model(graph, opset_imports=opset, ir_version=8))


def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((160, 8, 10, 10)).astype(np.float32)


def pruned(rank: int, output: Path | None = None, **options: Any) -> Result:
    return optimize(network(rank), output, data=images(), **{**OPTIONS, **options})


def test_a_layer_of_low_rank_becomes_two(tmp_path: Path) -> None:
    """Ranks reach the target at a smaller error than widths alone, and are verified as a cut."""
    result = pruned(RANK, tmp_path / "small.onnx", low_rank=True)
    widths = pruned(RANK)
    report = result.report
    assert report.after["macs"] <= 0.6 * report.before["macs"]
    assert report.before == widths.report.before
    assert report.verification.ok and result.plan.decided_by["low_rank"]
    errors = [r.fidelity.relative_error for r in (report, widths.report)]
    assert errors[0] < 0.5 * errors[1]
    rows = {row.node: row.macs for row in report.layers}
    # the layer itself and the one before it: what the original pays stands at its name
    assert sum(before for before, _ in rows.values()) == report.before["macs"]
    assert rows["second/low_rank"][0] == 0 < rows["second/low_rank"][1]
    names = [node.name for node in result.model.proto.graph.node]
    assert "second/low_rank" in names and "second" in names

    folder = tmp_path / "small.run"
    files = [str(folder / "factored.onnx"), str(tmp_path / "small.onnx")]
    assert run(["verify", *files, "--plan", str(folder / "plan.json")]) == 0
    with pytest.raises(UsageError, match="factored.onnx"):
        analyze(network(RANK)).check(result.plan)


def test_layers_of_full_rank_stay() -> None:
    """Nothing is gained: the result has the bytes of a run without the option."""
    found, widths = pruned(24, low_rank=True), pruned(24)
    assert digest(found.model) == digest(widths.model)
    (stage,) = [s for s in found.report.stages if s.name == "factor"]
    assert stage.detail in ("0 of 3 layers in two", "none of 3 layers in two")


def test_a_target_that_only_widths_reach() -> None:
    """The least width of 8 leaves 17 % of the MACs, and more of them in two layers each."""
    options = {"round_to": 8, "target": "macs=17.5%"}
    found, widths = pruned(RANK, low_rank=True, **options), pruned(RANK, **options)
    assert digest(found.model) == digest(widths.model)
    (stage,) = [s for s in found.report.stages if s.name == "factor"]
    assert stage.detail == "0 of 3 layers in two"
    with pytest.raises(TargetError, match="cannot be met"):
        pruned(RANK, low_rank=True, round_to=8, target="macs=10%")


def test_a_run_resumes(tmp_path: Path) -> None:
    first = pruned(RANK, tmp_path / "a.onnx", low_rank=True)
    again = pruned(RANK, tmp_path / "a.onnx", low_rank=True, overwrite=True)
    reused = {stage.name for stage in again.report.stages if stage.reused}
    assert {"factor", "score", "plan", "repair"} <= reused
    assert digest(first.model) == digest(again.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pagcp"}, "low_rank needs method"),
        ({"data": None}, "low_rank needs real inputs"),
    ],
)
def test_options_that_exclude_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        optimize(network(RANK), **{**OPTIONS, "data": images(), "low_rank": True, **options})


@pytest.mark.parametrize("extra", [{"ratio": 0.3, "target": ()}, {"criterion": "l2"}])
def test_other_options_go_with_it(extra: dict[str, Any]) -> None:
    result = pruned(RANK, low_rank=True, **extra)
    assert result.report.verification.ok


@pytest.mark.parametrize(("samples", "tried"), [(64, False), (400, True)])
def test_few_responses_are_no_evidence(samples: int, tried: bool) -> None:
    """A few responses are in a subspace of any layer; 64 outputs of rank 32 need more."""
    text = "float[N,32] x | float[32,64] w, float[64] b | y = Gemm(x, w, b) | float[N,64] y"
    analysis = analyze(load(net(text)))
    images = np.random.default_rng(0).standard_normal((samples, 32)).astype(np.float32)
    data = open_data({"x": images}, input_types(analysis.model), samples=samples)
    layers = low_rank._list_layers(analysis)
    found = low_rank._find_low_rank(Context(analysis, data), layers)
    # it would be worth it below rank 21
    assert layers and not found
    # as if it broke even at 64, where the 48 first directions hold all 32
    wider = {out: (layer, 64.0) for out, (layer, _) in layers.items()}
    assert bool(low_rank._find_low_rank(Context(analysis, data), wider)) == tried
