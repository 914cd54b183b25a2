"""The data that travels between the stages. Frozen, comparable, and (plans) readable as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UsageError

PLAN_FORMAT = 1


@dataclass(frozen=True)
class Site:
    """One axis of one tensor as one node uses it.

    tensor: name; axis: 0-based; node: name of the user, "" for an activation; role: "produces" where the channel is made
    (an output axis of a weight), "consumes" where it is summed over, "carries" elsewhere (bias, scale, activations).
    """

    tensor: str
    axis: int
    node: str = ""
    role: str = "carries"


@dataclass(frozen=True)
class Group:
    """Channels that touch the same sites and are ranked against each other.

    name: of the first producer, unique in the model; size: number of channels; sites: where they are;
    exact: False where removing a channel also changes kept ones (a mixing op was opened).
    """

    name: str
    size: int
    sites: tuple[Site, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Frozen:
    """Why an axis cannot be cut: the op and node that gave the reason, and the axis where it began."""

    tensor: str
    axis: int
    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What a model costs at its declared shapes. params: elements of float initializers, scalars not counted. macs and activation_bytes are for one inference, dynamic axes counted as 1."""

    macs: int
    params: int
    size_bytes: int
    activation_bytes: int

    def as_dict(self) -> dict[str, int]:
        """{"macs", "params", "bytes", "activation_bytes"}: the words of the command line."""
        return {
            "macs": self.macs,
            "params": self.params,
            "bytes": self.size_bytes,
            "activation_bytes": self.activation_bytes,
        }


# group name -> float64 array (size,), higher = keep; NaN is not allowed
Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Plan:
    """Which channels stay. `cut` does what it says and decides nothing.

    source: sha256 of the canonical source model; kept: group name -> sorted kept channel indices (groups left whole are not listed; none where a branch goes whole);
    sizes: group name -> channels before, for the same groups; decided_by: criterion, allocator, seed and the like, plain JSON;
    options: what the analysis was asked for (freeze, allow_mixing, grouped), so that a replay sees the same groups.
    """

    source: str
    kept: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    decided_by: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, stable order."""
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
        """The plan in `data`; UsageError where it is none."""
        try:
            if data["format"] != PLAN_FORMAT:
                raise UsageError(
                    "plan-format", f"plan format {data['format']!r} is not {PLAN_FORMAT}"
                )
            kept, sizes = {}, {}
            for name, group in data["groups"].items():
                indices, size = [int(i) for i in group["kept"]], int(group["size"])
                if indices != sorted(set(indices)) or any(not 0 <= i < size for i in indices):
                    raise UsageError(
                        "plan-indices",
                        f"group {name!r}: kept must be sorted, unique and below {size}",
                    )
                kept[str(name)], sizes[str(name)] = tuple(indices), size
            return Plan(
                str(data["source"]),
                kept,
                sizes,
                dict(data.get("decided_by", {})),
                dict(data.get("options", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
            raise UsageError(
                "plan-invalid", f"not a plan: {type(problem).__name__} {problem}"
            ) from problem

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan file."""
        try:
            return Plan.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as problem:
            raise UsageError(
                "plan-unreadable", f"cannot read plan {path}: {problem.strerror}"
            ) from problem
        except (ValueError, RecursionError) as problem:
            raise UsageError("plan-invalid", f"{path} is not a plan: {problem}") from problem
