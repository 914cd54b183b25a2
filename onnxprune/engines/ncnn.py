"""ncnn on the CPU; models are converted by the pnnx program.

A graph that ncnn cannot load may crash the process, so that a model always runs in a separate one.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    Source,
    TensorSpec,
    fix_shapes,
    installed_version,
    missing_package,
    open_model,
    require,
    require_precision,
    static_inputs,
)
from onnxprune.engines.convert import run_converter
from onnxprune.engines.worker import Worker
from onnxprune.errors import EngineError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model, save
from onnxprune.ir.nodes import label, set_attribute
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.scratch import Scratch

CHANNELS = 16  # channels per pack with AVX-512
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
        """Return None if package and converter are installed, else the reason and the fix."""
        if importlib.util.find_spec("ncnn") is None:
            return missing_package(self.name, "ncnn", self.install)
        if find_converter() is None:
            return missing_package(self.name, "the pnnx converter", self.install)
        return None

    def version(self) -> str:
        """Return ncnn's version, "" if it is not available."""
        return installed_version("ncnn") if self.available() is None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Return a model in a separate process."""
        require(self)
        return Worker(self.name, source, options)

    def compile_here(self, source: Source, options: EngineOptions) -> Compiled:
        """Return a model in this process, which an unsupported graph may crash."""
        require(self)
        require_precision(self.name, options, "f32", "bf16")
        return NcnnModel(self.name, source, options)

    def limits(self) -> Mapping[str, str]:
        """Return limits of batch, data types and profiling."""
        return {
            "batch": "one sample per run",
            "dtype": "float32 inputs and outputs; no quantized ONNX graphs",
            "layers": "no times per layer: the package is built without ncnn's benchmark option",
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the channels per pack."""
        return CHANNELS


class NcnnModel(Compiled):
    """A loaded network; pnnx names its inputs in0, in1, ... and its outputs out0, out1, ..."""

    def __init__(self, name: str, source: Source, options: EngineOptions) -> None:
        import ncnn

        self._name = name
        self.computes_here = options.threads == 1
        # functions are inlined and shape arithmetic is folded before pnnx reads the graph
        model = slices_as_pools(canonicalize(fix_shapes(open_model(source), options.shapes)))
        self._inputs = static_inputs(model, {})
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._shapes = {
            o.name: tuple(d.dim_value for d in o.type.tensor_type.shape.dim)
            for o in model.proto.graph.output
        }
        # before the conversion, which would take seconds in vain
        _check_inputs(name, self._inputs)
        _check_gathers(name, model)
        self._net: Any = ncnn.Net()
        # options count only if they are set before the network is loaded
        settings = self._net.opt
        settings.num_threads = options.threads
        # by default ncnn computes in float16 if the CPU supports it
        settings.use_fp16_packed = False
        settings.use_fp16_storage = False
        settings.use_fp16_arithmetic = False
        settings.use_bf16_storage = options.precision == "bf16"
        with Scratch() as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            self._load(*_convert(name, path, self._inputs))

    def _load(self, parameters: Path, weights: Path) -> None:
        """Load a converted network; EngineError if ncnn lacks a layer."""
        unknown = _list_unknown_layers(parameters)
        if unknown:
            raise EngineError(
                "engine-refused",
                f"{self._name} does not implement {', '.join(unknown)}, "
                "which pnnx leaves in the model",
            )
        if self._net.load_param(str(parameters)) != 0 or self._net.load_model(str(weights)) != 0:
            raise EngineError(
                "engine-refused", f"{self._name} cannot load the model that pnnx converted"
            )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        # pnnx keeps the order of the graph's outputs, so that they are matched by position
        mats = self._infer(self._to_mats(feeds))
        return {
            name: self._to_array(name, mat) for name, mat in zip(self.outputs, mats, strict=True)
        }

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Copy the inputs; return a call that infers."""
        # an extractor does not change its inputs, so that they are copied once
        return partial(self._infer, self._to_mats(feeds))

    def close(self) -> None:
        """Release the network."""
        self._net.clear()

    def _to_mats(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the inputs without the batch axis, in the order of the graph."""
        import ncnn

        # a Mat refers to the memory of the array, which ends with this call; a clone owns a copy
        return [ncnn.Mat(np.ascontiguousarray(feeds[name][0])).clone() for name in self._inputs]

    def _infer(self, mats: list[Any]) -> list[Any]:
        """Run the network and return its outputs."""
        # a new one per inference: an extractor keeps the blobs it has computed
        with self._net.create_extractor() as extractor:
            for index, mat in enumerate(mats):
                extractor.input(f"in{index}", mat)
            results = [extractor.extract(f"out{index}") for index in range(len(self.outputs))]
        for name, (status, _) in zip(self.outputs, results, strict=True):
            if status != 0:
                raise EngineError("engine-run", f"{self._name} cannot compute output {name!r}")
        return [mat for _, mat in results]

    def _to_array(self, name: str, mat: Any) -> np.ndarray:
        """Return the values in the ONNX shape, with the batch axis that ncnn lacks."""
        # ncnn may drop axes of length 1, so that only the number of values is compared
        values = np.array(mat)
        shape = self._shapes[name]
        if shape and 0 not in shape and int(np.prod(shape)) == values.size:
            return values.reshape(shape)
        return values[None]


