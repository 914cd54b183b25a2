"""Stages of a run, executed one after the other: timing, events, reuse of earlier results."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from onnxprune.data.dataset import Data
from onnxprune.data.inputs import Batch
from onnxprune.events import Event, Expected, Listener
from onnxprune.files import hash_key, read_text, replacing, write_json
from onnxprune.ir.io import Model, load, save
from onnxprune.report.data import Stage
from onnxprune.run.rundir import JournalEntry, RunDir
from onnxprune.types import Plan, Scores

T = TypeVar("T")


@dataclass(frozen=True)
class Artifact(Generic[T]):
    """File of a stage's result in the run directory.

    Attributes
    ----------
    name
        Name of the file.
    write, read
        Functions that write the result to a path and read it back.
    """

    name: str
    write: Callable[[Path, T], None]
    read: Callable[[Path], T]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one table."""
    return dict(json.loads(read_text(path)))


def json_artifact(name: str) -> Artifact[Mapping[str, Any]]:
    """Return the artifact of a result that is plain JSON."""
    return Artifact(name, write_json, read_json)


def _write_scores(path: Path, scores: Scores) -> None:
    """Write scores as .npz; arrays have numbers for names, because groups may have any name."""
    with replacing(path) as file:
        arrays: dict[str, Any] = {f"{i}": scores[name] for i, name in enumerate(scores)}
        np.savez(file, names=np.asarray(list(scores), np.str_), **arrays)


def _read_scores(path: Path) -> Scores:
    """Read what `_write_scores` wrote."""
    # a pickle in a run directory from elsewhere could run code
    with np.load(path, allow_pickle=False) as arrays:
        return {str(name): arrays[f"{i}"] for i, name in enumerate(arrays["names"])}


