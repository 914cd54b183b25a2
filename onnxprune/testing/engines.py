"""Contract of engines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.engines.base import PRECISIONS, Compiled, Engine, EngineOptions, LayerTime, Source
from onnxprune.errors import EngineError
from onnxprune.testing.contract import ContractError

SAMPLES = 3


def check_engine(
    engine: Engine,
    source: Source,
    feeds: Mapping[str, np.ndarray],
    options: EngineOptions | None = None,
) -> None:
    """Check the contract of an engine.

    An engine that is not available gives the reason and the fix, and compiles nothing. An available
    one runs the model with repeatable outputs, positive times and consistent layers.

    Parameters
    ----------
    source, feeds
        A small model that the engine supports, and its inputs.
    options
        Options to compile with; None = defaults.

    Raises
    ------
    ContractError
        The contract is violated.
    """
    options = options or EngineOptions()
    _require(
        isinstance(engine, Engine),
        "one of name, install, available, version, compile, limits, channel_multiple is missing",
    )
    # of all precisions: widths are chosen before the engine compiles
    multiples = [engine.channel_multiple(precision) for precision in PRECISIONS]
    _require(
        all(isinstance(m, int) and m >= 1 for m in multiples),
        f"channel multiples are {multiples}; they must be positive integers",
    )
    _require(
        all(isinstance(k, str) and isinstance(v, str) for k, v in engine.limits().items()),
        "limits must map a topic to a sentence",
    )
    reason = engine.available()
    if reason is not None:
        _check_unavailable(engine, reason, source, options)
        return
    _require(bool(engine.version()), "an available engine must have a version")
    with engine.compile(source, options) as compiled:
        _check_compiled(compiled, feeds)


def _check_unavailable(engine: Engine, reason: str, source: Source, options: EngineOptions) -> None:
    """Check an engine that is not available."""
    _require(
        engine.install in reason and "\n" not in reason,
        f"the reason {reason!r} must be one line that contains the command {engine.install!r}",
    )
    try:
        engine.compile(source, options)
    except EngineError as problem:
        _require(
            problem.message == reason,
            f"compile raises {problem.message!r}, but available returns {reason!r}",
        )
    else:
        # the caller would see a native error instead of the fix
        _require(False, "it compiles although it is not available")


def _check_compiled(compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> None:
    """Check a compiled model."""
    first, second = compiled.run(feeds), compiled.run(feeds)
    _require(
        set(first) == set(compiled.outputs),
        f"run returns {sorted(first)}, outputs are {sorted(compiled.outputs)}",
    )
    _require(
        all(np.array_equal(first[n], second[n], equal_nan=True) for n in first),
        "equal inputs give different outputs",
    )
    times = compiled.sample(feeds, SAMPLES)
    _require(
        len(times) == SAMPLES and all(ms > 0 for ms in times),
        f"sample returns {times}; {SAMPLES} positive times are expected",
    )
    layers = compiled.profile(feeds, SAMPLES)
    _require(
        all(isinstance(layer, LayerTime) and layer.time_ms >= 0 for layer in layers),
        "a layer is not a LayerTime or has a negative time",
    )
    nodes = [node for layer in layers for node in layer.nodes]
    _require(len(nodes) == len(set(nodes)), "a node belongs to more than one layer")
    memory = compiled.device_memory_bytes()
    _require(memory is None or memory >= 0, f"device memory is {memory} bytes")


def _require(holds: bool, sentence: str) -> None:
    """Raise ContractError unless a condition holds."""
    if not holds:
        raise ContractError("engine-contract", f"engine contract: {sentence}")
