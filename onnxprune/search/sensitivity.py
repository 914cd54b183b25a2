"""Sensitivity analysis: quality lost and cost saved by cutting one group alone, at several rates.

Source: Pavlitska et al. (2024), "Iterative Filter Pruning for Concatenation-based CNN
Architectures". A job is a pure function of the sweep, the group and the rate: jobs run anywhere and
in any order, and a killed sweep resumes with the unfinished ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.data.dataset import Data
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import UsageError
from onnxprune.files import hash_key
from onnxprune.ir.heads import find_heads, tensors_of
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import NO_OPTIONS, MetricOptions
from onnxprune.metrics.decoding import detections_of
from onnxprune.metrics.detection import Detection
from onnxprune.metrics.run import measure
from onnxprune.search.base import Kept, keep_best
from onnxprune.search.journal import Journal
from onnxprune.search.suffix import Changed, Suffix
from onnxprune.search.tasks import HeadLosses, summed
from onnxprune.search.workers import run_jobs
from onnxprune.surgery.cut import cut
from onnxprune.types import Scores

RATES = (0.25, 0.5, 0.75)
TIMED_RUNS = 5


@dataclass(frozen=True)
class Sweep:
    """Inputs that all jobs of a sweep share; can be sent to other processes.

    Attributes
    ----------
    model
        Path or bytes of the model.
    options
        Options of the analysis.
    scores
        Scores that rank the channels within each group.
    gate
        Unlabeled inputs for the label-free quality and for timing.
    labeled, metrics, metric_options
        Labeled inputs, names of metrics and their options; None and () = no metrics.
    time
        Whether to time inferences.
    multiple
        Kept counts are multiples of it.
    threads, batch_size
        Settings of onnxruntime.
    source
        Digest of the model.
    token
        Tells sweeps apart in other processes, to which each job brings its own copy.
    """

    model: str | bytes
    options: Mapping[str, Any]
    scores: Scores
    gate: Data
    labeled: LabeledData | None = None
    metrics: tuple[str, ...] = ()
    metric_options: MetricOptions = NO_OPTIONS
    time: bool = True
    multiple: int = 2
    threads: int = 1
    batch_size: int = 16
    source: str = field(default="", compare=False)
    token: str = field(default_factory=lambda: uuid4().hex, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Job:
    """One group at one rate.

    Attributes
    ----------
    index, group
        Number and name of the group; -1 and "" for the uncut model.
    rate
        Share of the channels to remove.
    """

    sweep: Sweep
    index: int
    group: str
    rate: float

    @property
    def key(self) -> str:
        """Return the key of the job in the journal."""
        return f"{self.group}@{self.rate:g}"


def jobs_of(
    sweep: Sweep,
    analysis: Analysis,
    rates: Sequence[float] = RATES,
    groups: Sequence[str] | None = None,
) -> list[Job]:
    """Return the job of the uncut model, then those of each group at each rate.

    Raises
    ------
    UsageError
        A rate is not between 0 and 1.
    """
    if bad := [r for r in rates if not 0 < r < 1]:
        raise UsageError("option-value", f"rates: {bad[0]:g} is not between 0 and 1")
    jobs = [Job(sweep, -1, "", 0.0)]
    for index, group in enumerate(analysis.groups):
        if group.name in sweep.scores and (groups is None or group.name in groups):
            jobs += [Job(sweep, index, group.name, rate) for rate in rates]
    return jobs


def sweep_key(sweep: Sweep) -> str:
    """Return the prefix of the sweep's keys: a hash of all inputs besides group and rate."""
    labels = ""
    if sweep.labeled is not None and hasattr(sweep.labeled, "fingerprint"):
        # the content of a file may change without its name
        labels = sweep.labeled.fingerprint()
    # only where they differ from the defaults, so that earlier files remain valid
    settings = [] if sweep.time else ["not timed"]
    if sweep.metrics and sweep.metric_options != NO_OPTIONS:
        settings.append(repr(sweep.metric_options))
    digest = hash_key(
        sweep.source,
        dict(sweep.options),
        {n: hash_key(np.asarray(s).tolist()) for n, s in sweep.scores.items()},
        sweep.gate.fingerprint(),
        labels,
        list(sweep.metrics),
        sweep.multiple,
        *settings,
    )
    return digest[:16] + ":"


