"""ncnn on the CPU, from ONNX by the pnnx program.

A graph that ncnn cannot load may end the process instead of failing, so a model is always run in a process of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    Source,
    fix_shapes,
    installed_version,
    missing_package,
    open_model,
    refusal,
    require,
    require_precision,
    static_inputs,
)
from onnxprune.engines.worker import Worker
from onnxprune.errors import EngineError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model, save
from onnxprune.ir.nodes import label, set_attribute
from onnxprune.ir.passes.canonicalize import canonicalize

CHANNELS = 16  # packs 16 channels with AVX-512
CONVERT_SECONDS = 300
_TYPES = {
    "float32": "f32",
    "float16": "f16",
    "int32": "i32",
    "int64": "i64",
    "int8": "i8",
    "uint8": "u8",
    "bool": "u8",
}


@dataclass(frozen=True)
class Ncnn:
    """The ncnn package and the pnnx converter."""

    name: str = "ncnn"
    install: str = "pip install ncnn && pip install --no-deps pnnx"
    library: str = "ncnn"

    def available(self) -> str | None:
        if importlib.util.find_spec("ncnn") is None:
            return missing_package(self.name, "ncnn", self.install)
        if converter() is None:
            return missing_package(self.name, "the pnnx converter", self.install)
        return None

    def version(self) -> str:
        return installed_version("ncnn") if self.available() is None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        require(self)
        return Worker(self.name, source, options)

    def compile_here(self, source: Source, options: EngineOptions) -> Compiled:
        """The model in this process, which a graph that ncnn dislikes may end."""
        require(self)
        require_precision(self.name, options, "f32", "bf16")
        return NcnnModel(self.name, source, options)

    def limits(self) -> Mapping[str, str]:
        return {
            "batch": "one sample at a time",
            "dtype": "float32 inputs and outputs; no quantized ONNX graphs",
            "layers": "no time of single layers: the packaged library is built without its benchmark",
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        return CHANNELS


class NcnnModel(Compiled):
    """A loaded network; inputs are named in0, in1, ... by pnnx, outputs out0, out1, ..."""

    def __init__(self, name: str, source: Source, options: EngineOptions) -> None:
        import ncnn

        self._name = name
        model = slices_as_pools(canonicalize(fix_shapes(open_model(source), options.shapes)))
        self._inputs = static_inputs(model, {})
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._shapes = {
            o.name: tuple(d.dim_value for d in o.type.tensor_type.shape.dim)
            for o in model.proto.graph.output
        }
        for input_name, spec in self._inputs.items():
            if spec.dtype != np.float32 or spec.shape[:1] != (1,):
                raise EngineError(
                    "engine-refused",
                    f"{name} takes float32 inputs of batch 1; {input_name!r} is {spec.dtype} {list(spec.shape)}",
                )
        _check_gathers(name, model)
        self._net: Any = ncnn.Net()
        self._net.opt.num_threads = options.threads
        self._net.opt.use_fp16_packed = self._net.opt.use_fp16_storage = (
            self._net.opt.use_fp16_arithmetic
        ) = False
        self._net.opt.use_bf16_storage = options.precision == "bf16"
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            _convert(
                name,
                path,
                ",".join(
                    f"[{','.join(map(str, s.shape))}]{_TYPES[s.dtype.name]}"
                    for s in self._inputs.values()
                ),
            )
            parameters = path.with_suffix(".ncnn.param")
            if unknown := _unknown_layers(parameters):
                raise EngineError(
                    "engine-refused",
                    f"{name} has no {', '.join(unknown)}, which pnnx leaves in the model",
                )
            if (
                self._net.load_param(str(parameters)) != 0
                or self._net.load_model(str(path.with_suffix(".ncnn.bin"))) != 0
            ):
                raise EngineError(
                    "engine-refused", f"{name} cannot load what pnnx made of the model"
                )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._infer(self._mats(feeds))
        return {
            name: self._array(name, mat) for name, mat in zip(self.outputs, found, strict=False)
        }

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        mats, times = self._mats(feeds), []
        for _ in range(count):
            start = time.perf_counter_ns()
            self._infer(mats)
            times.append((time.perf_counter_ns() - start) / 1e6)
        return times

    def close(self) -> None:
        self._net.clear()

    def _mats(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Inputs without the batch axis, in the order of the graph."""
        import ncnn

        return [ncnn.Mat(np.ascontiguousarray(feeds[name][0])).clone() for name in self._inputs]

    def _infer(self, mats: list[Any]) -> list[Any]:
        with self._net.create_extractor() as extractor:
            for index, mat in enumerate(mats):
                extractor.input(f"in{index}", mat)
            found = [extractor.extract(f"out{index}") for index in range(len(self.outputs))]
        failed = [
            name for name, (status, _) in zip(self.outputs, found, strict=False) if status != 0
        ]
        if failed:
            raise EngineError("engine-run", f"{self._name} cannot compute output {failed[0]!r}")
        return [mat for _, mat in found]

    def _array(self, name: str, mat: Any) -> np.ndarray:
        """The values in the ONNX shape: the batch axis, which ncnn has not, comes back."""
        values = np.array(mat)
        shape = self._shapes[name]
        if shape and 0 not in shape and int(np.prod(shape)) == values.size:
            return values.reshape(shape)
        return values[None]


