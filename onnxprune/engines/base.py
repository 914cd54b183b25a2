"""What every inference engine offers, and the data that comes out of a measurement."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from onnx import helper

from onnxprune.errors import EngineError, UsageError
from onnxprune.ir.io import Model, load, save
from onnxprune.moved import old_names

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - of typing from 3.11 on

PRECISIONS = ("f32", "bf16", "f16", "int8")
LEVELS = ("off", "basic", "extended", "all")
Source = str | Path | Model

if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {
            "Options": "EngineOptions",
            "fixed": "fix_shapes",
            "installed": "installed_version",
            "missing": "missing_package",
            "only_precisions": "require_precision",
            "refused": "refusal",
        },
    )


@dataclass(frozen=True)
class EngineOptions:
    """How a model is compiled and run.

    threads: of one inference. precision: f32, bf16, f16 or int8 (a graph with Q/DQ); an engine refuses what it cannot do.
    level: how much onnxruntime may rewrite the graph: off, basic, extended, all. cores: CPUs to pin the process to, () = not pinned
    (only in a process of its own). shapes: input name -> shape, for inputs with dynamic axes. cache: folder for what an engine
    keeps between builds. cuda_graph: replay the inference as one CUDA graph where the engine can.
    """

    threads: int = 1
    precision: str = "f32"
    level: str = "all"
    cores: tuple[int, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    cache: Path | None = None
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError("threads", f"threads is {self.threads}; at least 1")
        if self.precision not in PRECISIONS:
            raise UsageError(
                "precision", f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}"
            )
        if self.level not in LEVELS:
            raise UsageError(
                "optimization-level",
                f"optimization level {self.level!r} is none of {', '.join(LEVELS)}",
            )


DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class TensorSpec:
    """Shape and numpy dtype of an input, every axis known."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class LayerTime:
    """One kernel of the engine.

    name: the engine's own; op: its operator; time_ms: typical over the profiled runs; nodes: graph nodes it computes (name, or first
    output where a node has none), empty for work the engine added (layout changes, copies); tensors: the outputs of those nodes;
    key: the tensor to compare two models by, that of the contraction where there is one, else the last; "" without nodes.
    """

    name: str
    op: str
    time_ms: float
    nodes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    key: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {**asdict(self), "nodes": list(self.nodes), "tensors": list(self.tensors)}


@dataclass(frozen=True)
class Measurement:
    """Latency of one model on one engine, per inference. p99, quartiles and the rest are over single inferences."""

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
    """IQR of the rounds' medians over their median: drift between rounds, not jitter within one."""
    threads: int = 1
    precision: str = "f32"
    version: str = ""
    peak_memory_bytes: int | None = None
    """Highest resident size of the process that ran it, interpreter and engine included."""
    model_memory_bytes: int | None = None
    """The part of that peak which came after the engine was loaded."""
    device_memory_bytes: int | None = None
    difference: float | None = None
    """Largest |output - onnxruntime's output| / max |onnxruntime's output|, over outputs."""
    layers: tuple[LayerTime, ...] = ()

    @property
    def iqr_ms(self) -> float:
        """Spread of the middle half of the inferences."""
        return self.q3_ms - self.q1_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report, layers included."""
        return {
            **asdict(self),
            "iqr_ms": self.iqr_ms,
            "layers": [layer.as_dict() for layer in self.layers],
        }


class Compiled(ABC):
    """A model that is ready to run on an engine. Use as a context manager, or call `close`."""

    outputs: tuple[str, ...]

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by their ONNX names; EngineError where the run fails."""

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Milliseconds of `count` inferences, one after the other. Engines that can time without copies override this."""
        times = []
        for _ in range(count):
            start = time.perf_counter_ns()
            self.run(feeds)
            times.append((time.perf_counter_ns() - start) / 1e6)
        return times

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Time of each kernel over `count` inferences; () where the engine does not tell."""
        return ()

    def device_memory_bytes(self) -> int | None:
        """What the model takes on the accelerator; None where there is none or it is not known."""
        return None

    def close(self) -> None:  # noqa: B027 - an engine without resources has nothing to do
        """Release what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@runtime_checkable
class Engine(Protocol):
    """An inference engine. Making one and asking `available` must be cheap and never fail.

    name: as on the command line; install: the command that makes it available. An engine whose `library` is the name of a module
    has it imported before memory is measured.
    """

    @property
    def name(self) -> str: ...

    @property
    def install(self) -> str: ...

    def available(self) -> str | None:
        """None where it can be used, else why not and how to get it, in one sentence."""

    def version(self) -> str:
        """Of the engine, "" where it is not available."""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """The model ready to run; EngineError where the engine is missing or refuses it."""

    def limits(self) -> Mapping[str, str]:
        """What it cannot do, topic -> one sentence."""

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Widths that are multiples of this run without waste; 1 where no cliff is known."""