def sensitivity(
    sweep: Sweep,
    jobs: Sequence[Job],
    journal: Journal,
    *,
    workers: int = 1,
    cluster: str = "",
    progress: Callable[[str], None] = lambda text: None,
    bench: SensitivityBench | None = None,
) -> list[Mapping[str, Any]]:
    """Return the record of every job, in order; jobs in the journal are not measured again.

    Parameters
    ----------
    workers, cluster
        See `run_jobs`.
    progress
        Callback that receives one line of text per job.
    bench
        Bench of this process if it exists already; other processes create their own.
    """
    left = [j for j in jobs if not journal.has(j.key)]
    done = len(jobs) - len(left)
    if done:
        progress(f"{done} of {len(jobs)} measured before")
    # a bench cannot be sent to other processes
    record: Callable[[Job], dict[str, Any]] = record_of
    if left and workers == 1 and not cluster:
        record = (bench or SensitivityBench(sweep)).record
    for job, values in run_jobs(record, left, workers=workers, cluster=cluster):
        journal.write(job.key, values)
        done += 1
        name = f"{job.group} at {job.rate:g}" if job.group else "original model"
        progress(f"{done} of {len(jobs)}: {name}, quality {values['quality']:.4f}")
    return [journal.recall(j.key, dict) for j in jobs]


class _Benches(threading.local):
    """Benches by token of a sweep; a worker of Dask may do several jobs at a time."""

    def __init__(self) -> None:
        self.by_token: dict[str, SensitivityBench] = {}


_BENCHES = _Benches()


def record_of(job: Job) -> dict[str, Any]:
    """Return `SensitivityBench.record` in a process to which jobs are sent.

    Its bench is that of the job before, if that belonged to the same sweep.
    """
    benches, token = _BENCHES.by_token, job.sweep.token
    if token not in benches:
        # a sweep that ended would stay in memory with its data
        benches.clear()
        benches[token] = SensitivityBench(job.sweep)
    return benches[token].record(job)


