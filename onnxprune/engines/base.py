"""Interface of inference engines, and the data of a measurement."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from onnx import TypeProto, helper

from onnxprune.errors import EngineError, UsageError, unknown
from onnxprune.ir.example_sizes import name_shapes
from onnxprune.ir.io import Model, load, save
from onnxprune.moved import old_names
from onnxprune.scratch import Scratch

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - in typing from 3.11 on

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
    """Options of compiling and running a model.

    Attributes
    ----------
    threads
        Threads per inference.
    precision
        "f32", "bf16", "f16" or "int8" (a graph with QuantizeLinear/DequantizeLinear); an engine
        raises EngineError for one that it does not run.
    level
        Graph optimization of onnxruntime: "off", "basic", "extended" or "all".
    cores
        CPUs that the process is pinned to, () = not pinned; read only by engines in a separate
        process.
    shapes
        Input name -> shape, for inputs with dynamic axes.
    cache
        Folder for data that an engine reuses between builds; None = no cache.
    cuda_graph
        Replay the inference as one CUDA graph if the engine can.
    """

    threads: int = 1
    precision: str = "f32"
    level: str = "all"
    cores: tuple[int, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    cache: Path | None = None
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.threads < 1:
            raise UsageError("threads", f"threads is {self.threads}; use at least 1")
        if self.precision not in PRECISIONS:
            raise UsageError(
                "precision", f"unknown precision {self.precision!r}; use {', '.join(PRECISIONS)}"
            )
        if self.level not in LEVELS:
            raise UsageError(
                "optimization-level",
                f"unknown optimization level {self.level!r}; use {', '.join(LEVELS)}",
            )


DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class TensorSpec:
    """Static shape and numpy dtype of an input."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class LayerTime:
    """Time of one kernel of an engine.

    Attributes
    ----------
    name
        The engine's name of the kernel.
    op
        The engine's operator.
    time_ms
        Typical time over the profiled runs.
    nodes
        Graph nodes that the kernel computes, by name or first output; () for work that the engine
        added (layout changes, copies).
    tensors
        Outputs of those nodes.
    key
        Tensor by which two models are compared: the output of the contraction if there is one,
        else the last tensor; "" without nodes.
    """

    name: str
    op: str
    time_ms: float
    nodes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    key: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return {**asdict(self), "nodes": list(self.nodes), "tensors": list(self.tensors)}


class Compiled(ABC):
    """A model that is ready to run on an engine; a context manager that calls `close`."""

    outputs: tuple[str, ...]
    computes_here = False
    """True if the thread that calls `run` does all of the computing."""

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference and return the outputs by their ONNX names.

        Raises
        ------
        EngineError
            The run fails.
        """

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time `count` consecutive inferences and return their milliseconds.

        Engines that time on their device override this.
        """
        return [wall_ms for wall_ms, _ in self._time(self.prepare(feeds), count)]

    def sample_clocks(
        self, feeds: Mapping[str, np.ndarray], count: int
    ) -> list[tuple[float, float]]:
        """Time `count` consecutive inferences by the wall clock and by the thread's CPU clock.

        The CPU clock does not run while another program has the CPU, so that a busy machine
        changes it little.

        Returns
        -------
        list of tuple
            Milliseconds by both clocks; twice those of the wall clock if the engine computes in
            other threads or on another device.
        """
        if self.computes_here:
            return self._time(self.prepare(feeds), count)
        return [(ms, ms) for ms in self.sample(feeds, count)]

    def _time(self, infer: Callable[[], object], count: int) -> list[tuple[float, float]]:
        """Return the milliseconds of `count` calls by the wall clock and the CPU clock."""
        times = []
        for _ in range(count):
            cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
            infer()
            wall_ns = time.perf_counter_ns() - wall_ns
            times.append((wall_ns / 1e6, (time.thread_time_ns() - cpu_ns) / 1e6))
        return times

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return a call that runs one inference, to be timed.

        Engines that can time without copying the inputs override this.
        """
        return lambda: self.run(feeds)

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per kernel over `count` inferences; () if the engine has no profile."""
        return ()

    def device_memory_bytes(self) -> int | None:
        """Return the memory on the accelerator; None without one or if unknown."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return what makes the times less comparable, one sentence each."""
        return ()

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return (peak size of the process, its size before); None without one of its own."""
        return None

    def device_state(self) -> Mapping[str, Any] | None:
        """Return power mode, clocks and temperatures of another machine; None for this one."""
        return None

    def close(self) -> None:  # noqa: B027 - an engine without resources has nothing to do
        """Release the engine's resources."""

    def __enter__(self) -> Self:
        """Return the model."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the engine's resources."""
        self.close()


