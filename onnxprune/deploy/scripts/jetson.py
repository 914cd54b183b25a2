"""Build and time the bundle's models with TensorRT on a Jetson, in turns, and sample the power.

Needs JetPack only.

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

import common
import jetson_arrays
import jetson_python

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
HOW = "install JetPack's TensorRT (sudo apt-get install nvidia-jetpack), or put trtexec on PATH"


class Power:
    """Context that logs tegrastats with a time stamp per line while a block runs."""

    def __init__(self, path: Path, interval_ms: int) -> None:
        self.path, self.interval_ms = path, interval_ms
        self.process: subprocess.Popen[str] | None = None
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Power:
        """Start tegrastats if it is installed."""
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
        """Write the lines to the log until the process ends."""
        with open(str(self.path), "w", encoding="utf-8") as file:
            for line in lines:
                file.write(f"{time.time():.3f} {line}")
                file.flush()

    def __exit__(self, *_: object) -> None:
        """Stop tegrastats."""
        if self.process and self.thread:
            # tegrastats runs until it is stopped
            self.process.terminate()
            self.process.wait()
            self.thread.join(5)


def set_clocks(chosen: Namespace) -> str:
    """Set the highest power mode and fixed clocks; return what was done.

    sudo runs without a password prompt, so that a script over ssh cannot hang.
    """
    if chosen.clocks != "max":
        return "not changed"
    done = []
    mode = chosen.power_mode
    if mode == "max":
        mode = find_highest_mode(common.output(["nvpmodel", "-p", "--verbose"]))
    for command in (["nvpmodel", "-m", mode], ["jetson_clocks"]):
        program = common.find(command[0])
        if not program:
            done.append(command[0] + ": not installed on this machine")
            continue
        status = subprocess.run(
            ["sudo", "-n", program] + command[1:], stdin=subprocess.DEVNULL, capture_output=True
        ).returncode
        result = "done" if status == 0 else "refused, run it with sudo"
        done.append(" ".join(command) + ": " + result)
    return "; ".join(done)


def find_highest_mode(text: str) -> str:
    """Return the number of the highest mode in what `nvpmodel -p --verbose` prints.

    It is MAXN or MAXN_SUPER, else the mode with most watts, else 0. The order of the numbers says
    nothing: mode 0 of an Orin Nano is 15W.
    """
    best, highest = "0", -1.0
    for number, name in re.findall(r"POWER_MODEL: ID=(\d+) NAME=(\S+)", text):
        watts = re.search(r"(\d+)\s*W", name)
        height = float(watts.group(1)) if watts else 0.0
        if "MAXN" in name:
            height = 1e6 + ("SUPER" in name)
        if height > highest:
            best, highest = number, height
    return best


def describe_environment() -> dict[str, Any]:
    """Return board, software versions and clocks that the measurements depend on."""
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


class Trtexec:
    """The trtexec command: its flags differ between TensorRT versions, so `--help` is read first.

    Attributes
    ----------
    program
        Path of the command.
    known
        Flags that this version has.
    chosen
        Options of the run.
    results
        Folder for engines, logs and reports.
    """

    def __init__(self, program: str, chosen: Namespace, results: Path) -> None:
        self.program, self.chosen, self.results = program, chosen, results
        self.known = set(re.findall(r"--\w+", common.output([program, "--help"])))
        self.inputs: list[str] = []

    def supported(self, *flags: str) -> list[str]:
        """Return the flags that this version has."""
        return [flag for flag in flags if flag in self.known]

    def dla(self, *more: str) -> list[str]:
        """Return the flags that run on a DLA core, and `more`; [] if none is used."""
        return [] if self.chosen.dla == "none" else ["--useDLACore=" + self.chosen.dla, *more]

    def precision_flags(self, path: Path) -> tuple[list[str], Path]:
        """Return (flags, model file) of the precision.

        TensorRT 10 lowers a float graph itself, 11 takes the graph in the precision it runs in.
        """
        precision = self.chosen.precision
        if precision == "fp16":
            if "--fp16" in self.known:
                return ["--fp16"], path
            half = path.with_name(path.stem + ".fp16.onnx")
            if not half.is_file():
                common.fail(
                    f"this TensorRT has no --fp16 and the bundle has no {half.name}; "
                    "write the bundle with --precision fp16"
                )
            return [], half
        if precision == "int8":
            quantized = path.with_name(path.stem + ".int8.onnx")
            flags = ["--int8", "--fp16"] if "--int8" in self.known else []
            return flags, quantized if quantized.is_file() else path
        return self.supported("--noTF32"), path

    def load_inputs(self, inputs: dict[str, jetson_arrays.Array]) -> None:
        """Write the inputs for --loadInputs; without it trtexec invents values."""
        if "--loadInputs" not in self.known or not inputs:
            return
        named = []
        for index, (name, array) in enumerate(inputs.items()):
            path = self.results / f"input{index}.bin"
            path.write_bytes(array.data)
            # quotes, because names of exported models hold colons and slashes
            named.append(f"'{name}':{path}")
        self.inputs = ["--loadInputs=" + ",".join(named)]

    def infer(self, name: str, engine: Path) -> dict[str, list[float]]:
        """Return the outputs for the inputs of the bundle, {} if trtexec does not write them."""
        path = self.results / (name + ".output.json")
        command = [self.program, f"--loadEngine={engine}", "--iterations=1", "--warmUp=0"]
        command += ["--duration=0", *self.dla(), *self.inputs, f"--exportOutput={path}"]
        # a comparison that fails must not end the run
        common.run(command, self.results / (name + ".output.log"), check=False)
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return {row["name"]: [float(v) for v in row["values"]] for row in rows}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def build(self, name: str, path: Path) -> Path:
        """Build an engine and return its path."""
        flags, source = self.precision_flags(path)
        engine = self.results / (name + ".engine")
        # TensorRT 8.5 and older call it --buildOnly
        flags += self.supported("--skipInference", "--buildOnly")[:1]
        flags += self.dla("--allowGPUFallback")
        if "--timingCacheFile" in self.known:
            flags.append(f"--timingCacheFile={self.results / 'timing.cache'}")
        flags.append(f"--exportLayerInfo={self.results / (name + '.layers.json')}")
        if "--profilingVerbosity" in self.known:
            flags.append("--profilingVerbosity=detailed")
        command = [self.program, f"--onnx={source}", f"--saveEngine={engine}"]
        common.run(command + flags, self.results / (name + ".build.log"))
        return engine

    def measure(self, name: str, engine: Path, turn: int) -> None:
        """Time one round and log the power."""
        stem = f"{name}.{turn}"
        command = [
            self.program,
            f"--loadEngine={engine}",
            f"--warmUp={self.chosen.warm_up}",
            f"--duration={self.chosen.duration}",
            "--iterations=10",
        ]
        command += self.supported("--useSpinWait", "--noDataTransfers")
        if self.chosen.dla == "none":
            command += self.supported("--useCudaGraph")
        command += self.dla() + self.inputs
        command.append(f"--exportTimes={self.results / (stem + '.times.json')}")
        with Power(self.results / (stem + ".power.log"), int(self.chosen.interval)):
            common.run(command, self.results / (stem + ".log"))

    def profile(self, name: str, engine: Path) -> None:
        """Time the layers, in a separate run because profiling slows inference."""
        command = [self.program, f"--loadEngine={engine}", f"--warmUp={self.chosen.warm_up}"]
        command += ["--duration=3", *self.dla(), *self.inputs]
        if "--profilingVerbosity" in self.known:
            command.append("--profilingVerbosity=detailed")
        command.append(f"--exportProfile={self.results / (name + '.profile.json')}")
        common.run(command, self.results / (name + ".profile.log"))


def report_outputs(
    manifest: dict[str, Any], name: str, outputs: dict[str, list[float]], chosen: Namespace
) -> None:
    """Compare a model's outputs with the expected ones; write and print the result."""
    expected = jetson_arrays.read_arrays(common.FOLDER / f"expected_{name}.npz")
    order = [n for n in manifest["models"][name]["outputs"] if n in outputs]
    # without expected outputs, as for foreign operators, there is nothing to compare
    if not expected or not order:
        common.say(f"{name}: outputs were not compared")
        return
    found = jetson_arrays.compare({n: outputs[n] for n in order}, expected)
    result = jetson_arrays.judge(found, chosen.precision)
    common.write_json(Path(chosen.results) / f"{name}.outputs.json", result)
    for output in result["wrong"]:
        common.say(
            f"warning: {name}: output {output} differs from onnxruntime's by "
            f"{found[output]:.2g} of its largest value; {result['tolerance']:g} is allowed at "
            f"{chosen.precision}"
        )


