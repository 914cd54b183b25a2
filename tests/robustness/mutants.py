"""Mutated models, plans and recipes; the mutant of a number and a seed is always the same file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from tests.robustness import bombs  # noqa: F401 (registers its mutators)
from tests.robustness.byte_mutators import BYTES
from tests.robustness.draws import pick, size
from tests.robustness.mutators import MUTATORS
from tests.robustness.seeds import SPECIAL, graphs, seed_bytes, seed_model

# shares of the mutants: from SPECIAL rather than from other test graphs; of changed bytes
SPECIAL_SHARE, BYTES_SHARE = 0.6, 0.25
MOST_CHANGES = 3
MODEL_OF_PLANS = "transformer"

_TOML_VALUES = (
    *('""', '"x"', "true", "[]", "[[]]", "{}", "nan", "inf", "-inf", "1e308", "-1", "0", "0.5"),
    *('["a", 1]', "{a = 1}", '{"*" = 2}', "1979-05-27", '"macs=0%"', '"macs=nan%"'),
    *('"latency.none=2x"', '"macs=1e999"', '"../../../etc"', '"/dev/zero"', '"\\u0000"'),
    *('["macs=50%", "params=1"]', '"[(2, 0.5)]"', '"x:1,2,3"', "{x = [1, 2]}"),
    *("[" * 500 + "]" * 500, '"loader.py:f"', '"os:system"', '{"x" = "1,99999999999,4"}'),
    *('"' + "a" * 10_000 + '"', "'''", "= ="),
)
_JSON_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 0.5, 1e308, 10**30, 2**63, float("nan"), float("inf")),
    *("", "x", "1", [], {}, [[]], {"a": {}}, "é\ud800", [0, 0], [1, 0], "a" * 10_000),
)


@dataclass(frozen=True)
class Mutant:
    """A changed file and the files that belong to it.

    Attributes
    ----------
    seed
        Name of the valid file that was changed.
    changes
        Names of the changes.
    files
        Content by name.
    """

    seed: str
    changes: tuple[str, ...]
    files: dict[str, bytes]


def model_mutant(number: int, seed: int = 0) -> Mutant:
    """Return the changed model of a number."""
    rng = np.random.default_rng([seed, number])
    name = pick(rng, list(SPECIAL)) if rng.random() < SPECIAL_SHARE else pick(rng, sorted(graphs()))
    model, external = seed_model(name)
    if rng.random() < BYTES_SHARE:
        how, data = _change_bytes(rng, model.SerializeToString())
        return Mutant(name, (how,), {"model.onnx": data, **external})
    changes = [pick(rng, list(MUTATORS)) for _ in range(int(rng.integers(1, MOST_CHANGES + 1)))]
    for change in changes:
        # graphs too deep for protobuf are made of bytes, see `deeper`
        with contextlib.suppress(DecodeError):
            MUTATORS[change](rng, model)
    return Mutant(name, tuple(changes), {"model.onnx": model.SerializeToString(), **external})


def plan_mutant(number: int, seed: int = 0) -> Mutant:
    """Return a changed plan and the valid model that it belongs to."""
    rng = np.random.default_rng([seed, 1, number])
    good = {"good.onnx": seed_bytes(MODEL_OF_PLANS)}
    plan = json.loads(_valid_plan())
    if rng.random() < BYTES_SHARE:
        how, data = _change_bytes(rng, _valid_plan())
        return Mutant("plan", (how,), {"plan.json": data, **good})
    changes = [_change_json(rng, plan) for _ in range(int(rng.integers(1, MOST_CHANGES + 1)))]
    text = json.dumps(plan)
    if rng.random() < 0.05:
        text = "[" * 100_000 + text
    data = text.encode("utf-8", "surrogatepass")
    return Mutant("plan", tuple(changes), {"plan.json": data, **good})


def recipe_mutant(number: int, seed: int = 0) -> Mutant:
    """Return a changed recipe and a valid model."""
    from onnxprune.run.recipe import OPTIONS, Recipe
    from onnxprune.run.recipe_file import to_toml

    rng = np.random.default_rng([seed, 2, number])
    good = {"good.onnx": seed_bytes(MODEL_OF_PLANS)}
    quick = {"repair": "none", "engine": "none", "samples": 2}
    recipe = Recipe(target="macs=70%", criterion="l2", allocate="knapsack", round_to=1, **quick)
    text = to_toml(recipe)
    lines = text.splitlines()
    if rng.random() < BYTES_SHARE:
        how, data = _change_bytes(rng, text.encode())
        return Mutant("recipe", (how,), {"recipe.toml": data, **good})
    changes = []
    for _ in range(int(rng.integers(1, MOST_CHANGES + 1))):
        key = str(pick(rng, list(OPTIONS)))
        value = pick(rng, _TOML_VALUES) if rng.random() < 0.7 else str(size(rng))
        lines = [line for line in lines if not line.startswith(f"{key} = ")]
        lines.insert(0, f"{key} = {value}")
        changes.append(f"{key} = {value[:30]}")
    return Mutant("recipe", tuple(changes), {"recipe.toml": "\n".join(lines).encode(), **good})


MAKERS: dict[str, Callable[[int, int], Mutant]] = {
    "models": model_mutant,
    "plans": plan_mutant,
    "recipes": recipe_mutant,
}


def _change_bytes(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    """Return the name of a change of bytes and the changed data."""
    how = pick(rng, list(BYTES))
    return how, bytes(BYTES[how](rng, bytearray(data)))


def _change_json(rng: np.random.Generator, value: Any) -> str:
    """Change one value inside a document, in place; return its path."""
    path = ""
    while isinstance(value, (dict, list)) and value:
        key = pick(rng, list(value) if isinstance(value, dict) else range(len(value)))
        path += f"/{key}"
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            value = inner
            continue
        if rng.random() < 0.2:
            del value[key]
        elif rng.random() < 0.1 and isinstance(value, dict):
            value[f"{key}?"] = value.pop(key)
        else:
            value[key] = pick(rng, _JSON_VALUES)
        return path
    return path


@cache
def _valid_plan() -> bytes:
    """Return a plan of MODEL_OF_PLANS."""
    from onnxprune.run.pipeline import make_plan
    from onnxprune.run.recipe import Recipe

    mixing = ["LayerNormalization"]
    recipe = Recipe(
        target="macs=70%", criterion="l2", allocate="knapsack", round_to=1, allow_mixing=mixing
    )
    return json.dumps(make_plan(seed_bytes(MODEL_OF_PLANS), recipe).to_json()).encode()
