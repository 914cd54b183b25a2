"""Dead channels: detection, and cuts that leave the output unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.criteria.dead import dead_channels
from onnxprune.criteria.magnitude import l2
from onnxprune.data.dataset import synthetic
from onnxprune.demo import files
from onnxprune.ir.io import Model, load
from onnxprune.ir.model import EditableModel
from onnxprune.ir.weights import from_array
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify

SILENT, UNREAD = [1, 2, 5], [0, 3]


def zero_weights(
    analysis: Analysis, group: str, role: str, channels: list[int], model: EditableModel
) -> None:
    """Set the weights that produce or consume some channels of a group to zero."""
    for member in analysis.members(group):
        if member.site.role == role:
            values = np.array(model.weights[member.site.tensor].array())
            index: list[Any] = [slice(None)] * values.ndim
            index[member.site.axis] = member.positions[np.isin(member.channels, channels)]
            values[tuple(index)] = 0
            model.weights[member.site.tensor] = from_array(values)


def context(model: Model) -> Context:
    return Context(analyze(model), synthetic(input_types(model), samples=4))


def test_a_trained_network_has_no_dead_channels() -> None:
    assert dead_channels(context(load(files().model))) == {}


def test_cut_of_dead_channels_equals_the_original() -> None:
    analysis = context(load(files().model)).analysis
    producer, read = analysis.groups[3].name, analysis.groups[5].name
    model = analysis.model.edit()
    zero_weights(analysis, producer, "produces", SILENT, model)
    zero_weights(analysis, read, "consumes", UNREAD, model)
    modified = context(model)
    dead = dead_channels(modified)
    assert {n: v.tolist() for n, v in dead.items()} == {producer: SILENT, read: UNREAD}
    plan = allocate("uniform", modified, l2(modified), Constraints(dead=dead))
    verification = verify(modified.analysis, plan, cut(modified.analysis, plan))
    assert verification.difference <= 1e-6 and verification.masked_difference <= 1e-6
    assert len(plan.kept[producer]) == analysis.group(producer).size - len(SILENT)


def test_a_channel_with_only_dead_consumers_is_dead() -> None:
    analysis = context(load(files().model)).analysis
    reads = {
        m.site.node: g.name
        for g in analysis.groups
        for m in analysis.members(g.name)
        if m.site.role == "consumes"
    }
    producer = [
        (g.name, m.site.node)
        for g in analysis.groups
        for m in analysis.members(g.name)
        if m.site.role == "produces" and m.site.node in reads
    ]
    below, (above, node) = next(
        (reads[n], (g, n))
        for g, n in producer
        if reads[n] != g and sum(m.site.role == "consumes" for m in analysis.members(reads[n])) == 1
    )
    model = analysis.model.edit()
    reader = next(
        m for m in analysis.members(below) if m.site.role == "consumes" and m.site.node == node
    )
    values = np.array(model.weights[reader.site.tensor].array())
    column = reader.positions[reader.channels == 0]
    others = np.ones(values.shape[0], bool)
    others[
        next(m for m in analysis.members(above) if m.site.tensor == reader.site.tensor).positions[
            :1
        ]
    ] = False
    values[np.ix_(others, column)] = 0
    model.weights[reader.site.tensor] = from_array(values)
    assert dead_channels(context(model)) == {}
    zero_weights(analysis, above, "consumes", [0], model)
    assert {n: v.tolist() for n, v in dead_channels(context(model)).items()} == {
        below: [0],
        above: [0],
    }
