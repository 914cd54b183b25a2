"""Announced time left of a run against the time that it took.

    python -m benchmarks.estimates [--models cifar10_resnet20 ...] [--engine none] [--json FILE]

runs `onnxprune optimize` with its defaults on models of the zoo, records the events of each run,
replays them to what the command line shows, and prints the share of the time in which the announced
time left was within a factor of 2 of the truth. A time that is not announced counts as wrong, as
does the start, before the stages are known. The goal is 80 %.

Three clocks are compared: the wall, the wall without the time for which the run waited for a CPU
that other programs used, which no estimate can foresee (Linux only), and the CPU time. The latter
does not depend on other programs, but needs `--engine none`: engines run in processes of their own,
for seconds that are given.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runner import Row, make_parser, write_results
from benchmarks.zoo import Entry, calibration_file, open_zoo
from onnxprune.cli.time_left import TimeLeft
from onnxprune.events import Event

MODELS = ("cifar10_resnet20", "imagenet_mobilenetv2_1.0_dq")
SAMPLES = 256
STEP_S = 0.1  # between two looks at the announced time
FACTOR = 2.0
GOAL = 0.8
LEAST_S = 0.5  # truth below which a difference cannot be seen

Clock = Callable[[], float]


@dataclass(frozen=True)
class Look:
    """One look at the announced time.

    Attributes
    ----------
    at
        Seconds since the start of the run.
    announced
        Seconds left that were announced; None if unknown.
    truth
        Seconds that were left.
    """

    at: float
    announced: float | None
    truth: float

    @property
    def is_close(self) -> bool:
        """Whether the announced time is within FACTOR of the truth."""
        if self.announced is None:
            return False
        announced, truth = max(self.announced, LEAST_S), max(self.truth, LEAST_S)
        return 1 / FACTOR <= announced / truth <= FACTOR


def replay(events: Sequence[tuple[float, Event]], end: float) -> list[Look]:
    """Return what was announced during a run.

    Parameters
    ----------
    events
        Events with their times since the start, in order.
    end
        Duration of the run.
    """
    now = 0.0
    left = TimeLeft(lambda: now)
    looks, position = [], 0
    for step in range(int(end / STEP_S)):
        at = step * STEP_S
        while position < len(events) and events[position][0] <= at:
            now, event = events[position]
            left(event)
            position += 1
        now = at
        looks.append(Look(at, left.of_run(), end - at))
    return looks


def share_close(looks: Sequence[Look]) -> float:
    """Return the share of the time in which the announced time was close."""
    return sum(look.is_close for look in looks) / max(len(looks), 1)


def waited_s() -> float:
    """Return for how long this thread was ready to run but had no CPU, 0 if unknown."""
    try:
        path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        return int(path.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def record(entry: Entry, folder: Path, **options: Any) -> dict[str, Any]:
    """Run a model; return its events and duration by clock."""
    from onnxprune import optimize

    data = calibration_file(entry, SAMPLES, folder / "calibration.npz")
    clocks: dict[str, Clock] = {
        "wall": time.monotonic,
        "without waiting": lambda: time.monotonic() - waited_s(),
        "CPU": time.process_time,
    }
    start = {name: clock() for name, clock in clocks.items()}
    events: dict[str, list[tuple[float, Event]]] = {name: [] for name in clocks}

    def listen(event: Event) -> None:
        for name, clock in clocks.items():
            events[name].append((clock() - start[name], event))

    optimize(
        str(entry.path),
        folder / "out.onnx",
        overwrite=True,
        data=str(data),
        on_event=listen,
        **options,
    )
    return {name: (events[name], clocks[name]() - start[name]) for name in clocks}


def measure(entry: Entry, engine: str | None = None) -> Row:
    """Return the shares of one model and what was announced."""
    options = {} if engine is None else {"engine": engine}
    with tempfile.TemporaryDirectory() as folder:
        recorded = record(entry, Path(folder), **options)
    row: Row = {"model": entry.name}
    for name, (events, end) in recorded.items():
        looks = replay(events, end)
        ends = [(at, e.stage, e.seconds) for at, e in events if e.state == "end"]
        expected = next((e.expected for _, e in events if e.state == "expect"), {})
        row[name] = {
            "seconds": end,
            "close": share_close(looks),
            "looks": [(look.at, look.announced, look.truth) for look in looks],
            "stages": ends,
            "expected": {stage: row.seconds for stage, row in expected.items()},
            "progress": [(at, e.stage, e.share) for at, e in events if e.state == "progress"],
        }
    return row


def main() -> None:
    """Measure the models and print a line per model and clock."""
    parser = make_parser(__doc__, "zoo", "models", "json")
    parser.add_argument("--engine", help="instead of the default's; none measures no latency")
    options = parser.parse_args()
    entries = open_zoo(options.zoo)
    rows = []
    for name in options.models or MODELS:
        row = measure(entries[name], options.engine)
        rows.append(row)
        for clock, figures in row.items():
            if clock == "model":
                continue
            verdict = "met" if figures["close"] >= GOAL else "missed"
            print(
                f"{name:30} {clock:16} {figures['seconds']:7.1f} s  within a factor of {FACTOR:g} "
                f"for {figures['close']:.0%} of the time (goal {GOAL:.0%}: {verdict})",
                flush=True,
            )
    write_results(options.json, rows)


if __name__ == "__main__":
    main()
