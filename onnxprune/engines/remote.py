"""Runtimes of another machine, reached by ssh: `remote:USER@HOST/RUNTIME`.

Without RUNTIME it is onnxruntime; the host "local" is this machine, without ssh.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    LayerTime,
    Source,
    as_file,
    fix_shapes,
    open_model,
    require,
    require_precision,
)
from onnxprune.engines.connection import PYTHON, Connection, Dropped, connect
from onnxprune.engines.kernels import kernel_times, map_kernels
from onnxprune.engines.openvino import assemble_profile
from onnxprune.engines.trtexec import Tool, ToolResult, TrtExecModel
from onnxprune.errors import EngineError, UsageError, unknown
from onnxprune.ir.io import Model, to_bytes
from onnxprune.scratch import Scratch

T = TypeVar("T")
PREFIX, DEFAULT_RUNTIME = "remote:", "onnxruntime"
# no leading hyphen, which ssh would take for an option
_NAME = re.compile(r"(?P<host>(?:[\w.][\w.-]*@)?[\w.][\w.-]*)(?:/(?P<runtime>[\w-]+))?")
_GPU_PRECISIONS = ("f32", "f16", "int8")
# runtime -> precisions that it runs
RUNTIMES = {
    "onnxruntime": ("f32", "int8"),
    "onnxruntime-cuda": _GPU_PRECISIONS,
    "onnxruntime-tensorrt": _GPU_PRECISIONS,
    "openvino": ("f32", "bf16", "f16", "int8"),
    "tensorrt": ("f32", "bf16", "f16", "int8"),
}
_TENSOR_CORES = {"f32": 4, "f16": 8, "int8": 32}


@dataclass(frozen=True)
class RemoteEngine:
    """A runtime on a host."""

    host: str
    runtime: str
    name: str
    install: str = f"check that ssh HOST python3 works without a password; ${PYTHON} names another"
    in_process: bool = True
    """No worker process wraps the model: its memory is that of another machine."""

    def available(self) -> str | None:
        """Return None if the agent starts and finds the runtime, else the reason and the fix."""
        try:
            facts = connect(self.host).hello()
        except EngineError as problem:
            return f"engine {self.name}: {problem.message}; {self.install}"
        if self.runtime not in facts["runtimes"]:
            listed = ", ".join(facts["runtimes"]) or "none"
            reason = facts["broken"].get(self.runtime) or f"found: {listed}"
            return (
                f"engine {self.name}: python3 of {self.host} ({facts['machine']}) cannot load "
                f"{self.runtime} ({reason}); {self.install}"
            )
        return None

    def version(self) -> str:
        """Return the runtime's version and the device's name, "" if it is unreachable."""
        try:
            facts = connect(self.host).hello()
        except EngineError:
            return ""
        return f"{facts['runtimes'].get(self.runtime, '')} on {facts['host']} ({facts['machine']})"

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Return a model compiled on the device."""
        require(self)
        require_precision(self.name, options, *RUNTIMES[self.runtime])
        # static shapes, because the device's runtime gets no other information
        model = fix_shapes(open_model(source), options.shapes)
        if self.runtime == "tensorrt":
            return RemoteTensorRt(self, model, options)
        return RemoteModel(self, model, options)

    def limits(self) -> Mapping[str, str]:
        """Return what is not timed."""
        return {"layers": "onnxruntime on the CPU, OpenVINO and TensorRT are profiled per layer"}

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the multiple of the runtime on the device's CPU or GPU."""
        if self.runtime == "openvino":
            return 1 if dtype == "f32" else 16
        if self.runtime != DEFAULT_RUNTIME:
            return _TENSOR_CORES.get(dtype, 8)
        try:
            return int(connect(self.host).hello()["lanes"])
        except EngineError:
            return 8


class DeviceState:
    """Power mode, clocks and temperatures of a device, watched during a measurement."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mode: str | None = None
        self._clocks: list[float] = []
        self._heat: list[float] = []

    def check(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Add the states before and after a block of inferences.

        Raises
        ------
        EngineError
            The power mode changed since the first state, or the device throttled.
        """
        host = self._connection.host
        before, after = states
        for state in states:
            self._clocks += state["clocks_mhz"]
            self._heat += state["temperatures"]
        first = before["mode"] if self._mode is None else self._mode
        self._mode = first
        changed = [state["mode"] for state in states if state["mode"] != first]
        if changed:
            raise EngineError(
                "remote-void",
                f"the power mode of {host} changed during the measurement ({first!r} to "
                f"{changed[0]!r}): its times are void; fix the mode and repeat",
            )
        if after["throttled"] > before["throttled"] or after["limited"] or before["limited"]:
            heat = max(after["temperatures"], default=float("nan"))
            raise EngineError(
                "remote-void",
                f"{host} throttled its clock during the measurement ({heat:.0f} degrees C): its "
                "times are void; cool it or use a stronger power supply, and repeat",
            )

    def describe(self) -> dict[str, Any]:
        """Return the device and the range of its state."""
        facts = self._connection.hello()
        return {
            "host": facts["host"],
            "board": facts["board"],
            "machine": facts["machine"],
            "power_mode": self._mode or "",
            "clock_mhz": _find_range(self._clocks),
            "temperature": _find_range(self._heat),
        }


