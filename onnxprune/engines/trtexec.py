"""TensorRT by its command line tool, for machines without the Python bindings.

Every block of inferences is a process that loads the engine again: measuring takes longer than with
the bindings, the results are the same.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import helper

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    LayerTime,
    Source,
    fix_shapes,
    missing_package,
    open_model,
    refusal,
    require,
    require_precision,
    static_inputs,
)
from onnxprune.engines.convert import run_program
from onnxprune.engines.cuda import has_gpu, missing_gpu
from onnxprune.engines.tensorrt import MULTIPLES, holds_bfloat16
from onnxprune.engines.trt_layers import layer_times
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import EngineError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model, save
from onnxprune.scratch import Scratch

PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
# trtexec's own default
WARMUP_MS = 200
ENGINE_FILE = "model.engine"
SECONDS = 1800  # building a large model on a small board takes many minutes
HELP_SECONDS = 60
_FLOAT = np.dtype(np.float32)
_VERSION = re.compile(r"\[TensorRT v(\d+)\]")
_INSTALL = (
    "install NVIDIA's TensorRT package (apt-get install libnvinfer-bin; on a Jetson it comes with "
    "JetPack) and put trtexec on the PATH"
)


@dataclass(frozen=True)
class TrtExec:
    """NVIDIA's trtexec."""

    name: str = "trtexec"
    install: str = _INSTALL

    def available(self) -> str | None:
        """Return None if trtexec and a GPU are found, else the reason and the fix."""
        if program() is None:
            return missing_package(self.name, "the trtexec program", self.install)
        return None if has_gpu() else missing_gpu(self.name, self.install)

    def version(self) -> str:
        """Return TensorRT's version, "" if trtexec is not installed."""
        path = program()
        return release(help_text(path)) if path is not None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Build an engine file."""
        require(self)
        require_precision(self.name, options, *MULTIPLES)
        path = program()
        if path is None:
            raise EngineError(
                "engine-missing", missing_package(self.name, "the trtexec program", self.install)
            )
        tool = LocalTool(path, options.cache)
        return TrtExecModel(tool, fix_shapes(open_model(source), options.shapes), options)

    def limits(self) -> Mapping[str, str]:
        """Return limits of the precision."""
        return {
            "precision": (
                "from version 11 on the graph decides: bf16 needs a bfloat16 graph; "
                "int8 needs Q/DQ in every version"
            )
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the channels per tile of a tensor core."""
        return MULTIPLES.get(dtype, MULTIPLES["f16"])


@dataclass(frozen=True)
class ToolResult:
    """What a call of the program gives.

    Attributes
    ----------
    status, output
        Exit status and what it printed.
    files
        Contents of the files that were asked for; empty for one that it did not write.
    engine_bytes
        Size of the engine file, 0 without one.
    """

    status: int
    output: str
    files: tuple[bytes, ...]
    engine_bytes: int = 0


class Tool(Protocol):
    """The program and a folder for its files, on this machine or another.

    In flags, @FOLDER@ stands for the folder and @SHARED@ for that of the timing cache.
    """

    def read_help(self) -> str:
        """Return what --help prints, which lists the flags of this version."""

    def save(self, model: Model) -> None:
        """Write model.onnx into the folder."""

    def call(
        self, flags: Sequence[str], files: Mapping[str, bytes], fetch: Sequence[str]
    ) -> ToolResult:
        """Write files into the folder, run the program and read files."""

    def close(self) -> None:
        """Remove the folder."""


