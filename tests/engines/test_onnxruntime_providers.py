"""onnxruntime's GPU providers, against a session that records its arguments."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from engine_nets import residual

from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.errors import EngineError

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Providers that sessions were opened with; each session gets those."""
    calls: list[Any] = []

    def session(_: object, settings: object, providers: list[Any]) -> SimpleNamespace:
        calls.append(providers)
        names = [p if isinstance(p, str) else p[0] for p in providers]
        return SimpleNamespace(
            get_providers=lambda: names, get_outputs=lambda: [SimpleNamespace(name="y")]
        )

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return calls


def test_cuda_is_requested_by_name(opened: list[Any]) -> None:
    engine = ENGINES.get("onnxruntime-cuda")
    assert engine.available() is None
    with engine.compile(residual(), EngineOptions(precision="f16")) as compiled:
        assert compiled.outputs == ("y",)
    assert opened == [["CUDAExecutionProvider"]]


def test_tensorrt_gets_precision_and_caches_and_falls_back_to_cuda(
    opened: list[Any], tmp_path: Path
) -> None:
    ENGINES.get("onnxruntime-tensorrt").compile(
        residual(), EngineOptions(precision="int8", cache=tmp_path)
    )
    ((first, settings), second) = opened[0]
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert settings == {
        "trt_fp16_enable": False,
        "trt_int8_enable": True,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": True,
    }


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_silent_fallback_to_the_cpu_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *_, **__: SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]),
    )
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider"):
        ENGINES.get(name).compile(residual(), EngineOptions())


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_build_without_the_provider_names_one_that_has_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    reason = ENGINES.get(name).available()
    assert reason is not None and "pip install onnxruntime-gpu" in reason
