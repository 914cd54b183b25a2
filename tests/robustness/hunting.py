"""Search for faults on random networks.

A fault is an internal error, a wrong cut, a correct cut that verification rejects, or an exception
as the reason of a frozen axis. Each network goes through a random cut and a run.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import onnxprune
from onnxprune.criteria import CRITERIA
from onnxprune.errors import OnnxpruneError
from onnxprune.search import METHODS
from tests.robustness.realistic import Network, network

SAMPLES = 24
MOST_SAMPLES_PER_FEED = 2
# expected errors: a small network cannot reach the target, or has no weights of the asked kind
EXPECTED_CODES = (
    "target-unreachable",
    "no-channels",
    "no-groups",
    "no-batchnorm",
    "no-plain-weights",
)


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes
    ----------
    seed, kinds
        The network.
    step
        "cut" or "run".
    text
        Description.
    """

    seed: int
    kinds: tuple[str, ...]
    step: str
    text: str

    def __str__(self) -> str:
        return f"seed {self.seed} ({', '.join(self.kinds)}), {self.step}: {self.text}"


def runs(net: Network) -> bool:
    """Return whether onnxruntime accepts the network and computes finite outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(net.model.SerializeToString(), options)
        outputs = session.run(None, net.feeds(np.random.default_rng(net.seed)))
    except Exception:  # onnxruntime's errors have no common type
        return False
    return all(np.isfinite(value).all() for value in outputs)


def check_cut(net: Network) -> Iterator[str]:
    """Cut a random part of every group; yield the faults of the result."""
    rng = np.random.default_rng(net.seed)
    analysis = onnxprune.analyze(onnxprune.load(net.model.SerializeToString()))
    yield from analysis.defects
    kept = {}
    for group in analysis.groups:
        if group.size > 1:
            count = int(rng.integers(max(1, group.size // 3), group.size))
            kept[group.name] = sorted(rng.choice(group.size, count, replace=False).tolist())
    plan = analysis.plan(kept)
    smaller = onnxprune.cut(analysis, plan)
    result = onnxprune.verify(analysis, plan, smaller, net.feeds(rng))
    if not result.ok:
        yield f"differs from the masked original by {result.difference:.2g}"


def run_outcome(net: Network, options: Mapping[str, Any]) -> tuple[str, str]:
    """Run `optimize` on the network.

    Returns
    -------
    Code and text of its error; two empty strings if it completes. A result that onnxruntime does
    not run, or whose outputs are not finite, has the code "not-runnable".
    """
    rng = np.random.default_rng(net.seed)
    draws = [net.feeds(rng) for _ in range(SAMPLES)]
    arrays = {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}
    with tempfile.TemporaryDirectory() as folder:
        path, data = Path(folder, "model.onnx"), Path(folder, "data.npz")
        output = path.with_name("pruned.onnx")
        onnx.save(net.model, path)
        np.savez(data, **arrays)
        try:
            onnxprune.optimize(path, output, data=str(data), **options)
        except OnnxpruneError as problem:
            return problem.code, str(problem)
        if not runs(replace(net, model=onnx.load(output))):
            return "not-runnable", "onnxruntime does not run the result, or it is not finite"
    return "", ""


def check_run(net: Network, options: Mapping[str, Any]) -> Iterator[str]:
    """Run `optimize` on the network; yield its error unless that is expected."""
    code, text = run_outcome(net, {"engine": "none", **options})
    if code not in ("", *EXPECTED_CODES):
        yield f"{options}: {code}: {text}"


def describe_exception(problem: Exception) -> str:
    """Return type, place and text of an exception."""
    where = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{type(problem).__name__} at {Path(where.filename).name}:{where.lineno}: {problem}"


def options_of(seed: int) -> dict[str, Any]:
    """Return the options of a seed's run: the defaults, or one criterion or method."""
    criteria, methods = sorted(CRITERIA), sorted(set(METHODS) - {"one-shot"})
    variants: list[dict[str, Any]] = [{}, {"fast": True}, {"max_divergence": 0.3, "fast": True}]
    variants += [
        {"criterion": name, "allocate": "knapsack"} for name in criteria if ":" not in name
    ]
    variants += [{"method": name, "criterion": "l2"} for name in methods]
    variants += [{"blocks": True}, {"allow_mixing": ["LayerNormalization"], "fast": True}]
    chosen = variants[seed // 2 % len(variants)] if seed % 2 else variants[0]
    return {"target": "macs=70%", "round_to": 1, **chosen}


def hunt_one(seed: int, with_runs: bool = True) -> list[Fault] | None:
    """Return the faults of one network; None if onnxruntime rejects it."""
    net = network(seed)
    if not runs(net):
        return None
    faults = []
    steps = [("cut", lambda: check_cut(net))]
    if with_runs:
        steps.append(("run", lambda: check_run(net, options_of(seed))))
    for step, check in steps:
        try:
            texts = list(check())
        except Exception as problem:  # any exception is a fault
            texts = [describe_exception(problem)]
        faults += [Fault(seed, net.kinds, step, text) for text in texts]
    return faults


def hunt(first: int, minutes: float, with_runs: bool = True) -> tuple[Counter[str], list[Fault]]:
    """Try networks from seed `first` on for some minutes; return counts and faults."""
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    deadline, seed = time.monotonic() + 60 * minutes, first
    while time.monotonic() < deadline:
        of_network = hunt_one(seed, with_runs)
        if of_network is None:
            counts["rejected by onnxruntime"] += 1
        else:
            counts["faulty" if of_network else "sound"] += 1
            for fault in of_network:
                print(fault, flush=True)
            faults += of_network
        seed += 1
    return counts, faults