class LocalTool:
    """trtexec on this machine."""

    def __init__(self, program_path: str, cache: Path | None = None) -> None:
        self._program = program_path
        self._temporary = Scratch()
        self._folder = Path(self._temporary.name)
        self._shared = cache or self._folder

    def read_help(self) -> str:
        """Return what --help prints."""
        return help_text(self._program)

    def save(self, model: Model) -> None:
        """Write model.onnx into the folder."""
        save(model, self._folder / "model.onnx")

    def call(
        self, flags: Sequence[str], files: Mapping[str, bytes], fetch: Sequence[str]
    ) -> ToolResult:
        """Write files into the folder, run the program and read files."""
        for name, data in files.items():
            (self._folder / name).write_bytes(data)
        paths = [self._folder / name for name in fetch]
        for path in paths:
            # a file of an earlier call must not pass for the result of a call that wrote none
            path.unlink(missing_ok=True)
        self._shared.mkdir(parents=True, exist_ok=True)
        places = {"@FOLDER@": str(self._folder), "@SHARED@": str(self._shared)}
        command = [self._program]
        for flag in flags:
            for mark, place in places.items():
                flag = flag.replace(mark, place)
            command.append(flag)
        done = run_program("trtexec", command, SECONDS)
        results = tuple(path.read_bytes() if path.is_file() else b"" for path in paths)
        engine = self._folder / ENGINE_FILE
        size = engine.stat().st_size if engine.is_file() else 0
        return ToolResult(done.returncode, done.stdout + done.stderr, results, size)

    def close(self) -> None:
        """Remove the folder."""
        self._temporary.cleanup()


class TrtExecModel(Compiled):
    """An engine file that trtexec built, and the tool that loads it."""

    def __init__(self, tool: Tool, model: Model, options: EngineOptions) -> None:
        self._tool, self._model, self._options = tool, model, options
        self._known = tool.read_help()
        self._inputs = static_inputs(model, {})
        self._types = {
            o.name: np.dtype(helper.tensor_dtype_to_np_dtype(o.type.tensor_type.elem_type))
            for o in model.proto.graph.output
        }
        self.outputs = tuple(self._types)
        try:
            # flags are looked up in the help text: which ones exist depends on the version
            needs_half = options.precision == "f16" and "--fp16" not in self._known
            flags = precision_flags(options.precision, self._known, holds_bfloat16(model))
            tool.save(to_half(model) if needs_half else model)
            # the engine is built once, and every later call loads it
            result = tool.call([*flags, *self._build_flags()], {}, ("layers.json",))
            if result.status:
                raise refusal("trtexec", _find_error(result))
            self._layers, self._size = result.files[0], result.engine_bytes
        # the folder must not outlive a model that was never built
        except BaseException:
            tool.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        # by default trtexec runs for three seconds
        flags = ["--iterations=1", "--warmUp=0", "--duration=0"]
        load, files = self._load(feeds)
        text = self._run([*load, *flags, "--exportOutput=@FOLDER@/output.json"], files, "output")
        rows = {row["name"]: row for row in json.loads(text)}
        try:
            return {name: values(rows[name], self._types[name]) for name in self.outputs}
        except KeyError as problem:
            raise EngineError("engine-run", f"trtexec wrote no output {problem}") from problem

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time inferences on the device, without copies."""
        flags = [f for f in ("--useSpinWait", "--noDataTransfers") if f in self._known]
        if self._options.cuda_graph and "--useCudaGraph" in self._known:
            flags.append("--useCudaGraph")
        flags += [f"--iterations={count}", f"--warmUp={WARMUP_MS}", "--duration=0"]
        load, files = self._load(feeds)
        text = self._run([*load, *flags, "--exportTimes=@FOLDER@/times.json"], files, "times")
        # exportTimes starts with the warm-up
        return [float(ms) for ms in parse_times(text).latency_ms[-count:]]

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per layer."""
        flags = [f"--iterations={count}", f"--warmUp={WARMUP_MS}", "--duration=0"]
        load, files = self._load(feeds)
        flags = [*load, *flags, "--exportProfile=@FOLDER@/profile.json"]
        times = parse_profile(self._run(flags, files, "profile"))
        return layer_times(self._layers.decode(errors="replace"), times, self._model.proto)

    def device_memory_bytes(self) -> int | None:
        """Return the size of the engine file; trtexec does not report its scratch memory."""
        return self._size

    def close(self) -> None:
        """Remove the folder."""
        self._tool.close()

    def _build_flags(self) -> list[str]:
        """Return the flags that build an engine file."""
        flags = [
            "--onnx=@FOLDER@/model.onnx",
            f"--saveEngine=@FOLDER@/{ENGINE_FILE}",
            "--exportLayerInfo=@FOLDER@/layers.json",
        ]
        # without it, layers are names and cannot be mapped to nodes
        if "--profilingVerbosity" in self._known:
            flags.append("--profilingVerbosity=detailed")
        # --buildOnly before version 8.6
        flags.append("--skipInference" if "--skipInference" in self._known else "--buildOnly")
        if self._options.cache is not None:
            flags.append("--timingCacheFile=@SHARED@/trtexec.timing")
        return flags

    def _load(self, feeds: Mapping[str, np.ndarray]) -> tuple[list[str], dict[str, bytes]]:
        """Return the flags that load engine and inputs, and the files of the inputs.

        trtexec invents inputs without a file.
        """
        named, files = [], {}
        for index, (name, array) in enumerate(feeds.items()):
            files[f"input{index}.bin"] = np.ascontiguousarray(
                array, self._inputs[name].dtype
            ).tobytes()
            # quotes, because names of exported models hold colons and slashes
            named.append(f"'{name}':@FOLDER@/input{index}.bin")
        flags = [f"--loadEngine=@FOLDER@/{ENGINE_FILE}"]
        return flags + ([f"--loadInputs={','.join(named)}"] if named else []), files

    def _run(self, flags: Sequence[str], files: Mapping[str, bytes], result: str) -> str:
        """Run the engine and return a file that it wrote; EngineError if it fails."""
        done = self._tool.call(flags, files, (f"{result}.json",))
        if done.status or not done.files[0]:
            reason = _find_error(done) if done.status else f"it wrote no {result}.json"
            raise EngineError("engine-run", f"trtexec cannot run the model: {reason[:300]}")
        return done.files[0].decode(errors="replace")


