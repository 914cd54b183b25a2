"""Compile and time models for a remote caller, over JSON lines on stdin and stdout.

One file, standard library only, Python 3.8 or newer; ssh starts it or a user copies it. A message
is a line of JSON; its key "bytes" counts the raw bytes that follow. Nothing listens on the network.
`python3 agent.py --facts` prints what it finds and ends.
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

PROTOCOL = 2
# runtime -> (module, provider of onnxruntime)
RUNTIMES = {
    "onnxruntime": ("onnxruntime", "CPUExecutionProvider"),
    "onnxruntime-cuda": ("onnxruntime", "CUDAExecutionProvider"),
    "onnxruntime-tensorrt": ("onnxruntime", "TensorrtExecutionProvider"),
    "openvino": ("openvino", ""),
}
TRTEXEC = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
TOOL_S = 1700.0  # building a large model on a small board takes many minutes
LANES = {"avx512f": 16, "avx2": 8}  # float32 values per vector register
CPUS = "/sys/devices/system/cpu/cpu*/"
# counters of over-current events on Jetson boards and of thermal throttling on x86
EVENTS = ("/sys/class/hwmon/hwmon*/oc*_event_cnt", CPUS + "thermal_throttle/core_throttle_count")
# Raspberry Pi: the low four bits are under-voltage, capped, throttled, soft limit at this moment
PI_FLAGS = "/sys/devices/platform/soc/soc:firmware/get_throttled"
JETSON_MODE = "/var/lib/nvpmodel/status"


class Refused(Exception):
    """A request that cannot be served; its text is one sentence."""


def read_text(path: str) -> str:
    """Return a small file's text, "" if it cannot be read."""
    return read_bytes(path).decode("utf-8", "replace").strip("\0 \n")


