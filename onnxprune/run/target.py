"""Cost targets: parse COST=AMOUNT and compute the limit of each cost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from onnxprune.errors import unknown

COSTS = ("macs", "params", "bytes", "activation_bytes", "latency")
_SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTE_SUFFIXES = {
    **_SUFFIXES,
    "B": 1.0,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
# other names of costs, in lower case; FLOPs count as MACs where only their ratio matters
ALIASES = {
    "flops": "macs",
    "flop": "macs",
    "parameters": "params",
    "size": "bytes",
    "activations": "activation_bytes",
    "memory": "activation_bytes",
}
# what people write for costs that do not exist -> how to say it
_TIME = "; for time write latency.onnxruntime={}"
_QUALITY = "; for quality pass --max-divergence, e.g. 0.1"
_HINTS = {
    **dict.fromkeys(("speed", "speedup", "time", "fps"), _TIME),
    **dict.fromkeys(("accuracy", "top1", "loss", "map", "miou"), _QUALITY),
}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
DEFAULT_COST = "macs"
_SHARE = re.compile(rf"\s*{_NUMBER}\s*[%x]\s*")  # an amount of the default cost
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z%]*)\s*")
_EXAMPLES = "macs=50%, params=2x, bytes=1.5MB, latency.onnxruntime=1.5x"


@dataclass(frozen=True)
class Target:
    """Upper limit on one cost of the pruned model.

    Attributes
    ----------
    cost
        One of COSTS.
    limit
        If `relative`, a share of the original's cost in (0, 1]; else MACs, parameters, bytes or
        milliseconds.
    relative
        Whether `limit` is a share of the original's cost.
    engine
        Engine of a latency target, else "".
    text
        The target as the user wrote it.
    """

    cost: str
    limit: float
    relative: bool
    engine: str = ""
    text: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        """Return the target as the user wrote it."""
        return self.text

    def ceiling(self, original: float) -> float:
        """Return the largest allowed cost, given the original's.

        >>> Target.parse("macs=2x").ceiling(10)
        5.0
        """
        return self.limit * original if self.relative else self.limit

    @staticmethod
    def parse(value: str | Target) -> Target:
        """Parse COST=AMOUNT.

        `macs=50%` allows half of the MACs, as do `macs=2x` and `50%` alone; `bytes=1.5MB` and
        `latency.ENGINE=3ms` are absolute.

        Raises
        ------
        ValueError
            The text has another form, or the amount is out of range.
        """
        if isinstance(value, Target):
            return value
        if isinstance(value, str) and _SHARE.fullmatch(value):
            value = f"{DEFAULT_COST}={value}"
        if not isinstance(value, str) or "=" not in value:
            hint = _suggest_share(value) or f", e.g. {_EXAMPLES}"
            raise ValueError(f"{value!r} is not COST=AMOUNT{hint}")
        given, _, amount = (part.strip() for part in value.partition("="))
        cost, _, engine = given.partition(".")
        cost = ALIASES.get(cost.lower(), cost.lower())
        name = f"{cost}.{engine}" if engine else cost
        if cost not in COSTS:
            hint = _HINTS.get(cost, "").format(amount)
            raise ValueError(unknown("cost", cost, COSTS).message + hint)
        if cost == "latency" and not engine:
            raise ValueError(f"latency needs an engine: write latency.onnxruntime={amount}")
        if engine and cost != "latency":
            raise ValueError(f"only latency takes an engine: write {cost}={amount}")
        limit, relative = _parse_amount(cost, amount)
        # FLOPs are counted as one or two per MAC, so an absolute number is ambiguous
        if not relative and given.lower().startswith("flop"):
            raise ValueError(f"{value!r}: count MACs, e.g. macs={limit / 2:g} (two FLOPs each)")
        # the canonical name, so that an alias does not change the keys of stages
        return Target(cost, limit, relative, engine, f"{name}={amount}")


def _suggest_share(value: Any) -> str:
    """Return the hint for a number without a cost, which is a share, "" for other values."""
    if not re.fullmatch(rf"\s*{_NUMBER}\s*", str(value)):
        return ""
    number = float(value)
    return f"; did you mean {100 * number if number < 1 else number:g}%?"


def parse_targets(value: Any) -> tuple[Target, ...]:
    """Parse targets from text, a list of texts, or a table cost -> amount."""
    if isinstance(value, Mapping):
        value = [f"{cost}={amount}" for cost, amount in value.items()]
    # a number has no cost: its error says how to write one
    texts = [value] if isinstance(value, (str, Target, int, float)) else value
    targets = tuple(Target.parse(cast("str | Target", text)) for text in texts)
    costs = [(target.cost, target.engine) for target in targets]
    # otherwise the stricter one would decide without a message
    if len(set(costs)) < len(costs):
        repeated = next(t.cost for t in targets if costs.count((t.cost, t.engine)) > 1)
        raise ValueError(f"several targets for {repeated}; give one target per cost")
    return targets


def _parse_amount(cost: str, amount: str) -> tuple[float, bool]:
    """Return (limit, relative) of the right side of a target."""
    match = _QUANTITY.fullmatch(amount)
    if match is None:
        raise ValueError(f"{amount!r} is not an amount such as 50%, 2x or 1.5M")
    value, unit = float(match[1]), match[2]
    if unit in ("%", "x"):
        return _parse_share(cost, amount, value, unit), True
    # "B" after a count would be read as a billion, and "MB" of parameters is a mistake
    units = _BYTE_SUFFIXES if cost.endswith("bytes") else _SUFFIXES
    if cost == "latency":
        units = _MILLISECONDS
    # case-sensitive as in SI: M is a million, m is none of these
    if unit not in units:
        known = [known for known in units if known]
        same = [known for known in units if known.lower() == unit.lower()]
        if not unit:
            raise ValueError(f"{amount!r} has no unit: write {amount}{known[1]}, or 2x for half")
        hint = f"did you mean {same[0]!r}?" if same else f"known: %, x, {', '.join(known)}"
        raise ValueError(f"{amount!r} has unknown unit {unit!r}; {hint}")
    if value == 0:
        raise ValueError(f"{amount!r} of {cost} leaves nothing; write a share, e.g. 10%")
    # counted costs are whole numbers: a limit below one is a share that lacks its percent sign
    if value <= 0 or (cost != "latency" and value * units[unit] < 1):
        raise ValueError(
            f"{amount!r} of {cost} is less than one; for a share of the original "
            f"write {value * 100:g}%"
        )
    # no network has so few
    if cost != "latency" and not unit and value <= 100:
        raise ValueError(f"{amount!r} is {amount} {cost} in all; did you mean {amount}%?")
    return value * units[unit], False


def _parse_share(cost: str, amount: str, value: float, unit: str) -> float:
    """Return the allowed share of the original's cost, in (0, 1]."""
    factor = value / 100
    # 0x must not divide by zero; the check below refuses it
    if unit == "x":
        factor = 1 / value if value else 0.0
    if not 0 < factor <= 1:
        raise ValueError(
            f"{amount!r} of {cost} is out of range: the remaining share must be above 0% "
            "and at most 100%, a factor at least 1x"
        )
    return factor
