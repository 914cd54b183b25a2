"""Measure several models on several engines, interleaved, each in a separate process."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines import ENGINES
from onnxprune.engines.base import (
    DEFAULTS,
    Compiled,
    Engine,
    EngineOptions,
    LayerTime,
    Source,
    open_model,
    random_feeds,
    require,
    static_inputs,
)
from onnxprune.engines.bench_warnings import (
    difference,
    difference_warnings,
    precision_warnings,
    width_warnings,
)
from onnxprune.engines.contenders import Pair, list_notes, start_workers
from onnxprune.engines.cpu import describe_cpu
from onnxprune.engines.measure import (
    SCHEDULE,
    Ratio,
    Sampler,
    Schedule,
    interleave,
    machine_warnings,
    noise_warnings,
    ratio,
    summarize,
)
from onnxprune.engines.measurement import Measurement
from onnxprune.errors import EngineError, UsageError
from onnxprune.ir.io import Model

# enough for an interquartile mean of ten; the latency itself comes from the interleaved rounds
PROFILE_RUNS = (3, 20)
PROFILE_MS = 500.0  # limits the runs of large models
REFERENCE = "onnxruntime"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerRow:
    """Times of one layer in every model.

    Attributes
    ----------
    engine, key, op, nodes
        As in `LayerTime`, of the first model that has the layer.
    times_ms
        Time by model; None if the model lacks the layer or it was fused into another.
    """

    engine: str
    key: str
    op: str
    nodes: tuple[str, ...]
    times_ms: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return {
            "engine": self.engine,
            "key": self.key,
            "op": self.op,
            "nodes": list(self.nodes),
            "times_ms": dict(self.times_ms),
        }


@dataclass(frozen=True)
class BenchReport:
    """Result of `bench`.

    Attributes
    ----------
    measurements
        One per engine and model that could be measured.
    ratios
        Engine -> speed-up of each model over the first.
    layers
        Layers of all models side by side, if they were profiled.
    warnings
        Sentences about the machine, the noise and the models.
    machine
        CPU, operating system and Python version.
    failures
        (engine, model) -> reason for a missing measurement.
    """

    measurements: tuple[Measurement, ...]
    ratios: Mapping[str, tuple[Ratio, ...]]
    layers: tuple[LayerRow, ...]
    warnings: tuple[str, ...]
    machine: Mapping[str, Any]
    failures: Mapping[Pair, str] = field(default_factory=dict)

    def of(self, engine: str, model: str) -> Measurement:
        """Return one measurement; UsageError if there is none."""
        for measurement in self.measurements:
            if (measurement.engine, measurement.model) == (engine, model):
                return measurement
        raise UsageError("no-measurement", f"{model!r} was not measured on {engine!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return {
            "machine": dict(self.machine),
            "measurements": [m.as_dict() for m in self.measurements],
            "ratios": {
                engine: [row.as_dict() for row in rows] for engine, rows in self.ratios.items()
            },
            "layers": [row.as_dict() for row in self.layers],
            "failures": [
                {"engine": engine, "model": model, "reason": reason}
                for (engine, model), reason in self.failures.items()
            ],
            "warnings": list(self.warnings),
        }


def bench(
    sources: Sequence[Source],
    engines: Sequence[str] = (REFERENCE,),
    *,
    options: EngineOptions = DEFAULTS,
    schedule: Schedule = SCHEDULE,
    feeds: Arrays | None = None,
    layers: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure models on engines, interleaved, each pair in a separate process.

    Parameters
    ----------
    sources
        Paths or models; ratios are against the first.
    engines
        Names in ENGINES; all must be available.
    feeds
        Inputs by name; None = random inputs of the declared shapes, where dynamic axes are taken
        from `options.shapes`.
    layers
        Profile each layer too.
    progress
        Called with one line per step.

    Raises
    ------
    EngineError
        An engine is not available, or no model could be measured on any engine.
    UsageError
        No model, no engine, an unknown engine, or an input whose shape is not known.
    """
    chosen = _open_engines(sources, engines)
    labeled = _label_sources(sources)
    # opened here as well as in the workers: shapes, widths and the reference need the graph
    models = {label: open_model(source) for label, source in labeled.items()}
    inputs = _choose_inputs(models, feeds, options, seed)
    # before measuring: the load that the measurement itself causes does not count
    warnings = _warn_of_machine(chosen, options)
    warnings += precision_warnings(models, options.precision)
    # before the workers start, so that the reference does not share the CPU with them
    reference = _run_reference(models, inputs, options)
    with contextlib.ExitStack() as stack:
        workers, failures = start_workers(chosen, labeled, inputs, options, stack, progress)
        differences = _compare(workers, inputs, reference, failures)  # each worker's first run too
        times = _time(workers, inputs, failures, schedule, progress)
        summaries = {pair: _summarize(pair, times[pair], chosen, options) for pair in workers}
        measurements = tuple(
            _finish(summaries[pair], worker, inputs[pair[1]], differences[pair], layers)
            for pair, worker in workers.items()
        )
        notes = list_notes(workers)
    warnings += notes + difference_warnings(measurements) + noise_warnings(measurements)
    for engine in chosen.values():
        warnings += width_warnings(engine, models, options.precision)
    warnings += [f"{label} on {name}: {reason}" for (name, label), reason in failures.items()]
    ratios, rows = _compute_ratios(times, list(models), seed), layer_rows(measurements)
    return BenchReport(measurements, ratios, rows, tuple(warnings), machine(), failures)


