"""Data that stages exchange: groups of channels, costs, scores and plans.

All are frozen and comparable; plans are also stored as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UsageError, plural, unknown
from onnxprune.files import read_text
from onnxprune.summary import Summarized

PLAN_FORMAT = 1
_PLAN_KEYS = ("format", "source", "decided_by", "options", "groups")
_GROUP_KEYS = ("size", "kept")
_MOST_CHANNELS = 1 << 31


@dataclass(frozen=True)
class Site:
    """One axis of one tensor, as one node uses it.

    Attributes
    ----------
    tensor
        Name of the tensor.
    axis
        Axis, from 0.
    node
        Name of the node that uses the tensor, "" for an activation.
    role
        "produces" (output axis of a weight), "consumes" (the axis is summed over) or "carries"
        (bias, scale, activation).
    """

    tensor: str
    axis: int
    node: str = ""
    role: str = "carries"


@dataclass(frozen=True)
class Group:
    """Channels at the same sites, ranked against each other.

    Attributes
    ----------
    name
        Name of the first producer, unique in the model.
    size
        Number of channels.
    sites
        Axes that they lie on.
    exact
        Whether removing a channel leaves the kept ones unchanged; False if axes of a mixing
        operator are pruned.
    """

    name: str
    size: int
    sites: tuple[Site, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Frozen:
    """An axis that cannot be pruned.

    Attributes
    ----------
    tensor, axis
        The axis.
    op, node
        Operator and node that freeze it.
    reason
        Why they do.
    """

    tensor: str
    axis: int
    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """Costs of a model for one inference, at the sizes of its analysis.

    Attributes
    ----------
    macs
        Multiply-accumulates.
    params
        Elements of float initializers; scalars are not counted.
    size_bytes
        Bytes of the initializers.
    activation_bytes
        Bytes of the activations.
    """

    macs: int
    params: int
    size_bytes: int
    activation_bytes: int

    def as_dict(self) -> dict[str, int]:
        """Return the costs by their names on the command line."""
        return {
            "macs": self.macs,
            "params": self.params,
            "bytes": self.size_bytes,
            "activation_bytes": self.activation_bytes,
        }


# group name -> float64 array (size,), higher = keep; NaN is not allowed
Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class Plan(Summarized):
    """The channels to keep; `cut` executes it and decides nothing.

    Attributes
    ----------
    source
        sha256 of the canonical source model.
    kept
        Group name -> sorted indices of the kept channels, empty if the group's branch is removed.
        Groups that stay intact are not listed.
    sizes
        Group name -> number of channels before, for the same groups.
    decided_by
        Criterion, allocator, seed and the like, as plain JSON.
    options
        Options of the analysis (freeze, allow_mixing, grouped), with which it finds the same
        groups again.
    """

    source: str
    kept: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    decided_by: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def _title(self) -> str:
        """Return how many channels are removed."""
        total = sum(self.sizes.values())
        removed = total - sum(map(len, self.kept.values()))
        groups = plural(len(self.kept), "group")
        return f"removes {removed} of {plural(total, 'channel')} in {groups}"

    def _rows(self) -> Sequence[Sequence[str]]:
        """Return the width of each group before and after."""
        rows = [("group", "before", "after")]
        rows += [(n, str(self.sizes[n]), str(len(kept))) for n, kept in self.kept.items()]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain data, groups in alphabetical order."""
        groups = {n: {"size": self.sizes[n], "kept": list(self.kept[n])} for n in sorted(self.kept)}
        return {
            "format": PLAN_FORMAT,
            "source": self.source,
            "decided_by": dict(self.decided_by),
            "options": dict(self.options),
            "groups": groups,
        }

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Return the plan in plain data.

        Raises
        ------
        UsageError
            The data are not a plan.
        """
        try:
            if data["format"] != PLAN_FORMAT:
                raise UsageError(
                    "plan-format",
                    f"plan format {data['format']!r} is not supported, only {PLAN_FORMAT}",
                )
            _check_keys(data, _PLAN_KEYS)
            kept, sizes = {}, {}
            for name, group in data["groups"].items():
                _check_keys(group, _GROUP_KEYS)
                indices, size = (
                    [_check_index(i) for i in group["kept"]],
                    _check_index(group["size"]),
                )
                if indices != sorted(set(indices)) or any(not 0 <= i < size for i in indices):
                    raise UsageError(
                        "plan-indices",
                        f"group {name!r}: kept must be sorted, unique and below {size}",
                    )
                kept[str(name)], sizes[str(name)] = tuple(indices), size
            decided_by, options = dict(data.get("decided_by", {})), dict(data.get("options", {}))
            if not isinstance(data["source"], str):
                raise ValueError(f"source {data['source']!r} is not text")
            return Plan(data["source"], kept, sizes, decided_by, options)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
            reason = f"{type(problem).__name__} {problem}"
            if isinstance(problem, KeyError):
                reason = f"key {problem} is missing"
            raise UsageError("plan-invalid", f"not a plan: {reason}") from problem

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan file.

        Raises
        ------
        UsageError
            The file cannot be read, or is not a plan.
        """
        try:
            return Plan.from_json(json.loads(read_text(path)))
        except UsageError as problem:
            if problem.code != "plan-invalid":
                raise
            text = f"{path} is {problem.message}; onnxprune plan writes plans"
            raise UsageError(problem.code, text) from problem
        except OSError as problem:
            raise UsageError(
                "plan-unreadable", f"cannot read plan {path}: {problem.strerror}"
            ) from problem
        except (ValueError, RecursionError) as problem:
            raise UsageError("plan-invalid", f"{path} is not a plan: {problem}") from problem


def _check_index(value: Any) -> int:
    """Return an index or a size; ValueError for 0.5, "3", True and what no tensor can have."""
    if type(value) is not int:
        raise ValueError(f"{value!r} is not an integer")
    if not 0 <= value <= _MOST_CHANNELS:
        raise ValueError(f"{value} is not between 0 and {_MOST_CHANNELS}")
    return value


def _check_keys(table: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise UsageError for a key of a plan that would have no effect."""
    for key in table:
        if key not in known:
            raise unknown("key", str(key), known, code="plan-key")
