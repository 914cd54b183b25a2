"""CUDA calls that timing needs, by cuda-python or pycuda, whichever is installed.

NVIDIA's documentation uses cuda-python, many Jetson images ship pycuda. pycuda has no CUDA graphs;
they are called in the driver's library by ctypes.
"""

from __future__ import annotations

import contextlib
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
# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may make calls that a capture forbids
_THREAD_LOCAL = 1


class Cuda(ABC):
    """Device memory, one stream and two events on the first GPU.

    Attributes
    ----------
    graphs
        True if `capture` works.
    """

    graphs: bool

    @property
    @abstractmethod
    def stream(self) -> int:
        """Handle of the stream."""

    @abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Allocate device memory, freed by `close`, and return its address."""

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
        """Return the milliseconds on the device between events around what `launch` enqueues."""

    @abstractmethod
    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Record what `launch` enqueues as a CUDA graph and return a function that enqueues it."""

    @abstractmethod
    def close(self) -> None:
        """Free memory, stream and events."""


def open_cuda() -> Cuda:
    """Open the first GPU by cuda-python, else pycuda; EngineError without either."""
    # cuda.bindings since release 12, cuda.cudart before
    if _is_installed("cuda.bindings") or _is_installed("cuda.cudart"):
        return CudaPython()
    if _is_installed("pycuda"):
        return PyCuda()
    raise EngineError(
        "engine-missing", f"memory and timing on the GPU need cuda-python or pycuda: {INSTALL}"
    )


def has_binding() -> bool:
    """Return True if cuda-python or pycuda is installed."""
    return any(map(_is_installed, ("cuda.bindings", "cuda.cudart", "pycuda")))


def has_gpu() -> bool:
    """Return True if the driver finds a device; loads only the driver."""
    driver = _load_driver()
    # by ctypes: trtexec needs a GPU, but no binding
    count = ctypes.c_int()
    return (
        driver is not None
        and driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def missing_gpu(name: str, install: str) -> str:
    """Return the reason for an engine that finds no GPU."""
    return (
        f"engine {name} needs an NVIDIA GPU with its driver, which was not found; "
        f"on a machine with one: {install}"
    )


def _load_driver() -> Any:
    """Return the driver's library, None without a driver."""
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _is_installed(module: str) -> bool:
    """Return True if a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    # find_spec imports the parent, here "cuda", which may be missing
    except ModuleNotFoundError:
        return False


class CudaPython(Cuda):
    """CUDA by cuda-python's runtime API, whose calls return (status, results...)."""

    graphs = True

    def __init__(self) -> None:
        if _is_installed("cuda.bindings"):
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
        """Handle of the stream."""
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Allocate device memory and return its address."""
        # cudaMalloc of 0 bytes returns a null pointer
        self._memory.append(int(self._call("cudaMalloc", max(size_bytes, 1))))
        return self._memory[-1]

    def upload(self, address: int, values: np.ndarray) -> None:
        """Copy an array to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        source, size = values.ctypes.data, values.nbytes
        # on the stream of the inference, which orders copies and kernels
        self._call("cudaMemcpyAsync", address, source, size, kind, self._stream)
        self.synchronize()

    def download(self, values: np.ndarray, address: int) -> None:
        """Fill an array from the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target, size = values.ctypes.data, values.nbytes
        self._call("cudaMemcpyAsync", target, address, size, kind, self._stream)
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def time_ms(self, launch: Callable[[], None]) -> float:
        """Return the milliseconds between two events."""
        self._call("cudaEventRecord", self._begin, self._stream)
        launch()
        self._call("cudaEventRecord", self._end, self._stream)
        # the end event alone: a device-wide wait would include other streams
        self._call("cudaEventSynchronize", self._end)
        return float(self._call("cudaEventElapsedTime", self._begin, self._end))

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Record a CUDA graph."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            launch()
        except BaseException:
            # a stream that is left in capture mode would fail every later call; the failure of the
            # launch is the cause, that of the end follows from it
            with contextlib.suppress(EngineError):
                self._call("cudaStreamEndCapture", self._stream)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        # the executable graph is a copy
        self._call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self._call("cudaGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """Free graphs, memory, events and the stream."""
        # graphs refer to the memory, so that they are destroyed before it
        for graph in self._graphs:
            self._call("cudaGraphExecDestroy", graph)
        for address in self._memory:
            self._call("cudaFree", address)
        self._graphs, self._memory = [], []
        for event in (self._begin, self._end):
            self._call("cudaEventDestroy", event)
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *values: Any) -> Any:
        """Return the result of a call; EngineError with CUDA's message if it fails."""
        # the status is an enumeration whose success is 0 in all versions
        status, *results = getattr(self._api, name)(*values)
        if int(status) != 0:
            _, text = self._api.cudaGetErrorString(status)
            message = text.decode() if isinstance(text, bytes) else text
            raise EngineError("cuda-failed", f"{name} failed: {message}")
        return results[0] if results else None


class PyCuda(Cuda):
    """CUDA by pycuda's driver API, in the device's primary context, which TensorRT uses too.

    Graphs are those of the driver's library.
    """

    def __init__(self) -> None:
        from pycuda import driver

        self._library = _load_driver()
        self.graphs = self._library is not None and all(
            hasattr(self._library, name) for name in _GRAPH_CALLS
        )
        self._graphs: list[ctypes.c_void_p] = []
        self._driver: Any = driver
        driver.init()
        # a context of its own could not share memory with TensorRT
        self._context = driver.Device(0).retain_primary_context()
        # calls of pycuda need a current context on this thread
        self._context.push()
        self._stream = driver.Stream()
        self._begin, self._end = driver.Event(), driver.Event()
        self._memory: list[Any] = []

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.handle)

    def allocate(self, size_bytes: int) -> int:
        """Allocate device memory and return its address."""
        self._memory.append(self._driver.mem_alloc(max(size_bytes, 1)))
        return int(self._memory[-1])

    def upload(self, address: int, values: np.ndarray) -> None:
        """Copy an array to the device."""
        self._driver.memcpy_htod_async(address, values, self._stream)
        self.synchronize()

    def download(self, values: np.ndarray, address: int) -> None:
        """Fill an array from the device."""
        self._driver.memcpy_dtoh_async(values, address, self._stream)
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def time_ms(self, launch: Callable[[], None]) -> float:
        """Return the milliseconds between two events."""
        self._begin.record(self._stream)
        launch()
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._begin.time_till(self._end))

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Record a CUDA graph."""
        if not self.graphs:
            raise EngineError(
                "cuda-graph",
                "the driver's library has no CUDA graphs (CUDA 11.4 or newer is needed): "
                f"update the driver, or {INSTALL}",
            )
        stream = ctypes.c_void_p(self.stream)
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            launch()
        except BaseException:
            with contextlib.suppress(EngineError):
                self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
            raise
        self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        flags = ctypes.c_ulonglong(0)
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
        self._call("cuGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self._call("cuGraphLaunch", executable, stream)

    def _call(self, name: str, *values: Any) -> None:
        """Call the driver's library; EngineError if it fails."""
        status = getattr(self._library, name)(*values)
        if status:
            raise EngineError("cuda-failed", f"{name} failed: CUDA error {status}")

    def close(self) -> None:
        """Free graphs and memory, and leave the context."""
        for graph in self._graphs:
            self._call("cuGraphExecDestroy", graph)
        self._graphs = []
        for memory in self._memory:
            # freed explicitly: the garbage collector may run after the context is gone
            memory.free()
        self._memory = []
        self._context.pop()
