"""Running the stages of a job one after the other: timing, events, and reuse of what a run directory already has."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from onnxprune.data.dataset import Data
from onnxprune.events import Event, Listener
from onnxprune.files import replacing, write_json
from onnxprune.ir.io import Model, load, save
from onnxprune.report.data import Stage
from onnxprune.run.rundir import RunDir, key
from onnxprune.types import Plan, Scores

T = TypeVar("T")


@dataclass(frozen=True)
class Kept(Generic[T]):
    """How a stage's result lies in the run directory: the file's name, how to write it, how to read it."""

    name: str
    write: Callable[[Path, T], None]
    read: Callable[[Path], T]


def as_json(name: str) -> Kept[Mapping[str, Any]]:
    """A result that is plain JSON."""
    return Kept(name, write_json, lambda path: dict(json.loads(path.read_text(encoding="utf-8"))))


def _write_scores(path: Path, scores: Scores) -> None:
    with replacing(path) as file:
        arrays: dict[str, Any] = {f"{i}": scores[name] for i, name in enumerate(scores)}
        np.savez(file, names=np.asarray(list(scores), np.str_), **arrays)


def _read_scores(path: Path) -> Scores:
    with np.load(path, allow_pickle=False) as found:
        return {str(name): found[f"{i}"] for i, name in enumerate(found["names"])}


SCORES: Kept[Scores] = Kept("scores.npz", _write_scores, _read_scores)
PLAN: Kept[Plan] = Kept(
    "decision.json", lambda path, plan: write_json(path, plan.to_json()), Plan.load
)
MODEL: Kept[Model] = Kept(
    "repaired.onnx", lambda path, model: save(model, path, overwrite=True), load
)


@dataclass
class Stages:
    """The stages of one run.

    chain: key of the last stage; done: what to report; current: the stage that runs; used: whether a stage, now or in the run that
    it is reused from, read the data.
    Each stage's key hashes the key of the one before, its name, and what it depends on: a change anywhere makes all that follow run again.
    """

    listener: Listener
    run: RunDir | None = None
    chain: str = ""
    done: list[Stage] = field(default_factory=list)
    current: str = ""
    used: bool = False
    _began: float = 0.0
    _detail: str = ""
    _told: bool = False

    def do(
        self,
        name: str,
        work: Callable[[], T],
        depends_on: Mapping[str, Any] | None = None,
        kept: Kept[T] | None = None,
    ) -> T:
        """The result of `work`, or of an earlier run where everything it depends on is the same."""
        self.chain = key(self.chain, name, dict(depends_on or {}))
        self.current, self._began, self._detail, self._told = name, time.monotonic(), "", False
        if self.run and kept:
            entry = self.run.done(name, self.chain)
            if entry:
                self.used |= bool(entry.facts.get("used"))
                self._finish(Stage(name, entry.seconds, True, str(entry.facts.get("detail", ""))))
                return kept.read(self.run.file(kept.name))
        self.listener(Event(name, "begin"))
        result = work()
        seconds = time.monotonic() - self._began
        if self.run and kept:
            kept.write(self.run.file(kept.name), result)
            self.run.record(
                name, self.chain, seconds, [kept.name], {"detail": self._detail, "used": self.used}
            )
        self._finish(Stage(name, seconds, False, self._detail))
        return result

    def detail(self, text: str) -> None:
        """What the line of the running stage says at its end."""
        self._detail = text

    def progress(self, share: float | None, detail: str = "", left_s: float | None = None) -> None:
        """Tell how much of the running stage is done, from 0 to 1, or how long it still takes; passes over watched data are silent then."""
        self._told = True
        self._tell(share, detail, left_s)

    def passed(self, share: float, detail: str) -> None:
        """Tell how far a pass over data is, where the stage itself tells nothing. What follows the last input takes nobody knows how long."""
        if not self._told:
            self._tell(share if share < 1 else None, detail, None)

    def _tell(self, share: float | None, detail: str, left_s: float | None) -> None:
        self.listener(
            Event(self.current, "progress", time.monotonic() - self._began, share, detail, left_s)
        )

    def watched(self, data: Data) -> Data:
        """The same data; passing over it tells the progress of the pass."""
        return WatchedData(data.source, data.inputs, data.chosen, data.seed, data.flipped, self)

    def _finish(self, stage: Stage) -> None:
        self.done.append(stage)
        self.listener(
            Event(
                stage.name, "reused" if stage.reused else "end", stage.seconds, detail=stage.detail
            )
        )


@dataclass(frozen=True, eq=False)
class WatchedData(Data):
    """Calibration data that tell how far a pass over them is."""

    stages: Stages | None = None

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """As of Data."""
        seen = 0
        if self.stages:
            self.stages.used = True
        for feeds in super().batches(batch_size):
            yield feeds
            seen += max((len(a) for a in feeds.values() if a.ndim), default=1)
            if self.stages:
                self.stages.passed(
                    min(1.0, seen / self.samples), f"{seen} of {self.samples} inputs"
                )
