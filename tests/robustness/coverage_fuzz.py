"""Coverage-guided fuzzing of a target of tests/robustness/fuzz_targets.py.

    pip install atheris
    python -m tests.robustness.coverage_fuzz TARGET --minutes 60 --folder FOLDER

FOLDER/corpus holds inputs with new coverage and is used by the next run; FOLDER/finds holds one
minimized input per place that fails, with its message. An input that crashes the process, takes
over TIME_LIMIT_S or MEMORY_LIMIT_BYTES ends a round; the next round starts from the corpus.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FunctionType

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxprune.errors import OnnxpruneError
from tests.robustness.byte_mutators import BYTES
from tests.robustness.draws import pick
from tests.robustness.fuzz_targets import TARGETS, try_input
from tests.robustness.mutators import MUTATORS

TIME_LIMIT_S = 10  # of processor time per input
WALL_LIMIT_S = 200  # per input; the machine may be shared
MEMORY_LIMIT_BYTES = 2 * 10**9  # address space for data of the process, instrumented and traced
LONGEST_INPUT = 1 << 18
MOST_TRIES = 400  # of a minimization
_COUNTS = re.compile(r"^#(\d+)\s.*\bcov: (\d+)", re.MULTILINE)


def fuzz(target: str, folder: Path, seconds: int, seed: int) -> None:
    """Fuzz in this process until the time is over or an input ends the process."""
    import atheris

    # the modules are loaded already, so their functions are instrumented in place
    for function in gc.get_objects():
        module = isinstance(function, FunctionType) and function.__module__
        if module and module.startswith("onnxprune."):
            atheris.instrument_func(function)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    finds = folder / "finds"
    finds.mkdir(parents=True, exist_ok=True)

    def one_input(data: bytes) -> None:
        start = time.process_time()
        try:
            TARGETS[target].run(data)
        except OnnxpruneError:
            pass
        except Exception as problem:
            _keep(finds, f"{target}-{_place(problem)}", data, traceback.format_exc())
        seconds = time.process_time() - start
        if seconds > TIME_LIMIT_S:
            _keep(finds, f"{target}-slow", data, f"takes {seconds:.1f} s of processor time")

    def mutate(data: bytes, most: int, number: int) -> bytes:
        # one of three is a change of structure: bytes alone rarely leave a model readable
        if number % 3 == 0 or target == "files":
            return bytes(atheris.Mutate(data, most))
        return change(data, np.random.default_rng(number))[:most]

    limits = [f"-timeout={WALL_LIMIT_S}", f"-max_total_time={seconds}", "-rss_limit_mb=4000"]
    limits += [f"-max_len={LONGEST_INPUT}", f"-seed={seed}", f"-artifact_prefix={finds}/"]
    arguments = [sys.argv[0], *limits, str(_fill_corpus(target, folder))]
    atheris.Setup(arguments, one_input, custom_mutator=mutate)
    atheris.Fuzz()


def change(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a model with changed structure or bytes."""
    try:
        model = ModelProto.FromString(data)
        if rng.random() < 0.9:
            MUTATORS[pick(rng, list(MUTATORS))](rng, model)
            return bytes(model.SerializeToString())
    # mutators need nodes, weights or inputs, which a mutant of a mutant may lack
    except (DecodeError, IndexError, ValueError, TypeError, OverflowError):
        pass
    return bytes(BYTES[pick(rng, list(BYTES))](rng, bytearray(data)))


def _fill_corpus(target: str, folder: Path) -> Path:
    """Write the seeds of a target, unless an earlier run has; return the corpus."""
    corpus = folder / "corpus" / target
    if not corpus.exists():
        corpus.mkdir(parents=True)
        for number, data in enumerate(TARGETS[target].seeds().values()):
            (corpus / f"seed{number}").write_bytes(data)
    return corpus


def _place(problem: BaseException) -> str:
    """Return the type of an exception, and the last line of this repository that it passed."""
    frames = traceback.extract_tb(problem.__traceback__)
    own = [f for f in frames if "onnxprune" in f.filename]
    frame = (own or frames)[-1]
    return f"{type(problem).__name__}-{Path(frame.filename).stem}-{frame.lineno}"


