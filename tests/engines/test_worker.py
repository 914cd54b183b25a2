"""A model in a separate process: equal outputs, its own memory, and failures as errors."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from engine_nets import residual

from onnxprune.engines import ENGINES, worker
from onnxprune.engines.base import EngineOptions, random_feeds, static_inputs
from onnxprune.engines.worker import Worker
from onnxprune.errors import EngineError


def test_same_outputs_as_in_this_process() -> None:
    model = residual()
    feeds = random_feeds(static_inputs(model, {}))
    with (
        ENGINES.get("onnxruntime").compile(model, EngineOptions()) as here,
        Worker("onnxruntime", model, EngineOptions()) as there,
    ):
        assert np.array_equal(here.run(feeds)["y"], there.run(feeds)["y"])
        other = {"x": feeds["x"] + 1}
        assert np.array_equal(here.run(other)["y"], there.run(other)["y"])
        assert len(there.sample(feeds, 7)) == 7
        assert [layer.key for layer in there.profile(feeds, 2)] == [
            layer.key for layer in here.profile(feeds, 2)
        ]
        memory = there.memory_bytes()
    if memory is not None:
        peak, before = memory
        assert peak > before > 1 << 20


def test_a_refused_model_is_the_engine_s_sentence(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(EngineError, match="onnxruntime rejects the model"):
        Worker("onnxruntime", path, EngineOptions())


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_crash_is_an_error_that_names_the_signal() -> None:
    model = residual()
    with Worker("onnxruntime", model, EngineOptions()) as there:
        os.kill(there._process.pid, signal.SIGSEGV)
        with pytest.raises(EngineError, match="SIGSEGV during feed"):
            there.run(random_feeds(static_inputs(model, {})))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_stopped_process_is_ended_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CHECK_S", 0.05)
    monkeypatch.setattr(worker, "MOST_STOPS", 3)
    with Worker("onnxruntime", residual(), EngineOptions()) as there:
        os.kill(there._process.pid, signal.SIGSTOP)
        pid = there._process.pid
        with pytest.raises(EngineError, match=rf"was stopped .* process {pid} was ended") as caught:
            there.run(random_feeds(static_inputs(residual(), {})))
        assert caught.value.code == "engine-timeout"
        assert there._process.wait(10) == -signal.SIGKILL


def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker("onnxruntime", residual(), EngineOptions()) as there:
        feeds = random_feeds(static_inputs(residual(), {}))
        there.run(feeds)
        monkeypatch.setattr(worker, "CHECK_S", 0.05)
        monkeypatch.setattr(worker, "ANSWER_LIMIT_S", 0.2)
        with pytest.raises(EngineError, match=r"did not answer within 0.2 s during sample"):
            there.sample(feeds, 10**8)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the system does not pin processes"
)
def test_pinned_to_the_given_cores() -> None:
    core = min(os.sched_getaffinity(0))
    with Worker("onnxruntime", residual(), EngineOptions(cores=(core,))) as there:
        assert os.sched_getaffinity(there._process.pid) == {core}
