"""Dead channels go without a trace."""

from __future__ import annotations

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
from onnxprune.ir.weights import from_array
from onnxprune.run.adapter import input_types
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify

SILENT, UNREAD = [1, 2, 5], [0, 3]


def zeroed(analysis: Analysis, group: str, role: str, channels: list[int], model: Model) -> None:
    """Set the weights that make or read some channels of a group to zero."""
    for member in analysis.members(group):
        if member.site.role == role:
            values = np.array(model.weights[member.site.tensor].array())
            index: list[object] = [slice(None)] * values.ndim
            index[member.site.axis] = member.positions[np.isin(member.channels, channels)]
            values[tuple(index)] = 0  # type: ignore[index]
            model.weights[member.site.tensor] = from_array(values)  # type: ignore[index]


def context(model: Model) -> Context:
    return Context(analyze(model), synthetic(input_types(model), samples=4))


def test_a_trained_network_has_no_dead_channels() -> None:
    assert dead_channels(context(load(files().model))) == {}


def test_dead_channels_are_found_and_their_cut_equals_the_original() -> None:
    whole = context(load(files().model)).analysis
    made, read = whole.groups[3].name, whole.groups[5].name
    model = whole.model.edit()
    zeroed(whole, made, "produces", SILENT, model)
    zeroed(whole, read, "consumes", UNREAD, model)
    here = context(model)
    dead = dead_channels(here)
    assert {n: v.tolist() for n, v in dead.items()} == {made: SILENT, read: UNREAD}
    plan = allocate("uniform", here, l2(here), Constraints(dead=dead))
    found = verify(here.analysis, plan, cut(here.analysis, plan))
    assert found.difference <= 1e-6 and found.masked_difference <= 1e-6
    assert len(plan.kept[made]) == whole.group(made).size - len(SILENT)


def test_a_channel_that_only_a_dead_one_reads_is_dead() -> None:
    whole = context(load(files().model)).analysis
    reads = {
        m.site.node: g.name
        for g in whole.groups
        for m in whole.members(g.name)
        if m.site.role == "consumes"
    }
    made = [
        (g.name, m.site.node)
        for g in whole.groups
        for m in whole.members(g.name)
        if m.site.role == "produces" and m.site.node in reads
    ]
    below, (above, node) = next(
        (reads[n], (g, n))
        for g, n in made
        if reads[n] != g and sum(m.site.role == "consumes" for m in whole.members(reads[n])) == 1
    )
    model = whole.model.edit()
    reader = next(
        m for m in whole.members(below) if m.site.role == "consumes" and m.site.node == node
    )
    values = np.array(model.weights[reader.site.tensor].array())
    column = reader.positions[reader.channels == 0]
    others = np.ones(values.shape[0], bool)
    others[
        next(m for m in whole.members(above) if m.site.tensor == reader.site.tensor).positions[:1]
    ] = False
    values[np.ix_(others, column)] = 0
    model.weights[reader.site.tensor] = from_array(values)  # type: ignore[index]
    assert dead_channels(context(model)) == {}
    zeroed(whole, above, "consumes", [0], model)
    assert {n: v.tolist() for n, v in dead_channels(context(model)).items()} == {
        below: [0],
        above: [0],
    }