def _write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON."""
    write_json(path, plan.to_json())


def _write_model(path: Path, model: Model) -> None:
    """Write a model, over an earlier one."""
    save(model, path, overwrite=True)


SCORES: Artifact[Scores] = Artifact("scores.npz", _write_scores, _read_scores)
PLAN: Artifact[Plan] = Artifact("decision.json", _write_plan, Plan.load)
MODEL: Artifact[Model] = Artifact("repaired.onnx", _write_model, load)


@dataclass
class Stages:
    """Stages of one run.

    The key of a stage hashes the key of the stage before it, its name and what it depends on, so
    that a change anywhere makes all following stages run again.

    Attributes
    ----------
    listener
        Receives the events of the run.
    run
        Run directory to reuse results from; None for none.
    chain
        Key of the last stage.
    done
        Finished stages, for the report.
    current
        Name of the running stage.
    used
        Whether a stage, in this run or in the one it is reused from, read the data.
    phases
        Stage -> expected work of its phases: one per pass over the data, and a last one for what
        the stage reports itself.
    """

    listener: Listener
    run: RunDir | None = None
    chain: str = ""
    done: list[Stage] = field(default_factory=list)
    current: str = ""
    used: bool = False
    phases: Mapping[str, Sequence[float]] = field(default_factory=dict)
    _began: float = 0.0
    _detail: str = ""
    _reports: bool = False  # whether the running stage reports progress itself
    _passes: int = 0  # over the data, that the running stage has begun
    _share: float = 0.0  # largest share of the running stage so far

    def do(
        self,
        name: str,
        work: Callable[[], T],
        depends_on: Mapping[str, Any] | None = None,
        artifact: Artifact[T] | None = None,
    ) -> T:
        """Return the result of `work`, or that of an earlier run if nothing has changed since.

        Parameters
        ----------
        depends_on
            Options and hashes that the result depends on, besides the stages before.
        artifact
            File of the result; a stage without one always runs.
        """
        self.chain = hash_key(self.chain, name, dict(depends_on or {}))
        self.current, self._began, self._detail, self._reports = name, time.monotonic(), "", False
        self._passes, self._share = 0, 0.0
        if self.run and artifact:
            entry = self.run.done(name, self.chain)
            if entry and artifact.name in entry.files:
                # a file that matches the hash of an edited journal can still be anything
                result = None
                with contextlib.suppress(Exception):
                    result = artifact.read(self.run.file(artifact.name))
                if result is not None:
                    return self._reuse(entry, result)
        self.listener(Event(name, "begin"))
        result = work()
        seconds = time.monotonic() - self._began
        if self.run and artifact:
            # before the journal's entry, which vouches for a complete file
            artifact.write(self.run.file(artifact.name), result)
            facts = {"detail": self._detail, "used": self.used}
            self.run.record(name, self.chain, seconds, [artifact.name], facts)
        self._finish(Stage(name, seconds, False, self._detail))
        return result

    def _reuse(self, entry: JournalEntry, result: T) -> T:
        """Record a stage that an earlier run has finished, and return its result."""
        # the reused result depends on the data even if this run does not read them
        self.used |= bool(entry.facts.get("used"))
        self._finish(Stage(entry.stage, entry.seconds, True, str(entry.facts.get("detail", ""))))
        return result

    def detail(self, text: str) -> None:
        """Set the text that follows the running stage's name when it ends."""
        self._detail = text

    def warn(self, text: str) -> None:
        """Report a warning at once; the report lists it as well."""
        self.listener(Event("", "warning", detail=text))

    def note(self, text: str) -> None:
        """Report a sentence that is no warning at once."""
        if text:
            self.listener(Event("", "note", detail=text))

    def expect(self, stages: Mapping[str, Expected], phases: Mapping[str, Sequence[float]]) -> None:
        """Announce the stages that follow, and set the work of their phases."""
        self.phases = phases
        self.listener(Event("", "expect", expected=stages))

    def progress(self, share: float | None, detail: str = "", left_s: float | None = None) -> None:
        """Report the progress of the running stage, which hides that of its data passes.

        Parameters
        ----------
        share
            Share of the stage that is done, from 0 to 1; None if unknown.
        detail
            What is being done.
        left_s
            Seconds left, if known without a share.
        """
        self._reports = True
        self._emit(self._share_of_stage(-1, share), detail, left_s)

    def begin_pass(self) -> None:
        """Count a pass over the data."""
        self._passes += 1

    def pass_progress(self, share: float, detail: str) -> None:
        """Report progress of a data pass if the stage reports none itself.

        The share is None after the last batch: the time of what follows is unknown.
        """
        if not self._reports:
            known = len(self.phases.get(self.current, ())) > 1
            part = share if share < 1 or known else None
            self._emit(self._share_of_stage(self._passes - 1, part), detail, None)

    def _share_of_stage(self, phase: int, share: float | None) -> float | None:
        """Return the share of the stage from that of a phase; -1 is the last one."""
        work = self.phases.get(self.current)
        if share is None or not work or not sum(work):
            return share
        # further passes than expected belong to the last one
        index = len(work) - 1 if phase < 0 else min(phase, max(len(work) - 2, 0))
        total = (sum(work[:index]) + work[index] * share) / sum(work)
        self._share = max(self._share, total)
        return self._share

    def _emit(self, share: float | None, detail: str, left_s: float | None) -> None:
        """Send a progress event."""
        elapsed = time.monotonic() - self._began
        self.listener(Event(self.current, "progress", elapsed, share, detail, left_s))

    def watch(self, data: Data) -> Data:
        """Return the same data, whose passes report progress."""
        values = {f.name: getattr(data, f.name) for f in fields(Data)}
        return WatchedData(**values, stages=self)

    def _finish(self, stage: Stage) -> None:
        """Record a finished stage, and send its event."""
        self.done.append(stage)
        state = "reused" if stage.reused else "end"
        self.listener(Event(stage.name, state, stage.seconds, detail=stage.detail))


@dataclass(frozen=True, eq=False)
class WatchedData(Data):
    """Calibration data that report the progress of each pass."""

    stages: Stages | None = None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches as `Data.batches` does."""
        if self.stages is None:
            yield from super().batches(batch_size)
            return
        seen = 0
        self.stages.used = True
        self.stages.begin_pass()
        for feeds in super().batches(batch_size):
            # before the progress: the batch is processed when the consumer asks for the next one
            yield feeds
            # inputs without a batch axis may have fewer rows than samples
            seen += max((len(array) for array in feeds.values() if array.ndim), default=1)
            share = min(1.0, seen / self.samples)
            self.stages.pass_progress(share, f"{seen} of {self.samples} inputs")