class SensitivityBench:
    """Measurement of cuts of one network, with the state that the jobs of a process share.

    Parameters
    ----------
    analysis
        Analysis of the sweep's model if it exists already.
    reference
        Model whose outputs the heads are compared with; None = the sweep's model.
    changed
        Function of the kept channels that returns the network to measure in place of the cut one;
        see `Suffix`.

    Attributes
    ----------
    base
        Channels kept so far; savings are counted relative to them.
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
        self.analysis = analysis or _analyze(sweep)
        # in memory, because every job runs the same batches
        self.batches = list(sweep.gate.batches(sweep.batch_size))
        heads = find_heads(self.analysis.model, shapes=self.analysis.shapes)
        outputs = {output.name for output in self.analysis.model.proto.graph.output}
        # inner tensors only where the outputs themselves are no heads
        inner = any(name not in outputs for name in tensors_of(heads))
        names = tensors_of(heads) if inner else None
        self.compared = names
        session = Session(reference or self.analysis.model, names, threads=sweep.threads)
        expected = [values for _, values in session.run_each(self.batches)]
        self.losses = HeadLosses(expected, heads)
        self.start = summed(self.losses, expected)
        self.suffix = Suffix(
            self.analysis, self.batches, self.losses, sweep.threads, changed, names
        )

    def record(self, job: Job) -> dict[str, Any]:
        """Cut one group, measure the result, and return the record.

        Returns
        -------
        dict
            index, group, rate, size, kept;
            params, macs, saved_params, saved_macs;
            metrics: name -> value and details; per_class: metric -> class -> value;
            heads: label-free losses relative to the reference's;
            quality: 0 to 1, the first metric, or the agreement of the heads without labels;
            timing of one batch: inference_ms, nms_ms (from outputs to boxes, 0 without a detection
            metric), total_ms, original_ms (inference of the uncut model), batch, h, w, and shapes
            of the inputs.
        """
        kept = {}
        if job.group:
            scores = self.sweep.scores[job.group]
            kept = {job.group: narrowed(scores, job.rate, self.sweep.multiple)}
        return {"index": job.index, "group": job.group, "rate": job.rate, **self.figures(kept)}

    def figures(self, kept: Kept) -> dict[str, Any]:
        """Return the measurements of one cut; groups not in `kept` are as in the base.

        The keys are those of `record` from size on.
        """
        sweep, analysis = self.sweep, self.analysis
        group, left = next(iter(kept), ""), {**self.base, **kept}
        before, after = analysis.cost(self.base), analysis.cost(left)
        figures: dict[str, Any] = {
            "size": analysis.group(group).size if group else 0,
            "kept": len(kept.get(group, ())),
            "params": after.params,
            "macs": after.macs,
            "saved_params": before.params - after.params,
            "saved_macs": before.macs - after.macs,
            "metrics": {},
            "per_class": {},
            "timing": {},
        }
        # masks suffice for the losses of the heads; times and metrics need the cut model
        model = None
        if sweep.time or sweep.metrics and sweep.labeled is not None:
            model = cut(analysis, analysis.plan(left)) if left else analysis.model
        heads = self._measure_head_losses(kept, model)
        figures["heads"] = {n: v / self.start[n] for n, v in heads.items()}
        # a loss equal to the reference's is quality 1, twice the loss is 0.5
        quality = float(np.mean([1 / max(v, 1.0) for v in figures["heads"].values()]))
        if sweep.labeled is not None and sweep.metrics and model is not None:
            figures |= self.labeled(model, sweep.labeled)
            # the ranking assumes shares, and not every metric is one
            quality = min(max(float(figures["metrics"][sweep.metrics[0]]["value"]), 0.0), 1.0)
        if sweep.time and model is not None:
            figures["timing"] = self.timing(model)
        return {**figures, "quality": quality}

    def _measure_head_losses(self, kept: Kept, model: Model | None) -> Mapping[str, float]:
        """Return the losses of the heads, from the cut model if there is one and no `changed`."""
        # cut models need not have inner tensors, which masked ones do
        if model is not None and not self.changed and self.compared is None:
            return self.heads(model)
        # a suffix starts at the nodes of one group
        if len(kept) != 1:
            left = {**self.base, **kept}
            return self.heads(self.suffix.changed(left) if left else self.analysis.model)
        group = next(iter(kept))
        losses = self.suffix(self.base, group, kept[group])
        assert losses is not None  # without bounds nothing stops early
        return losses

    def heads(self, model: Model) -> dict[str, float]:
        """Return the label-free losses of a model."""
        session = Session(model, self.compared, threads=self.sweep.threads)
        return summed(self.losses, [values for _, values in session.run_each(self.batches)])

    def labeled(self, model: Model, data: LabeledData) -> dict[str, Any]:
        """Return the `metrics` and `per_class` values of a model on labeled data."""
        sweep = self.sweep
        metrics = [find_metric(n, sweep.metric_options) for n in sweep.metrics]
        measure(model, data, metrics, threads=sweep.threads, batch_size=sweep.batch_size)
        values, per_class = {}, {}
        for name, metric in zip(sweep.metrics, metrics, strict=True):
            score = metric.result()
            details = {k: float(v) for k, v in score.details.items()}
            values[name] = {"value": score.value, **details}
            per_class[name] = {str(k): float(v) for k, v in score.per_class.items()}
        return {"metrics": values, "per_class": per_class}

    @cached_property
    def _original(self) -> Session:
        """Session of the uncut model, whose runs alternate with those of each cut model."""
        return Session(self.analysis.model, threads=self.sweep.threads)

    def timing(self, model: Model) -> dict[str, Any]:
        """Return median times over TIMED_RUNS runs of the first batch, in milliseconds.

        Runs of the uncut model (original_ms) alternate with them, so that a change of the machine's
        speed between two jobs does not count as a saving.
        """
        sweep, session = self.sweep, Session(model, threads=self.sweep.threads)
        feeds: Mapping[str, np.ndarray] = self.batches[0]
        labels: Mapping[str, np.ndarray] = {}
        boxes = any(
            isinstance(find_metric(n, sweep.metric_options), Detection) for n in sweep.metrics
        )
        if sweep.labeled is not None and boxes:
            # decoders may need labels, such as the size of the images
            batch = next(iter(sweep.labeled.labeled_batches(sweep.batch_size)))
            feeds, labels = batch.feeds, batch.labels
        times, original = [], []
        for _ in range(TIMED_RUNS):
            start = time.perf_counter()
            self._original.run(feeds)
            original.append(time.perf_counter() - start)
            start = time.perf_counter()
            outputs = session.run(feeds)
            end = time.perf_counter()
            if labels:
                detections_of(outputs, labels, sweep.metric_options)
            times.append((end - start, time.perf_counter() - end if labels else 0.0))
        # medians, because other processes disturb single runs
        inference, nms = np.median(times, 0) * 1e3
        shapes = {n: list(v.shape) for n, v in feeds.items()}
        return {
            "inference_ms": float(inference),
            "nms_ms": float(nms),
            "total_ms": float(inference + nms),
            "original_ms": float(np.median(original) * 1e3),
            **_image_size(next(iter(shapes.values()))),
            "shapes": shapes,
        }


def _analyze(sweep: Sweep) -> Analysis:
    """Analyze the model of a sweep, with costs counted for one of its inputs."""
    feeds = next(iter(sweep.gate.batches(1)))
    shapes = {name: values.shape for name, values in feeds.items()}
    return analyze(load(sweep.model), **sweep.options).at(shapes)


def _image_size(shape: Sequence[int]) -> dict[str, int]:
    """Return batch, h and w of an image input; of other inputs the batch alone.

    The channel axis is the last one if that is shorter than the second, else the second.
    """
    if len(shape) != 4:
        return {"batch": shape[0] if shape else 1}
    h, w = shape[1:3] if shape[3] < shape[1] else shape[2:4]
    return {"batch": shape[0], "h": h, "w": w}


def narrowed(scores: np.ndarray, rate: float, multiple: int = 2) -> tuple[int, ...]:
    """Return the best channels at a rate, at least one.

    Their count is rounded down to a multiple if it is not below one multiple.
    """
    count = len(scores) * (1 - rate)
    # below one multiple, rounding down would leave nothing
    count = int(count // multiple) * multiple if count >= multiple else int(count)
    return keep_best(scores, max(1, count))
