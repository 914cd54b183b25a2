"""TensorRT by its command line tool, for machines without the Python bindings.

Every block of inferences is a process that loads the engine again: measuring takes longer than with
the bindings, the results are the same.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

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
from onnxprune.engines.cuda import has_gpu, missing_gpu
from onnxprune.engines.tensorrt import MULTIPLES
from onnxprune.engines.trt_layers import layer_times
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import EngineError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model, save

PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
# trtexec's own default
WARMUP_MS = 200
SECONDS = 1800  # building a large model on a small board takes many minutes
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
        return TrtExecModel(path, fix_shapes(open_model(source), options.shapes), options)

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


class TrtExecModel(Compiled):
    """An engine file and a folder for what trtexec writes."""

    def __init__(self, program_path: str, model: Model, options: EngineOptions) -> None:
        self._program, self._model, self._options = program_path, model, options
        self._known = help_text(program_path)
        self._inputs = static_inputs(model, {})
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._temporary = tempfile.TemporaryDirectory(prefix="onnxprune-")
        self._folder = Path(self._temporary.name)
        # flags are looked up in the help text: which ones exist depends on the version
        needs_half = options.precision == "f16" and "--fp16" not in self._known
        save(to_half(model) if needs_half else model, self._folder / "model.onnx")
        flags = precision_flags(options.precision, self._known)
        # the engine is built once, and every later call loads it
        problem = self._call([*flags, *self._build_flags()])
        if problem is not None:
            raise refusal("trtexec", problem)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        path = self._make_path("output.json")
        # by default trtexec runs for three seconds
        flags = ["--iterations=1", "--warmUp=0", "--duration=0", f"--exportOutput={path}"]
        self._run([*self._load_flags(feeds), *flags])
        rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        try:
            return {name: values(rows[name]) for name in self.outputs}
        except KeyError as problem:
            raise EngineError("engine-run", f"trtexec wrote no output {problem}") from problem

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time inferences on the device, without copies."""
        path = self._make_path("times.json")
        flags = [f for f in ("--useSpinWait", "--noDataTransfers") if f in self._known]
        if self._options.cuda_graph and "--useCudaGraph" in self._known:
            flags.append("--useCudaGraph")
        flags += [f"--iterations={count}", f"--warmUp={WARMUP_MS}", "--duration=0"]
        self._run([*self._load_flags({}), *flags, f"--exportTimes={path}"])
        times = parse_times(path.read_text(encoding="utf-8"))
        # exportTimes starts with the warm-up
        return [float(ms) for ms in times.latency_ms[-count:]]

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per layer."""
        path = self._make_path("profile.json")
        flags = [f"--iterations={count}", f"--warmUp={WARMUP_MS}", "--duration=0"]
        self._run([*self._load_flags({}), *flags, f"--exportProfile={path}"])
        times = parse_profile(path.read_text(encoding="utf-8"))
        information = (self._folder / "layers.json").read_text(encoding="utf-8")
        return layer_times(information, times, self._model.proto)

    def device_memory_bytes(self) -> int | None:
        """Return the size of the engine file; trtexec does not report its scratch memory."""
        return (self._folder / "model.engine").stat().st_size

    def close(self) -> None:
        """Remove the folder."""
        self._temporary.cleanup()

    def _build_flags(self) -> list[str]:
        """Return the flags that build an engine file."""
        flags = [
            f"--onnx={self._folder / 'model.onnx'}",
            f"--saveEngine={self._folder / 'model.engine'}",
            f"--exportLayerInfo={self._folder / 'layers.json'}",
        ]
        # without it, layers are names and cannot be mapped to nodes
        if "--profilingVerbosity" in self._known:
            flags.append("--profilingVerbosity=detailed")
        # --buildOnly before version 8.6
        flags.append("--skipInference" if "--skipInference" in self._known else "--buildOnly")
        if self._options.cache is not None:
            self._options.cache.mkdir(parents=True, exist_ok=True)
            flags.append(f"--timingCacheFile={self._options.cache / 'trtexec.timing'}")
        return flags

    def _load_flags(self, feeds: Mapping[str, np.ndarray]) -> list[str]:
        """Return the flags that load engine and inputs; trtexec invents inputs without a file."""
        flags = [f"--loadEngine={self._folder / 'model.engine'}"]
        named = []
        for index, (name, array) in enumerate(feeds.items()):
            path = self._make_path(f"input{index}.bin")
            path.write_bytes(np.ascontiguousarray(array, self._inputs[name].dtype).tobytes())
            # quotes, because names of exported models hold colons and slashes
            named.append(f"'{name}':{path}")
        return flags + ([f"--loadInputs={','.join(named)}"] if named else [])

    def _make_path(self, name: str) -> Path:
        """Return a path in the folder after removing a file there."""
        path = self._folder / name
        # a file of an earlier call must not pass for the result of a call that wrote none
        path.unlink(missing_ok=True)
        return path

    def _run(self, flags: Sequence[str]) -> None:
        """Run the engine; EngineError if it fails."""
        problem = self._call(flags)
        if problem is not None:
            raise EngineError("engine-run", f"trtexec cannot run the model: {problem[:300]}")

    def _call(self, flags: Sequence[str]) -> str | None:
        """Call trtexec; return its first error, None if it succeeds."""
        try:
            done = subprocess.run(
                [self._program, *flags],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(
                "engine-refused", f"trtexec did not finish within {SECONDS} s"
            ) from None
        if done.returncode == 0:
            return None
        lines = (done.stdout + done.stderr).splitlines()
        # the first error is the cause, later ones follow from it
        errors = [line.partition("[E]")[2].strip() for line in lines if "[E]" in line]
        return errors[0] if errors else f"exited with status {done.returncode}"


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
    done = subprocess.run(
        [program_path, "--help"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
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


def precision_flags(precision: str, known: str) -> list[str]:
    """Return the flags of a precision; version 11 has none, the graph decides.

    Parameters
    ----------
    known
        trtexec's help text.
    """
    if precision == "f32":
        return ["--noTF32"] if "--noTF32" in known else []
    if precision == "bf16" and "--bf16" not in known:
        raise EngineError(
            "engine-precision",
            "this trtexec runs bf16 only from a bfloat16 graph; pass --precision f16",
        )
    flags = {"f16": ("--fp16",), "bf16": ("--bf16",), "int8": ("--int8", "--fp16")}
    return [flag for flag in flags[precision] if flag in known]


def values(row: Mapping[str, object]) -> np.ndarray:
    """Return an output of --exportOutput: {"name", "dimensions": "1x10", "values": [...]}."""
    dimensions = [int(d) for d in re.findall(r"\d+", str(row.get("dimensions", "")))]
    array = np.asarray(row["values"], np.float32)
    return array.reshape(dimensions) if int(np.prod(dimensions)) == array.size else array


ENGINE = TrtExec()
