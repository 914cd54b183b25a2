"""`onnxprune bench`: models against each other on the engines that will run them."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines import ENGINES
from onnxprune.engines.base import (
    DEFAULTS,
    Engine,
    EngineOptions,
    LayerTime,
    Measurement,
    Source,
    open_model,
    random_feeds,
    require,
    static_inputs,
)
from onnxprune.engines.cpu import describe_cpu
from onnxprune.engines.measure import (
    SCHEDULE,
    Ratio,
    Schedule,
    interleave,
    machine_warnings,
    noise_warnings,
    ratio,
    summarize,
)
from onnxprune.engines.worker import Worker
from onnxprune.errors import EngineError, UsageError
from onnxprune.ir.io import Model
from onnxprune.ir.quantize import is_quantized

PROFILE_RUNS = 20
REFERENCE = "onnxruntime"
DIFFERENCE_LIMITS = {
    "f32": 1e-3
}  # Winograd convolutions in float32 reach 6e-4 on a network of 40 layers; a wrong conversion is far above
OTHER_DIFFERENCE_LIMIT = 0.1  # bfloat16, float16, int8
_SHOWN = 4  # layers named in a warning


@dataclass(frozen=True)
class LayerRow:
    """One layer in every model. times_ms: by model, None where it is not there or was fused into another."""

    engine: str
    key: str
    op: str
    nodes: tuple[str, ...]
    times_ms: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "engine": self.engine,
            "key": self.key,
            "op": self.op,
            "nodes": list(self.nodes),
            "times_ms": dict(self.times_ms),
        }


@dataclass(frozen=True)
class BenchReport:
    """All that was measured. ratios: each model against the first, by engine; failures: (engine, model) -> why there is no measurement."""

    measurements: tuple[Measurement, ...]
    ratios: Mapping[str, tuple[Ratio, ...]]
    layers: tuple[LayerRow, ...]
    warnings: tuple[str, ...]
    machine: Mapping[str, Any]
    failures: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def of(self, engine: str, model: str) -> Measurement:
        """One measurement; UsageError where there is none."""
        for found in self.measurements:
            if (found.engine, found.model) == (engine, model):
                return found
        raise UsageError("no-measurement", f"{model!r} was not measured on {engine!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "machine": dict(self.machine),
            "measurements": [m.as_dict() for m in self.measurements],
            "ratios": {
                engine: [r.as_dict() for r in found] for engine, found in self.ratios.items()
            },
            "layers": [row.as_dict() for row in self.layers],
            "failures": [
                {"engine": e, "model": m, "reason": why} for (e, m), why in self.failures.items()
            ],
            "warnings": list(self.warnings),
        }


def bench(
    sources: Sequence[Source],
    engines: Sequence[str] = (REFERENCE,),
    *,
    options: EngineOptions = DEFAULTS,
    schedule: Schedule = SCHEDULE,
    feeds: Mapping[str, np.ndarray] | None = None,
    layers: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure models on engines, all of them interleaved, each in a process of its own.

    Parameters
    ----------
    sources
        Paths or models; ratios are against the first.
    engines
        Names in ENGINES. All have to be available.
    feeds
        Inputs by name; without them, random ones of the declared shapes (axes that are dynamic: `options.shapes`).
    layers
        Profile each layer too.
    progress
        Called with one line at each step.

    Raises
    ------
    EngineError
        An engine is not there, or no model could be measured on any.
    UsageError
        An unknown engine, no model, or inputs that the shapes leave open.
    """
    if not sources:
        raise UsageError("no-model", "nothing to measure: name at least one model")
    if not engines:
        raise UsageError(
            "no-engine", "nothing to measure on: name at least one engine, see: onnxprune engines"
        )
    found: dict[str, Engine] = {name: ENGINES.get(name) for name in dict.fromkeys(engines)}
    for engine in found.values():
        require(engine)
    models = {label: open_model(source) for label, source in _labels(sources).items()}
    inputs = {
        label: dict(feeds)
        if feeds is not None
        else random_feeds(static_inputs(model, options.shapes), seed)
        for label, model in models.items()
    }
    warnings = machine_warnings(options.threads, options.cores) + precision_warnings(
        models, options.precision
    )
    with contextlib.ExitStack() as stack:
        reference = _reference(models, inputs, options)
        workers, failures = _start(found, _labels(sources), inputs, options, stack, progress)
        checked = _differences(workers, inputs, reference, failures)
        if not workers:
            raise EngineError("engine-refused", "; ".join(dict.fromkeys(failures.values())))
        progress(
            f"timing {len(workers)} interleaved, about {len(workers) * schedule.seconds:.0f} s"
        )
        times = interleave(
            {pair: _sampler(worker, inputs[pair[1]]) for pair, worker in workers.items()}, schedule
        )
        measured = tuple(
            _finish(
                summarize(
                    *pair,
                    times[pair],
                    threads=options.threads,
                    precision=options.precision,
                    version=found[pair[0]].version(),
                ),
                worker,
                inputs[pair[1]],
                checked[pair],
                layers,
            )
            for pair, worker in workers.items()
        )
    warnings += (
        difference_warnings(measured)
        + noise_warnings(measured)
        + [w for e in found.values() for w in width_warnings(e, models, options.precision)]
    )
    warnings += [f"{label} on {name}: {why}" for (name, label), why in failures.items()]
    return BenchReport(
        measured,
        _ratios(times, list(models), seed),
        layer_rows(measured),
        tuple(warnings),
        machine(),
        failures,
    )


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "cpu": describe_cpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def difference_warnings(measurements: Sequence[Measurement]) -> list[str]:
    """Measurements whose outputs are not those of onnxruntime: their times mean nothing."""
    return [
        f"{m.model} on {m.engine}: outputs differ from onnxruntime's by {m.difference:.2g} of the largest (limit {limit:g}); the engine does not compute this model"
        for m in measurements
        if m.difference is not None
        and m.difference > (limit := DIFFERENCE_LIMITS.get(m.precision, OTHER_DIFFERENCE_LIMIT))
    ]


