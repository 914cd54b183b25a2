"""What measuring a model on an engine gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.engines.base import LayerTime


@dataclass(frozen=True)
class Measurement:
    """Latency of one model on one engine, over single inferences, in milliseconds.

    Attributes
    ----------
    samples, rounds
        Timed inferences, and the rounds they were timed in.
    median_ms, min_ms, mean_ms, p99_ms, q1_ms, q3_ms, times_ms
        Statistics over the inferences; `times_ms` are evenly spaced quantiles, ascending.
    noise
        Interquartile range of the rounds' medians over their median: drift between rounds, not
        jitter within one.
    peak_memory_bytes
        Highest resident size of the process, interpreter and engine included; None if unknown.
    model_memory_bytes
        Increase of that peak since the engine was loaded; None if unknown.
    device_memory_bytes
        Memory on the accelerator; None without one or if unknown.
    cpu_ms
        Median by the CPU clock of the thread that computes; None if the engine has none.
    difference
        Largest |output - onnxruntime's output| / max |onnxruntime's output| over the outputs;
        None if not compared.
    layers
        Times of the kernels, if they were profiled.
    device
        Host, power mode and ranges of clock and temperature of another machine; None = this one.
    """

    engine: str
    model: str
    samples: int
    rounds: int
    median_ms: float
    min_ms: float
    mean_ms: float
    p99_ms: float
    q1_ms: float
    q3_ms: float
    noise: float
    threads: int = 1
    precision: str = "f32"
    version: str = ""
    peak_memory_bytes: int | None = None
    model_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    cpu_ms: float | None = None
    difference: float | None = None
    layers: tuple[LayerTime, ...] = ()
    times_ms: tuple[float, ...] = ()
    device: Mapping[str, Any] | None = None

    @property
    def iqr_ms(self) -> float:
        """Interquartile range of the inferences."""
        return self.q3_ms - self.q1_ms

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a report, layers included."""
        return {
            **asdict(self),
            "iqr_ms": self.iqr_ms,
            "layers": [layer.as_dict() for layer in self.layers],
        }
