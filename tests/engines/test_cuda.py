"""Device memory, events and graphs by both bindings, against stand-ins.

test_tensorrt_bindings.py checks that the real bindings have the names.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxprune.engines import cuda
from onnxprune.errors import EngineError

DRIVER = """
static int recording, graphs, launched;
int cuInit(unsigned f) { return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuStreamBeginCapture_v2(void *s, int mode) { recording = 1; return s == 0 || mode != 1; }
int cuStreamEndCapture(void *s, void **g) {
    if (!recording) return 901;
    recording = 0; *g = &graphs; return 0;
}
int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) {
    graphs++; *e = &launched; return g != &graphs || f;
}
int cuGraphDestroy(void *g) { return g != &graphs; }
int cuGraphLaunch(void *e, void *s) { launched++; return e != &launched || s == 0; }
int cuGraphExecDestroy(void *e) { graphs--; return e != &launched; }
int state(void) { return graphs * 100 + launched; }
"""


class Device:
    """Device of both stand-ins: memory by address, a clock that advances 0.25 ms per launch."""

    def __init__(self) -> None:
        self.memory: dict[int, bytearray] = {}
        self.clock = 0.0
        self.open = 0

    def allocate(self, size: int) -> int:
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = bytearray(size)
        return address

    def copy_in(self, address: int, source: int, size: int) -> None:
        self.memory[address][:size] = ctypes.string_at(source, size)

    def copy_out(self, target: int, address: int, size: int) -> None:
        ctypes.memmove(target, bytes(self.memory[address][:size]), size)


def runtime(device: Device, fails: str = "") -> ModuleType:
    """cuda.bindings.runtime: every call returns (status, results...)."""

    class Api(ModuleType):
        cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("cuda"):
                raise AttributeError(name)
            return lambda *values: (2,) if name == fails else (0, *self.answer(name, values))

        def answer(self, name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
            if name in ("cudaStreamCreate", "cudaEventCreate"):
                device.open += 1
                return (SimpleNamespace(at=0.0, __int__=lambda: 7) if "Event" in name else 7,)
            if name in (
                "cudaStreamDestroy",
                "cudaEventDestroy",
                "cudaFree",
                "cudaGraphExecDestroy",
            ):
                device.open -= 1
            if name == "cudaMalloc":
                device.open += 1
                return (device.allocate(values[0]),)
            if name == "cudaMemcpyAsync":
                device.copy_in(*values[:3]) if values[3] == 1 else device.copy_out(*values[:3])
            if name == "cudaEventRecord":
                values[0].at = device.clock
            if name == "cudaEventElapsedTime":
                return (values[1].at - values[0].at,)
            if name == "cudaGraphInstantiate":
                device.open += 1
            if name == "cudaGraphLaunch":
                device.clock += 0.25
            return (
                ("graph",)
                if name in ("cudaStreamEndCapture", "cudaGraphInstantiate")
                else (b"out of memory",)
                if name == "cudaGetErrorString"
                else ()
            )

    return Api("cuda.bindings.runtime")


def driver(device: Device) -> ModuleType:
    """pycuda.driver."""

    class Event:
        def record(self, stream: Any) -> None:
            self.at = device.clock

        def synchronize(self) -> None:
            pass

        def time_till(self, other: Any) -> float:
            return float(other.at - self.at)

    class Memory(int):
        def free(self) -> None:
            device.open -= 1

    def mem_alloc(size: int) -> Memory:
        device.open += 1
        return Memory(device.allocate(size))

    driver = ModuleType("pycuda.driver")
    context = SimpleNamespace(push=lambda: None, pop=lambda: None)
    for name, value in {
        "init": lambda: None,
        "Device": lambda index: SimpleNamespace(retain_primary_context=lambda: context),
        "Event": Event,
        "mem_alloc": mem_alloc,
        "Stream": lambda: SimpleNamespace(handle=7, synchronize=lambda: None),
        "memcpy_htod_async": lambda address, values, stream: device.copy_in(
            address, values.ctypes.data, values.nbytes
        ),
        "memcpy_dtoh_async": lambda values, address, stream: device.copy_out(
            values.ctypes.data, address, values.nbytes
        ),
    }.items():
        setattr(driver, name, value)
    return driver


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """A driver's library that counts."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")], check=True
    )
    monkeypatch.setattr(cuda, "_DRIVERS", (str(library),))
    return ctypes.CDLL(str(library))


@pytest.fixture(params=["cuda", "pycuda"])
def opened(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL
) -> tuple[cuda.Cuda, Device]:
    """Either binding, opened as the engine does."""
    device = Device()
    monkeypatch.setattr(
        cuda,
        "_is_installed",
        lambda module: module.startswith(request.param + ("." if request.param == "cuda" else "")),
    )
    top = ModuleType(request.param)
    if request.param == "cuda":
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = runtime(device)  # type: ignore[attr-defined]
        for name, value in {"cuda": top, "cuda.bindings": bindings}.items():
            monkeypatch.setitem(sys.modules, name, value)
    else:
        top.driver = driver(device)  # type: ignore[attr-defined]
        for name, value in {"pycuda": top, "pycuda.driver": top.driver}.items():
            monkeypatch.setitem(sys.modules, name, value)
    return cuda.open_cuda(), device


def test_memory_is_copied_both_ways_and_released(opened: tuple[cuda.Cuda, Device]) -> None:
    device_api, device = opened
    assert cuda.has_binding() and cuda.has_gpu() and device_api.stream == 7
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    address, empty = device_api.allocate(values.nbytes), device_api.allocate(0)
    assert len(device.memory[empty]) == 1
    device_api.upload(address, values)
    back = np.zeros_like(values)
    device_api.download(back, address)
    assert np.array_equal(back, values)

    def launch() -> None:
        device.clock += 0.5

    assert device_api.time_ms(launch) == 0.5
    device_api.synchronize()
    device_api.close()
    assert device.open == 0


def test_a_graph_is_recorded_once_and_launched_repeatedly(
    opened: tuple[cuda.Cuda, Device], library: ctypes.CDLL
) -> None:
    device_api, device = opened
    launches = 0

    def launch() -> None:
        nonlocal launches
        launches += 1

    assert device_api.graphs
    again = device_api.capture(launch)
    for _ in range(3):
        again()
    assert launches == 1
    assert device.clock == 0.75 or library.state() == 103
    device_api.close()
    assert library.state() in (0, 3) and device.open == 0


def test_pycuda_without_graphs_in_the_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    top = ModuleType("pycuda")
    top.driver = driver(Device())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", top)
    monkeypatch.setattr(cuda, "_DRIVERS", ())
    device_api = cuda.PyCuda()
    assert not device_api.graphs and not cuda.has_gpu()
    with pytest.raises(EngineError, match="no CUDA graphs"):
        device_api.capture(lambda: None)


def test_a_failed_call_quotes_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = runtime(Device(), fails="cudaMalloc")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setattr(cuda, "_is_installed", lambda module: module == "cuda.bindings")
    with pytest.raises(EngineError, match="cudaMalloc failed: out of memory"):
        cuda.open_cuda().allocate(10)


def test_a_missing_binding_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_is_installed", lambda module: False)
    with pytest.raises(EngineError, match="pip install cuda-python"):
        cuda.open_cuda()
