"""Models that `bench` times, each compiled in a process of its own or on another machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from onnxprune.engines.base import Compiled, Engine, EngineOptions, Source
from onnxprune.engines.worker import Worker
from onnxprune.errors import EngineError

Pair = tuple[str, str]
"""(engine, model)"""


def start_workers(
    engines: Mapping[str, Engine],
    sources: Mapping[str, Source],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    options: EngineOptions,
    stack: contextlib.ExitStack,
    progress: Callable[[str], None],
) -> tuple[dict[Pair, Compiled], dict[Pair, str]]:
    """Start a process per engine and model, compiled for the inputs' shapes.

    Returns
    -------
    tuple
        The workers, and the reasons of those that failed.
    """
    workers: dict[Pair, Compiled] = {}
    failures: dict[Pair, str] = {}
    for name, engine in engines.items():
        for label, source in sources.items():
            progress(f"{name}: compiling {label}")
            # the inputs decide the shapes, even if they were given without --shape
            shapes = {n: tuple(value.shape) for n, value in inputs[label].items()}
            try:
                # one after another: builders need much memory
                fixed = replace(options, shapes=shapes)
                worker = _start(name, engine, source, fixed)
                workers[name, label] = stack.enter_context(worker)
            # one engine that rejects a model must not stop the others
            except EngineError as problem:
                failures[name, label] = problem.message
    return workers, failures


def _start(name: str, engine: Engine, source: Source, options: EngineOptions) -> Compiled:
    """Return a model compiled in a process of its own, unless it is on another machine."""
    if getattr(engine, "in_process", False):
        return engine.compile(source, options)
    return Worker(name, source, options)


def list_notes(workers: Mapping[Pair, Compiled]) -> list[str]:
    """Return what engines say about their own times."""
    return [
        f"{label} on {name}: {note}"
        for (name, label), worker in workers.items()
        for note in worker.notes()
    ]