def slices_as_pools(model: Model) -> Model:
    """Return a copy in which a Slice of every n-th row or column of an image is a pooling.

    pnnx does not convert a Slice with steps. A MaxPool over one pixel with that stride computes the
    same.
    """
    copy, known = model.edit(), infer(model)
    for node in copy.proto.graph.node:
        if node.op_type != "Slice" or len(node.input) != 5:
            continue
        shape = known.shape(node.input[0])
        # start, end, axis and step must all be constants
        bounds = [known.value(name) for name in node.input[1:]]
        scalars = [int(value.item()) for value in bounds if value is not None and value.size == 1]
        if shape is None or len(shape) != 4 or len(scalars) != 4:
            continue
        # the end of a full axis is often the largest int64, beyond its length
        start, end, axis, step = scalars
        length = shape[axis]
        # only rows or columns (axes 2 and 3), from the first to the last
        if axis % 4 < 2 or step < 2 or start != 0 or not isinstance(length, int) or end < length:
            continue
        del node.input[1:]
        node.op_type = "MaxPool"
        set_attribute(node, "kernel_shape", [1, 1])
        set_attribute(node, "strides", [step if axis % 4 == place else 1 for place in (2, 3)])
        set_attribute(node, "pads", [0, 0, 0, 0])
    return copy.freeze()


def _check_inputs(name: str, inputs: Mapping[str, TensorSpec]) -> None:
    """Raise EngineError for inputs that are not float32 with a batch of 1."""
    for input_name, spec in inputs.items():
        if spec.dtype != np.float32 or spec.shape[:1] != (1,):
            raise EngineError(
                "engine-refused",
                f"{name} takes float32 inputs with a batch of 1; "
                f"{input_name!r} is {spec.dtype} {list(spec.shape)}",
            )


def _check_gathers(name: str, model: Model) -> None:
    """Raise EngineError for a Gather of several positions, which pnnx converts to a wrong crop."""
    for node in model.proto.graph.node:
        index = model.weights.get(node.input[1]) if node.op_type == "Gather" else None
        if index is None or node.input[0] in model.weights:
            continue
        count = int(np.prod(index.shape))
        if count > 1:
            raise EngineError(
                "engine-refused",
                f"{name} does not support a Gather of {count} positions ({label(node)}); "
                "pruning turns a channel shuffle into one",
            )


def _list_unknown_layers(parameters: Path) -> list[str]:
    """Return the layer types in a .param file that ncnn does not implement.

    ncnn's own message names only the first, on stderr.
    """
    import ncnn

    rows = parameters.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
    # the first two lines hold a magic number and counts
    types = dict.fromkeys(row.split()[0] for row in rows if row.strip())
    return [kind for kind in types if ncnn.layer_to_index(kind) < 0]


def find_converter() -> str | None:
    """Return the path of the pnnx program: inside its Python package, else on PATH.

    The package is not imported, which would load torch.
    """
    spec = importlib.util.find_spec("pnnx")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        program = Path(folder) / "pnnx"
        if program.is_file():
            return str(program)
    return shutil.which("pnnx")


def _convert(name: str, path: Path, inputs: Mapping[str, TensorSpec]) -> tuple[Path, Path]:
    """Convert a model; return the paths of parameters and weights."""
    program = find_converter()
    if program is None:
        raise EngineError(
            "engine-missing", missing_package(name, "the pnnx converter", Ncnn().install)
        )
    shapes = ",".join(
        f"[{','.join(map(str, spec.shape))}]{_TYPES[spec.dtype.name]}" for spec in inputs.values()
    )
    # fp16=0: pnnx halves the weights by default, which would count as a difference
    command = [program, str(path), f"inputshape={shapes}", "fp16=0"]
    parameters = path.with_suffix(".ncnn.param")
    run_converter(f"{name}'s converter pnnx", command, parameters, errors_first=True)
    return parameters, path.with_suffix(".ncnn.bin")


ENGINE = Ncnn()
