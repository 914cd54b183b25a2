"""MNN on the CPU, in float32 ("high" precision).

Its converter is called through the extension module: the command line tool around it, `mnnconvert`,
installs a package and reports each conversion to its makers.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.engines.base import (
    Compiled,
    EngineOptions,
    LayerTime,
    Source,
    fix_shapes,
    installed_version,
    missing_package,
    open_model,
    require,
    require_precision,
    static_inputs,
    stdout_to_stderr,
)
from onnxprune.engines.convert import run_converter
from onnxprune.engines.kernels import (
    CONTRACTIONS,
    assemble_layers,
    assign_nodes,
    interquartile_mean,
    producers,
)
from onnxprune.errors import EngineError
from onnxprune.ir.io import save
from onnxprune.scratch import Scratch

# in a process of its own, which run_converter can end after a limit of time
_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
# MNN converts a MatMul to a convolution, and names it after the tensor with this suffix
_SUFFIX = "__matmul_converted"
_PRECISION = {"f32": "high", "bf16": "low", "f16": "low"}


@dataclass(frozen=True)
class Mnn:
    """The MNN package."""

    name: str = "mnn"
    install: str = "pip install MNN"
    library: str = "MNN"

    def available(self) -> str | None:
        """Return None if the package and its converter are installed, else the reason."""
        modules = ("MNN", "_tools")
        if all(importlib.util.find_spec(module) is not None for module in modules):
            return None
        return missing_package(self.name, "MNN", self.install)

    def version(self) -> str:
        """Return MNN's version, "" if it is not installed."""
        return installed_version("MNN") if self.available() is None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        """Return a session."""
        require(self)
        require_precision(self.name, options, *_PRECISION)
        return MnnModel(self.name, source, options)

    def limits(self) -> Mapping[str, str]:
        """Return limits of data types and precision."""
        return {
            "dtype": "float32 or int32 inputs",
            "precision": 'bf16 and f16 are its "low" precision, which a CPU may ignore',
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return 1: no width is known to be slow."""
        return 1


class MnnModel(Compiled):
    """An MNN session."""

    def __init__(self, name: str, source: Source, options: EngineOptions) -> None:
        # MNN prints the CPU's features when it is imported
        with stdout_to_stderr():
            import MNN

        self._name, self._mnn = name, MNN
        self.computes_here = options.threads == 1
        # MNN allocates for static shapes when the session is created
        self._model = fix_shapes(open_model(source), options.shapes)
        self._inputs = static_inputs(self._model, {})
        self.outputs = tuple(o.name for o in self._model.proto.graph.output)
        with Scratch() as folder:
            path = Path(folder) / "model.onnx"
            save(self._model, path)
            self._net = MNN.Interpreter(str(_convert(name, path)))
        settings = {
            "backend": "CPU",
            "precision": _PRECISION[options.precision],
            "numThread": options.threads,
        }
        with stdout_to_stderr():
            self._session = self._net.createSession(settings)
        # its converter may drop an output without an error
        absent = set(self.outputs) - set(self._net.getSessionOutputAll(self._session))
        if absent:
            raise EngineError(
                "engine-refused", f"{name}'s converter dropped output {min(absent)!r} of the model"
            )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        self._feed(feeds)
        self._infer()
        outputs = {}
        for name in self.outputs:
            tensor = self._net.getSessionOutput(self._session, name)
            shape = tuple(tensor.getShape())
            # a copy to a tensor in ONNX's layout: MNN's own packs channels by four
            host = self._make_tensor(tensor, shape, np.zeros(shape, self._dtype(tensor)))
            tensor.copyToHostTensor(host)
            outputs[name] = np.array(host.getNumpyData()).reshape(shape)
        return outputs

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Copy the inputs; return a call that infers."""
        self._feed(feeds)
        return self._infer

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the times between callbacks around each operator.

        They include the calls, about a microsecond each.
        """
        self._feed(feeds)
        times: dict[tuple[str, str], list[float]] = {}
        started = 0

        def before(_: Any, op: Any) -> bool:
            nonlocal started
            # returning True tells MNN to run the operator
            started = time.perf_counter_ns()
            return True

        def after(_: Any, op: Any) -> bool:
            elapsed_ms = (time.perf_counter_ns() - started) / 1e6
            times.setdefault((op.getName(), op.getType()), []).append(elapsed_ms)
            return True

        for _ in range(count + 1):
            self._net.runSessionWithCallBackInfo(self._session, before, after)
        # the first inference is warm-up
        kernels = [(name, op, interquartile_mean(ms[1:] or ms)) for (name, op), ms in times.items()]
        return self._map_kernels(kernels)

    def _map_kernels(self, kernels: list[tuple[str, str, float]]) -> tuple[LayerTime, ...]:
        """Return the kernels with their nodes.

        Kernels are named after the tensor they compute; those called ..._raster_N only change the
        layout.
        """
        nodes = self._model.proto.graph.node
        producer = producers(nodes)
        anchors: dict[int, tuple[int, ...]] = {}
        cores: dict[int, tuple[str, ...]] = {}
        for index, (name, op, _) in enumerate(kernels):
            node = producer.get(name.removesuffix(_SUFFIX))
            if node is None:
                continue
            anchors[index] = (node,)
            # Convolution, ConvolutionDepthwise, Deconvolution: their activations are fused
            convolution = "onvolution" in op
            cores[index] = tuple(CONTRACTIONS) if convolution else (nodes[node].op_type,)
        return assemble_layers(kernels, assign_nodes(nodes, anchors, cores), nodes)

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the session."""
        for name, spec in self._inputs.items():
            tensor = self._net.getSessionInput(self._session, name)
            values = np.ascontiguousarray(feeds[name], self._dtype(tensor))
            tensor.copyFrom(self._make_tensor(tensor, spec.shape, values))

    def _infer(self) -> None:
        """Run the session."""
        if self._net.runSession(self._session) != 0:
            raise EngineError("engine-run", f"{self._name} cannot run the model")

    def _dtype(self, tensor: Any) -> type[np.int32] | type[np.float32]:
        """Return the numpy type of a tensor."""
        integer = tensor.getDataType() == self._mnn.Halide_Type_Int
        return np.int32 if integer else np.float32

    def _make_tensor(self, like: Any, shape: tuple[int, ...], values: np.ndarray) -> Any:
        """Return a host tensor in ONNX's layout with the data type of another one."""
        layout = self._mnn.Tensor_DimensionType_Caffe
        return self._mnn.Tensor(shape, like.getDataType(), values, layout)


def _convert(name: str, path: Path) -> Path:
    """Convert a model and return the path of the result."""
    output = path.with_suffix(".mnn")
    files = ["--modelFile", str(path), "--MNNModel", str(output)]
    # --bizCode: a label that MNN stores in the file
    command = [sys.executable, "-c", _CONVERT, "-f", "ONNX", *files, "--bizCode", "onnxprune"]
    run_converter(f"{name}'s converter", command, output, errors_first=False)
    return output


ENGINE = Mnn()