def read_inputs(manifest: dict[str, Any]) -> dict[str, jetson_arrays.Array]:
    """Return the first batch of the bundle's inputs."""
    shapes = next(iter(manifest["models"].values()))["inputs"]
    arrays = jetson_arrays.read_arrays(common.FOLDER / "inputs.npz")
    return {name: arrays[name].first(shape) for name, shape in shapes.items() if name in arrays}


def run_trtexec(program: str, manifest: dict[str, Any], chosen: Namespace, results: Path) -> None:
    """Build all models, compare their outputs, time them in turns, then profile them."""
    trtexec = Trtexec(program, chosen, results)
    trtexec.load_inputs(read_inputs(manifest))
    models = common.models(manifest)
    engines = {name: trtexec.build(name, path) for name, path in models.items()}
    if trtexec.inputs:
        for name, engine in engines.items():
            report_outputs(manifest, name, trtexec.infer(name, engine), chosen)
    with Power(results / "idle.power.log", int(chosen.interval)):
        # idle power, before the first engine runs
        time.sleep(float(chosen.idle))
    # in turns, so that temperature and clocks affect all models alike
    for turn in range(int(chosen.rounds)):
        for name, engine in engines.items():
            trtexec.measure(name, engine, turn)
    for name, engine in engines.items():
        trtexec.profile(name, engine)


