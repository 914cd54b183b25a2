"""Time the layers and whole models of a bundle's layers.zip; standard library only."""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agent
import common

PASSES = 2  # over all layers, so that a disturbance spoils one
TIMED_S, MOST_RUNS, LEAST_RUNS = 0.03, 100, 4  # per layer and pass
WHOLE_ROUNDS = 8  # of whole models, in turns
REPORT_S = 20.0


def measure(
    results: Path,
    timer: Callable[[Path, str], float],
    facts: dict[str, Any],
    passes: int = PASSES,
    rounds: int = WHOLE_ROUNDS,
) -> None:
    """Time every model of layers.zip and write layer_times.json.

    Parameters
    ----------
    timer
        Function of (model file, name) that returns milliseconds.
    facts
        Runtime, precision and threads.
    passes, rounds
        Measurements of each layer and of each whole model, of which the least counts.
    """
    state = agent.read_state()
    times: dict[str, float] = {}
    with zipfile.ZipFile(str(common.FOLDER / "layers.zip")) as archive:
        names = [name[: -len(".onnx")] for name in archive.namelist()]
        whole = [name for name in names if name.startswith("whole_")]
        order = [name for name in names if name not in whole] * passes + whole * rounds
        common.say(f"timing {len(names)} models, {len(order)} measurements")
        last = time.time()
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            for number, name in enumerate(order):
                path = Path(folder) / (name + ".onnx")
                if not path.is_file():
                    path.write_bytes(archive.read(name + ".onnx"))
                times[name] = min(times.get(name, float("inf")), timer(path, name))
                if time.time() - last > REPORT_S:
                    last = time.time()
                    common.say(f"{number + 1} of {len(order)}")
    # what a call takes is no part of a layer
    empty = times.pop("empty", 0.0)
    for name in times:
        if name not in whole:
            times[name] = max(times[name] - empty, 1e-2 * times[name])
    device = dict(agent.describe_machine(), **facts)
    for key in ("state", "runtimes", "broken", "protocol", "lanes"):
        device.pop(key)
    after = agent.read_state()
    device["state"] = [state, after]
    if state["mode"] != after["mode"] or after["throttled"] > state["throttled"]:
        common.fail("the power mode changed or the clock was throttled: repeat the measurement")
    result = {"device": device, "times_ms": times, "call_ms": empty}
    common.write_json(results / "layer_times.json", result)


class RuntimeTimer:
    """Timer of models by a Python runtime; keeps whole models compiled."""

    def __init__(self, runtime: str, precision: str, threads: int) -> None:
        self.runtime, self.known = runtime, {}  # type: ignore[var-annotated]  # see open
        self.options = {"threads": threads, "precision": precision, "level": "all"}

    def open(self, path: Path, name: str) -> Any:
        """Return (model, feeds), from the last time for whole models."""
        if name in self.known:
            return self.known[name]
        numpy = common.module("numpy", "pip install numpy")
        index = json.loads((common.FOLDER / "layers.json").read_text(encoding="utf-8"))
        if name.startswith("layer_"):
            shapes = {"x": index["layers"][int(name[len("layer_") :])]["input"]}
            outputs, kinds = ["y"], {"x": "float32"}
        elif name == "empty":
            shapes, outputs, kinds = {"x": [1]}, ["y"], {"x": "float32"}
        else:
            manifest = common.read_manifest()["models"]["original"]
            shapes, outputs, kinds = manifest["inputs"], manifest["outputs"], {}
            with numpy.load(str(common.FOLDER / "inputs.npz")) as arrays:
                kinds = {n: arrays[n].dtype for n in shapes}
        model = agent.open_model(self.runtime, str(path), dict(self.options, outputs=outputs))
        generator = numpy.random.default_rng(0)
        feeds = {
            n: generator.random(shape).astype(kinds.get(n, "float32"))
            for n, shape in shapes.items()
        }
        if name.startswith("whole_"):
            self.known[name] = model, feeds
        return model, feeds

    def __call__(self, path: Path, name: str) -> float:
        """Return the least milliseconds of several inferences by the clock of the thread's CPU."""
        model, feeds = self.open(path, name)
        first = min(agent.time_model(model, feeds, 2))[1]
        runs = int(1e3 * TIMED_S / max(first, 1e-4))
        runs = min(max(runs, LEAST_RUNS), MOST_RUNS)
        return min(cpu for _, cpu in agent.time_model(model, feeds, runs))