def _find_error(result: ToolResult) -> str:
    """Return the first error that trtexec printed, else its exit status."""
    # the first error is the cause, later ones follow from it
    for line in result.output.splitlines():
        _, mark, text = line.partition("[E]")
        if mark:
            return text.strip()
    return f"exited with status {result.status}"


def program() -> str | None:
    """Return the path of trtexec: on the PATH, else where NVIDIA's packages install it."""
    path = shutil.which("trtexec")
    if path is not None:
        return path
    # NVIDIA's packages do not add their folder to the PATH
    return next((place for place in PLACES if Path(place).is_file()), None)


@lru_cache(maxsize=4)
def help_text(program_path: str) -> str:
    """Return what trtexec --help prints, which lists the flags of this version."""
    done = run_program("trtexec", [program_path, "--help"], HELP_SECONDS)
    return done.stdout + done.stderr


def release(text: str) -> str:
    """Return the version in trtexec's banner, "" without one.

    It is "10.3.0" for "[TensorRT v100300]" and "8.6.1" for "[TensorRT v8601]".
    """
    match = _VERSION.search(text)
    if match is None:
        return ""
    # one number for all parts, without separators
    number = int(match[1])
    # from version 10 on the numbers have two digits each
    high, low = (10000, 100) if number >= 100_000 else (1000, 100)
    return f"{number // high}.{number % high // low}.{number % low}"


def precision_flags(precision: str, known: str, bfloat16: bool = False) -> list[str]:
    """Return the flags of a precision; version 11 has none, the graph decides.

    Parameters
    ----------
    known
        trtexec's help text.
    bfloat16
        Whether the graph is one of bfloat16.
    """
    if precision == "f32":
        return ["--noTF32"] if "--noTF32" in known else []
    if precision == "bf16" and "--bf16" not in known and not bfloat16:
        raise EngineError(
            "engine-precision",
            "this trtexec runs bf16 only from a bfloat16 graph; pass --precision f16",
        )
    flags = {"f16": ("--fp16",), "bf16": ("--bf16",), "int8": ("--int8", "--fp16")}
    return [flag for flag in flags[precision] if flag in known]


def values(row: Mapping[str, Any], dtype: np.dtype = _FLOAT) -> np.ndarray:
    """Return an output of --exportOutput: {"name", "dimensions": "1x10", "values": [...]}.

    Parameters
    ----------
    dtype
        Type of the output in the graph; JSON numbers have none.
    """
    dimensions = [int(d) for d in re.findall(r"\d+", str(row.get("dimensions", "")))]
    array = np.asarray(row["values"]).astype(dtype)
    return array.reshape(dimensions) if int(np.prod(dimensions)) == array.size else array


ENGINE = TrtExec()