def slices_as_pools(model: Model) -> Model:
    """A copy in which every n-th row or column of an image is taken by pooling over one pixel: pnnx leaves a Slice with steps as it is."""
    copy, known = model.edit(), infer(model)
    for node in copy.proto.graph.node:
        shape = (
            known.shape(node.input[0]) if node.op_type == "Slice" and len(node.input) == 5 else None
        )
        bounds = [known.value(name) for name in node.input[1:]]
        if (
            shape is None
            or len(shape) != 4
            or any(value is None or value.size != 1 for value in bounds)
        ):
            continue
        start, end, axis, step = (int(value.item()) for value in bounds if value is not None)
        length = shape[axis]
        if axis % 4 < 2 or step < 2 or start != 0 or not isinstance(length, int) or end < length:
            continue
        del node.input[1:]
        node.op_type = "MaxPool"
        for name, values in (
            ("kernel_shape", [1, 1]),
            ("strides", [step if axis % 4 == place else 1 for place in (2, 3)]),
            ("pads", [0, 0, 0, 0]),
        ):
            set_attribute(node, name, values)
    return copy.freeze()


def _check_gathers(name: str, model: Model) -> None:
    """EngineError for a Gather of several positions: pnnx makes a crop of one of it, which computes something else."""
    for node in model.proto.graph.node:
        index = model.weights.get(node.input[1]) if node.op_type == "Gather" else None
        if (
            index is not None
            and node.input[0] not in model.weights
            and int(np.prod(index.shape)) > 1
        ):
            count = int(np.prod(index.shape))
            raise EngineError(
                "engine-refused",
                f"{name} has no Gather of {count} positions ({label(node)}), such as a channel shuffle becomes when it is cut",
            )


def _unknown_layers(parameters: Path) -> list[str]:
    """Layer types in a .param file that ncnn has not; its own message names only the first, on stderr."""
    import ncnn

    rows = parameters.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
    types = dict.fromkeys(row.split()[0] for row in rows if row.strip())
    return [kind for kind in types if ncnn.layer_to_index(kind) < 0]


def converter() -> str | None:
    """Path of the pnnx program: the one inside of its Python package (importing that would load torch), or on the PATH."""
    spec = importlib.util.find_spec("pnnx")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (program := Path(folder) / "pnnx").is_file():
            return str(program)
    return shutil.which("pnnx")


def _convert(name: str, path: Path, shapes: str) -> None:
    """Write model.ncnn.param and model.ncnn.bin beside `path`; EngineError where pnnx fails."""
    program = converter()
    if program is None:
        raise EngineError(
            "engine-missing", missing_package(name, "the pnnx converter", Ncnn().install)
        )
    command = [program, str(path), f"inputshape={shapes}", "fp16=0"]
    try:
        done = subprocess.run(
            command,
            cwd=path.parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONVERT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            "engine-refused", f"{name}: pnnx did not end within {CONVERT_SECONDS} s"
        ) from None
    if done.returncode != 0 or not path.with_suffix(".ncnn.param").is_file():
        words = (
            done.stderr.strip() or done.stdout.strip() or f"ended with status {done.returncode}"
        ).splitlines()
        raise refusal(f"{name}'s converter pnnx", words[-1])


ENGINE = Ncnn()
