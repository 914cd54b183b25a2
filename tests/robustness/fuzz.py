"""Mutated models, plans and recipes through the verbs that read them, each in a process of its own under limits.

    python -m tests.robustness.fuzz --files 5000 [--first 0] [--kind models|plans|recipes] [--keep FOLDER] [--json]

A mutant passes if every verb ends with one of the documented exit codes and, where that is not 0, one sentence: no traceback, no signal, no
`error[internal]`, within TIME_LIMIT_S seconds of processor time a verb and MEMORY_LIMIT_BYTES of resident memory. Mutant N of a seed is always the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from tests.robustness import bombs  # noqa: F401 (enters its mutators)
from tests.robustness.mutants import (
    BYTES,
    MUTATORS,
    SPECIAL,
    graphs,
    pick,
    seed_bytes,
    seed_model,
    size,
)

SPECIAL_SHARE = (
    0.6  # of the mutants come from SPECIAL, the others from the test graphs of single operators
)
BYTES_SHARE = 0.25  # of the mutants have bytes changed, the others structure
MOST_CHANGES = 3
TIME_LIMIT_S = 10.0  # of processor time, of one verb
WALL_LIMIT_S = 60.0  # of one verb that may be waiting
LOOP_LIMIT_S = "2"  # of one run of a Loop, see onnxprune.ir.runtime
MEMORY_LIMIT_BYTES = (
    10**9
)  # resident, the libraries included; and the limit (RLIMIT_DATA) that stands for a machine of that size
ONE_INPUT = ["--samples=2", "--batch-size=2"]
PLAN_FLAGS = [
    "--target=macs=70%",
    "--criterion=l2",
    "--allocate=knapsack",
    "--round-to=1",
    *ONE_INPUT,
]
ENDS = {0, 1, 2, 3, 4}
_OVERFLOWS = {"odd values", *BYTES}  # weights of 1e38: sums in another order are other infinities


@dataclass(frozen=True)
class Mutant:
    """seed: what was changed; changes: how; files: by name, the first is the one to give to the verbs."""

    seed: str
    changes: tuple[str, ...]
    files: dict[str, bytes]


@dataclass
class Outcome:
    """What became of a mutant. verbs: exit code by verb; codes: error codes that were printed; fault: what must not happen, "" where nothing did."""

    number: int
    seed: str
    changes: tuple[str, ...]
    verbs: dict[str, int] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    fault: str = ""
    talk: str = ""


# ---------------------------------------------------------------- mutants


def model_mutant(number: int, seed: int = 0) -> Mutant:
    """Model of that number; the same for the same number and seed."""
    rng = np.random.default_rng([seed, number])
    name = pick(rng, list(SPECIAL)) if rng.random() < SPECIAL_SHARE else pick(rng, sorted(graphs()))
    model, external = seed_model(name)
    if rng.random() < BYTES_SHARE:
        how = pick(rng, list(BYTES))
        return Mutant(
            name,
            (how,),
            {
                "model.onnx": bytes(BYTES[how](rng, bytearray(model.SerializeToString()))),
                **external,
            },
        )
    changes = [pick(rng, list(MUTATORS)) for _ in range(int(rng.integers(1, MOST_CHANGES + 1)))]
    for change in changes:
        with contextlib.suppress(
            DecodeError
        ):  # graphs too deep for protobuf are made of bytes, see `deeper`
            MUTATORS[change](rng, model)
    return Mutant(name, tuple(changes), {"model.onnx": model.SerializeToString(), **external})


def plan_mutant(number: int, seed: int = 0) -> Mutant:
    """A plan of the Gemm test graph with some values changed, and the model beside it."""
    rng = np.random.default_rng([seed, 1, number])
    plan = json.loads(_good_plan())
    if rng.random() < BYTES_SHARE:
        how = pick(rng, list(BYTES))
        return Mutant(
            "plan",
            (how,),
            {
                "plan.json": bytes(BYTES[how](rng, bytearray(_good_plan()))),
                "good.onnx": seed_bytes("transformer"),
            },
        )
    changes = []
    for _ in range(int(rng.integers(1, MOST_CHANGES + 1))):
        changes.append(_change_json(rng, plan))
    text = json.dumps(plan)
    if rng.random() < 0.05:
        text = "[" * 100_000 + text
    return Mutant(
        "plan",
        tuple(changes),
        {
            "plan.json": text.encode("utf-8", "surrogatepass"),
            "good.onnx": seed_bytes("transformer"),
        },
    )


def recipe_mutant(number: int, seed: int = 0) -> Mutant:
    """A recipe with some lines changed, and the model beside it."""
    from onnxprune.run.recipe import OPTIONS, Recipe
    from onnxprune.run.recipe_file import to_toml

    rng = np.random.default_rng([seed, 2, number])
    text = to_toml(
        Recipe(
            target="macs=70%",
            criterion="l2",
            allocate="knapsack",
            repair="none",
            engine="none",
            round_to=1,
            samples=2,
        )
    )
    lines = text.splitlines()
    if rng.random() < BYTES_SHARE:
        how = pick(rng, list(BYTES))
        return Mutant(
            "recipe",
            (how,),
            {
                "recipe.toml": bytes(BYTES[how](rng, bytearray(text.encode()))),
                "good.onnx": seed_bytes("transformer"),
            },
        )
    changes = []
    for _ in range(int(rng.integers(1, MOST_CHANGES + 1))):
        key = str(pick(rng, list(OPTIONS)))
        value = pick(rng, _TOML_VALUES) if rng.random() < 0.7 else str(size(rng))
        lines = [line for line in lines if not line.startswith(f"{key} = ")]
        lines.insert(0, f"{key} = {value}")
        changes.append(f"{key} = {value[:30]}")
    return Mutant(
        "recipe",
        tuple(changes),
        {"recipe.toml": "\n".join(lines).encode(), "good.onnx": seed_bytes("transformer")},
    )


_TOML_VALUES = (
    '""',
    '"x"',
    "true",
    "[]",
    "[[]]",
    "{}",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1",
    "0",
    "0.5",
    '["a", 1]',
    "{a = 1}",
    '{"*" = 2}',
    "1979-05-27",
    '"macs=0%"',
    '"macs=nan%"',
    '"latency.none=2x"',
    '"macs=1e999"',
    '"../../../etc"',
    '"/dev/zero"',
    '"\\u0000"',
    '["macs=50%", "params=1"]',
    '"[(2, 0.5)]"',
    '"x:1,2,3"',
    "{x = [1, 2]}",
    "[" * 500 + "]" * 500,
    '"loader.py:f"',
    '"os:system"',
    '{"x" = "1,99999999999,4"}',
    '"' + "a" * 10_000 + '"',
    "'''",
    "= =",
)
_JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    0.5,
    1e308,
    10**30,
    2**63,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    [],
    {},
    [[]],
    {"a": {}},
    "é\ud800",
    [0, 0],
    [1, 0],
    "a" * 10_000,
)


def _change_json(rng: np.random.Generator, value: Any) -> str:
    """One change somewhere inside; says where."""
    where = ""
    while isinstance(value, (dict, list)) and value:
        key = pick(rng, list(value) if isinstance(value, dict) else range(len(value)))
        where += f"/{key}"
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
        return where
    return where


_PLAN: list[bytes] = []


def _good_plan() -> bytes:
    """A plan of the transformer seed."""
    if not _PLAN:
        from onnxprune.run.pipeline import make_plan
        from onnxprune.run.recipe import Recipe

        plan = make_plan(
            seed_bytes("transformer"),
            Recipe(
                target="macs=70%",
                criterion="l2",
                allocate="knapsack",
                round_to=1,
                allow_mixing=["LayerNormalization"],
            ),
        )
        _PLAN.append(json.dumps(plan.to_json()).encode())
    return _PLAN[0]


# ---------------------------------------------------------------- one mutant


def model_verbs(folder: str) -> Iterator[list[str]]:
    """inspect, plan, cut, verify."""
    model, plan, out = (os.path.join(folder, n) for n in ("model.onnx", "plan.json", "out.onnx"))
    yield ["inspect", model, "--json"]
    yield ["plan", model, "-o", plan, *PLAN_FLAGS]
    if os.path.exists(plan):
        yield ["cut", model, plan, "-o", out]
    if os.path.exists(out):
        yield ["verify", model, out, "--plan", plan, *ONE_INPUT]


def plan_verbs(folder: str) -> Iterator[list[str]]:
    """Cut and verify with a changed plan."""
    model, plan, out = (os.path.join(folder, n) for n in ("good.onnx", "plan.json", "out.onnx"))
    yield ["cut", model, plan, "-o", out]
    yield ["verify", model, out if os.path.exists(out) else model, "--plan", plan, *ONE_INPUT]


def recipe_verbs(folder: str) -> Iterator[list[str]]:
    """Plan with a changed recipe."""
    yield [
        "plan",
        os.path.join(folder, "good.onnx"),
        "-o",
        os.path.join(folder, "plan.json"),
        "--recipe",
        os.path.join(folder, "recipe.toml"),
    ]


KINDS: dict[str, tuple[Callable[[int, int], Mutant], Callable[[str], Iterator[list[str]]]]] = {
    "models": (model_mutant, model_verbs),
    "plans": (plan_mutant, plan_verbs),
    "recipes": (recipe_mutant, recipe_verbs),
}


def _child(verbs: Iterator[list[str]], record: str) -> None:
    """In the forked process: run the verbs and leave their exit codes in a file, one a line; never returns."""
    from onnxprune.cli import run

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    os.environ["ONNXPRUNE_LOOP_LIMIT_S"] = LOOP_LIMIT_S
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    talk = os.open(f"{record}.talk", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(talk, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with open(record, "w", buffering=1) as file:
        for arguments in verbs:
            faulthandler.dump_traceback_later(WALL_LIMIT_S, file=talk, exit=True)
            file.write(f"{arguments[0]} ")
            start = time.process_time()
            code = run([*arguments, "--debug"])
            file.write(f"{code} {time.process_time() - start:.3f}\n")
    os._exit(0)


def try_one(
    mutant: Mutant, verbs: Callable[[str], Iterator[list[str]]], number: int = 0
) -> Outcome:
    """One mutant through its verbs, in a process that may die."""
    outcome = Outcome(number, mutant.seed, mutant.changes)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, data in mutant.files.items():
            Path(folder, name).write_bytes(data)
        record = os.path.join(folder, "record")
        child = os.fork()
        if not child:
            _child(verbs(folder), record)
        _, status, usage = os.wait4(child, 0)
        outcome.peak_bytes = usage.ru_maxrss * 1024
        for line in Path(record).read_text().splitlines() if os.path.exists(record) else ():
            verb, code, seconds, *_ = [*line.split(), "-1", "0"]
            outcome.verbs[verb] = int(code)
            outcome.seconds = max(outcome.seconds, float(seconds))
        outcome.talk = (
            Path(f"{record}.talk").read_text(errors="replace")
            if os.path.exists(f"{record}.talk")
            else ""
        )
        outcome.codes = [
            line[6 : line.index("]")]
            for line in outcome.talk.splitlines()
            if line.startswith("error[")
        ]
        outcome.fault = _fault(outcome, status, folder)
    return outcome


def _fault(outcome: Outcome, status: int, folder: str) -> str:
    """What must not happen, in words; "" where it did not."""
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    if os.WEXITSTATUS(status):
        return f"takes over {WALL_LIMIT_S:g} s of waiting"
    if outcome.seconds > TIME_LIMIT_S:
        return f"takes {outcome.seconds:.1f} s"
    if (
        "internal" in outcome.codes
        or "Traceback" in outcome.talk.split("error[")[0]
        and not outcome.codes
    ):
        return "a traceback"
    if "out-of-memory" in outcome.codes:
        return "runs out of memory"
    if (
        outcome.verbs.get("verify") == 4
        and not outcome.seed.startswith("plan")
        and not _OVERFLOWS & set(outcome.changes)
    ):
        return "the cut model is not the masked original"
    wrong = [f"{verb} ends with {code}" for verb, code in outcome.verbs.items() if code not in ENDS]
    if wrong or len(outcome.codes) != sum(code != 0 for code in outcome.verbs.values()):
        return ", ".join(wrong) or "not one sentence for each failure"
    if outcome.peak_bytes > MEMORY_LIMIT_BYTES:
        return f"takes {outcome.peak_bytes / 1e6:.0f} MB"
    left = [n for n in os.listdir(folder) if n.startswith(".")]
    return f"leaves {left[0]}" if left else ""


# ---------------------------------------------------------------- many


def prepare() -> None:
    """Import what the verbs need, so that each fork begins with it; nothing may start a thread."""
    import importlib

    import onnxruntime  # noqa: F401

    for name in (
        "cli.app",
        "cli.inspect",
        "cli.plan",
        "run.pipeline",
        "report.terminal",
        "allocators.knapsack",
        "criteria.magnitude",
        "data.synthetic",
    ):
        importlib.import_module(f"onnxprune.{name}")
    graphs()
    _good_plan()


def fuzz(
    kind: str, numbers: Sequence[int], seed: int = 0, keep: Path | None = None
) -> dict[str, Any]:
    """The mutants of these numbers: counts, and every fault."""
    prepare()
    make, verbs = KINDS[kind]
    ends: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    faults, slowest, largest = [], 0.0, 0
    for number in numbers:
        mutant = make(number, seed)
        outcome = try_one(mutant, verbs, number)
        done = list(outcome.verbs.values())
        ends[
            "fault"
            if outcome.fault
            else "goes through"
            if done and not any(done)
            else "refused with one sentence"
        ] += 1
        codes.update(set(outcome.codes))
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak_bytes)
        if outcome.fault:
            faults.append(
                {
                    "number": number,
                    "seed": mutant.seed,
                    "changes": list(mutant.changes),
                    "fault": outcome.fault,
                    "verbs": outcome.verbs,
                    "talk": outcome.talk[-1500:],
                }
            )
            print(
                f"{kind} {number} {mutant.seed} {mutant.changes}: {outcome.fault}",
                file=sys.stderr,
                flush=True,
            )
            if keep:
                shutil.rmtree(keep / f"{kind}{number}", ignore_errors=True)
                (keep / f"{kind}{number}").mkdir(parents=True)
                for name, data in {**mutant.files, "talk.txt": outcome.talk.encode()}.items():
                    (keep / f"{kind}{number}" / name).write_bytes(data)
    return {
        "kind": kind,
        "files": len(numbers),
        "first": min(numbers),
        "seed": seed,
        "ends": dict(ends),
        "codes": dict(codes.most_common()),
        "faults": faults,
        "slowest_s": round(slowest, 2),
        "peak_bytes": largest,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="these numbers and no others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), default="models")
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = fuzz(
        given.kind,
        given.only or range(given.first, given.first + given.files),
        given.seed,
        given.keep,
    )
    print(
        json.dumps(found, indent=1)
        if given.json
        else "\n".join(f"{k}: {v}" for k, v in found.items() if k != "faults")
    )
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
