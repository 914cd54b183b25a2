"""Build and time the bundle's models with TensorRT on a Jetson, A B A B, with power sampled. Needs JetPack only.

python3 run.py [--precision fp16] [--duration 10] [--rounds 3] [--dla 0] [--clocks max]
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]  # beside this file in the bundle
import jetson_python  # type: ignore[import-not-found]

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
HOW = "install JetPack's TensorRT (sudo apt-get install nvidia-jetpack), or put trtexec on PATH"


class Power:
    """tegrastats while a block runs; every line with the time it came."""

    def __init__(self, path: Path, interval_ms: int) -> None:
        self.path, self.interval_ms = path, interval_ms
        self.process: subprocess.Popen[str] | None = None
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Power:
        program = common.find("tegrastats")
        if program:
            command = [program, "--interval", str(self.interval_ms)]
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            self.thread = threading.Thread(
                target=self._copy, args=(self.process.stdout,), daemon=True
            )
            self.thread.start()
        return self

    def _copy(self, lines: Iterable[str]) -> None:
        with open(str(self.path), "w", encoding="utf-8") as file:
            for line in lines:
                file.write(f"{time.time():.3f} {line}")
                file.flush()

    def __exit__(self, *_: object) -> None:
        if self.process and self.thread:
            self.process.terminate()
            self.process.wait()
            self.thread.join(5)


def set_clocks(chosen: Namespace) -> str:
    """Highest power mode and fixed clocks, where that is allowed without asking for a password; what was done."""
    if chosen.clocks != "max":
        return "left as they were"
    done = []
    for command in (["nvpmodel", "-m", chosen.power_mode], ["jetson_clocks"]):
        program = common.find(command[0])
        if not program:
            done.append(command[0] + ": not on this machine")
            continue
        status = subprocess.run(
            ["sudo", "-n", program] + command[1:], stdin=subprocess.DEVNULL, capture_output=True
        ).returncode
        done.append(
            "{}: {}".format(
                " ".join(command), "done" if status == 0 else "refused, run it by hand with sudo"
            )
        )
    return "; ".join(done)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    release = Path("/etc/nv_tegra_release")
    model = Path("/proc/device-tree/model")
    return {
        "board": model.read_text(errors="replace").strip("\0 \n") if model.is_file() else "",
        "l4t": release.read_text(errors="replace").splitlines()[0] if release.is_file() else "",
        "tensorrt": common.output(["dpkg-query", "-W", "-f=${Version}", "libnvinfer-bin"]),
        "power_mode": common.output(["nvpmodel", "-q"]),
        "clocks": common.output(["sudo", "-n", "jetson_clocks", "--show"]),
        "kernel": common.output(["uname", "-a"]),
    }


def precision_flags(precision: str, known: set[str], path: Path) -> tuple[list[str], Path]:
    """(trtexec flags, model file): TensorRT 10 lowers a float graph itself, 11 wants the graph in the precision it is to run in."""
    if precision == "fp16":
        half = path.with_name(path.stem + ".fp16.onnx")
        if "--fp16" in known:
            return ["--fp16"], path
        if not half.is_file():
            common.fail(
                f"this TensorRT has no --fp16 and the bundle has no {half.name}; write the bundle with --precision fp16"
            )
        return [], half
    if precision == "int8":
        whole = path.with_name(path.stem + ".int8.onnx")
        return ["--int8", "--fp16"] if "--int8" in known else [], whole if whole.is_file() else path
    return (["--noTF32"] if "--noTF32" in known else []), path


def build(
    trtexec: str, known: set[str], name: str, path: Path, chosen: Namespace, results: Path
) -> Path:
    """Build an engine; its path."""
    flags, source = precision_flags(chosen.precision, known, path)
    engine = results / (name + ".engine")
    flags += (
        ["--skipInference"]
        if "--skipInference" in known
        else ["--buildOnly"]
        if "--buildOnly" in known
        else []
    )
    flags += ["--useDLACore=" + chosen.dla, "--allowGPUFallback"] if chosen.dla != "none" else []
    flags += (
        ["--timingCacheFile=%s" % (results / "timing.cache")]
        if "--timingCacheFile" in known
        else []
    )
    flags += ["--exportLayerInfo=%s" % (results / (name + ".layers.json"))]
    flags += ["--profilingVerbosity=detailed"] if "--profilingVerbosity" in known else []
    common.run(
        [trtexec, f"--onnx={source}", f"--saveEngine={engine}"] + flags,
        results / (name + ".build.log"),
    )
    return engine


def measure(
    trtexec: str,
    known: set[str],
    name: str,
    engine: Path,
    chosen: Namespace,
    results: Path,
    turn: int,
) -> None:
    """One round of timing with power."""
    stem = f"{name}.{turn}"
    command = [
        trtexec,
        f"--loadEngine={engine}",
        f"--warmUp={chosen.warm_up}",
        f"--duration={chosen.duration}",
        "--iterations=10",
    ]
    command += [f for f in ("--useSpinWait", "--noDataTransfers") if f in known]
    command += ["--useCudaGraph"] if chosen.dla == "none" and "--useCudaGraph" in known else []
    command += ["--useDLACore=" + chosen.dla] if chosen.dla != "none" else []
    command += ["--exportTimes=%s" % (results / (stem + ".times.json"))]
    with Power(results / (stem + ".power.log"), int(chosen.interval)):
        common.run(command, results / (stem + ".log"))


def profile(
    trtexec: str, known: set[str], name: str, engine: Path, chosen: Namespace, results: Path
) -> None:
    """Time by layer, in a run of its own because profiling slows the others."""
    command = [trtexec, f"--loadEngine={engine}", f"--warmUp={chosen.warm_up}", "--duration=3"]
    command += ["--useDLACore=" + chosen.dla] if chosen.dla != "none" else []
    command += ["--profilingVerbosity=detailed"] if "--profilingVerbosity" in known else []
    common.run(
        command + ["--exportProfile=%s" % (results / (name + ".profile.json"))],
        results / (name + ".profile.log"),
    )


def with_trtexec(trtexec: str, models: dict[str, Path], chosen: Namespace, results: Path) -> None:
    """Build, then time in turns."""
    known = set(re.findall(r"--\w+", common.output([trtexec, "--help"])))
    engines = {
        name: build(trtexec, known, name, path, chosen, results) for name, path in models.items()
    }
    with Power(results / "idle.power.log", int(chosen.interval)):
        time.sleep(float(chosen.idle))
    for turn in range(int(chosen.rounds)):
        for name, engine in engines.items():
            measure(trtexec, known, name, engine, chosen, results, turn)
    for name, engine in engines.items():
        profile(trtexec, known, name, engine, chosen, results)


def with_python(models: dict[str, Path], chosen: Namespace, results: Path) -> None:
    """The same by TensorRT's Python bindings, where there is no trtexec."""
    if chosen.dla != "none":
        common.fail("DLA needs trtexec, which is not on this machine: " + HOW)
    sessions = {
        name: jetson_python.Session(name, path, chosen, results) for name, path in models.items()
    }
    for turn in range(int(chosen.rounds)):
        for name, session in sessions.items():
            with Power(results / f"{name}.{turn}.power.log", int(chosen.interval)):
                rows = session.times(float(chosen.warm_up) / 1e3, float(chosen.duration))
            (results / f"{name}.{turn}.times.json").write_text(json.dumps(rows))
    for name, session in sessions.items():
        session.profile(results / (name + ".profile.json"))


def main() -> None:
    """Everything, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    trtexec = common.find("trtexec", TRTEXEC)
    if not trtexec:
        common.module("tensorrt", "neither trtexec nor the bindings were found; " + HOW)
    clocks = set_clocks(chosen)
    common.say("clocks: " + clocks)
    record = dict(
        environment(),
        clocks_set=clocks,
        runner=trtexec or "python",
        options=vars(chosen),
        warm_up_ms=float(chosen.warm_up),
    )
    common.write_json(results / "environment.json", record)
    if trtexec:
        with_trtexec(trtexec, common.models(found), chosen, results)
    else:
        with_python(common.models(found), chosen, results)
    common.write_json(results / "done.json", {"models": sorted(found["models"])})
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
