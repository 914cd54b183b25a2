"""Replacement of random operators, so that compared models draw the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.ir.edit import add_initializer, copy_message, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute, label, nested, set_attribute
from onnxprune.ir.runtime import Session

_DRAWS = """
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial
"""
DRAWS = frozenset(_DRAWS.split())
_SEED = 1.0
_TRAINING_OPSET = 12  # Dropout drops in training mode only, which is an input since this opset


def random_nodes(model: Model) -> list[NodeProto]:
    """Return the nodes whose outputs differ from run to run, those of bodies included."""
    nodes = [n for g in nested(model.proto.graph) for n in g.node]
    return [n for n in nodes if n.op_type in DRAWS or _drops(model, n)]


def _drops(model: Model, node: NodeProto) -> bool:
    """Return whether a node is a Dropout in training mode, or may be in it."""
    if node.op_type != "Dropout" or model.opset < _TRAINING_OPSET or len(node.input) < 3:
        return False
    mode = model.weights.get(node.input[2]) if node.input[2] else None
    # a mode that is computed may be training mode
    return bool(node.input[2]) and (mode is None or bool(mode.array()))


def draw(model: Model, feeds: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, Any]:
    """Return the values of all random nodes of the main graph in one run."""
    # a run cannot output tensors of bodies, which get a seed instead
    main = {id(n) for n in model.proto.graph.node}
    nodes = [n for n in random_nodes(model) if n.op_type in DRAWS and id(n) in main]
    names = [n.output[0] for n in nodes]
    if not names:
        return {}
    return Session(model, outputs=names, threads=threads, optimize=False).run(feeds)


def fix_random(model: Model, values: Mapping[str, Any]) -> Model:
    """Return a copy with the random nodes of the main graph replaced by drawn values.

    Random nodes of bodies get a seed; Dropout passes its input on. Both are the same in all
    compared models, which is what a comparison needs.

    Parameters
    ----------
    values
        Output of each replaced node, as the model's shapes want them.
    """
    copy = model.edit()
    main = copy.proto.graph
    replace_nodes(main, [copy_message(n) for n in main.node if not set(n.output) & values.keys()])
    for name, value in values.items():
        # consumers read the drawn value by the name of the node's output
        if add_initializer(copy, name, np.asarray(value)) != name:
            raise ValueError(f"the name {name!r} of a random tensor is taken")
    for graph in nested(main):
        for node in graph.node:
            if node.op_type in DRAWS and not attribute(node, "seed"):
                set_attribute(node, "seed", _SEED)
            elif _drops(model, node):
                # without ratio and mode it is in inference mode
                del node.input[1:]
    return copy.freeze()


def names_of(model: Model) -> tuple[str, ...]:
    """Return the labels of the random nodes, with their operators."""
    return tuple(f"{label(node)} ({node.op_type})" for node in random_nodes(model))
