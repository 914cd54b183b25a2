"""MNN on the CPU, float32 ("high" precision).

Its converter is called through the extension module: the command line tool around it, `mnnconvert`, installs a package and reports each
conversion to its makers.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
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
    LayerTime,
    Source,
    fix_shapes,
    installed_version,
    missing_package,
    open_model,
    refusal,
    require,
    require_precision,
    static_inputs,
    stdout_to_stderr,
)
from onnxprune.engines.kernels import CONTRACTIONS, layer_time, middle_mean, producers, share
from onnxprune.errors import EngineError
from onnxprune.ir.io import save

CONVERT_SECONDS = 300
_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
_SUFFIXES = ("__matmul_converted",)
_PRECISION = {"f32": "high", "bf16": "low", "f16": "low"}


@dataclass(frozen=True)
class Mnn:
    """The MNN package."""

    name: str = "mnn"
    install: str = "pip install MNN"
    library: str = "MNN"

    def available(self) -> str | None:
        found = all(importlib.util.find_spec(module) is not None for module in ("MNN", "_tools"))
        return None if found else missing_package(self.name, "MNN", self.install)

    def version(self) -> str:
        return installed_version("MNN") if self.available() is None else ""

    def compile(self, source: Source, options: EngineOptions) -> Compiled:
        require(self)
        require_precision(self.name, options, *_PRECISION)
        return MnnModel(self.name, source, options)

    def limits(self) -> Mapping[str, str]:
        return {
            "dtype": "float32 or int32 inputs",
            "precision": 'bf16 and f16 are its "low" precision, which the CPU may or may not take up',
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        return 1


class MnnModel(Compiled):
    """An MNN session."""

    def __init__(self, name: str, source: Source, options: EngineOptions) -> None:
        with stdout_to_stderr():  # it prints the CPU's features
            import MNN

        self._name, self._mnn = name, MNN
        self._model = fix_shapes(open_model(source), options.shapes)
        self._inputs = static_inputs(self._model, {})
        self.outputs = tuple(o.name for o in self._model.proto.graph.output)
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            path = Path(folder) / "model.onnx"
            save(self._model, path)
            _convert(name, path)
            self._net = MNN.Interpreter(str(path.with_suffix(".mnn")))
        with stdout_to_stderr():
            self._session = self._net.createSession(
                {
                    "backend": "CPU",
                    "precision": _PRECISION[options.precision],
                    "numThread": options.threads,
                }
            )
        absent = set(self.outputs) - set(self._net.getSessionOutputAll(self._session))
        if absent:
            raise EngineError(
                "engine-refused",
                f"{name} lost the output {min(absent)!r} when it converted the model",
            )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._feed(feeds)
        self._infer()
        found = {}
        for name in self.outputs:
            tensor = self._net.getSessionOutput(self._session, name)
            shape = tuple(tensor.getShape())
            host = self._mnn.Tensor(
                shape,
                tensor.getDataType(),
                np.zeros(shape, np.int32 if self._is_int(tensor) else np.float32),
                self._mnn.Tensor_DimensionType_Caffe,
            )
            tensor.copyToHostTensor(host)
            found[name] = np.array(host.getNumpyData()).reshape(shape)
        return found

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        self._feed(feeds)
        times = []
        for _ in range(count):
            start = time.perf_counter_ns()
            self._infer()
            times.append((time.perf_counter_ns() - start) / 1e6)
        return times

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Times between the callbacks around each operator; the call itself costs about a microsecond and is in them."""
        self._feed(feeds)
        times: dict[tuple[str, str], list[float]] = {}
        started = 0

        def before(_: Any, op: Any) -> bool:
            nonlocal started
            started = time.perf_counter_ns()
            return True

        def after(_: Any, op: Any) -> bool:
            times.setdefault((op.getName(), op.getType()), []).append(
                (time.perf_counter_ns() - started) / 1e6
            )
            return True

        for _ in range(count + 1):
            self._net.runSessionWithCallBackInfo(self._session, before, after)
        kernels = [(name, op, middle_mean(ms[1:] or ms)) for (name, op), ms in times.items()]
        return self._mapped(kernels)

    def _mapped(self, kernels: list[tuple[str, str, float]]) -> tuple[LayerTime, ...]:
        """Kernels are named after the tensor they make; those called ..._raster_N only change the layout."""
        nodes = self._model.proto.graph.node
        producer = producers(nodes)
        anchors: dict[int, tuple[int, ...]] = {}
        cores: dict[int, tuple[str, ...]] = {}
        for index, (name, op, _) in enumerate(kernels):
            tensor = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
            if tensor in producer:
                anchors[index] = (producer[tensor],)
                cores[index] = (
                    tuple(CONTRACTIONS)
                    if "onvolution" in op
                    else (nodes[producer[tensor]].op_type,)
                )
        owners = share(nodes, anchors, cores)
        return tuple(
            layer_time(
                name,
                op,
                ms,
                [nodes[i] for i in sorted(i for i, owner in owners.items() if owner == index)],
            )
            for index, (name, op, ms) in enumerate(kernels)
        )

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        for name, spec in self._inputs.items():
            tensor = self._net.getSessionInput(self._session, name)
            dtype = np.int32 if self._is_int(tensor) else np.float32
            host = self._mnn.Tensor(
                spec.shape,
                tensor.getDataType(),
                np.ascontiguousarray(feeds[name], dtype),
                self._mnn.Tensor_DimensionType_Caffe,
            )
            tensor.copyFrom(host)

    def _infer(self) -> None:
        if self._net.runSession(self._session) != 0:
            raise EngineError("engine-run", f"{self._name} cannot run the model")

    def _is_int(self, tensor: Any) -> bool:
        return tensor.getDataType() == self._mnn.Halide_Type_Int


def _convert(name: str, path: Path) -> None:
    """Write model.mnn beside `path`; EngineError where the converter fails."""
    target = path.with_suffix(".mnn")
    command = [
        sys.executable,
        "-c",
        _CONVERT,
        "-f",
        "ONNX",
        "--modelFile",
        str(path),
        "--MNNModel",
        str(target),
        "--bizCode",
        "onnxprune",
    ]
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
            "engine-refused", f"{name}: the converter did not end within {CONVERT_SECONDS} s"
        ) from None
    if done.returncode != 0 or not target.is_file():
        words = (
            done.stdout.strip() or done.stderr.strip() or f"ended with status {done.returncode}"
        ).splitlines()
        raise refusal(f"{name}'s converter", words[-1])


ENGINE = Mnn()
