"""Forms groups of channels from the records of a finished pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from onnxprune.analysis.cost import WEIGHT_TYPES, Axes
from onnxprune.analysis.folded import arrays_of
from onnxprune.analysis.frozen import frozen_axis, mixed_causes
from onnxprune.analysis.group_names import find_lead, label_nodes, number_equal, spell_part
from onnxprune.analysis.groups import Analysis, Member
from onnxprune.analysis.state import KERNEL_POSITION, Record, Use
from onnxprune.ir.nodes import label
from onnxprune.types import Frozen, Group, Site

_NEVER = np.iinfo(np.int64).max


class _UsedAxis(NamedTuple):
    """An axis of an initializer that can be cut."""

    use: Use
    axis: int
    ids: np.ndarray


def collect(record: Record, options: Mapping[str, Any]) -> Analysis:
    """Return the groups of a finished pass.

    Parameters
    ----------
    record
        Record of the pass.
    options
        Options of the analysis, stored in the result.
    """
    _assign_roles(record)
    sites = [
        _UsedAxis(u, i, a)
        for u in record.uses
        for i, a in enumerate(u.axes)
        if isinstance(a, np.ndarray)
    ]
    weights = [s.ids for s in sites]
    computed = [ids for t in record.tensors.values() for a in t.axes for ids in arrays_of(a)]
    arrays = [*weights, *_list_recorded_arrays(record), *computed, *record.mixed]
    axes = Axes.build(record.causes, arrays, [*weights, *computed])
    tables = [axes.table(s.ids) for s in sites]
    activations = {axes.number(ids): axes.table(ids) for ids in computed}
    produces = [s.use.roles[s.axis] == "produces" for s in sites]
    order, bounds = _partition(tables, produces, list(activations.values()), axes.causes)
    members = _list_members(record, sites, tables, order, bounds, axes.causes)
    mixed = mixed_causes(record, axes)
    names = _make_names(record, members)
    causes = {n: order[s:e] for n, s, e in zip(names, bounds, bounds[1:], strict=False)}
    groups = tuple(
        Group(n, len(causes[n]), tuple(m.site for m in ms), not mixed[causes[n]].any())
        for n, ms in zip(names, members, strict=True)
    )
    return Analysis(
        record.model,
        groups,
        _find_frozen_axes(record),
        dict(options),
        record,
        axes,
        causes,
        dict(zip(names, map(tuple, members), strict=True)),
    )


def _list_recorded_arrays(record: Record) -> list[np.ndarray]:
    """Return the id arrays of masks, products and literals."""
    arrays = [m.ids for m in record.masks] + [s.source for s in record.selects]
    arrays += [a for p in record.products for a in p.axes]
    entries = [a for r in record.literals for a in (*r.entries, *r.watch)]
    entries += [a for r in record.restores for a in r.axes]
    scaled = [s for r in record.literals for s in r.scaled]
    scaled += [s for r in record.restores for s in r.scaled]
    entries += [a for factors in scaled for a in factors]
    arrays += [a for a in entries if a is not None]
    arrays += [a for m in record.averages for a in m.axes] + [p.axis for p in record.pins]
    arrays += [a for s in record.squeezed for a in s.axes]
    arrays += [a for m in record.root_means for a in m.axes]
    return arrays


def _assign_roles(record: Record) -> None:
    """Assign axes of initializers the role that a consumer, direct or not, has for them."""
    for use, ids, role in record.hints:
        target = record.uses[use]
        roots = None
        for i, axis in enumerate(target.axes):
            if not isinstance(axis, np.ndarray):
                continue
            if axis is not ids:
                # an operator between them may have rearranged the axes: compare their causes
                if len(axis) != len(ids):
                    continue
                roots = record.causes.find(ids) if roots is None else roots
                if not np.array_equal(record.causes.find(axis), roots):
                    continue
            if target.roles[i] == "carries":
                target.roles[i] = role
            break


def _partition(
    tables: list[np.ndarray], produces: list[bool], activations: list[np.ndarray], count: int
) -> tuple[np.ndarray, list[int]]:
    """Group the causes that have the same sites; causes without a site are left out.

    The axes of activations that causes pass count as well: while a group keeps one channel, no
    axis of any tensor becomes empty.

    Parameters
    ----------
    tables
        Causes per position of the axes of initializers.
    produces
        Whether an axis produces channels; groups are ordered by the first axis that does.
    activations
        Causes per position of the axes of activations.
    count
        Number of causes.

    Returns
    -------
    order
        Causes, those of a group in sequence.
    bounds
        Start of each group in `order`, and its end.
    """
    # a random number per axis; the sum over the axes of a cause identifies their set: 64 bits make
    # collisions unlikely, and a fixed seed makes equal models have equal groups
    keys = (
        np.random.Generator(np.random.PCG64(0))
        .integers(1, 2**63 - 1, len(tables) + len(activations), dtype=np.int64)
        .astype(np.uint64)
    )
    signature = np.zeros(count + 1, np.uint64)
    first = np.full((count + 1, 2), _NEVER)  # per cause: the first axis, the position there
    for k in sorted(range(len(tables)), key=lambda k: (not produces[k], k)):
        table = tables[k]
        np.add.at(signature, table.ravel(), keys[k])
        cause, position = np.unique(table, return_index=True)
        new = first[cause, 0] == _NEVER
        first[cause[new], 0], first[cause[new], 1] = k, position[new] // table.shape[1]
    # only initializers decide which causes count; activations only separate them
    used = np.flatnonzero(signature[:count])
    for key, table in zip(keys[len(tables) :], activations, strict=True):
        np.add.at(signature, table.ravel(), key)
    _, group = np.unique(signature[used], return_inverse=True)
    # groups in the order of their first axis, channels in the order of its positions
    lead = np.full(group.max(initial=-1) + 1, _NEVER)
    np.minimum.at(lead, group, first[used, 0])
    order = np.lexsort((first[used, 1], first[used, 0], group, lead[group]))
    if not len(used):
        return used[order], [0]
    starts = np.flatnonzero(np.diff(group[order])) + 1
    return used[order], [0, *starts.tolist(), len(used)]


def _list_members(
    record: Record,
    sites: list[_UsedAxis],
    tables: list[np.ndarray],
    order: np.ndarray,
    bounds: list[int],
    count: int,
) -> list[list[Member]]:
    """Return the members of each group; see `_partition` for the last three parameters."""
    group_of = np.full(count + 1, -1)
    channel = np.zeros(count + 1, np.int64)
    for g, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        group_of[order[start:end]] = g
        channel[order[start:end]] = np.arange(end - start)
    members: list[list[Member]] = [[] for _ in bounds[1:]]
    number = {id(u): i for i, u in enumerate(record.uses)}
    for (use, axis, _), table in zip(sites, tables, strict=True):
        position, column = np.nonzero(group_of[table] >= 0)
        cause = table[position, column]
        owner = group_of[cause]
        site = Site(use.tensor, axis, label(record.nodes[use.node]), use.roles[axis])
        # a site belongs to every group that one of its positions depends on
        for g in np.unique(owner).tolist():
            own = owner == g
            members[g].append(Member(site, position[own], channel[cause[own]], number[id(use)]))
    return members


def _make_names(record: Record, members: list[list[Member]]) -> list[str]:
    """Return a unique name per group."""
    weights, labels = record.model.weights, label_nodes(record)
    names, keys = [], []
    for own in members:
        lead = own[find_lead([m.site for m in own], weights)]
        node = record.uses[lead.use].node
        length = weights[lead.site.tensor].shape[lead.site.axis]
        op = record.nodes[node].op_type
        names.append(labels[node] + spell_part(length, lead.positions, lead.channels, op))
        # heads of several levels have one name: the coarser comes first
        keys.append(lead.positions[lead.channels == 0].tolist())
    return number_equal(names, keys)


def _find_frozen_axes(record: Record) -> tuple[Frozen, ...]:
    """Return the axes of weights that produce or sum channels and cannot be cut."""
    frozen = {}
    for use in record.uses:
        weight = record.model.weights[use.tensor]
        # biases and lists of sizes are left out: the report is about weights
        if len(weight.shape) < 2 or weight.dtype not in WEIGHT_TYPES:
            continue
        for i, axis in enumerate(use.axes):
            number = record.causes.reason(axis) if axis is not None else 0
            if number and weight.shape[i] > 1 and record.why(number).text != KERNEL_POSITION:
                frozen[use.tensor, i] = frozen_axis(record, use.tensor, i, number)
    return tuple(frozen.values())
