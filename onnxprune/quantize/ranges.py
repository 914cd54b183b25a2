"""Preparation of float graphs for quantization, and ranges of their activations."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper, save_model, version_converter

from onnxprune.errors import ModelError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.quantize import PER_CHANNEL_OPSET, FeedReader
from onnxprune.scratch import Scratch

Feeds = Mapping[str, np.ndarray]
PERCENTILE = 99.99
BINS = 2048


def prepare(model: Model) -> ModelProto:
    """Return the graph as the quantizer needs it: folded, with shapes, names and biases.

    The opset is raised to the first one with scales per channel if onnx can convert the graph.

    Raises
    ------
    ModelError
        onnxruntime cannot optimize the model.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = ModelProto.FromString(to_bytes(model))
    _name_nodes(proto)
    if model.opset < PER_CHANNEL_OPSET:
        # converters of old operators are incomplete; the caller then quantizes per tensor
        with contextlib.suppress(Exception):
            proto = version_converter.convert_version(proto, PER_CHANNEL_OPSET)
    with Scratch() as folder:
        source, path = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        # from a file, because the tool loses weights of some messages
        save_model(proto, str(source))
        try:
            with quiet_logging():
                # symbolic inference needs sympy and fails on models that run
                quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
        except Exception as problem:  # onnxruntime's exceptions share no base class
            raise ModelError(
                "quantize-failed", f"onnxruntime cannot prepare the model for int8: {problem}"
            ) from problem
        result = ModelProto.FromString(to_bytes(load(path.read_bytes())))
    _name_nodes(result)
    _add_biases(result)
    return result


def _name_nodes(proto: ModelProto) -> None:
    """Give unnamed nodes, and those of a name that is taken, a name; exclusion needs one."""
    taken: set[str] = set()
    for i, node in enumerate(proto.graph.node):
        if not node.name:
            # without a number, so that a pruned model has the same names
            node.name = f"{node.op_type}_{node.output[0]}"
        if node.name in taken:
            node.name = f"{node.op_type}_{i}_{node.output[0]}"
        taken.add(node.name)


def find_nodes(proto: ModelProto, pattern: str) -> list[str]:
    """Return the names of the nodes that a pattern matches by their name or an output's."""
    return [
        node.name
        for node in proto.graph.node
        if any(fnmatchcase(name, pattern) for name in (node.name, *node.output))
    ]


def _add_biases(proto: ModelProto) -> None:
    """Give every convolution a bias, zero if it has none, for the correction of its mean."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "Conv" or node.input[1] not in shapes:
            continue
        if len(node.input) > 2 and node.input[2]:
            continue
        name = f"{node.output[0]}_bias"
        zeros = np.zeros(shapes[node.input[1]][0], np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(zeros, name))
        del node.input[2:]
        node.input.append(name)


def collect_ranges(
    proto: ModelProto, method: str, ops: list[str], symmetric: bool, feeds: Iterable[Feeds]
) -> Any:
    """Return the ranges of the activations, by one of CALIBRATORS.

    Raises
    ------
    ModelError
        onnxruntime cannot collect them.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    options: dict[str, Any] = {"symmetric": symmetric}
    kind = CalibrationMethod.MinMax
    if method == "percentile":
        kind = CalibrationMethod.Percentile
        options |= {"percentile": PERCENTILE, "num_bins": BINS}
    elif method == "entropy":
        kind = CalibrationMethod.Entropy
    with Scratch() as folder:
        path = Path(folder) / "float.onnx"
        save_model(proto, str(path))
        try:
            with quiet_logging():
                calibrator = create_calibrator(
                    path,
                    ops,
                    augmented_model_path=str(Path(folder) / "augmented.onnx"),
                    calibrate_method=kind,
                    extra_options=options,
                )
                # feed by feed, because all activations of a call are kept in memory
                for feed in feeds:
                    calibrator.collect_data(FeedReader(iter([feed])))
                return calibrator.compute_data()
        except Exception as problem:  # onnxruntime's exceptions share no base class
            raise ModelError(
                "quantize-failed", f"onnxruntime cannot collect ranges ({method}): {problem}"
            ) from problem


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence what onnxruntime's tool logs and prints; failures are exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
