"""The few CUDA calls that timing needs, by cuda-python or pycuda, whichever is there.

NVIDIA's documents use cuda-python, many Jetson images carry pycuda. pycuda has no CUDA graphs; beside it they are asked of the driver's library itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.errors import EngineError

INSTALL = "pip install cuda-python (or pycuda)"
_DRIVERS = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_GRAPH_CALLS = (
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphDestroy",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
)
_THREAD_LOCAL = (
    1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may call what a capture forbids
)


class Cuda(ABC):
    """Device memory, one stream and two events on the first GPU."""

    graphs: bool
    """Whether `capture` works."""

    @property
    @abstractmethod
    def stream(self) -> int:
        """Handle of the stream."""

    @abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory, freed by `close`."""

    @abstractmethod
    def upload(self, address: int, values: np.ndarray) -> None:
        """Copy a contiguous array to the device."""

    @abstractmethod
    def download(self, values: np.ndarray, address: int) -> None:
        """Fill a contiguous array from the device."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the stream."""

    @abstractmethod
    def time_ms(self, launch: Callable[[], None]) -> float:
        """Milliseconds on the device between events before and after what `launch` enqueues."""

    @abstractmethod
    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Record what `launch` enqueues as a CUDA graph; the result enqueues it again as one."""

    @abstractmethod
    def close(self) -> None:
        """Free memory, stream and events."""


def open_cuda() -> Cuda:
    """cuda-python where it is installed, else pycuda; EngineError without either."""
    if _has("cuda.bindings") or _has("cuda.cudart"):
        return CudaPython()
    if _has("pycuda"):
        return PyCuda()
    raise EngineError(
        "engine-missing", f"memory and timing on the GPU need cuda-python or pycuda: {INSTALL}"
    )


def has_binding() -> bool:
    """Whether cuda-python or pycuda is installed."""
    return any(map(_has, ("cuda.bindings", "cuda.cudart", "pycuda")))


def has_gpu() -> bool:
    """Whether the driver finds a device; asks nothing but the driver."""
    driver = _driver()
    count = ctypes.c_int()
    return (
        driver is not None
        and driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def _driver() -> Any:
    """The driver's library, None where there is none."""
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class CudaPython(Cuda):
    """cuda-python: the runtime API; every call returns (status, results...)."""

    graphs = True

    def __init__(self) -> None:
        if _has("cuda.bindings"):
            from cuda.bindings import runtime
        else:
            from cuda import cudart as runtime
        self._api: Any = runtime
        self._memory: list[int] = []
        self._graphs: list[Any] = []
        self._stream = self._call("cudaStreamCreate")
        self._begin, self._end = self._call("cudaEventCreate"), self._call("cudaEventCreate")

    @property
    def stream(self) -> int:
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        self._memory.append(int(self._call("cudaMalloc", max(size_bytes, 1))))
        return self._memory[-1]

    def upload(self, address: int, values: np.ndarray) -> None:
        self._call(
            "cudaMemcpyAsync",
            address,
            values.ctypes.data,
            values.nbytes,
            self._api.cudaMemcpyKind.cudaMemcpyHostToDevice,
            self._stream,
        )
        self.synchronize()

    def download(self, values: np.ndarray, address: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            values.ctypes.data,
            address,
            values.nbytes,
            self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost,
            self._stream,
        )
        self.synchronize()

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def time_ms(self, launch: Callable[[], None]) -> float:
        self._call("cudaEventRecord", self._begin, self._stream)
        launch()
        self._call("cudaEventRecord", self._end, self._stream)
        self._call("cudaEventSynchronize", self._end)
        return float(self._call("cudaEventElapsedTime", self._begin, self._end))

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        self._call(
            "cudaStreamBeginCapture",
            self._stream,
            self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            launch()
        finally:
            graph = self._call("cudaStreamEndCapture", self._stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        self._graphs.append(ready)
        return lambda: self._call("cudaGraphLaunch", ready, self._stream)

    def close(self) -> None:
        for graph in self._graphs:
            self._call("cudaGraphExecDestroy", graph)
        for address in self._memory:
            self._call("cudaFree", address)
        self._graphs, self._memory = [], []
        for event in (self._begin, self._end):
            self._call("cudaEventDestroy", event)
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *values: Any) -> Any:
        """The result of a call; EngineError with CUDA's own words where its status is not success."""
        status, *results = getattr(self._api, name)(*values)
        if int(status) != 0:
            _, text = self._api.cudaGetErrorString(status)
            raise EngineError(
                "cuda-failed",
                f"{name} failed: {text.decode() if isinstance(text, bytes) else text}",
            )
        return results[0] if results else None


class PyCuda(Cuda):
    """pycuda: the driver API in the device's primary context, which TensorRT uses too. Graphs are those of the driver's library."""

    def __init__(self) -> None:
        from pycuda import driver

        self._library = _driver()
        self.graphs = self._library is not None and all(
            hasattr(self._library, name) for name in _GRAPH_CALLS
        )
        self._graphs: list[ctypes.c_void_p] = []
        self._driver: Any = driver
        driver.init()
        self._context = driver.Device(0).retain_primary_context()
        self._context.push()
        self._stream = driver.Stream()
        self._begin, self._end = driver.Event(), driver.Event()
        self._memory: list[Any] = []

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def allocate(self, size_bytes: int) -> int:
        self._memory.append(self._driver.mem_alloc(max(size_bytes, 1)))
        return int(self._memory[-1])

    def upload(self, address: int, values: np.ndarray) -> None:
        self._driver.memcpy_htod_async(address, values, self._stream)
        self.synchronize()

    def download(self, values: np.ndarray, address: int) -> None:
        self._driver.memcpy_dtoh_async(values, address, self._stream)
        self.synchronize()

    def synchronize(self) -> None:
        self._stream.synchronize()

    def time_ms(self, launch: Callable[[], None]) -> float:
        self._begin.record(self._stream)
        launch()
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._begin.time_till(self._end))

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        if not self.graphs:
            raise EngineError(
                "cuda-graph",
                f"the driver's library has no CUDA graphs (they came with version 11.4 of CUDA): {INSTALL}",
            )
        stream, graph, ready = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            launch()
        finally:
            self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        self._graphs.append(ready)
        return lambda: self._call("cuGraphLaunch", ready, stream)

    def _call(self, name: str, *values: Any) -> None:
        """A call of the driver's library that has to succeed."""
        if status := getattr(self._library, name)(*values):
            raise EngineError("cuda-failed", f"{name} failed: CUDA error {status}")

    def close(self) -> None:
        for graph in self._graphs:
            self._call("cuGraphExecDestroy", graph)
        self._graphs = []
        for memory in self._memory:
            memory.free()
        self._memory = []
        self._context.pop()