def machine() -> dict[str, Any]:
    """Return CPU, operating system and Python version that measurements belong to."""
    return {
        "cpu": describe_cpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def layer_rows(measurements: Sequence[Measurement]) -> tuple[LayerRow, ...]:
    """Return the layers of all models side by side, matched by tensor.

    Work that belongs to no node (layout changes) is summed per operator.
    """
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    first: dict[tuple[str, str, str], LayerTime] = {}
    labels = list(dict.fromkeys(m.model for m in measurements))
    for measurement in measurements:
        for layer in measurement.layers:
            # layout changes have no tensor that could match between models
            place = (measurement.engine, layer.key, "" if layer.key else layer.op)
            first.setdefault(place, layer)
            times = rows.setdefault(place, {})
            times[measurement.model] = times.get(measurement.model, 0.0) + layer.time_ms
    return tuple(
        LayerRow(
            place[0],
            place[1],
            first[place].op,
            first[place].nodes,
            {label: times.get(label) for label in labels},
        )
        for place, times in rows.items()
    )


def _open_engines(sources: Sequence[Source], names: Sequence[str]) -> dict[str, Engine]:
    """Return the engines by name; raise an error if one is missing or there is nothing to do."""
    if not sources:
        raise UsageError("no-model", "no model to measure; name at least one")
    if not names:
        raise UsageError(
            "no-engine", "no engine to measure on; name at least one of: onnxprune engines"
        )
    # a name that is given twice is measured once
    engines: dict[str, Engine] = {name: ENGINES.get(name) for name in dict.fromkeys(names)}
    for engine in engines.values():
        require(engine)
    return engines


def _label_sources(sources: Sequence[Source]) -> dict[str, Source]:
    """Return each source under a short unique name.

    The name is the file's stem, its path if several files share the stem, with a number if a path
    occurs again.
    """
    # a model in memory may have no path
    paths = [(s.path if isinstance(s, Model) else Path(s)) or Path("model") for s in sources]
    stems = [path.stem for path in dict.fromkeys(paths)]
    labeled: dict[str, Source] = {}
    for source, path in zip(sources, paths, strict=True):
        # "model.onnx" of two folders differs only in the path
        name = short = path.stem if stems.count(path.stem) == 1 else str(path)
        number = 2
        while name in labeled:
            name, number = f"{short} #{number}", number + 1
        labeled[name] = source
    return labeled


def _choose_inputs(
    models: Mapping[str, Model], feeds: Arrays | None, options: EngineOptions, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return the inputs per model: the given ones, else random ones."""
    if feeds is not None:
        return {label: dict(feeds) for label in models}
    return {
        label: random_feeds(static_inputs(model, options.shapes), seed)
        for label, model in models.items()
    }


def _run_reference(
    models: Mapping[str, Model], inputs: Mapping[str, Arrays], options: EngineOptions
) -> dict[str, dict[str, np.ndarray]]:
    """Return onnxruntime's outputs in float32 without graph optimization, per model it accepts."""
    engine, plain = ENGINES.get(REFERENCE), replace(options, level="off", precision="f32")
    outputs = {}
    for label, model in models.items():
        # a model that onnxruntime rejects can still be timed elsewhere, only without a difference
        with contextlib.suppress(EngineError), engine.compile(model, plain) as compiled:
            outputs[label] = compiled.run(inputs[label])
    return outputs


def _compare(
    workers: dict[Pair, Compiled],
    inputs: Mapping[str, Arrays],
    reference: Mapping[str, Arrays],
    failures: dict[Pair, str],
) -> dict[Pair, float | None]:
    """Return each worker's difference to the reference; a worker that fails becomes a failure."""
    differences: dict[Pair, float | None] = {}
    # a copy of the items, because a failed worker is removed during the loop
    for pair, worker in list(workers.items()):
        try:
            outputs = worker.run(inputs[pair[1]])
        except EngineError as problem:
            failures[pair] = problem.message
            del workers[pair]
            continue
        expected = reference.get(pair[1])
        differences[pair] = None if expected is None else difference(outputs, expected)
    return differences


def _time(
    workers: Mapping[Pair, Compiled],
    inputs: Mapping[str, Arrays],
    failures: Mapping[Pair, str],
    schedule: Schedule,
    progress: Callable[[str], None],
) -> dict[Pair, np.ndarray]:
    """Return the interleaved times of all workers; EngineError if there are none."""
    if not workers:
        # engines may give the same reason
        raise EngineError("engine-refused", "; ".join(dict.fromkeys(failures.values())))
    seconds = len(workers) * schedule.seconds
    progress(f"timing {len(workers)} interleaved, about {seconds:.0f} s")
    # the same object at each call, so that the worker sends the inputs once
    samplers: dict[Pair, Sampler] = {
        pair: partial(worker.sample_clocks, inputs[pair[1]]) for pair, worker in workers.items()
    }
    return interleave(samplers, schedule)


def _summarize(
    pair: Pair, times: np.ndarray, engines: Mapping[str, Engine], options: EngineOptions
) -> Measurement:
    """Return the statistics of one pair's times."""
    return summarize(
        *pair,
        times,
        threads=options.threads,
        precision=options.precision,
        version=engines[pair[0]].version(),
    )


def _finish(
    measurement: Measurement,
    worker: Compiled,
    feeds: Arrays,
    apart: float | None,
    layers: bool,
) -> Measurement:
    """Add memory, difference and layers; memory is read before profiling adds to it."""
    memory = worker.memory_bytes()
    device = worker.device_memory_bytes()
    # in the same worker: a profile of another process could choose other kernels
    runs = int(np.clip(PROFILE_MS / measurement.median_ms, *PROFILE_RUNS))
    kernels = worker.profile(feeds, runs) if layers else ()
    peak, before = memory if memory is not None else (None, None)
    # the peak includes the interpreter; the difference is what the model added
    own = peak - before if peak is not None and before is not None else None
    return replace(
        measurement,
        peak_memory_bytes=peak,
        model_memory_bytes=own,
        device_memory_bytes=device,
        difference=apart,
        layers=kernels,
        device=worker.device_state(),
    )


def _warn_of_machine(engines: Mapping[str, Engine], options: EngineOptions) -> list[str]:
    """Return what makes times on this machine less certain, [] if none is taken here."""
    if all(getattr(engine, "in_process", False) for engine in engines.values()):
        return []
    return machine_warnings(options.threads, options.cores)


def _compute_ratios(
    times: Mapping[Pair, np.ndarray], labels: Sequence[str], seed: int
) -> dict[str, tuple[Ratio, ...]]:
    """Return the ratios of every model to the first, per engine that measured the first."""
    # labels are those of all models, in the order given, also of those that failed everywhere
    base, *others = labels
    ratios: dict[str, tuple[Ratio, ...]] = {}
    for engine in dict.fromkeys(engine for engine, _ in times):
        # no ratios on an engine that rejects the first model
        base_times = times.get((engine, base))
        if base_times is None:
            continue
        ratios[engine] = tuple(
            ratio(base, base_times, label, times[engine, label], seed=seed)
            for label in others
            if (engine, label) in times
        )
    return ratios
