"""Preparation of float graphs for quantization, and ranges of their activations."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper, save_model, version_converter

from onnxprune.data.dataset import Data, split
from onnxprune.errors import MOST_NEAR, ModelError, unknown
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.quantize import PER_CHANNEL_OPSET, FeedReader
from onnxprune.scratch import Scratch

Feeds = Mapping[str, np.ndarray]
PERCENTILE = 99.99
BINS = 2048
# Beyond it, 8 bits resolve nothing else; masks add the least float32, or -infinity, to scores.
MOST_VALUE = 1e6
LEAST_SAMPLES = 8  # to hold some of them back
CORRECTION_SAMPLES, CHOICE_SAMPLES = 32, 64
BATCH = 8  # all activations of a batch are in memory


@dataclass(frozen=True)
class Parts:
    """Feeds by purpose; disjoint if there are enough samples."""

    ranges: Sequence[Feeds]
    correction: Sequence[Feeds]
    choice: Data


def split_feeds(data: Data) -> Parts:
    """Split calibration inputs: half for ranges, the rest for biases and for choices."""
    count, batch = len(data.chosen), data.inputs.batch or 1
    if data.flipped or count < max(LEAST_SAMPLES, 4 * batch):
        feeds = list(data.batches(BATCH))
        return Parts(feeds, feeds, data)
    quarter = count // 4 - count // 4 % batch
    ranges, rest = split(data, count - 2 * quarter, 2 * quarter)
    correction, choice = split(rest, quarter, quarter)
    if quarter > CHOICE_SAMPLES and not CHOICE_SAMPLES % batch:
        choice, _ = split(choice, CHOICE_SAMPLES, quarter - CHOICE_SAMPLES)
    feeds, taken = [], 0
    for feed in correction.batches(BATCH):
        if taken >= CORRECTION_SAMPLES:
            break
        feeds.append(feed)
        taken += BATCH
    return Parts(list(ranges.batches(BATCH)), feeds, choice)


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


def match_nodes(proto: ModelProto, patterns: Sequence[str]) -> dict[str, str]:
    """Return node -> reason for the nodes that patterns name.

    Raises
    ------
    UsageError
        A pattern matches nothing.
    """
    excluded: dict[str, str] = {}
    for pattern in patterns:
        names = find_nodes(proto, pattern)
        if not names:
            known = [node.name for node in proto.graph.node if node.op_type in LINEAR_OPS]
            raise unknown("quantize-exclude", pattern, known, code="option-value", most=MOST_NEAR)
        excluded |= dict.fromkeys(names, f"--quantize-exclude {pattern}")
    return excluded


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


def find_unbounded(ranges: Any) -> dict[str, float]:
    """Return tensor -> largest magnitude, of the activations that reach more than MOST_VALUE."""
    largest = {}
    for name, data in ranges.items():
        largest[name] = float(np.max(np.abs(np.asarray(data.range_value, float))))
    return {name: value for name, value in largest.items() if not value <= MOST_VALUE}


def find_masked(
    proto: ModelProto, ops: Sequence[str], unbounded: Mapping[str, float]
) -> dict[str, str]:
    """Return node -> reason to stay in float32, of the nodes of `ops` at unbounded activations."""
    found = {}
    for node in proto.graph.node:
        if node.op_type not in ops:
            continue
        values = [unbounded[n] for n in (*node.input, *node.output) if n in unbounded]
        if values:
            found[node.name] = f"its values reach {max(values):.3g}, as those of masks"
    return found


def collect_ranges(
    proto: ModelProto,
    method: str,
    ops: list[str],
    symmetric: bool,
    feeds: Iterable[Feeds],
    without: Iterable[str] = (),
) -> Any:
    """Return the ranges of the activations, by one of CALIBRATORS, but for those of `without`.

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
                if kind != CalibrationMethod.MinMax:
                    # histograms of infinite ranges have no bins
                    calibrator.tensors_to_calibrate -= set(without)
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
