"""Selection of the groups to cut, and of their rates, from the sensitivities of single groups.

See `layer_selection` for the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.search.sensitivity import RATES

LAYERS = {"params": 6, "flops": 5, "latency": 5}  # the first two as published
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """Sizes and exponents of the lists that groups are taken from.

    Attributes
    ----------
    params_layers, flops_layers, latency_layers
        Number of groups from the list by parameters, MACs and measured time.
    params_map, flops_map, latency_map
        Exponent of the quality in each list.
    """

    params_layers: int = LAYERS["params"]
    flops_layers: int = LAYERS["flops"]
    latency_layers: int = 0
    params_map: float = 20.0
    flops_map: float = 20.0
    latency_map: float = 20.0


@dataclass(frozen=True)
class LayerSelectionSettings(Selection):
    """Options of the method: those of Selection and more.

    As published: params_layers 6, flops_layers 5, refit and scaled false.

    Attributes
    ----------
    params_layers, flops_layers, latency_layers
        Number of groups from each list; -1 = as published (latency 5) if a budget is on that cost,
        else 0.
    end_map
        All exponents in the last round; they change linearly from the first.
    rounds
        Number of rounds in which the budget is met.
    max_drop
        Share of the quality that the groups of one round may cost together.
    rates
        Comma-separated rates between 0 and 1.
    refit
        Measure networks whose weights are refitted to the cut in closed form, as a repair leaves
        them, and rank channels by reconstruction error instead of by norms.
    scaled
        Scale the exponents up if a typical group costs less than 1 % of the quality at the least
        rate.
    tune
        Loss to fine-tune with between rounds, such as kd (extra torch); "" = no fine-tuning.
    tune_epochs
        Passes over the calibration data per fine-tuning.
    repair
        Repair before each fine-tuning.
    """

    params_layers: int = -1
    flops_layers: int = -1
    latency_layers: int = -1
    end_map: float = 14.0
    rounds: int = 14
    max_drop: float = 0.05
    rates: str = ",".join(map(str, RATES))
    refit: bool = True
    scaled: bool = True
    tune: str = ""
    tune_epochs: int = 3
    repair: str = "least-squares"

    def __post_init__(self) -> None:
        """Raise UsageError if a value is out of range."""
        if self.rounds < 1 or not 0 <= self.max_drop <= 1:
            raise UsageError(
                "method-option",
                f"layer-selection: rounds {self.rounds} must be at least 1, "
                f"max_drop {self.max_drop:g} in [0, 1]",
            )
        # parsing checks the rates
        _ = self.ascending

    @property
    def ascending(self) -> list[float]:
        """Return the rates, sorted."""
        try:
            values = sorted(float(r) for r in self.rates.split(","))
        except ValueError:
            values = []
        if not values or not 0 < values[0] <= values[-1] < 1:
            raise UsageError(
                "method-option",
                f"layer-selection: rates is {self.rates!r}; give numbers between 0 and 1, such as "
                "0.25,0.5",
            )
        return values


@dataclass(frozen=True)
class Choice:
    """A group to cut.

    Attributes
    ----------
    group, index
        Name and number of the group.
    rate
        Share of its channels to remove.
    value
        Largest value in a list, relative to the best of that list.
    lists
        Names of the lists that took the group.
    """

    group: str
    index: int
    rate: float
    value: float
    lists: tuple[str, ...]


def select(records: Sequence[Record], how: Selection = Selection()) -> list[Choice]:  # noqa: B008 - frozen
    """Return the groups with the largest saving times quality^exponent of each list.

    A group stands in a list with its best rate. If two lists take it at different rates, it is cut
    at the lower one. The result is in the order of the groups.

    Parameters
    ----------
    records
        Records of a sweep, see `SensitivityBench.record`.

    Raises
    ------
    UsageError
        There are no records of groups, or timings are missing that the latency list needs.
    """
    original = next((r for r in records if not r["group"]), None)
    rows = [r for r in records if r["group"]]
    if not rows:
        raise UsageError(
            "select-empty",
            "no sensitivities to select from; run: onnxprune sensitivity MODEL --data ...",
        )
    timed = original and original.get("timing") and all(r.get("timing") for r in rows)
    if how.latency_layers and not timed:
        raise UsageError(
            "select-timing",
            f"latency-layers is {how.latency_layers}, but timings of some groups or of the "
            "original model are missing; measure without --no-time",
        )
    choices: dict[str, Choice] = {}
    for name, count in list_sizes(how).items():
        best: dict[str, tuple[float, Record]] = {}
        for r in rows:
            value = list_value(name, r, how, original)
            # records that save nothing are in no list
            if value > best.get(r["group"], (0.0, r))[0]:
                best[r["group"]] = (value, r)
        top = sorted(best.values(), key=lambda v: -v[0])[:count]
        for value, r in top:
            choices[r["group"]] = _merge(choices.get(r["group"]), name, r, value / top[0][0])
    return sorted(choices.values(), key=lambda c: c.index)


def _merge(earlier: Choice | None, name: str, record: Record, value: float) -> Choice:
    """Return the choice of a group that list `name` takes, merged with that of earlier lists."""
    group, index, rate = record["group"], record["index"], record["rate"]
    if earlier is None:
        return Choice(group, index, rate, max(value, 0.0), (name,))
    rate, value = min(rate, earlier.rate), max(value, earlier.value)
    return Choice(group, index, rate, value, (*earlier.lists, name))


def list_sizes(how: Selection) -> dict[str, int]:
    """Return the number of groups to take from each list that is not empty."""
    counts = {"params": how.params_layers, "flops": how.flops_layers, "latency": how.latency_layers}
    return {name: count for name, count in counts.items() if count}


def list_value(name: str, record: Record, how: Selection, original: Record | None) -> float:
    """Return the value of a record in a list: the saving times quality^exponent.

    Savings are in parameters, MACs or milliseconds; `original` is the record of the uncut model,
    which the latency list needs.
    """
    saved = 0.0
    if name == "params":
        saved = record["saved_params"]
    elif name == "flops":
        saved = record["saved_macs"]
    elif original:
        # records of older versions lack the uncut model's time in the same minute
        before_ms = record["timing"].get("original_ms", original["timing"]["inference_ms"])
        saved = before_ms - record["timing"]["inference_ms"]
    return float(saved) * float(record["quality"]) ** float(getattr(how, f"{name}_map"))
