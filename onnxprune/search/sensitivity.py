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
from onnxprune.analysis.walk import analyse
from onnxprune.calibrate.data import Data
from onnxprune.errors import UsageError
from onnxprune.evaluate import find_metric
from onnxprune.evaluate.base import NO_OPTIONS, Options
from onnxprune.evaluate.data import LabelledData
from onnxprune.evaluate.run import measure
from onnxprune.model.io import Model, load
from onnxprune.model.runtime import Session
from onnxprune.search.base import keep_best
from onnxprune.search.journal import Journal, key
from onnxprune.search.tasks import HeadLosses
from onnxprune.search.workers import run_jobs
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores

RATES = (0.25, 0.5, 0.75)
TIMED_RUNS = 5


@dataclass(frozen=True)
class Sweep:
    """What every job of a sweep shares; it can be sent to other processes.

    model: path, or the bytes of a model; options: of the analysis; scores: inside of each group; gate: unlabelled inputs for the label-free quality
    and for timing; labelled, metrics, metric_options: for figures with labels; time: whether to time inferences; multiple: kept counts are multiples
    of it; threads, batch_size: of onnxruntime.
    """

    model: str | bytes
    options: Mapping[str, Any]
    scores: Scores
    gate: Data
    labelled: LabelledData | None = None
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


def jobs_of(sweep: Sweep, analysis: Analysis, rates: Sequence[float] = RATES, groups: Sequence[str] | None = None) -> list[Job]:
    """The whole model, then each group at each rate; UsageError for a rate outside of (0, 1)."""
    if bad := [r for r in rates if not 0 < r < 1]:
        raise UsageError("option-value", f"rates: {bad[0]:g} is not between 0 and 1")
    chosen = [(i, g.name) for i, g in enumerate(analysis.groups) if g.name in sweep.scores and (groups is None or g.name in groups)]
    return [Job(sweep, -1, "", 0.0)] + [Job(sweep, i, n, r) for i, n in chosen for r in rates]


def sweep_key(sweep: Sweep) -> str:
    """What the figures of a file depend on, beside group and rate."""
    labels = sweep.labelled.fingerprint() if sweep.labelled is not None and hasattr(sweep.labelled, "fingerprint") else ""
    scores = {n: key(np.asarray(s).tolist()) for n, s in sweep.scores.items()}
    return key(sweep.source, dict(sweep.options), scores, sweep.gate.fingerprint(), labels, list(sweep.metrics), sweep.multiple)[:16] + ":"


def sensitivity(
    sweep: Sweep, jobs: Sequence[Job], journal: Journal, *, workers: int = 1, cluster: str = "", tell: Callable[[str], None] = lambda text: None
) -> list[Mapping[str, Any]]:
    """The record of every job, in the jobs' order; what the journal has is not measured again."""
    left = [j for j in jobs if not journal.has(j.key)]
    done = len(jobs) - len(left)
    if done:
        tell(f"{done} of {len(jobs)} measured before")
    for job, record in run_jobs(record_of, left, workers=workers, cluster=cluster):
        journal.write(job.key, record)
        done += 1
        tell(f"{done} of {len(jobs)}: {job.group or 'whole model'} at {job.rate:g}, quality {record['quality']:.4f}")
    return [journal.recall(j.key, lambda: {}) for j in jobs]


def record_of(job: Job) -> dict[str, Any]:
    """Cut, measure, forget.

    Returns
    -------
    dict
        index, group, rate, size, kept; params, macs and what of them is saved; metrics: name -> value and details; per_class: metric -> class -> value;
        heads: label-free losses relative to the dense model's; quality: 0 to 1, the first metric (or the agreement of the heads without labels);
        timing: inference_ms and the shape of a batch.
    """
    sweep = job.sweep
    analysis = analyse(load(sweep.model), **sweep.options)
    kept = {job.group: narrowed(sweep.scores[job.group], job.rate, sweep.multiple)} if job.group else {}
    return {"index": job.index, "group": job.group, "rate": job.rate, **figures(sweep, analysis, kept)}


def narrowed(scores: np.ndarray, rate: float, multiple: int = 2) -> tuple[int, ...]:
    """The best channels at a rate, their count a multiple where the group is large enough; at least one."""
    count = len(scores) * (1 - rate)
    count = int(count // multiple) * multiple if count >= multiple else int(count)
    return keep_best(scores, max(1, count))


def figures(sweep: Sweep, analysis: Analysis, kept: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """All that is measured of one cut model."""
    group = next(iter(kept), "")
    sizes = {n: analysis.group(n).size for n in kept}
    model = cut(analysis, Plan(analysis.digest, kept, sizes, {}, analysis.options)) if kept else analysis.model
    before, after = analysis.cost(), analysis.cost(kept)
    heads, timing = _heads(sweep, analysis.model, model)
    found: dict[str, Any] = {
        "size": sizes.get(group, 0), "kept": len(kept.get(group, ())), "params": after.params, "macs": after.macs,
        "saved_params": before.params - after.params, "saved_macs": before.macs - after.macs, "metrics": {}, "per_class": {}, "heads": heads, "timing": timing,
    }  # fmt: skip
    quality = float(np.mean([1 / max(v, 1.0) for v in heads.values()]))
    if sweep.labelled is not None and sweep.metrics:
        metrics = [find_metric(n, sweep.metric_options) for n in sweep.metrics]
        measure(model, sweep.labelled, metrics, threads=sweep.threads, batch_size=sweep.batch_size)
        for name, score in zip(sweep.metrics, (m.result() for m in metrics)):
            found["metrics"][name] = {"value": score.value, **{k: float(v) for k, v in score.details.items()}}
            found["per_class"][name] = {str(k): float(v) for k, v in score.per_class.items()}
        quality = min(max(float(found["metrics"][sweep.metrics[0]]["value"]), 0.0), 1.0)
    return {**found, "quality": quality}


def _heads(sweep: Sweep, dense: Model, model: Model) -> tuple[dict[str, float], dict[str, Any]]:
    """(label-free losses over the dense model's, timing)."""
    batches = list(sweep.gate.batches(sweep.batch_size))
    first, second = Session(dense, threads=sweep.threads), Session(model, threads=sweep.threads)
    expected = [first.run(b) for b in batches]
    losses = HeadLosses(expected)
    start: dict[str, float] = {}
    sums: dict[str, float] = {}
    for number, batch in enumerate(batches):
        for total, outputs in ((start, expected[number]), (sums, second.run(batch))):
            for name, share in losses.batch(number, outputs).items():
                total[name] = total.get(name, 0.0) + share
    timing: dict[str, Any] = {}
    if sweep.time:
        times = []
        for _ in range(TIMED_RUNS):
            began = time.perf_counter()
            second.run(batches[0])
            times.append((time.perf_counter() - began) * 1e3)
        timing = {"inference_ms": float(np.median(times)), "shapes": {n: list(v.shape) for n, v in batches[0].items()}}
    return {n: sums[n] / start[n] for n in sums}, timing