@runtime_checkable
class Engine(Protocol):
    """An inference engine.

    Creating one and calling `available` must be cheap and must not raise. If an engine has an
    attribute `library`, the name of a module, that module is imported before memory is measured; if
    it has `in_process` and that is true, `bench` starts no process of its own for its models.
    """

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def install(self) -> str:
        """Command that makes the engine available."""
        ...

    def available(self) -> str | None:
        """Return None if the engine can be used, else the reason and the fix in one sentence."""

    def version(self) -> str:
        """Return the engine's version, "" if it is not available."""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Return the model ready to run.

        Raises
        ------
        EngineError
            The engine is not available or rejects the model.
        """

    def limits(self) -> Mapping[str, str]:
        """Return the engine's limits: topic -> one sentence."""

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the multiple of channels that runs without waste; 1 if none is known."""


def multiple_of(engine: Engine, dtype: str, depthwise: bool) -> int:
    """Return the multiple of channels of an engine, of depthwise convolutions if asked for.

    `depthwise_multiple` is optional: engines without it have one multiple for all operators.
    """
    of_depthwise = getattr(engine, "depthwise_multiple", None)
    if depthwise and of_depthwise is not None:
        return int(of_depthwise(dtype))
    return int(engine.channel_multiple(dtype))


def require(engine: Engine) -> None:
    """Raise EngineError with the way to install the engine if it is not available."""
    # checked before compile, so that the error names the fix
    reason = engine.available()
    if reason is not None:
        raise EngineError("engine-missing", reason)


def missing_package(name: str, package: str, install: str) -> str:
    """Return the reason for an engine whose package is not installed."""
    return f"engine {name} needs {package}, which is not installed: {install}"


def installed_version(distribution: str) -> str:
    """Return the version of a distribution without importing it, "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect what native libraries print on stdout to stderr; stdout is for results."""
    # buffered text must appear on stdout, before it is redirected
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        # descriptors, because native libraries do not write through sys.stdout
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def refusal(engine: str, problem: Exception | str) -> EngineError:
    """Return the error for a model that an engine rejects, with the first line of its reason."""
    # native libraries append a stack trace; the first line names the reason
    lines = str(problem).strip().splitlines()
    reason = lines[0][:300] if lines else type(problem).__name__
    return EngineError("engine-refused", f"{engine} rejects the model: {reason}")


def require_precision(engine: str, options: EngineOptions, *known: str) -> None:
    """Raise EngineError if the options ask for a precision that is not in `known`."""
    if options.precision not in known:
        raise EngineError(
            "engine-precision",
            f"{engine} does not run {options.precision}; pass --precision {' or '.join(known)}",
        )


def static_inputs(model: Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorSpec]:
    """Return the graph's inputs with static shapes.

    A dynamic leading axis counts as a batch of 1; any other has to be given in `shapes`.

    Raises
    ------
    UsageError
        An input is no tensor, or `shapes` names no input, contradicts a static axis, or lacks an
        input with a dynamic axis other than the first.
    """
    inputs = {
        v.name: v.type.tensor_type for v in model.proto.graph.input if v.name not in model.weights
    }
    shapes = name_shapes(shapes, inputs)
    for name in shapes:
        if name not in inputs:
            raise unknown("input", name, inputs)
    # sequences, maps and optionals have no elem_type in the field that is read here
    for name, kind in inputs.items():
        if not kind.elem_type:
            raise UsageError("model-input", f"input {name!r} is no tensor: engines cannot feed it")
    return {
        name: TensorSpec(
            _static_shape(name, kind, shapes.get(name)),
            np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        )
        for name, kind in inputs.items()
    }


def _static_shape(
    name: str, kind: TypeProto.Tensor, given: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the shape of one input: `given`, else the declared one with a batch of 1."""
    declared = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    text = ",".join("?" if d is None else str(d) for d in declared)
    if given is not None:
        # -1 stands for the declared length; an axis without one accepts any
        matches = len(given) == len(declared) and all(
            n == -1 or d in (None, n) for n, d in zip(given, declared, strict=True)
        )
        # without a declared shape any rank is allowed
        if kind.HasField("shape") and not matches:
            raise UsageError(
                "input-shape",
                f"shape {tuple(given)} does not fit input {name!r}, declared as [{text}]",
            )
        if not matches or -1 not in given:
            return tuple(int(n) for n in given)
        declared = [d if n == -1 else int(n) for n, d in zip(given, declared, strict=True)]
    # only the leading axis: a guess for height or sequence length would change what is measured
    shape = [1 if d is None and axis == 0 else d for axis, d in enumerate(declared)]
    if None in shape:
        raise UsageError(
            "input-shape",
            f"input {name!r} is declared as [{text}], with axes of unknown length; "
            f"pass --shape {name}:1,...",
        )
    # for the type checker: none is left
    return tuple(d for d in shape if d is not None)


def random_feeds(inputs: Mapping[str, TensorSpec], seed: int = 0) -> dict[str, np.ndarray]:
    """Return inputs for timing: floats uniform in [0, 1), integers 0, booleans False.

    Integers are often indices; 0 is in range for every axis.
    """
    # the same seed for every model: original and pruned model get the same inputs
    generator = np.random.default_rng(seed)
    feeds = {}
    for name, spec in inputs.items():
        # numpy does not count the types of ml_dtypes as floating
        if np.issubdtype(spec.dtype, np.floating) or "float" in spec.dtype.name:
            values = generator.random(spec.shape)
        else:
            values = np.zeros(spec.shape)
        feeds[name] = values.astype(spec.dtype)
    return feeds


def fix_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> Model:
    """Return a copy whose inputs declare static shapes; see `static_inputs`."""
    # the caller's model keeps its dynamic axes
    copy = model.edit()
    specs = static_inputs(model, shapes)
    for value in copy.proto.graph.input:
        if value.name in specs:
            del value.type.tensor_type.shape.dim[:]
            for length in specs[value.name].shape:
                value.type.tensor_type.shape.dim.add(dim_value=length)
    return copy.freeze()


@contextlib.contextmanager
def as_file(source: Source) -> Iterator[Path]:
    """Yield the path of a model; a Model is written to a temporary file."""
    # a path is used as it is: external data is found relative to it
    if not isinstance(source, Model):
        yield Path(source)
        return
    with Scratch() as folder:
        path = Path(folder) / "model.onnx"
        save(source, path)
        yield path


def open_model(source: Source) -> Model:
    """Return the model; a path is read."""
    return source if isinstance(source, Model) else load(source)
