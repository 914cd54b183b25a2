"""Measurements of small models, and the warnings about them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from engine_nets import residual

from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions, LayerTime
from onnxprune.engines.bench import bench, layer_rows
from onnxprune.engines.bench_warnings import (
    difference,
    difference_warnings,
    precision_warnings,
    width_warnings,
)
from onnxprune.engines.measure import Schedule
from onnxprune.engines.measurement import Measurement
from onnxprune.errors import EngineError, UsageError
from onnxprune.ir.io import save

SHORT = Schedule(seconds=0.1, warmup=1, min_rounds=3)
ROUNDING = 1e-5  # float32, fused against single operators


def test_two_models_side_by_side(tmp_path) -> None:
    for name, width in (("wide", 32), ("narrow", 16)):
        save(residual(width), tmp_path / f"{name}.onnx")
    lines: list[str] = []
    report = bench(
        [tmp_path / "wide.onnx", tmp_path / "narrow.onnx"],
        options=EngineOptions(),
        schedule=SHORT,
        progress=lines.append,
    )
    assert [(m.engine, m.model) for m in report.measurements] == [
        ("onnxruntime", "wide"),
        ("onnxruntime", "narrow"),
    ]
    (ratio,) = report.ratios["onnxruntime"]
    assert (ratio.base, ratio.contender) == (
        "wide",
        "narrow",
    ) and ratio.low <= ratio.median <= ratio.high
    for measured in report.measurements:
        assert (
            0
            < measured.min_ms
            <= measured.q1_ms
            <= measured.median_ms
            <= measured.q3_ms
            <= measured.p99_ms
        )
        assert measured.difference is not None and measured.difference <= ROUNDING
        assert measured.version == ENGINES.get("onnxruntime").version()
    rows = {row.key: row for row in report.layers if row.key}
    assert {"c0", "c1", "c2", "g"} <= set(rows)
    assert all(None not in row.times_ms.values() for row in (rows["c0"], rows["c1"], rows["c2"]))
    assert json.loads(json.dumps(report.as_dict()))["measurements"][0]["model"] == "wide"
    assert any("wide" in line for line in lines)


def test_same_file_twice_gets_two_names(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    save(residual(), path)
    report = bench([path, path], schedule=SHORT, layers=False)
    assert [m.model for m in report.measurements] == ["m", "m #2"]
    assert not report.layers


def test_a_rejected_model_is_reported_and_the_others_are_measured() -> None:
    broken = residual().edit()
    broken.proto.graph.node[1].op_type = "NoSuchOperator"
    broken = broken.freeze()
    report = bench([residual(), broken], schedule=SHORT, layers=False)
    assert len(report.measurements) == 1
    (reason,) = report.failures.values()
    assert "rejects" in reason and any("rejects" in w for w in report.warnings)
    with pytest.raises(EngineError, match="rejects"):
        bench([broken], schedule=SHORT)


def test_no_model_and_unknown_engines_are_errors() -> None:
    with pytest.raises(UsageError, match="at least one"):
        bench([])
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        bench([residual()], ["onnxruntim"])
    with pytest.raises(UsageError, match="known: x"):
        bench([residual()], options=EngineOptions(shapes={"image": (1,)}))


def test_unaligned_widths_warn_with_the_multiple() -> None:
    engine = ENGINES.get("onnxruntime")
    multiple = engine.channel_multiple()
    assert width_warnings(engine, {"even": residual(2 * multiple)}) == []
    (warning,) = width_warnings(engine, {"odd": residual(2 * multiple - 1)})
    assert (
        "3 of 3" in warning
        and f"multiples of {multiple} " in warning
        and "--round-to auto" in warning
        and f"n_c0 {2 * multiple - 1}" in warning
    )


def test_widths_of_the_original_are_not_reported() -> None:
    engine = ENGINES.get("onnxruntime")
    odd = 2 * engine.channel_multiple() - 1
    models = {"original": residual(odd), "pruned": residual(odd)}
    assert width_warnings(engine, models) == []
    (warning,) = width_warnings(engine, {**models, "pruned": residual(odd - 2)})
    assert warning.startswith("pruned: 3 of 3")


def test_difference_is_relative_to_the_largest_value_and_infinite_for_a_nan() -> None:
    reference = {"y": np.array([1.0, -4.0]), "z": np.zeros(2)}
    assert difference({"y": np.array([1.0, -3.0]), "z": np.zeros(2)}, reference) == 0.25
    assert difference({"y": np.array([np.nan, -4.0]), "z": np.zeros(2)}, reference) == float("inf")
    assert difference({"y": np.array([1.0]), "z": np.zeros(2)}, reference) == float("inf")
    assert difference({"z": np.zeros(2)}, reference) == float("inf")


def test_layout_changes_are_summed_and_missing_layers_are_none() -> None:
    def measured(model: str, *layers: LayerTime) -> Measurement:
        return Measurement("e", model, 1, 1, 1, 1, 1, 1, 1, 1, 0, layers=layers)

    conv = LayerTime("k", "Conv", 2.0, ("n",), ("t",), "t")
    reorder = LayerTime("r", "ReorderInput", 0.5)
    rows = layer_rows([measured("a", conv, reorder, reorder), measured("b", reorder)])
    assert [(r.key, r.op, dict(r.times_ms)) for r in rows] == [
        ("t", "Conv", {"a": 2.0, "b": None}),
        ("", "ReorderInput", {"a": 1.0, "b": 0.5}),
    ]


def test_different_outputs_warn() -> None:
    right = Measurement("e", "right", 1, 1, 1, 1, 1, 1, 1, 1, 0, difference=1e-6)
    wrong = Measurement("e", "wrong", 1, 1, 1, 1, 1, 1, 1, 1, 0, difference=0.4)
    (warning,) = difference_warnings([right, wrong])
    assert "wrong" in warning and "0.4" in warning


def test_int8_of_a_float_graph_warns() -> None:
    quantized = residual().edit()
    quantized.proto.graph.node[0].op_type = "QLinearConv"
    (warning,) = precision_warnings({"float": residual(), "int8": quantized}, "int8")
    assert warning.startswith("float has no QuantizeLinear")
    assert precision_warnings({"float": residual()}, "f32") == []