def _find_range(values: Sequence[float]) -> list[float]:
    """Return the least and the largest value, [] without any."""
    return [min(values), max(values)] if values else []


class _Restored(Compiled):
    """A model on a device that is made again there after a dropped connection."""

    def __init__(self, engine: RemoteEngine, model: Model, options: EngineOptions) -> None:
        self._engine, self._connection = engine, connect(engine.host)
        self._model, self._options = model, options
        self._start = -1
        self._state = DeviceState(self._connection)

    def device_state(self) -> Mapping[str, Any] | None:
        """Return the device and the range of its clocks and temperatures."""
        return self._state.describe()

    def _call(self, make: Callable[[], None], call: Callable[[], T]) -> T:
        """Return the result of a call, after making the model where the agent has not done so.

        After a dropped connection it is made and called once more.
        """
        for last in (False, True):
            try:
                # another model may have noticed the drop before, and started the agent
                if self._start != self._connection.starts:
                    make()
                    self._start = self._connection.starts
                return call()
            except Dropped as problem:
                if last:
                    raise EngineError("remote-unreachable", str(problem)) from problem
        raise AssertionError  # unreachable, for the type checker


class RemoteModel(_Restored):
    """A model compiled by a Python runtime on a device."""

    def __init__(self, engine: RemoteEngine, model: Model, options: EngineOptions) -> None:
        super().__init__(engine, model, options)
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        # as a file, because a model in memory keeps its weights outside of the graph
        with as_file(model) as path:
            if len(list(path.parent.iterdir())) > 1:
                raise EngineError(
                    "remote-refused", f"{engine.name}: models above 2 GB are not sent to a device"
                )
            self._bytes = path.read_bytes()
        self._handle, self._fed = 0, -1
        self._call(self._compile, lambda: None)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference on the device."""
        answer, data = self._ask("run", feeds)
        outputs, at = {}, 0
        for name, (dtype, shape) in zip(self.outputs, answer["tensors"], strict=True):
            count = int(np.prod(shape, dtype=np.int64))
            outputs[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
            at += outputs[name].nbytes
        return outputs

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time inferences on the device, without the connection."""
        return [wall_ms for wall_ms, _ in self.sample_clocks(feeds, count)]

    def sample_clocks(
        self, feeds: Mapping[str, np.ndarray], count: int
    ) -> list[tuple[float, float]]:
        """Time inferences on the device by both clocks; EngineError if its state changed."""
        answer, _ = self._ask("sample", feeds, count=count)
        self._state.check(answer["states"])
        return [(wall, cpu) for wall, cpu in answer["times"]]

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per kernel, mapped to the nodes of the graph."""
        answer, data = self._ask("profile", feeds, count=count)
        nodes = self._model.proto.graph.node
        if answer["kind"] == "openvino":
            times: dict[tuple[str, str], list[float]] = {}
            for name, op, ms in answer["times"]:
                times.setdefault((name, op), []).append(ms)
            return assemble_profile(times, answer["origins"], nodes)
        with Scratch() as folder:
            events, graph = Path(folder) / "events.json", Path(folder) / "graph.onnx"
            events.write_bytes(data[: answer["events"]])
            graph.write_bytes(data[answer["events"] :])
            kernels = kernel_times(events, skip=answer["skip"])
            return map_kernels(kernels, open_model(graph).proto, self._model.proto)

    def close(self) -> None:
        """Release the model on the device."""
        # a new start of the agent knows no earlier handle
        if self._start == self._connection.starts:
            with contextlib.suppress(Dropped, EngineError):
                self._connection.ask("release", handle=self._handle)
        self._start = -1

    def _ask(
        self, command: str, feeds: Mapping[str, np.ndarray], **values: Any
    ) -> tuple[dict[str, Any], bytes]:
        """Ask about this model with these inputs."""

        def ask() -> tuple[dict[str, Any], bytes]:
            self._feed(feeds)
            return self._connection.ask(command, handle=self._handle, **values)

        return self._call(self._compile, ask)

    def _compile(self) -> None:
        """Compile the model on the device."""
        options = {
            "threads": self._options.threads,
            "precision": self._options.precision,
            "level": self._options.level,
            "outputs": list(self.outputs),
        }
        answer, _ = self._connection.ask(
            "compile", self._bytes, runtime=self._engine.runtime, options=options
        )
        self._handle, self._fed = answer["handle"], -1

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Send inputs, unless they are those of the last call."""
        if self._fed == id(feeds):
            return
        arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        tensors = [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]
        data = b"".join(a.tobytes() for a in arrays.values())
        self._connection.ask("feed", data, handle=self._handle, tensors=tensors)
        self._feeds, self._fed = feeds, id(feeds)  # kept alive, so that no other gets its id