def read_bytes(path: str) -> bytes:
    """Return a file's content, b"" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def read_numbers(patterns: Iterable[str]) -> list[int]:
    """Return the numbers in all files that match the patterns."""
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    texts = [read_text(path) for path in paths]
    return [int(text) for text in texts if text.lstrip("-").isdigit()]


def find_trtexec() -> str:
    """Return the path of trtexec, "" if it is missing."""
    return shutil.which("trtexec") or next((p for p in TRTEXEC if os.access(p, os.X_OK)), "")


def find_runtimes() -> tuple[dict[str, str], dict[str, str]]:
    """Return runtime -> version of those that load, and runtime -> reason of those that fail."""
    found: dict[str, str] = {}
    broken: dict[str, str] = {}
    for name, (module, provider) in RUNTIMES.items():
        if importlib.util.find_spec(module) is None:
            continue
        try:
            library = importlib.import_module(module)
        # a wheel of another architecture or Python raises any type
        except Exception as problem:
            broken[name] = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
            continue
        if not provider or provider in library.get_available_providers():
            found[name] = str(getattr(library, "__version__", "unknown"))
    if find_trtexec():
        found["tensorrt"] = "trtexec"
    return found, broken


def count_lanes() -> int:
    """Return the float32 values per vector register of this CPU."""
    text = read_text("/proc/cpuinfo")
    return next((lanes for flag, lanes in LANES.items() if flag in text), 4)


def read_state() -> dict[str, Any]:
    """Return power mode, clocks, temperatures and throttling where the system reports them."""
    mode = read_text(JETSON_MODE) or read_text(
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    )
    # a few, because the kernel asks each CPU for its clock
    clocks = read_numbers(["/sys/devices/system/cpu/cpu[0-7]/cpufreq/scaling_cur_freq"])
    heat = read_numbers(["/sys/class/thermal/thermal_zone*/temp"])
    flags = read_text(PI_FLAGS)
    try:
        limited = int(flags, 16) & 0xF if flags else 0
    except ValueError:
        limited = 0
    return {
        "mode": mode.splitlines()[0] if mode else "",
        "clocks_mhz": [value / 1e3 for value in clocks],
        "temperatures": [value / 1e3 for value in heat],
        "throttled": sum(read_numbers(EVENTS)),
        "limited": limited,
    }


def describe_machine() -> dict[str, Any]:
    """Return what results of this machine depend on."""
    runtimes, broken = find_runtimes()
    return {
        "protocol": PROTOCOL,
        "runtimes": runtimes,
        "broken": broken,
        "machine": platform.machine(),
        "board": read_text("/proc/device-tree/model") or platform.processor(),
        "lanes": count_lanes(),
        "host": platform.node(),
        "state": read_state(),
    }


class OnnxRuntimeModel:
    """An onnxruntime session."""

    def __init__(self, path: str, options: dict[str, Any], provider: str) -> None:
        self.path, self.options, self.provider = path, options, provider
        self.computes_here = provider == "CPUExecutionProvider" and options["threads"] == 1
        self.session = self.open()
        self.outputs = [o.name for o in self.session.get_outputs()]

    def open(self, profile: str = "") -> Any:
        """Return a session, which writes its profile and its graph below a prefix if given."""
        runtime = importlib.import_module("onnxruntime")
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = self.options["threads"]
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        names = {"off": "DISABLE_ALL", "all": "ENABLE_ALL"}
        level = self.options["level"]
        settings.graph_optimization_level = getattr(
            runtime.GraphOptimizationLevel, "ORT_" + names.get(level, "ENABLE_" + level.upper())
        )
        if profile:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile
            settings.optimized_model_filepath = profile + ".onnx"
        session = runtime.InferenceSession(self.path, settings, providers=[self.provider])
        # onnxruntime silently falls back to the CPU
        if self.provider not in session.get_providers():
            raise Refused("onnxruntime fell back to " + session.get_providers()[0])
        return session

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """Run one inference and return the outputs in order."""
        return list(self.session.run(None, feeds))

    def profile(self, feeds: dict[str, Any], count: int) -> tuple[dict[str, Any], bytes]:
        """Return onnxruntime's profile and optimized graph, which the caller maps to nodes."""
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            session = self.open(os.path.join(folder, "profile"))
            skip = min(3, max(1, count // 5))
            for _ in range(skip + count):
                session.run(None, feeds)
            events = read_bytes(session.end_profiling())
            graph = read_bytes(os.path.join(folder, "profile.onnx"))
        return {"kind": "onnxruntime", "skip": skip, "events": len(events)}, events + graph


class OpenVinoModel:
    """A model that OpenVINO compiled for the CPU."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.path, self.options = path, options
        self.computes_here = options["threads"] == 1
        # the caller's names: OpenVINO may give an output several
        self.outputs = options["outputs"]
        self.request = self.compile(False).create_infer_request()

    def compile(self, profile: bool) -> Any:
        """Return a compiled model, with counters if it is for a profile."""
        options, core = self.options, importlib.import_module("openvino").Core()
        hint = {"int8": "f32"}.get(options["precision"], options["precision"])
        needed = {"bf16": "BF16", "f16": "FP16"}.get(hint)
        # without this check OpenVINO silently computes in float32
        if needed and needed not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Refused("the device's CPU has no " + hint + "; pass --precision f32")
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": options["threads"],
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": profile,
        }
        return core.compile_model(core.read_model(self.path), "CPU", settings)

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """Run one inference and return copies of the outputs in order."""
        self.request.infer(feeds)
        return [self.request.get_tensor(name).data.copy() for name in self.outputs]

    def profile(self, feeds: dict[str, Any], count: int) -> tuple[dict[str, Any], bytes]:
        """Return (operator, kind, milliseconds) of each inference and the nodes of operators."""
        compiled = self.compile(True)
        request = compiled.create_infer_request()
        request.infer(feeds)
        times = []
        for _ in range(count):
            request.infer(feeds)
            for kernel in request.get_profiling_info():
                # operators that were optimized out are listed with a time of 0
                if kernel.status == kernel.Status.EXECUTED:
                    ms = kernel.real_time.total_seconds() * 1e3
                    times.append((kernel.node_name, kernel.node_type, ms))
        origins = {}
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            if "originalLayersNames" in info:
                names = info["originalLayersNames"].astype(str).split(",")
                origins[op.get_friendly_name()] = names
        return {"kind": "openvino", "times": times, "origins": origins}, b""


def open_model(runtime: str, path: str, options: dict[str, Any]) -> Any:
    """Return a compiled model."""
    if runtime == "openvino":
        return OpenVinoModel(path, options)
    return OnnxRuntimeModel(path, options, RUNTIMES[runtime][1])


def time_model(model: Any, feeds: dict[str, Any], count: int) -> list[tuple[float, float]]:
    """Time consecutive inferences by the wall clock and by the CPU clock of this thread."""
    times = []
    for _ in range(count):
        cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
        model.run(feeds)
        wall_ns = time.perf_counter_ns() - wall_ns
        cpu_ns = time.thread_time_ns() - cpu_ns
        # with threads, or on an accelerator, this thread's clock misses the work
        times.append((wall_ns / 1e6, (cpu_ns if model.computes_here else wall_ns) / 1e6))
    return times


class Agent:
    """State between requests."""

    def __init__(self) -> None:
        self.folder = ""
        self.models: dict[int, Any] = {}
        self.feeds: dict[int, dict[str, Any]] = {}
        self.made = 0

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Carry out a request and return the answer and its bytes."""
        command = request["command"]
        if command == "hello":
            return describe_machine(), b""
        if command == "compile":
            return self.compile(request, data), b""
        if command == "tool":
            return self.call_tool(request, data)
        if command == "remove":
            shutil.rmtree(os.path.join(self.open_folder(), request["place"]), ignore_errors=True)
            return {}, b""
        handle = request["handle"]
        if command == "feed":
            self.feeds[handle] = unpack(request["tensors"], data)
            return {}, b""
        if command == "release":
            self.release(handle)
            return {}, b""
        model, feeds = self.models[handle], self.feeds[handle]
        if command == "run":
            return pack(model.run(feeds))
        if command == "sample":
            before, times = read_state(), time_model(model, feeds, request["count"])
            return {"times": times, "states": [before, read_state()]}, b""
        if command == "profile":
            return model.profile(feeds, request["count"])
        raise Refused("unknown command " + repr(command))

    def compile(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Compile a model and return its handle, unique per compilation."""
        name, options = request["runtime"], request["options"]
        found, broken = find_runtimes()
        if name not in found:
            listed = broken.get(name) or "found: " + (", ".join(found) or "none")
            raise Refused("runtime " + name + " is not there; " + listed)
        self.made += 1
        path = self.write(str(self.made) + ".onnx", data)
        try:
            self.models[self.made] = open_model(name, path, options)
        except BaseException:
            os.unlink(path)
            raise
        return {"handle": self.made, "outputs": self.models[self.made].outputs}

    def release(self, handle: int) -> None:
        """Forget a model and remove its file."""
        self.models.pop(handle, None)
        self.feeds.pop(handle, None)
        path = os.path.join(self.folder, str(handle) + ".onnx")
        if os.path.exists(path):
            os.unlink(path)

    def call_tool(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Run trtexec in the folder of a model with files that were sent; return those asked for.

        @FOLDER@ in a flag stands for the folder, @SHARED@ for that of all models.
        """
        program = find_trtexec()
        if not program:
            raise Refused("trtexec is not there")
        at, folder = 0, os.path.join(self.open_folder(), request["place"])
        os.makedirs(folder, exist_ok=True)
        for name, size in request["files"]:
            self.write(os.path.join(request["place"], name), data[at : at + size])
            at += size
        for name in request["fetch"]:
            # a file of an earlier call must not pass for the result of this one
            if os.path.exists(os.path.join(folder, name)):
                os.unlink(os.path.join(folder, name))
        flags = [flag.replace("@FOLDER@", folder) for flag in request["flags"]]
        flags = [flag.replace("@SHARED@", self.folder) for flag in flags]
        before = read_state()
        try:
            done = subprocess.run(
                [program] + flags,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TOOL_S,
            )
        except subprocess.TimeoutExpired:
            raise Refused("trtexec did not finish within " + str(TOOL_S) + " s") from None
        parts = [read_bytes(os.path.join(folder, name)) for name in request["fetch"]]
        engine = os.path.join(folder, "model.engine")
        answer = {
            "status": done.returncode,
            "output": done.stdout.decode("utf-8", "replace"),
            "sizes": [len(part) for part in parts],
            "engine_bytes": os.path.getsize(engine) if os.path.exists(engine) else 0,
            "states": [before, read_state()],
        }
        return answer, b"".join(parts)

    def open_folder(self) -> str:
        """Return the folder for models, which is made when the first is sent."""
        if not self.folder:
            try:
                self.folder = tempfile.mkdtemp(prefix="onnxprune-")
            except OSError as problem:
                reason = problem.strerror or str(problem)
                raise Refused("cannot make a temporary folder: " + reason) from None
        return self.folder

    def write(self, name: str, data: bytes) -> str:
        """Write a file into the folder and return its path."""
        path = os.path.join(self.open_folder(), name)
        try:
            with open(path, "wb") as file:
                file.write(data)
        except OSError as problem:
            if os.path.exists(path):
                os.unlink(path)
            size, folder = str(len(data) // 1000000 + 1), os.path.dirname(path)
            reason = problem.strerror or str(problem)
            raise Refused("cannot write " + size + " MB to " + folder + ": " + reason) from None
        return path

    def close(self) -> None:
        """Remove all files."""
        self.models.clear()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def unpack(tensors: list[Any], data: bytes) -> dict[str, Any]:
    """Return the arrays of a message."""
    numpy = importlib.import_module("numpy")
    feeds, at = {}, 0
    for name, dtype, shape in tensors:
        end = at + int(numpy.prod(shape, dtype="int64")) * numpy.dtype(dtype).itemsize
        feeds[name] = numpy.frombuffer(data[at:end], dtype).reshape(shape).copy()
        at = end
    return feeds


def pack(arrays: list[Any]) -> tuple[dict[str, Any], bytes]:
    """Return the description and the bytes of arrays."""
    described = [[a.dtype.str, list(a.shape)] for a in arrays]
    return {"tensors": described}, b"".join(a.tobytes() for a in arrays)


def leave_pipes(answers: int) -> None:
    """Close the pipes in a process that a runtime has forked, which may outlive the agent."""
    for pipe in (0, answers):
        os.close(pipe)
    # its lock, held by the agent while it reads, is never released there
    sys.stdin = None


def main() -> None:
    """Answer requests until stdin closes."""
    if "--facts" in sys.argv[1:]:
        print(json.dumps(describe_machine(), indent=1))
        return
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints must not mix with the answers
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: leave_pipes(out.fileno()))
    agent = Agent()
    try:
        while True:
            line = sys.stdin.buffer.readline()
            if not line:
                return
            request = json.loads(line.decode("utf-8"))
            data = sys.stdin.buffer.read(request.get("bytes", 0))
            try:
                value, payload = agent.answer(request, data)
            except Exception as problem:  # runtimes raise any type
                lines = str(problem).strip().splitlines() or [type(problem).__name__]
                value, payload = {"error": lines[0][:300]}, b""
            value["bytes"] = len(payload)
            out.write(json.dumps(value).encode("utf-8") + b"\n" + payload)
            out.flush()
    # the caller ended the connection during an answer
    except (BrokenPipeError, KeyboardInterrupt):
        return
    finally:
        agent.close()


if __name__ == "__main__":
    main()