def _keep(finds: Path, name: str, data: bytes, text: str) -> None:
    """Write a find; of the same place, the shortest one is kept."""
    path = finds / name
    if not path.exists() or path.stat().st_size > len(data):
        path.write_bytes(data)
        (finds / f"{name}.txt").write_text(text)


def minimize(target: str, path: Path) -> None:
    """Remove pieces of an input as long as it fails at the same place."""
    data, place, left = path.read_bytes(), _failure(target, path.read_bytes()), MOST_TRIES
    size = len(data) // 2
    while place and size and left > 0:
        at = 0
        while at < len(data) and left > 0:
            shorter = data[:at] + data[at + size :]
            left -= 1
            if _failure(target, shorter) == place:
                data = shorter
            else:
                at += size
        size //= 2
    path.write_bytes(data)


def _failure(target: str, data: bytes) -> str:
    """Return where an input fails in a process of its own, "" if it does not."""
    code = "import sys; from tests.robustness.coverage_fuzz import fail; fail(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, target],
            input=data,
            capture_output=True,
            timeout=WALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    return f"signal {-done.returncode}" if done.returncode < 0 else done.stdout.decode().strip()


def fail(target: str) -> None:
    """Print where the input on stdin fails."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    try:
        TARGETS[target].run(sys.stdin.buffer.read())
    except OnnxpruneError:
        pass
    except Exception as problem:
        print(_place(problem))


def run(target: str, folder: Path, minutes: float) -> dict[str, object]:
    """Fuzz in rounds, each in a process of its own; return counts."""
    start, executions, coverage, rounds = time.monotonic(), 0, 0, 0
    while (left := minutes * 60 - (time.monotonic() - start)) > 1:
        command = [sys.executable, "-m", "tests.robustness.coverage_fuzz", target, "--round"]
        command += [f"--seconds={int(left)}", f"--folder={folder}", f"--seed={rounds + 1}"]
        log = folder / f"{target}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            subprocess.run(command, stdout=file, stderr=file, check=False, env=_environment())
        counts = [tuple(map(int, c)) for c in _COUNTS.findall(log.read_text(errors="replace"))]
        if not counts:
            raise SystemExit(log.read_text(errors="replace")[-3000:])
        executions += counts[-1][0]
        coverage = max(coverage, counts[-1][1])
        rounds += 1
    minutes_done = (time.monotonic() - start) / 60
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    finds = [p for p in sorted((folder / "finds").iterdir()) if p.suffix != ".txt"]
    mine = [p for p in finds if p.name.startswith((f"{target}-", "crash-", "timeout-", "oom-"))]
    for path in mine:
        minimize(target, path)
    return {
        "target": target,
        "minutes": round(minutes_done, 1),
        "processor_minutes": round(usage.ru_utime / 60, 1),
        "inputs": executions,
        "rounds": rounds,
        "edges": coverage,
        "corpus": sum(1 for _ in (folder / "corpus" / target).iterdir()),
        "finds": [path.name for path in mine if _failure(target, path.read_bytes())],
    }


def _environment() -> dict[str, str]:
    """Return the environment of a round: one thread, short loops."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path[1:]])
    own = {"OMP_NUM_THREADS": "1", "ONNXPRUNE_LOOP_LIMIT_S": "2", "PYTHONPATH": path}
    return {**os.environ, **own}


def main() -> None:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=Path("fuzz"))
    parser.add_argument("--round", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=60, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--try", dest="trial", type=Path, help="only try this input")
    options = parser.parse_args()
    if options.trial:
        print(try_input(options.target, options.trial.read_bytes()) or "no find")
    elif options.round:
        fuzz(options.target, options.folder, options.seconds, options.seed)
    else:
        print(json.dumps(run(options.target, options.folder, options.minutes), indent=1))


if __name__ == "__main__":
    main()