def precision_warnings(models: Mapping[str, Model], precision: str) -> list[str]:
    """Models without the quantized operators that int8 is asked of: engines compute those in float."""
    if precision != "int8":
        return []
    return [
        f"{label} holds no QuantizeLinear or integer operators: it is computed in float, not in int8"
        for label, m in models.items()
        if not is_quantized(m)
    ]


def width_warnings(
    engine: Engine, models: Mapping[str, Model], precision: str = "f32"
) -> list[str]:
    """Models with layers whose number of output channels the engine rounds up."""
    multiple = engine.channel_multiple(precision)
    found = []
    for label, model in models.items():
        layers = _widths(model)
        odd = {
            name: width for name, width in layers.items() if width > multiple and width % multiple
        }
        if odd:
            shown = ", ".join(f"{name} {width}" for name, width in list(odd.items())[:_SHOWN]) + (
                ", ..." if len(odd) > _SHOWN else ""
            )
            found.append(
                f"{label}: {len(odd)} of {len(layers)} convolutions have widths that {engine.name} rounds up to multiples of {multiple}"
                f" ({shown}); fewer MACs there need not be less time, see --round-to {multiple}"
            )
    return found


def layer_rows(measurements: Sequence[Measurement]) -> tuple[LayerRow, ...]:
    """Layers of all models side by side, matched by tensor; work that belongs to no node (layout changes) is summed by operator."""
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    first: dict[tuple[str, str, str], LayerTime] = {}
    labels = list(dict.fromkeys(m.model for m in measurements))
    for measurement in measurements:
        for layer in measurement.layers:
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
            {m: times.get(m) for m in labels},
        )
        for place, times in rows.items()
    )


def _widths(model: Model) -> dict[str, int]:
    """Output channels of the convolutions whose result is not a graph output."""
    graph = model.proto.graph
    results = {o.name for o in graph.output}
    return {
        node.name or node.output[0]: model.weights[node.input[1]].shape[0]
        for node in graph.node
        if node.op_type == "Conv"
        and node.input[1] in model.weights
        and not results & set(node.output)
    }


def _labels(sources: Sequence[Source]) -> dict[str, Source]:
    """A short name for each source: the file's stem, the whole path where different files have it, numbered where they are the same."""
    paths = [(s.path if isinstance(s, Model) else Path(s)) or Path("model") for s in sources]
    stems = [path.stem for path in dict.fromkeys(paths)]
    named: dict[str, Source] = {}
    for source, path in zip(sources, paths, strict=False):
        name = short = path.stem if stems.count(path.stem) == 1 else str(path)
        number = 2
        while name in named:
            name, number = f"{short} #{number}", number + 1
        named[name] = source
    return named


