"""Run mutated models, plans and recipes through the commands that read them, under limits.

    python -m tests.robustness.fuzz --files 5000 [--first 0] [--kind models|plans|recipes]
        [--keep FOLDER] [--json]

Each mutant has a process of its own. It passes if every command ends with a documented exit code
and, unless that is 0, one error line: no traceback, no signal, no `error[internal]`, at most
TIME_LIMIT_S seconds of processor time per command and MEMORY_LIMIT_BYTES of resident memory.
"""

from __future__ import annotations

import argparse
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

from tests.robustness.byte_mutators import BYTES
from tests.robustness.mutants import MAKERS, Mutant, plan_mutant
from tests.robustness.seeds import graphs

TIME_LIMIT_S = 10.0  # processor time of a command
WALL_LIMIT_S = 60.0  # of a command that may be waiting
LOOP_LIMIT_S = "2"  # of a run of a Loop, see onnxprune.ir.runtime
# resident, with libraries; as RLIMIT_DATA it makes the machine appear that small
MEMORY_LIMIT_BYTES = 10**9
FEW_INPUTS = ["--samples=2"]
PLAN_FLAGS = ["--target=macs=70%", "--criterion=l2", "--allocate=knapsack", "--round-to=1"]
EXIT_CODES = {0, 1, 2, 3, 4}
VERIFICATION_FAILED = 4
ACCEPTED, REJECTED, FAULT = "accepted", "rejected", "fault"
# weights of 1e38: sums in another order overflow differently
_OVERFLOWS = {"odd values", *BYTES}
_IMPORTED_BEFORE_FORK = """
    cli.app cli.inspect cli.plan run.pipeline report.terminal allocators.knapsack criteria.magnitude
    data.synthetic
""".split()

Commands = Iterator[list[str]]


@dataclass
class Outcome:
    """Result of a mutant.

    Attributes
    ----------
    number, seed, changes
        The mutant.
    exit_codes
        Exit code by command.
    codes
        Error codes that were printed.
    seconds
        Processor time of the slowest command.
    peak_bytes
        Most resident memory.
    fault
        What must not happen but did; "" if nothing.
    printed
        Text on stderr.
    """

    number: int
    seed: str
    changes: tuple[str, ...]
    exit_codes: dict[str, int] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    fault: str = ""
    printed: str = ""

    @property
    def result(self) -> str:
        """ACCEPTED, REJECTED or FAULT."""
        if self.fault:
            return FAULT
        codes = self.exit_codes.values()
        return ACCEPTED if codes and not any(codes) else REJECTED


def model_commands(folder: str) -> Commands:
    """Yield inspect and plan of a changed model, then cut and verify as far as files exist."""
    model, plan, out = (os.path.join(folder, n) for n in ("model.onnx", "plan.json", "out.onnx"))
    yield ["inspect", model, "--json"]
    yield ["plan", model, "-o", plan, *PLAN_FLAGS, *FEW_INPUTS, "--batch-size=2"]
    if os.path.exists(plan):
        yield ["cut", model, plan, "-o", out]
    if os.path.exists(out):
        yield ["verify", model, out, "--plan", plan, *FEW_INPUTS]


def plan_commands(folder: str) -> Commands:
    """Yield cut and verify with a changed plan."""
    model, plan, out = (os.path.join(folder, n) for n in ("good.onnx", "plan.json", "out.onnx"))
    yield ["cut", model, plan, "-o", out]
    yield ["verify", model, out if os.path.exists(out) else model, "--plan", plan, *FEW_INPUTS]


def recipe_commands(folder: str) -> Commands:
    """Yield plan with a changed recipe."""
    model, plan, recipe = (
        os.path.join(folder, n) for n in ("good.onnx", "plan.json", "recipe.toml")
    )
    yield ["plan", model, "-o", plan, "--recipe", recipe]


COMMANDS: dict[str, Callable[[str], Commands]] = {
    "models": model_commands,
    "plans": plan_commands,
    "recipes": recipe_commands,
}