def require(engine: Engine) -> None:
    """EngineError with the way to install it, where `engine` is not available."""
    reason = engine.available()
    if reason is not None:
        raise EngineError("engine-missing", reason)


def missing_package(name: str, package: str, install: str) -> str:
    """The sentence for an engine whose package is not there."""
    return f"engine {name} needs {package}, which is not installed: {install}"


def installed_version(distribution: str) -> str:
    """Version of an installed distribution without importing it, "" where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print below Python to stderr: stdout is for data."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def refusal(engine: str, problem: Exception | str) -> EngineError:
    """The error for a model that an engine does not take, with the first line of what it says."""
    lines = str(problem).strip().splitlines()
    return EngineError(
        "engine-refused",
        f"{engine} refuses the model: {lines[0][:300] if lines else type(problem).__name__}",
    )


def require_precision(engine: str, options: EngineOptions, *known: str) -> None:
    """EngineError where the options ask for a precision that is not in `known`."""
    if options.precision not in known:
        raise EngineError(
            "engine-precision",
            f"{engine} runs {', '.join(known)} here, not {options.precision}; change --precision",
        )


def static_inputs(model: Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorSpec]:
    """The graph's inputs with every axis known.

    A dynamic leading axis counts as a batch of 1; any other has to be given in `shapes`.

    Raises
    ------
    UsageError
        `shapes` names no input, contradicts a fixed axis, or is missing for a dynamic one.
    """
    inputs = {
        v.name: v.type.tensor_type for v in model.proto.graph.input if v.name not in model.weights
    }
    for name in shapes:
        if name not in inputs:
            raise UsageError(
                "unknown-input",
                f"shape given for {name!r}; the model's inputs are {', '.join(inputs) or 'none'}",
            )
    found = {}
    for name, kind in inputs.items():
        declared = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        given = shapes.get(name)
        shape = (
            tuple(given)
            if given is not None
            else tuple(1 if d is None and i == 0 else d for i, d in enumerate(declared))
        )
        clash = (
            given is not None
            and kind.HasField("shape")
            and (
                len(shape) != len(declared)
                or any(d not in (None, n) for n, d in zip(shape, declared, strict=False))
            )
        )
        if clash or None in shape:
            text = ",".join("?" if d is None else str(d) for d in declared)
            raise UsageError(
                "input-shape",
                f"input {name!r} is declared as [{text}]"
                + (f", {shape} does not fit" if clash else f"; pass --shape {name}:1,..."),
            )
        found[name] = TensorSpec(
            tuple(int(d) for d in shape if d is not None),
            np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        )
    return found


def random_feeds(inputs: Mapping[str, TensorSpec], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs to time with: floats uniform in [0, 1), integers 0, booleans false (indices stay in range)."""
    generator = np.random.default_rng(seed)
    return {
        name: (
            generator.random(spec.shape)
            if np.issubdtype(spec.dtype, np.floating)
            else np.zeros(spec.shape)
        ).astype(spec.dtype)
        for name, spec in inputs.items()
    }


def fix_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> Model:
    """A copy whose inputs declare the static shapes, for engines that want them; outputs lose shapes that are not known."""
    copy = model.edit()
    specs = static_inputs(model, shapes)
    for value in copy.proto.graph.input:
        if value.name in specs:
            del value.type.tensor_type.shape.dim[:]
            for length in specs[value.name].shape:
                value.type.tensor_type.shape.dim.add(dim_value=length)
    return copy


@contextlib.contextmanager
def as_file(source: Source) -> Iterator[Path]:
    """The model as a file: the one it came from, or a temporary copy for a Model that was made in memory."""
    if not isinstance(source, Model):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(source, path)
        yield path


def open_model(source: Source) -> Model:
    """The model, read where `source` is a path."""
    return source if isinstance(source, Model) else load(source)
