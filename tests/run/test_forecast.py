"""Forecast of the stages of a run, its announcements, progress of stages with several passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.estimates import Look, replay, share_close
from onnxprune import demo, optimize
from onnxprune.events import Event, Expected
from onnxprune.run import forecast
from onnxprune.run.stages import Stages

MODEL, CALIBRATION, EVALUATION = map(str, demo.files())


def run(path: Path, **options: Any) -> list[Event]:
    """Return the events of a run of the demo network."""
    events: list[Event] = []
    options = {"data": CALIBRATION, "samples": 48, "engine": (), **options}
    optimize(MODEL, path, on_event=events.append, **options)
    return events


def test_forecast_names_the_stages_that_follow(tmp_path: Path) -> None:
    labels = {"metric": ("top1",), "labeled": EVALUATION, "candidate": ("l1+uniform",)}
    events = run(tmp_path / "a.onnx", control=1, criterion="l2", repair="none", **labels)
    (expected,) = [event.expected for event in events if event.state == "expect"]
    began = [event.stage for event in events if event.state == "begin"]
    assert list(expected) == began[began.index("score") :]
    assert all(row.seconds is not None and row.seconds > 0 for row in expected.values())
    # a short run needs no announcement
    assert not [event for event in events if event.state == "note" and "about" in event.detail]


def test_search_of_unknown_length_is_unknown(tmp_path: Path) -> None:
    events = run(tmp_path / "a.onnx", max_divergence=0.9, criterion="l2", repair="none")
    (expected,) = [event.expected for event in events if event.state == "expect"]
    assert expected["bisect"] == Expected(None)


def test_shares_of_a_stage_never_decrease(tmp_path: Path) -> None:
    shares: dict[str, list[float]] = {}
    for event in run(tmp_path / "a.onnx"):
        if event.state == "progress" and event.share is not None:
            shares.setdefault(event.stage, []).append(event.share)
    assert {"score", "plan", "repair"} <= shares.keys()
    for values in shares.values():
        assert values == sorted(values) and values[0] >= 0 and values[-1] <= 1


def test_passes_are_phases_of_a_stage() -> None:
    events: list[Event] = []
    stages = Stages(events.append)
    stages.expect({"score": Expected(10.0)}, {"score": (2.0, 3.0, 5.0)})

    def work() -> None:
        for _ in range(3):  # one pass more than expected
            stages.begin_pass()
            stages.pass_progress(0.5, "half")
        stages.progress(0.5, "groups")

    stages.do("score", work)
    shares = [event.share for event in events if event.state == "progress"]
    assert shares == pytest.approx([0.1, 0.35, 0.35, 0.75])


def test_long_runs_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"criterion": "l2", "repair": "none", "control": 2}
    monkeypatch.setattr(forecast, "LONG_S", 0.0)
    notes = [e.detail for e in run(tmp_path / "b.onnx", **options) if e.state == "note"]
    assert notes == ["2 controls of about 10 s each; --control 0 for none"]


def test_replay_compares_the_announced_time_with_the_truth() -> None:
    expected = {"score": Expected(10.0)}
    events = [(0.0, Event("", "expect", expected=expected)), (0.0, Event("score", "begin"))]
    looks = replay(events, 10.0)
    assert share_close(looks) == 1.0
    # of a run that takes three times as long, the start is wrong
    assert share_close(replay(events, 30.0)) < 0.5
    assert not Look(0.0, None, 5.0).is_close and not Look(0.0, 11.0, 5.0).is_close
