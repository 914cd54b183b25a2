"""What cutting one group alone costs and saves: every group at a few rates, one JSON line each.

Source: METHODS.md section 4. A job is a pure function of the sweep, the group and the rate, so jobs run anywhere and in any order, and a sweep that was
killed does only what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.data.dataset import Data
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import NO_OPTIONS, Options
from onnxprune.metrics.boxes import detections_of
from onnxprune.metrics.detection import Detection
from onnxprune.metrics.run import measure
from onnxprune.search.base import Kept, keep_best
from onnxprune.search.journal import Journal, key
from onnxprune.search.suffix import Changed, Suffix
from onnxprune.search.tasks import HeadLosses, summed
from onnxprune.search.workers import run_jobs
from onnxprune.surgery.cut import cut
from onnxprune.types import Scores

RATES = (0.25, 0.5, 0.75)
TIMED_RUNS = 5


@dataclass(frozen=True)
class Sweep:
    """What every job of a sweep shares; it can be sent to other processes.

    model: path, or the bytes of a model; options: of the analysis; scores: inside of each group; gate: unlabeled inputs for the label-free quality
    and for timing; labeled, metrics, metric_options: for figures with labels; time: whether to time inferences; multiple: kept counts are multiples
    of it; threads, batch_size: of onnxruntime.
    """

    model: str | bytes
    options: Mapping[str, Any]
    scores: Scores
    gate: Data
    labeled: LabeledData | None = None
    metrics: tuple[str, ...] = ()
    metric_options: Options = NO_OPTIONS
    time: bool = True
    multiple: int = 2
    threads: int = 1
    batch_size: int = 16
    source: str = field(default="", compare=False)  # digest of the model


@dataclass(frozen=True)
class Job:
    """One group at one rate; index: of the group, -1 and "" for the whole model."""

    sweep: Sweep
    index: int
    group: str
    rate: float

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.group}@{self.rate:g}"


def jobs_of(
    sweep: Sweep,
    analysis: Analysis,
    rates: Sequence[float] = RATES,
    groups: Sequence[str] | None = None,
) -> list[Job]:
    """The whole model, then each group at each rate; UsageError for a rate outside of (0, 1)."""
    if bad := [r for r in rates if not 0 < r < 1]:
        raise UsageError("option-value", f"rates: {bad[0]:g} is not between 0 and 1")
    chosen = [
        (i, g.name)
        for i, g in enumerate(analysis.groups)
        if g.name in sweep.scores and (groups is None or g.name in groups)
    ]
    return [Job(sweep, -1, "", 0.0)] + [Job(sweep, i, n, r) for i, n in chosen for r in rates]


def sweep_key(sweep: Sweep) -> str:
    """What the figures of a file depend on, beside group and rate."""
    labels = (
        sweep.labeled.fingerprint()
        if sweep.labeled is not None and hasattr(sweep.labeled, "fingerprint")
        else ""
    )
    scores = {n: key(np.asarray(s).tolist()) for n, s in sweep.scores.items()}
    return (
        key(
            sweep.source,
            dict(sweep.options),
            scores,
            sweep.gate.fingerprint(),
            labels,
            list(sweep.metrics),
            sweep.multiple,
        )[:16]
        + ":"
    )


def sensitivity(
    sweep: Sweep,
    jobs: Sequence[Job],
    journal: Journal,
    *,
    workers: int = 1,
    cluster: str = "",
    tell: Callable[[str], None] = lambda text: None,
    here: Bench | None = None,
) -> list[Mapping[str, Any]]:
    """The record of every job, in the jobs' order; what the journal has is not measured again.

    here: of this process, where there is one already; other processes make their own.
    """
    left = [j for j in jobs if not journal.has(j.key)]
    done = len(jobs) - len(left)
    if done:
        tell(f"{done} of {len(jobs)} measured before")
    alone = workers == 1 and not cluster
    bench = (here or Bench(sweep)) if alone and left else None
    for job, record in run_jobs(
        bench.record if bench else record_of, left, workers=workers, cluster=cluster
    ):
        journal.write(job.key, record)
        done += 1
        tell(
            f"{done} of {len(jobs)}: {job.group or 'whole model'} at {job.rate:g}, quality {record['quality']:.4f}"
        )
    return [journal.recall(j.key, dict) for j in jobs]


def record_of(job: Job) -> dict[str, Any]:
    """`Bench.record` with a bench of its own, for other processes."""
    return Bench(job.sweep).record(job)


class Bench:
    """What the jobs of a sweep in one process share: the analysis, and the outputs that heads are compared with.

    Parameters
    ----------
    analysis
        Of the sweep's model, where there is one already.
    reference
        Whose outputs the heads should give; None = the sweep's own model.
    changed
        What is kept -> the network that stands for the cut one, see `Suffix`.

    Attributes
    ----------
    base
        What is left already: what a cut saves is counted from there.
    """

    def __init__(
        self,
        sweep: Sweep,
        analysis: Analysis | None = None,
        reference: Model | None = None,
        changed: Changed | None = None,
    ) -> None:
        self.base: Kept = {}
        self.changed = changed is not None
        self.sweep = sweep
        self.analysis = analysis or analyze(load(sweep.model), **sweep.options)
        self.batches = list(sweep.gate.batches(sweep.batch_size))
        session = Session(reference or self.analysis.model, threads=sweep.threads)
        expected = [session.run(b) for b in self.batches]
        self.losses = HeadLosses(expected)
        self.start = summed(self.losses, expected)
        self.suffix = Suffix(self.analysis, self.batches, self.losses, sweep.threads, changed)

    def record(self, job: Job) -> dict[str, Any]:
        """Cut, measure, forget.

        Returns
        -------
        dict
            index, group, rate, size, kept; params, macs and what of them is saved; metrics: name -> value and details; per_class: metric -> class -> value;
            heads: label-free losses relative to the reference's; quality: 0 to 1, the first metric (or the agreement of the heads without labels);
            timing: of one batch: inference_ms, nms_ms (from outputs to boxes, 0 where no metric has any), total_ms, batch, h, w; shapes of its inputs.
        """
        kept = (
            {job.group: narrowed(self.sweep.scores[job.group], job.rate, self.sweep.multiple)}
            if job.group
            else {}
        )
        return {"index": job.index, "group": job.group, "rate": job.rate, **self.figures(kept)}

    def figures(self, kept: Kept) -> dict[str, Any]:
        """All that is measured of one cut model, whose other groups are as in the base."""
        sweep, analysis, group, left = (
            self.sweep,
            self.analysis,
            next(iter(kept), ""),
            {**self.base, **kept},
        )
        sizes = {n: analysis.group(n).size for n in left}
        before, after = analysis.cost(self.base), analysis.cost(left)
        found: dict[str, Any] = {
            "size": sizes.get(group, 0),
            "kept": len(kept.get(group, ())),
            "params": after.params,
            "macs": after.macs,
            "saved_params": before.params - after.params,
            "saved_macs": before.macs - after.macs,
            "metrics": {},
            "per_class": {},
            "timing": {},
        }
        model = None
        if sweep.time or sweep.metrics and sweep.labeled is not None:
            model = cut(analysis, analysis.plan(left)) if left else analysis.model
        if model is not None and not self.changed:
            heads: Mapping[str, float] | None = self.heads(model)
        else:
            heads = (
                self.suffix(self.base, group, kept[group])
                if len(kept) == 1
                else self.heads(self.suffix.changed(left) if left else analysis.model)
            )
        assert heads is not None  # without bounds nothing stops early
        found["heads"] = {n: v / self.start[n] for n, v in heads.items()}
        quality = float(np.mean([1 / max(v, 1.0) for v in found["heads"].values()]))
        if sweep.labeled is not None and sweep.metrics and model is not None:
            found |= self.labeled(model, sweep.labeled)
            quality = min(max(float(found["metrics"][sweep.metrics[0]]["value"]), 0.0), 1.0)
        if sweep.time and model is not None:
            found["timing"] = self.timing(model)
        return {**found, "quality": quality}

    def heads(self, model: Model) -> dict[str, float]:
        """Label-free losses."""
        session = Session(model, threads=self.sweep.threads)
        return summed(self.losses, [session.run(b) for b in self.batches])

    def labeled(self, model: Model, data: LabeledData) -> dict[str, Any]:
        """Metrics and per_class."""
        sweep = self.sweep
        metrics = [find_metric(n, sweep.metric_options) for n in sweep.metrics]
        measure(model, data, metrics, threads=sweep.threads, batch_size=sweep.batch_size)
        scores = {name: m.result() for name, m in zip(sweep.metrics, metrics, strict=False)}
        values = {
            n: {"value": s.value, **{k: float(v) for k, v in s.details.items()}}
            for n, s in scores.items()
        }
        return {
            "metrics": values,
            "per_class": {
                n: {str(k): float(v) for k, v in s.per_class.items()} for n, s in scores.items()
            },
        }

    def timing(self, model: Model) -> dict[str, Any]:
        """Medians over a few runs of the first batch."""
        sweep, session = self.sweep, Session(model, threads=self.sweep.threads)
        feeds: Mapping[str, np.ndarray] = self.batches[0]
        labels: Mapping[str, np.ndarray] = {}
        boxes = any(
            isinstance(find_metric(n, sweep.metric_options), Detection) for n in sweep.metrics
        )
        if sweep.labeled is not None and boxes:
            batch = next(iter(sweep.labeled.labeled_batches(sweep.batch_size)))
            feeds, labels = batch.feeds, batch.labels
        times = []
        for _ in range(TIMED_RUNS):
            began = time.perf_counter()
            outputs = session.run(feeds)
            ran = time.perf_counter()
            if labels:
                detections_of(outputs, labels, sweep.metric_options)
            times.append((ran - began, time.perf_counter() - ran if labels else 0.0))
        inference, nms = np.median(times, 0) * 1e3
        shapes = {n: list(v.shape) for n, v in feeds.items()}
        return {
            "inference_ms": float(inference),
            "nms_ms": float(nms),
            "total_ms": float(inference + nms),
            **_image(next(iter(shapes.values()))),
            "shapes": shapes,
        }


def _image(shape: Sequence[int]) -> dict[str, int]:
    """batch, h and w of an image input, the channels wherever they are fewest; of other inputs the batch alone."""
    if len(shape) != 4:
        return {"batch": shape[0] if shape else 1}
    h, w = shape[1:3] if shape[3] < shape[1] else shape[2:4]
    return {"batch": shape[0], "h": h, "w": w}


def narrowed(scores: np.ndarray, rate: float, multiple: int = 2) -> tuple[int, ...]:
    """The best channels at a rate, their count a multiple where the group is large enough; at least one."""
    count = len(scores) * (1 - rate)
    count = int(count // multiple) * multiple if count >= multiple else int(count)
    return keep_best(scores, max(1, count))
