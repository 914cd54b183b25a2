"""What every engine must keep; a plug-in's tests call `check_engine`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.engines.base import PRECISIONS, Compiled, Engine, EngineOptions, LayerTime, Source
from onnxprune.errors import EngineError

SAMPLES = 3


def check_engine(
    engine: Engine,
    source: Source,
    feeds: Mapping[str, np.ndarray],
    options: EngineOptions | None = None,
) -> None:
    """Raise AssertionError, with a sentence, where an engine breaks the protocol.

    Parameters
    ----------
    source, feeds
        A small model that the engine takes, and its inputs.
    """
    _say(
        isinstance(engine, Engine),
        "it has not all of name, install, available, version, compile, limits, channel_multiple",
    )
    _say(
        all(isinstance(m := engine.channel_multiple(p), int) and m >= 1 for p in PRECISIONS),
        "a channel multiple is not a whole number of at least 1",
    )
    _say(
        all(isinstance(k, str) and isinstance(v, str) for k, v in engine.limits().items()),
        "limits are not topic -> sentence",
    )
    reason = engine.available()
    if reason is not None:
        _say(
            engine.install in reason and "\n" not in reason,
            "the reason why it is not available is not one sentence with the way to install it",
        )
        try:
            engine.compile(source, options or EngineOptions())
        except EngineError as problem:
            _say(problem.message == reason, "compile says something else than available")
        else:
            _say(False, "it compiles although it is not available")
        return
    _say(bool(engine.version()), "it is available and has no version")
    with engine.compile(source, options or EngineOptions()) as compiled:
        _check_compiled(compiled, feeds)


def _check_compiled(compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> None:
    first, second = compiled.run(feeds), compiled.run(feeds)
    _say(
        set(first) == set(compiled.outputs),
        f"run gives {sorted(first)}, outputs are {sorted(compiled.outputs)}",
    )
    _say(
        all(np.array_equal(first[n], second[n], equal_nan=True) for n in first),
        "the same inputs give other outputs",
    )
    times = compiled.sample(feeds, SAMPLES)
    _say(
        len(times) == SAMPLES and all(ms > 0 for ms in times),
        f"sample gives {times}, not {SAMPLES} positive times",
    )
    layers = compiled.profile(feeds, SAMPLES)
    _say(
        all(isinstance(layer, LayerTime) and layer.time_ms >= 0 for layer in layers),
        "a layer is no LayerTime or has a negative time",
    )
    nodes = [node for layer in layers for node in layer.nodes]
    _say(len(nodes) == len(set(nodes)), "a node belongs to more than one layer")
    memory = compiled.device_memory_bytes()
    _say(memory is None or memory >= 0, "device memory is negative")


def _say(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(f"engine contract: {sentence}")