def _run_child(commands: Commands, record: str) -> None:
    """Run the commands in the forked process; write an exit code per line; never return."""
    from onnxprune.cli import run

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    os.environ["ONNXPRUNE_LOOP_LIMIT_S"] = LOOP_LIMIT_S
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    printed = os.open(f"{record}.printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with open(record, "w", buffering=1) as file:
        for arguments in commands:
            faulthandler.dump_traceback_later(WALL_LIMIT_S, file=printed, exit=True)
            file.write(f"{arguments[0]} ")
            start = time.process_time()
            code = run([*arguments, "--debug"])
            file.write(f"{code} {time.process_time() - start:.3f}\n")
    os._exit(0)


def try_mutant(mutant: Mutant, commands: Callable[[str], Commands], number: int = 0) -> Outcome:
    """Run the commands on a mutant, in a process that may die."""
    outcome = Outcome(number, mutant.seed, mutant.changes)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, data in mutant.files.items():
            Path(folder, name).write_bytes(data)
        record = os.path.join(folder, "record")
        child = os.fork()
        if not child:
            _run_child(commands(folder), record)
        _, status, usage = os.wait4(child, 0)
        outcome.peak_bytes = usage.ru_maxrss * 1024
        for line in _read(record).splitlines():
            # a command that did not end has neither an exit code nor a time
            command, code, seconds, *_ = [*line.split(), "-1", "0"]
            outcome.exit_codes[command] = int(code)
            outcome.seconds = max(outcome.seconds, float(seconds))
        outcome.printed = _read(f"{record}.printed")
        errors = [line for line in outcome.printed.splitlines() if line.startswith("error[")]
        outcome.codes = [line[len("error[") : line.index("]")] for line in errors]
        outcome.fault = _find_fault(outcome, status) or _find_leftover(folder)
    return outcome


def _read(path: str) -> str:
    """Return the text of a file, "" if there is none."""
    return Path(path).read_text(errors="replace") if os.path.exists(path) else ""


def _find_fault(outcome: Outcome, status: int) -> str:
    """Return what must not happen but did; "" if nothing."""
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    if os.WEXITSTATUS(status):
        return f"takes over {WALL_LIMIT_S:g} s of waiting"
    if outcome.seconds > TIME_LIMIT_S:
        return f"takes {outcome.seconds:.1f} s"
    bare_traceback = "Traceback" in outcome.printed.split("error[")[0] and not outcome.codes
    if "internal" in outcome.codes or bare_traceback:
        return "a traceback"
    if "out-of-memory" in outcome.codes:
        return "runs out of memory"
    codes = outcome.exit_codes
    overflows = _OVERFLOWS & set(outcome.changes)
    changed_plan = outcome.seed.startswith("plan")
    if codes.get("verify") == VERIFICATION_FAILED and not changed_plan and not overflows:
        return "the cut model differs from the masked original"
    wrong = [f"{name} ends with {code}" for name, code in codes.items() if code not in EXIT_CODES]
    if wrong:
        return ", ".join(wrong)
    if len(outcome.codes) != sum(code != 0 for code in codes.values()):
        return "not one error line per failure"
    if outcome.peak_bytes > MEMORY_LIMIT_BYTES:
        return f"takes {outcome.peak_bytes / 1e6:.0f} MB"
    return ""


def _find_leftover(folder: str) -> str:
    """Return a temporary file that a command did not remove; "" if there is none."""
    names = [n for n in os.listdir(folder) if n.startswith(".")]
    return f"leaves {names[0]}" if names else ""


def prepare() -> None:
    """Import what the commands need before the forks; nothing here may start a thread."""
    import importlib

    import onnxruntime  # noqa: F401

    for name in _IMPORTED_BEFORE_FORK:
        importlib.import_module(f"onnxprune.{name}")
    graphs()
    plan_mutant(0)


def fuzz(
    kind: str, numbers: Sequence[int], seed: int = 0, keep: Path | None = None
) -> dict[str, Any]:
    """Try the mutants of these numbers; return counts, and every fault."""
    prepare()
    ends: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    faults, slowest, largest = [], 0.0, 0
    for number in numbers:
        mutant = MAKERS[kind](number, seed)
        outcome = try_mutant(mutant, COMMANDS[kind], number)
        ends[outcome.result] += 1
        codes.update(set(outcome.codes))
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak_bytes)
        if outcome.fault:
            faults.append(_describe(outcome))
            text = f"{kind} {number} {mutant.seed} {mutant.changes}: {outcome.fault}"
            print(text, file=sys.stderr, flush=True)
            if keep:
                _keep(keep / f"{kind}{number}", mutant, outcome)
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


def _describe(outcome: Outcome) -> dict[str, Any]:
    """Return a fault as JSON."""
    return {
        "number": outcome.number,
        "seed": outcome.seed,
        "changes": list(outcome.changes),
        "fault": outcome.fault,
        "exit_codes": outcome.exit_codes,
        "printed": outcome.printed[-1500:],
    }


def _keep(folder: Path, mutant: Mutant, outcome: Outcome) -> None:
    """Write the files of a fault, and what was printed, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in {**mutant.files, "printed.txt": outcome.printed.encode()}.items():
        (folder / name).write_bytes(data)


def main() -> None:
    """Parse the command line and try the mutants."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="only these numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(MAKERS), default="models")
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    numbers = options.only or range(options.first, options.first + options.files)
    result = fuzz(options.kind, numbers, options.seed, options.keep)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items() if key != "faults"))
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
