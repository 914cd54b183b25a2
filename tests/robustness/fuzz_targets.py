"""Targets of coverage-guided fuzzing: functions of bytes.

A target returns if it accepts its input and raises OnnxpruneError if it rejects it. Any other
exception, and a cut model that differs from the masked original, is a find.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import OnnxpruneError
from onnxprune.files import hash_key
from onnxprune.ir.io import load
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.run.adapter import analyze_for_plan
from onnxprune.run.recipe import Recipe
from onnxprune.run.recipe_file import read_data_only
from onnxprune.run.rundir import JOURNAL, open_run_dir
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan
from tests.robustness.mutants import MODEL_OF_PLANS, plan_mutant, recipe_mutant
from tests.robustness.seeds import SPECIAL, graphs, seed_bytes

Target = Callable[[bytes], None]
LARGEST_WEIGHT = 1e4  # sums of larger ones round and overflow differently in another order
_MODELS = "load analyze cut".split()


class Wrong(AssertionError):
    """A result that is not what the documentation promises."""


def load_model(data: bytes) -> None:
    """Load and canonicalize a model."""
    canonicalize(load(data))


def analyze_model(data: bytes) -> None:
    """Analyze a model; a rule that fails is a find."""
    analysis = analyze(load(data))
    if analysis.defects:
        raise Wrong(f"a rule fails: {analysis.defects[0]}")


def cut_model(data: bytes) -> None:
    """Cut half of every group of a model, chosen by the hash of its bytes, and verify."""
    analysis = analyze(load(data))
    kept = _choose(analysis, int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
    plan = analysis.plan(kept)
    result = verify(analysis, plan, cut(analysis, plan))
    if not result.ok and _is_tame(analysis):
        raise Wrong(f"the cut model differs from the masked original by {result.difference:.2g}")


def read_file(data: bytes) -> None:
    """Read a plan, a recipe or a journal, by the first byte."""
    kind, text = data[:1], data[1:]
    if kind == b"p":
        _read_plan(text)
    elif kind == b"r":
        path = _scratch() / "recipe.toml"
        path.write_bytes(text)
        Recipe.of(read_data_only(path))
    else:
        _read_journal(text)


def _choose(analysis: Analysis, seed: int) -> dict[str, list[int]]:
    """Return half of the channels of every group."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in analysis.groups:
        if group.size > 1:
            count = int(rng.integers(max(1, group.size // 3), group.size))
            kept[group.name] = sorted(rng.choice(group.size, count, replace=False).tolist())
    return kept


def _is_tame(analysis: Analysis) -> bool:
    """Return whether all weights are finite and small."""
    for weight in analysis.model.weights.values():
        values = weight.array()
        if values.dtype.kind == "f" and not (np.abs(values) < LARGEST_WEIGHT).all():
            return False
    return True


def _read_plan(text: bytes) -> None:
    """Read a plan as the commands do, and cut by it."""
    path = _scratch() / "plan.json"
    path.write_bytes(text)
    plan = Plan.load(path)
    analysis = analyze_for_plan(load(seed_bytes(MODEL_OF_PLANS)), plan)
    cut(analysis, plan)


def _read_journal(text: bytes) -> None:
    """Open a run directory with this journal, and look for stages in it."""
    folder = _scratch() / "run"
    with open_run_dir(folder) as run:
        (folder / JOURNAL).write_bytes(text)
        for entry in run.entries():
            run.done(entry.stage, entry.key)
        run.record("end", hash_key("end"), 0.0)
        if run.done("end", hash_key("end")) is None:
            raise Wrong("a recorded stage is not found in the journal")


@cache
def _scratch() -> Path:
    """Return a folder of this process."""
    folder = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _model_seeds() -> dict[str, bytes]:
    """Return the valid models of the tests."""
    return {name: seed_bytes(name) for name in sorted({*SPECIAL, *graphs()})}


def _file_seeds() -> dict[str, bytes]:
    """Return valid and changed plans, recipes and journals."""
    row = {"stage": "score", "key": "k", "files": {"a.npz": "0"}, "facts": {"x": 1}, "seconds": 1.5}
    seeds = {"journal": b"j" + json.dumps(row).encode() + b"\n"}
    for number in range(200):
        seeds[f"plan{number}"] = b"p" + plan_mutant(number).files["plan.json"]
        seeds[f"recipe{number}"] = b"r" + recipe_mutant(number).files["recipe.toml"]
    return seeds


@dataclass(frozen=True)
class FuzzTarget:
    """A target.

    Attributes
    ----------
    run
        The function.
    seeds
        Returns the first corpus, by name.
    """

    run: Target
    seeds: Callable[[], Mapping[str, bytes]]


TARGETS: dict[str, FuzzTarget] = {
    "load": FuzzTarget(load_model, _model_seeds),
    "analyze": FuzzTarget(analyze_model, _model_seeds),
    "cut": FuzzTarget(cut_model, _model_seeds),
    "files": FuzzTarget(read_file, _file_seeds),
}


def try_input(target: str, data: bytes) -> str:
    """Return the description of a find, "" if the target accepts or rejects the input."""
    try:
        TARGETS[target].run(data)
    except OnnxpruneError:
        return ""
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return ""
