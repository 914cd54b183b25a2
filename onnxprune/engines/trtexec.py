"""TensorRT by its command line tool, for machines without the Python bindings.

Every block of inferences is a process that loads the engine again: slower to measure with than the bindings, and equal in what it measures.
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
from onnxprune.engines.cuda import has_gpu
from onnxprune.engines.tensorrt import MULTIPLES
from onnxprune.engines.trt_layers import layer_times
from onnxprune.engines.trt_logs import parse_profile, parse_times
from onnxprune.errors import EngineError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model, save

PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
WARMUP_MS = 200
SECONDS = 1800  # an engine of a large model on a small board takes many minutes to build
_VERSION = re.compile(r"\[TensorRT v(\d+)\]")


@dataclass(frozen=True)
class TrtExec:
    """NVIDIA's trtexec."""

    name: str = "trtexec"
    install: str = "install NVIDIA's TensorRT package (apt-get install libnvinfer-bin; on a Jetson it comes with JetPack) and put trtexec on the PATH"

    def available(self) -> str | None:
        if program() is None:
            return missing_package(self.name, "the trtexec program", self.install)
        return (
            None
            if has_gpu()
            else f"engine {self.name} needs an NVIDIA GPU with its driver, none is found; with one: {self.install}"
        )

    def version(self) -> str:
        found = program()
        return release(help_text(found)) if found is not None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        require(self)
        require_precision(self.name, options, *MULTIPLES)
        found = program()
        if found is None:
            raise EngineError(
                "engine-missing", missing_package(self.name, "the trtexec program", self.install)
            )
        return TrtExecModel(found, fix_shapes(open_model(source), options.shapes), options)

    def limits(self) -> Mapping[str, str]:
        return {
            "precision": "from version 11 on the graph decides: bf16 needs a bfloat16 graph, int8 needs Q/DQ in every version"
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        return MULTIPLES.get(dtype, MULTIPLES["f16"])


class TrtExecModel(Compiled):
    """An engine file, and a folder for what trtexec writes."""

    def __init__(self, program_path: str, model: Model, options: EngineOptions) -> None:
        self._program, self._model, self._options = program_path, model, options
        self._known = help_text(program_path)
        self._inputs = static_inputs(model, {})
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._temporary = tempfile.TemporaryDirectory(prefix="onnxprune-")
        self._folder = Path(self._temporary.name)
        half = options.precision == "f16" and "--fp16" not in self._known
        save(to_half(model) if half else model, self._folder / "model.onnx")
        self._call(
            "rejects the model",
            [*precision_flags(options.precision, self._known), *self._build_flags()],
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        target = self._file("output.json")
        self._call(
            "cannot run the model",
            [
                *self._load(feeds),
                "--iterations=1",
                "--warmUp=0",
                "--duration=0",
                f"--exportOutput={target}",
            ],
        )
        rows = {row["name"]: row for row in json.loads(target.read_text(encoding="utf-8"))}
        try:
            return {name: values(rows[name]) for name in self.outputs}
        except KeyError as problem:
            raise EngineError("engine-run", f"trtexec wrote no output {problem}") from problem

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        target = self._file("times.json")
        quick = [flag for flag in ("--useSpinWait", "--noDataTransfers") if flag in self._known]
        quick += (
            ["--useCudaGraph"]
            if self._options.cuda_graph and "--useCudaGraph" in self._known
            else []
        )
        timing = [
            f"--iterations={count}",
            f"--warmUp={WARMUP_MS}",
            "--duration=0",
            f"--exportTimes={target}",
        ]
        self._call("cannot run the model", [*self._load({}), *quick, *timing])
        return [
            float(ms) for ms in parse_times(target.read_text(encoding="utf-8")).latency_ms[-count:]
        ]

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        target = self._file("profile.json")
        self._call(
            "cannot run the model",
            [
                *self._load({}),
                f"--iterations={count}",
                f"--warmUp={WARMUP_MS}",
                "--duration=0",
                f"--exportProfile={target}",
            ],
        )
        times = parse_profile(target.read_text(encoding="utf-8"))
        return layer_times(
            (self._folder / "layers.json").read_text(encoding="utf-8"), times, self._model.proto
        )

    def device_memory_bytes(self) -> int | None:
        """The engine file alone; trtexec does not write down its scratch memory."""
        return (self._folder / "model.engine").stat().st_size

    def close(self) -> None:
        self._temporary.cleanup()

    def _build_flags(self) -> list[str]:
        flags = [
            f"--onnx={self._folder / 'model.onnx'}",
            f"--saveEngine={self._folder / 'model.engine'}",
            f"--exportLayerInfo={self._folder / 'layers.json'}",
        ]
        flags += ["--profilingVerbosity=detailed"] if "--profilingVerbosity" in self._known else []
        flags += ["--skipInference"] if "--skipInference" in self._known else ["--buildOnly"]
        if self._options.cache is not None:
            self._options.cache.mkdir(parents=True, exist_ok=True)
            flags.append(f"--timingCacheFile={self._options.cache / 'trtexec.timing'}")
        return flags

    def _load(self, feeds: Mapping[str, np.ndarray]) -> list[str]:
        """Flags that load the engine and the inputs; trtexec makes up those that are not given."""
        flags = [f"--loadEngine={self._folder / 'model.engine'}"]
        named = []
        for index, (name, array) in enumerate(feeds.items()):
            path = self._file(f"input{index}.bin")
            path.write_bytes(np.ascontiguousarray(array, self._inputs[name].dtype).tobytes())
            named.append(f"'{name}':{path}")
        return flags + ([f"--loadInputs={','.join(named)}"] if named else [])

    def _file(self, name: str) -> Path:
        """A path in the folder that does not exist yet."""
        path = self._folder / name
        path.unlink(missing_ok=True)
        return path

    def _call(self, failed: str, flags: Sequence[str]) -> None:
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
            raise EngineError("engine-refused", f"trtexec did not end within {SECONDS} s") from None
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).splitlines()
            said = [line.partition("[E]")[2].strip() for line in lines if "[E]" in line]
            reason = said[0] if said else f"ended with status {done.returncode}"
            if failed.startswith("rejects"):
                raise refusal("trtexec", reason)
            raise EngineError("engine-run", f"trtexec {failed}: {reason[:300]}")


def program() -> str | None:
    """Path of trtexec: on the PATH, or where NVIDIA's packages put it."""
    return shutil.which("trtexec") or next(
        (place for place in PLACES if Path(place).is_file()), None
    )


@lru_cache(maxsize=4)
def help_text(program_path: str) -> str:
    """What trtexec --help prints: which flags this version has."""
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
    """ "10.3.0" from the banner "[TensorRT v100300]", "8.6.1" from "[TensorRT v8601]"; "" without a banner."""
    found = _VERSION.search(text)
    if found is None:
        return ""
    number = int(found[1])
    high, low = (10000, 100) if number >= 100_000 else (1000, 100)
    return f"{number // high}.{number % high // low}.{number % low}"


def precision_flags(precision: str, known: str) -> list[str]:
    """Flags of version 10 for a precision; from 11 on they are gone and the graph decides. `known`: the help text."""
    if precision == "f32":
        return ["--noTF32"] if "--noTF32" in known else []
    if precision == "bf16" and "--bf16" not in known:
        raise EngineError(
            "engine-precision",
            "this trtexec runs bf16 only from a bfloat16 graph; use --precision f16",
        )
    wanted = {"f16": ("--fp16",), "bf16": ("--bf16",), "int8": ("--int8", "--fp16")}[precision]
    return [flag for flag in wanted if flag in known]


def values(row: Mapping[str, object]) -> np.ndarray:
    """An output of --exportOutput: {"name", "dimensions": "1x10", "values": [...]}."""
    dimensions = [int(d) for d in re.findall(r"\d+", str(row.get("dimensions", "")))]
    array = np.asarray(row["values"], np.float32)
    return array.reshape(dimensions) if int(np.prod(dimensions)) == array.size else array


ENGINE = TrtExec()
