"""Layers of a model at candidate widths, for a bundle that times them, and the table they give."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

import onnxprune
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.deploy.bundle import Files, script
from onnxprune.deploy.targets.reports import load_json
from onnxprune.engines.base import fix_shapes
from onnxprune.engines.cost.layers import LayerSpec, layer_model
from onnxprune.engines.cost.savings import layer_specs
from onnxprune.engines.cost.table import (
    LatencyTable,
    list_specs,
    make_table,
    read_widths,
    to_plain,
    to_spec,
)
from onnxprune.errors import DataError, EngineError
from onnxprune.files import write_json
from onnxprune.ir.io import Model, digest, load, to_bytes
from onnxprune.ir.weights import from_array
from onnxprune.surgery.cut import cut

ARCHIVE, INDEX, RESULT = "layers.zip", "layers.json", "layer_times.json"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)  # of a width; between them times are interpolated
MULTIPLE = 8  # of widths, for targets without one
SMALL = 1024  # values above which weights are replaced by a constant, which compresses
FILL = 0.01  # no denormal numbers, which are slow
_DATE = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes


def layer_files(
    model: Model, multiple: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> Files:
    """Return the files of a bundle that times a model's layers at candidate widths.

    Parameters
    ----------
    multiple
        Channels that candidate widths are multiples of.

    Raises
    ------
    DataError
        No contraction of the model has channels that can be removed.
    """
    static = fix_shapes(model, shapes or {})
    analysis = analyze(static)
    specs = list(dict.fromkeys(list_candidates(analysis, multiple)))
    if not specs:
        raise DataError("layers-none", "no layer of this model has channels that can be removed")
    models = {f"whole_{n}": m for n, m in _cut_uniformly(analysis, multiple).items()}
    index = {
        "multiple": multiple,
        "layers": [asdict(spec) for spec in specs],
        "models": {
            name: [asdict(spec) for spec in list_specs(m).values()] for name, m in models.items()
        },
        "model_sha256": digest(model),
    }
    return {
        ARCHIVE: _pack({**_make_layers(specs), **models}),
        INDEX: json.dumps(index, indent=1).encode(),
        "agent.py": script("agent"),
        "layer_times.py": script("layer_times"),
    }


def list_candidates(analysis: Analysis, multiple: int) -> Iterator[LayerSpec]:
    """Yield every contraction at its widths and at shares of those that can shrink."""
    specs = layer_specs(analysis)
    shrinking = _find_shrinking(analysis, specs)
    for name, (spec, _) in specs.items():
        first, last = read_widths(spec)
        axes = shrinking.get(name, set())
        if spec.depthwise:
            # one width: inputs and outputs are the same channels
            for width in _choose_widths(last, multiple) if axes else (last,):
                yield from _resize(spec, width * spec.input[1] // last, width)
            continue
        # the weight of a grouped convolution holds the inputs of one group
        inputs = first * spec.group if spec.op == "Conv" else first
        columns = _choose_widths(inputs, multiple) if 0 in axes else (inputs,)
        rows = _choose_widths(last, multiple) if 1 in axes else (last,)
        for column in columns:
            for row in rows:
                yield from _resize(spec, column, row)


def write_table(folder: Path, path: Path) -> LatencyTable:
    """Read the layer times that a bundle's run wrote, and write the table.

    Raises
    ------
    DataError
        They are missing or invalid.
    """
    index = load_json(folder / INDEX, "the list of layers")
    result = load_json(folder / "results" / RESULT, "the times of the layers")
    try:
        times = {str(name): float(ms) for name, ms in result["times_ms"].items()}
        specs = [to_spec(data) for data in index["layers"]]
        layers = [(s, times[f"layer_{i:04d}"]) for i, s in enumerate(specs)]
        models = {
            name.removeprefix("whole_"): ([to_spec(data) for data in of_model], times[name])
            for name, of_model in index["models"].items()
        }
        facts = {
            **{str(k): v for k, v in result["device"].items()},
            "model_sha256": index["model_sha256"],
            "onnxprune": onnxprune.__version__,
        }
        table = make_table(layers, models, int(index["multiple"]), facts)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(
            "layers-invalid", f"{folder}: times of layers are invalid: {problem}"
        ) from (problem)
    write_json(path, to_plain(table))
    return table


def _find_shrinking(
    analysis: Analysis, specs: Mapping[str, tuple[LayerSpec, str]]
) -> dict[str, set[int]]:
    """Return node -> which of its inputs (0) and outputs (1) belong to a group."""
    found: dict[str, set[int]] = {}
    for group in analysis.groups:
        for member in analysis.members(group.name):
            node = member.site.node
            if node not in specs or member.site.tensor != specs[node][1]:
                continue
            axes = specs[node][0].layout.axes(len(specs[node][0].weight))
            if member.site.axis in axes:
                found.setdefault(node, set()).add(axes.index(member.site.axis))
    return found


def _choose_widths(width: int, multiple: int) -> tuple[int, ...]:
    """Return shares of a width, rounded up to the multiple, without those above the width."""
    rounded = {-(-int(share * width) // multiple) * multiple for share in SHARES}
    return tuple(sorted({width, *(w for w in rounded if 0 < w < width)}, reverse=True))


def _resize(spec: LayerSpec, inputs: int, outputs: int) -> Iterator[LayerSpec]:
    """Yield the layer at other widths, nothing if its groups do not divide them."""
    try:
        yield spec.resized(inputs, outputs)
    except EngineError:
        return


def _cut_uniformly(analysis: Analysis, multiple: int) -> dict[str, Model]:
    """Return the model, and models that keep a share of every group."""
    models = {"100%": analysis.model}
    known = {tuple(group.size for group in analysis.groups)}
    for share in SHARES[1:]:
        widths = tuple(_choose_width(group.size, share, multiple) for group in analysis.groups)
        # equal widths after rounding, in small models
        if widths in known:
            continue
        known.add(widths)
        kept = {g.name: range(w) for g, w in zip(analysis.groups, widths, strict=True)}
        models[f"{share:.1%}"] = cut(analysis, analysis.plan(kept))
    return {name: _fill(model) for name, model in models.items()}


def _choose_width(size: int, share: float, multiple: int) -> int:
    """Return a share of a group's size, rounded up to the multiple and at most the size."""
    return min(-(-max(int(share * size), 1) // multiple) * multiple, size)


def _fill(model: Model) -> Model:
    """Return a copy whose large float weights are constant, which a bundle stores in few bytes."""
    copy = model.edit()
    for name, weight in model.weights.items():
        if weight.dtype == TensorProto.FLOAT and np.prod(weight.shape) > SMALL:
            copy.weights[name] = from_array(np.full(weight.shape, FILL, np.float32))
    return copy.freeze()


def _make_layers(specs: Sequence[LayerSpec]) -> dict[str, Model]:
    """Return the model of each layer, and an empty one, whose time is that of a call."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "empty",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    opset = helper.make_opsetid("", 13)
    models = {"empty": load(helper.make_model(graph, opset_imports=[opset], ir_version=8))}
    for number, spec in enumerate(specs):
        models[f"layer_{number:04d}"] = _fill(layer_model(spec))
    return models


def _pack(models: Mapping[str, Model]) -> bytes:
    """Return an archive of models, the same bytes for the same models."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, model in models.items():
            entry = zipfile.ZipInfo(name + ".onnx", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, to_bytes(model))
    return buffer.getvalue()
