"""Parsers of logs and reports from other machines return or raise DataError, whatever they read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.deploy.collect import read_manifest
from onnxprune.deploy.jetson import TARGET, busy_mw, parse_tegrastats
from onnxprune.deploy.targets import finn, gemmini, hls4ml, nngen, vela, vitis_ai
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import DataError

KEYS = st.sampled_from(
    [
        "startEnqMs",
        "computeMs",
        "latencyMs",
        "inMs",
        "name",
        "averageMs",
        "timeMs",
        "count",
        "format",
        "models",
        "target",
        "total",
        "x",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["jetson", "1e999", "undef"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
TEXTS = VALUES.map(json.dumps) | st.text(max_size=60)
LINES = st.lists(
    st.sampled_from(
        [
            "GR3D_FREQ 14%@[420]",
            "GR3D 9",
            "VDD_IN 4521mW/4500mW",
            "POM_5V_IN 2532/25",
            "VDD_IN 9" * 40,
            "RAM 1/2MB",
            "\x00",
            "²³%",
        ]
    )
)


@given(TEXTS, st.floats(0, 100))
def test_json_logs(text: str, warm_up_ms: float) -> None:
    for parse in (lambda t: parse_times(t, warm_up_ms), parse_profile):
        with contextlib.suppress(DataError):
            parse(text)


@given(LINES.map(" ".join) | st.text(max_size=80))
def test_tegrastats(text: str) -> None:
    assert all(s.rails_mw for s in parse_tegrastats(text))
    busy_mw(parse_tegrastats(text))


@given(st.text(max_size=120) | st.just("a,cycles_total\n1") | st.just("cycles_total\nx\ny,z"))
def test_tables(text: str) -> None:
    for parse in (vela.parse_summary, vela.parse_layers, hls4ml.parse_synthesis):
        with contextlib.suppress(DataError):
            parse(text)


FILES = (
    "original.json",
    "original.csynth.xml",
    "original.estimate_network_performance.json",
    "original.estimate_layer_resources.json",
    "original.estimate_layer_cycles.json",
    "original.rtlsim_performance.json",
    "original.compile.log",
    "original.benchmark.log",
    "original.summary.csv",
    "original.layers.csv",
    "original.0.times.json",
    "original.0.power.log",
    "original.profile.json",
    "original.layers.json",
    "environment.json",
)
PARSERS = {
    t.TARGET.name: t.TARGET.parse for t in (finn, gemmini, hls4ml, nngen, vela, vitis_ai)
} | {"jetson": TARGET.parse}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all examples."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=25)
@given(data=TEXTS.map(lambda t: t.encode(errors="replace")) | st.binary(max_size=40))
def test_results_folders(folder: Path, name: str, data: bytes) -> None:
    for file in (*FILES, "manifest.json"):
        (folder / file).write_bytes(data)
    for read in (lambda: PARSERS[name](folder, "original"), lambda: read_manifest(folder)):
        answer: Callable[[], Any] = read
        with contextlib.suppress(DataError):
            answer()