def time_layers(program: str, chosen: Namespace, results: Path) -> None:
    """Build and time each layer of the bundle alone, for a table of latencies."""
    # the bundle has these modules only if it has layers
    import layer_times

    engines: dict[str, Path] = {}

    def measure(path: Path, name: str) -> float:
        trtexec = Trtexec(program, chosen, results / "layers")
        engine = engines.get(name) or trtexec.build(name, path)
        engines[name] = engine
        report = results / "layers" / (name + ".times.json")
        command = [program, f"--loadEngine={engine}", "--warmUp=100", "--duration=0.3"]
        command += trtexec.supported("--useSpinWait", "--noDataTransfers")
        if chosen.dla == "none":
            command += trtexec.supported("--useCudaGraph")
        command += [*trtexec.dla(), f"--exportTimes={report}"]
        common.run(command, results / "layers" / (name + ".log"))
        rows = json.loads(report.read_text(encoding="utf-8"))
        return min(float(row["computeMs"]) for row in rows)

    (results / "layers").mkdir(exist_ok=True)
    # the precision as the engines of onnxprune name it
    precision = {"fp32": "f32", "fp16": "f16"}.get(chosen.precision, chosen.precision)
    version = common.output(["dpkg-query", "-W", "-f=${Version}", "libnvinfer-bin"])
    facts = {"runtime": "tensorrt", "version": version, "precision": precision, "threads": 1}
    # trtexec takes the least of many inferences, and starting it takes longer than they do
    layer_times.measure(results, measure, facts, passes=1, rounds=3)


def run_python(manifest: dict[str, Any], chosen: Namespace, results: Path) -> None:
    """Do the same with TensorRT's Python bindings, for machines without trtexec."""
    if chosen.dla != "none":
        common.fail("DLA needs trtexec, which is not installed on this machine: " + HOW)
    sessions = {
        name: jetson_python.Session(name, path, chosen, results)
        for name, path in common.models(manifest).items()
    }
    for name, session in sessions.items():
        session.upload({n: array.data for n, array in read_inputs(manifest).items()})
        raw = session.infer()
        outputs = {
            n: jetson_arrays.Array(kind, (), data).values() for n, (kind, data) in raw.items()
        }
        report_outputs(manifest, name, outputs, chosen)
    for turn in range(int(chosen.rounds)):
        for name, session in sessions.items():
            with Power(results / f"{name}.{turn}.power.log", int(chosen.interval)):
                rows = session.times(float(chosen.warm_up) / 1e3, float(chosen.duration))
            (results / f"{name}.{turn}.times.json").write_text(json.dumps(rows))
    for name, session in sessions.items():
        session.profile(results / (name + ".profile.json"))


def main() -> None:
    """Set the clocks, then build and time every model of the bundle."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    trtexec = common.find("trtexec", TRTEXEC)
    if not trtexec:
        common.module("tensorrt", "neither trtexec nor the bindings are installed; " + HOW)
    clocks = set_clocks(chosen)
    common.say("clocks: " + clocks)
    record = dict(
        describe_environment(),
        clocks_set=clocks,
        runner=trtexec or "python",
        options=vars(chosen),
        warm_up_ms=float(chosen.warm_up),
    )
    common.write_json(results / "environment.json", record)
    if trtexec:
        run_trtexec(trtexec, manifest, chosen, results)
    else:
        run_python(manifest, chosen, results)
    if trtexec and (common.FOLDER / "layers.zip").is_file():
        time_layers(trtexec, chosen, results)
    common.write_json(results / "done.json", {"models": sorted(manifest["models"])})
    common.finish(results)


if __name__ == "__main__":
    main()