def _reference(
    models: Mapping[str, Model],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    options: EngineOptions,
) -> dict[str, dict[str, np.ndarray]]:
    """What onnxruntime computes without rewriting the graph; nothing for a model that it refuses."""
    engine, plain = ENGINES.get(REFERENCE), replace(options, level="off", precision="f32")
    found = {}
    for label, model in models.items():
        with contextlib.suppress(EngineError), engine.compile(model, plain) as compiled:
            found[label] = compiled.run(inputs[label])
    return found


def _start(
    engines: Mapping[str, Engine],
    sources: Mapping[str, Source],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    options: EngineOptions,
    stack: contextlib.ExitStack,
    progress: Callable[[str], None],
) -> tuple[dict[tuple[str, str], Worker], dict[tuple[str, str], str]]:
    """A process for each engine and model, compiled for the inputs' shapes; those that fail, with their reason."""
    workers: dict[tuple[str, str], Worker] = {}
    failures: dict[tuple[str, str], str] = {}
    for name in engines:
        for label, source in sources.items():
            progress(f"{name}: compiling {label}")
            shapes = {n: tuple(value.shape) for n, value in inputs[label].items()}
            try:
                workers[name, label] = stack.enter_context(
                    Worker(name, source, replace(options, shapes=shapes))
                )
            except EngineError as problem:
                failures[name, label] = problem.message
    return workers, failures


def _differences(
    workers: dict[tuple[str, str], Worker],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    reference: Mapping[str, Mapping[str, np.ndarray]],
    failures: dict[tuple[str, str], str],
) -> dict[tuple[str, str], float | None]:
    """Difference to the reference of each; a worker that cannot run moves to the failures."""
    found: dict[tuple[str, str], float | None] = {}
    for pair, worker in list(workers.items()):
        try:
            outputs = worker.run(inputs[pair[1]])
        except EngineError as problem:
            failures[pair] = problem.message
            del workers[pair]
            continue
        found[pair] = difference(outputs, reference[pair[1]]) if pair[1] in reference else None
    return found


def difference(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """Largest |a - b| / max |b| over the outputs; infinite where an output is missing, of another shape, or NaN on one side only."""
    worst = 0.0
    for name, expected in reference.items():
        got = outputs.get(name)
        if got is None or np.shape(got) != np.shape(expected):
            return float("inf")
        a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        if a.size:
            scale = float(np.nanmax(np.abs(b), initial=0.0)) or 1.0
            worst = max(worst, float(np.nanmax(np.abs(a - b), initial=0.0)) / scale)
    return worst


def _sampler(worker: Worker, feeds: Mapping[str, np.ndarray]) -> Callable[[int], list[float]]:
    return lambda count: worker.sample(feeds, count)


def _finish(
    measurement: Measurement,
    worker: Worker,
    feeds: Mapping[str, np.ndarray],
    apart: float | None,
    layers: bool,
) -> Measurement:
    """With memory (read before profiling adds to it), difference and layers."""
    memory = worker.memory_bytes()
    device = worker.device_memory_bytes()
    kernels = worker.profile(feeds, PROFILE_RUNS) if layers else ()
    peak, before = memory if memory is not None else (None, None)
    own = peak - before if peak is not None and before is not None else None
    return replace(
        measurement,
        peak_memory_bytes=peak,
        model_memory_bytes=own,
        device_memory_bytes=device,
        difference=apart,
        layers=kernels,
    )


def _ratios(
    times: Mapping[tuple[str, str], np.ndarray], labels: Sequence[str], seed: int
) -> dict[str, tuple[Ratio, ...]]:
    """Every model against the first, engine by engine."""
    found: dict[str, tuple[Ratio, ...]] = {}
    for engine in dict.fromkeys(e for e, _ in times):
        base = times.get((engine, labels[0]))
        if base is not None:
            found[engine] = tuple(
                ratio(labels[0], base, m, times[engine, m], seed=seed)
                for m in labels[1:]
                if (engine, m) in times
            )
    return found