class RemoteTool(Tool):
    """trtexec on a device."""

    places = 0

    def __init__(self, connection: Connection, state: DeviceState) -> None:
        self._connection, self._state = connection, state
        # unique per model: a folder on the device
        RemoteTool.places += 1
        self._place = f"trt{RemoteTool.places}"
        self._waiting: dict[str, bytes] = {}

    def read_help(self) -> str:
        """Return what --help prints."""
        return self.call(["--help"], {}, ()).output

    def save(self, model: Model) -> None:
        """Keep model.onnx for the next call."""
        self._waiting["model.onnx"] = to_bytes(model)

    def call(
        self, flags: Sequence[str], files: Mapping[str, bytes], fetch: Sequence[str]
    ) -> ToolResult:
        """Run the program on the device; EngineError if its state changed."""
        files = {**self._waiting, **files}
        self._waiting = {}
        answer, data = self._connection.ask(
            "tool",
            b"".join(files.values()),
            place=self._place,
            flags=list(flags),
            files=[[name, len(content)] for name, content in files.items()],
            fetch=list(fetch),
        )
        self._state.check(answer["states"])
        parts, at = [], 0
        for size in answer["sizes"]:
            parts.append(data[at : at + size])
            at += size
        return ToolResult(answer["status"], answer["output"], tuple(parts), answer["engine_bytes"])

    def close(self) -> None:
        """Remove the folder on the device."""
        with contextlib.suppress(Dropped, EngineError):
            self._connection.ask("remove", place=self._place)


class RemoteTensorRt(_Restored):
    """A model that trtexec builds and times on a device."""

    def __init__(self, engine: RemoteEngine, model: Model, options: EngineOptions) -> None:
        super().__init__(engine, model, options)
        self._built: TrtExecModel | None = None
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._call(self._build, lambda: None)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference on the device."""
        return self._call(self._build, lambda: self._open().run(feeds))

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time inferences on the device, without copies and connection."""
        return self._call(self._build, lambda: self._open().sample(feeds, count))

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per layer."""
        return self._call(self._build, lambda: self._open().profile(feeds, count))

    def device_memory_bytes(self) -> int | None:
        """Return the size of the engine file."""
        return self._open().device_memory_bytes()

    def close(self) -> None:
        """Remove the files on the device."""
        if self._built is not None and self._start == self._connection.starts:
            self._built.close()
        self._start = -1

    def _build(self) -> None:
        """Build the engine on the device."""
        tool = RemoteTool(self._connection, self._state)
        # times of kernels are reused by all models: builds on a small board take minutes
        options = replace(self._options, cache=Path("shared"))
        self._built = TrtExecModel(tool, self._model, options)

    def _open(self) -> TrtExecModel:
        """Return the built model."""
        if self._built is None:
            raise EngineError("remote-refused", f"{self._engine.name}: the model was not built")
        return self._built


def check_host(host: str) -> dict[str, Any]:
    """Return what the agent finds on a host.

    Raises
    ------
    UsageError
        It is no host.
    EngineError
        It cannot be reached.
    """
    engine = parse_remote_name(PREFIX + host)
    if engine is None or "/" in host:
        raise UsageError("remote-host", f"{host!r} names no host: write USER@HOST")
    return connect(engine.host).hello()


def parse_remote_name(name: str) -> RemoteEngine | None:
    """Return the engine of remote:USER@HOST[/RUNTIME], None for other names.

    Raises
    ------
    UsageError
        The part after the prefix is no host, such as one that ssh would take for an option, or the
        runtime is unknown.
    """
    if not name.startswith(PREFIX):
        return None
    parts = _NAME.fullmatch(name.removeprefix(PREFIX))
    if parts is None:
        raise UsageError(
            "remote-host",
            f"{name!r} names no host: write remote:USER@HOST, with /RUNTIME for another runtime "
            f"than {DEFAULT_RUNTIME}",
        )
    runtime = parts["runtime"] or DEFAULT_RUNTIME
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    return RemoteEngine(parts["host"], runtime, name)
