"""Stand-ins for TensorRT and CUDA without arithmetic, to run the engine's code without a GPU.

test_tensorrt_bindings.py checks that the real bindings have the names.
"""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from onnxprune.engines.cuda import Cuda
from onnxprune.errors import EngineError
from onnxprune.ir.io import load


class FakeCuda(Cuda):
    """Device memory is a dictionary; a launch takes half a millisecond."""

    def __init__(self, graphs: bool = True) -> None:
        self.graphs = graphs
        self.memory: dict[int, bytes] = {}
        self.captured = self.launched = 0
        self.refuse_capture = False
        self.closed = False

    @property
    def stream(self) -> int:
        return 7

    def allocate(self, size_bytes: int) -> int:
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = bytes(size_bytes)
        return address

    def upload(self, address: int, values: np.ndarray) -> None:
        assert values.nbytes == len(self.memory[address])
        self.memory[address] = values.tobytes()

    def download(self, values: np.ndarray, address: int) -> None:
        values[...] = np.frombuffer(self.memory[address], values.dtype).reshape(values.shape)

    def synchronize(self) -> None:
        assert not self.closed

    def time_ms(self, launch: Callable[[], None]) -> float:
        launch()
        return 0.5

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        if self.refuse_capture:
            raise EngineError("cuda-failed", "cudaStreamEndCapture failed: unsupported")
        launch()
        self.captured += 1

        def replay() -> None:
            self.launched += 1

        return replay

    def close(self) -> None:
        self.closed = True


def nptype(kind: str) -> Any:
    """Return the numpy type of a type; TypeError for one that numpy lacks."""
    types = {"FLOAT": np.float32, "INT64": np.int64}
    if kind not in types:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return types[kind]


def module(
    major: int,
    device: FakeCuda,
    *,
    refuse: str = "",
    tensors: dict[str, tuple[bool, tuple[int, ...]]] | None = None,
    kinds: Mapping[str, str] | None = None,
    contexts: int = 99,
    runs: bool = True,
) -> Any:
    """Return a tensorrt module of that major version.

    Parameters
    ----------
    refuse
        Error of the parser.
    tensors
        Name -> (is an input, shape).
    kinds
        Name -> type; "HOST" before it: a tensor on the host.
    contexts
        Number of execution contexts at a time that the memory is enough for.
    runs
        Whether inferences succeed.
    """
    kinds = kinds or {}
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    calls: list[tuple[str, Any]] = []
    tensors = tensors or {}

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class IProfiler:
        pass

    class Config:
        profiling_verbosity = None
        cache: Any = None

        def set_flag(self, flag: str) -> None:
            calls.append(("set_flag", flag))

        def clear_flag(self, flag: str) -> None:
            calls.append(("clear_flag", flag))

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            calls.append((pool, size))

        def create_timing_cache(self, known: bytes) -> SimpleNamespace | None:
            if known.startswith(b"corrupt"):
                return None
            return SimpleNamespace(known=known, serialize=lambda: known + b"+")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache.known.startswith(b"other device"):
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self.cache

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> str:
            return "network"

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: str, config: Config) -> bytes:
            return b"plan"

    class OnnxParser:
        num_errors = 1 if refuse else 0

        def __init__(self, network: str, logger: ILogger) -> None:
            pass

        def parse_from_file(self, path: str) -> bool:
            calls.append(("parsed", load(path)))
            return not refuse

        def get_error(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(desc=lambda: refuse)

    class Context:
        profiler: Any = None

        def __init__(self) -> None:
            self.addresses: dict[str, int] = {}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert set(self.addresses) == set(tensors) and stream == device.stream
            if not runs:
                return False
            for name, (is_input, shape) in tensors.items():
                if not is_input:
                    if self.addresses[name] in device.memory:
                        kind = np.dtype(kinds.get(name, "float32").replace("BF16", "bfloat16"))
                        device.memory[self.addresses[name]] = np.full(shape, 3, kind).tobytes()
                    else:
                        ctypes.memset(self.addresses[name], 1, int(np.prod(shape)) * 8)
            if self.profiler is not None:
                self.profiler.report_layer_time("n_c0 + n_r0", 0.25)
                self.profiler.report_layer_time(
                    "Reformatting CopyNode for Output Tensor 0 to n_c0", 0.125
                )
            return True

    class Engine:
        num_io_tensors = len(tensors)
        device_memory_size_v2 = 1000

        def get_tensor_name(self, index: int) -> str:
            return list(tensors)[index]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tensors[name][1]

        def get_tensor_dtype(self, name: str) -> str:
            return kinds.get(name, "FLOAT").removeprefix("HOST ")

        def get_tensor_location(self, name: str) -> str:
            return "host" if kinds.get(name, "").startswith("HOST") else "device"

        def create_execution_context(self) -> Context | None:
            if len(alive) >= contexts:
                return None
            context = Context()
            alive.add(context)
            return context

        def create_engine_inspector(self) -> SimpleNamespace:
            return SimpleNamespace(
                get_engine_information=lambda form: json.dumps(
                    {"Layers": ["n_c0 + n_r0"], "Bindings": list(tensors)}
                )
            )

    flags = {"TF32": "TF32"} | (
        {"FP16": "FP16", "INT8": "INT8", "BF16": "BF16"} if major == 10 else {}
    )
    return SimpleNamespace(
        __version__=f"{major}.4.0",
        calls=calls,
        ILogger=ILogger,
        IProfiler=IProfiler,
        Builder=Builder,
        OnnxParser=OnnxParser,
        BuilderFlag=SimpleNamespace(**flags),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        nptype=nptype,
        TensorLocation=SimpleNamespace(HOST="host", DEVICE="device"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine()),
    )
