"""int8 models whose speed is that of the final one: to time candidates of a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxprune.ir.io import Model, load
from onnxprune.quantize.forms import find_form, list_ops
from onnxprune.quantize.graph import build
from onnxprune.quantize.names import AUTO
from onnxprune.quantize.ranges import collect_ranges, find_nodes, prepare


def quantize_to_time(
    model: Model,
    feed: Mapping[str, np.ndarray],
    form: str = AUTO,
    exclude: Iterable[str] = (),
    *,
    engine: str = "",
) -> Model:
    """Quantize a float model with the ranges of one feed, without corrections.

    Its outputs are too far from the float ones to be used.

    Parameters
    ----------
    form, engine
        See `onnxprune.quantize.static.quantize`.
    exclude
        Patterns of nodes that stay in float32; those that match nothing have no effect, because a
        search may remove their branch.

    Raises
    ------
    ModelError
        onnxruntime cannot quantize the model.
    """
    _, shape = find_form(form, engine)
    proto = prepare(model)
    ranges = collect_ranges(proto, "minmax", list_ops(shape), shape.symmetric, [feed])
    excluded = {name for pattern in exclude for name in find_nodes(proto, pattern)}
    return load(build(proto, ranges, shape, excluded))
