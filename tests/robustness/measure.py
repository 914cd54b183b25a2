"""Exit codes, error lines and leftovers of runs with bad inputs, faults and mutated files.

    python -m tests.robustness.measure [--files 5000] [--kills 40] [--only PART ...] [--json FILE]
    python -m tests.robustness.measure --table FILE        # the tables of an earlier run

A bad input is a process of its own: `onnxprune optimize` (or another command) on the demo model. It
passes if the exit code is the documented one, one line begins with `error[`, there is no traceback,
and no file is new or changed. `--files N` mutated models, and a tenth as many plans and recipes, go
through the commands that read them; see tests/robustness/fuzz.py. With `--only`, FILE keeps the
other parts of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from tests.robustness import attacks, external, markdown, writes
from tests.robustness.attack_list import ATTACKS
from tests.robustness.bad_inputs import MODEL, Bad, bad_data, bad_models, bad_options, bad_places
from tests.robustness.faults import FAULTS
from tests.robustness.fuzz import ACCEPTED, REJECTED

LIMIT_S = 120
MUTANTS_PER_PROCESS = 250
PARTS = ("bad", "external", "attacks", "faults", "writes", "fuzzed")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path[1:]]),
}
FUZZED_HEAD = (
    "files",
    "number",
    "accepted",
    "rejected with one error line",
    "tracebacks, crashes, hangs",
    "slowest command",
    "most memory",
)


@dataclass(frozen=True)
class Row:
    """Result of a bad input or a fault.

    Attributes
    ----------
    what
        The input or fault.
    result
        Error line, or a description.
    code
        Exit code.
    ok
        Whether the exit code is the documented one, with one error line and no leftovers.
    """

    what: str
    result: str
    code: int
    ok: bool


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file below a folder; None for folders."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def try_bad(bad: Bad, folder: Path) -> Row:
    """Run the command of a bad input."""
    before = tree(folder)
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", *bad.arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        **bad.run,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    after = tree(folder)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k, 0) != after.get(k, 0))
    internal = "error[internal]" in done.stderr or "Traceback" in done.stderr
    ok = done.returncode == bad.code and len(errors) == 1 and not changed and not internal
    text = errors[0] if errors else "nothing"
    for private, public in (
        (f"{folder}/", ""),
        (str(folder), "FOLDER"),
        (str(MODEL), "model.onnx"),
    ):
        text = text.replace(private, public)
    if changed:
        text += f"; left or changed: {', '.join(changed)}"
    what = f"{bad.what} ({bad.how})" if bad.how else bad.what
    return Row(what, text, done.returncode, ok)


def try_bad_inputs() -> list[Row]:
    """Try every bad input."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="robustness-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        cases = [
            c for make in (bad_models, bad_data, bad_options, bad_places) for c in make(folder)
        ]
        for bad in cases:
            row = try_bad(bad, folder)
            _log("ok   " if row.ok else "WRONG", row.what, row.code, row.result)
            rows.append(row)
        (folder / "closed").chmod(0o755)
    return rows


def try_faults(kills: int) -> list[Row]:
    """Try every fault, see tests/robustness/faults.py."""
    rows = []
    for what, fault in FAULTS.items():
        with tempfile.TemporaryDirectory(prefix="robustness-") as name:
            ok, result = fault(Path(name), kills)
        _log("ok   " if ok else "WRONG", what, result)
        rows.append(Row(what, result, 0, ok))
    return rows


def fuzz_all(files: int) -> list[dict[str, Any]]:
    """Try mutants of each kind, MUTANTS_PER_PROCESS at a time."""
    results = []
    for kind, count in (("models", files), ("plans", files // 10), ("recipes", files // 10)):
        slices: list[dict[str, Any]] = []
        for first in range(0, count, MUTANTS_PER_PROCESS):
            number = min(MUTANTS_PER_PROCESS, count - first)
            command = [sys.executable, "-m", "tests.robustness.fuzz", "--json", f"--kind={kind}"]
            command += [f"--first={first}", f"--files={number}"]
            done = subprocess.run(
                command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False
            )
            slices.append(json.loads(done.stdout))
            faults = len(slices[-1]["faults"])
            _log(f"{kind} {first + slices[-1]['files']} of {count}: {faults} faults")
        if slices:
            results.append(join(slices))
    return results


def join(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the slices of one kind as one."""
    sums = {}
    for key in ("ends", "codes"):
        counts: Counter[str] = sum((Counter(s[key]) for s in slices), Counter())
        sums[key] = dict(counts.most_common())
    return {
        "kind": slices[0]["kind"],
        "files": sum(s["files"] for s in slices),
        "seed": slices[0]["seed"],
        **sums,
        **{key: max(s[key] for s in slices) for key in ("slowest_s", "peak_bytes")},
        "faults": [f for s in slices for f in s["faults"]],
    }


def tables(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["## Bad inputs", "", *markdown.head("tried", "exit code", "error line")]
    for row in results["bad"]:
        wrong = "" if row["ok"] else " (wrong)"
        lines.append(
            markdown.line(row["what"], f"{row['code']}{wrong}", markdown.cell(row["result"]))
        )
    if results.get("external"):
        lines += ["", *external.table(results["external"])]
    if results.get("attacks"):
        lines += ["", *attacks.table(results["attacks"])]
    lines += ["", "## Faults", "", *markdown.head("fault", "result")]
    for row in results["faults"]:
        wrong = "" if row["ok"] else "WRONG: "
        lines.append(markdown.line(row["what"], wrong + markdown.cell(row["result"])))
    if results.get("writes"):
        lines += ["", *writes.table(results["writes"])]
    lines += ["", "## Mutated files", "", *markdown.head(*FUZZED_HEAD)]
    for row in results["fuzzed"]:
        ends = [row["ends"].get(end, 0) for end in (ACCEPTED, REJECTED)]
        limits = f"{row['slowest_s']:.1f} s", f"{row['peak_bytes'] / 1e6:.0f} MB"
        lines.append(markdown.line(row["kind"], row["files"], *ends, len(row["faults"]), *limits))
    if results.get("coverage"):
        lines += ["", *coverage_table(results["coverage"])]
    return "\n".join(lines)


def coverage_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the section of the page on coverage-guided fuzzing, minutes in sum per target."""
    lines = ["## Hours of coverage-guided fuzzing", ""]
    lines += markdown.head("target", "minutes", "inputs", "finds", "open", "runs")
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        runs = "; ".join(f"{row['minutes']:g} min at {row['commit']}" for row in mine)
        sums = [sum(row[key] for row in mine) for key in ("inputs", "finds", "open")]
        minutes = sum(row["minutes"] for row in mine)
        lines.append(markdown.line(target, f"{minutes:.0f}", *sums, runs))
    return lines


def _log(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line, measure, print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=5000, help="number of mutated models")
    parser.add_argument("--kills", type=int, default=40, help="runs to kill")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of this file")
    options = parser.parse_args()
    if options.table:
        print(tables(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    results: dict[str, Any] = {part: [] for part in PARTS}
    if options.json and options.json.exists():
        results |= json.loads(options.json.read_text(encoding="utf-8"))
    results["command"] = "python -m tests.robustness.measure"
    results["versions"] = {
        "python": platform.python_version(),
        "onnx": onnx.__version__,
        "system": platform.system(),
    }
    if "bad" in options.only:
        results["bad"] = [asdict(row) for row in try_bad_inputs()]
    if "external" in options.only:
        results["external"] = external.try_all()
    if "attacks" in options.only:
        results["attacks"] = [asdict(attacks.try_attack(what, ENVIRONMENT)) for what in ATTACKS]
    if "faults" in options.only:
        results["faults"] = [asdict(row) for row in try_faults(options.kills)]
    if "writes" in options.only:
        with tempfile.TemporaryDirectory(prefix="robustness-") as name:
            results["writes"] = writes.try_all(Path(name), options.kills)
    if "fuzzed" in options.only:
        results["fuzzed"] = fuzz_all(options.files)
    if options.json:
        text = json.dumps(results, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(tables(results))
    judged = results["bad"] + results["faults"] + results["attacks"]
    wrong = [row for row in judged if not row["ok"]]
    wrong += [row for row in results["external"] if row["wrong"]]
    wrong += [row for row in results["writes"] if row["problems"]]
    sys.exit(1 if wrong or any(row["faults"] for row in results["fuzzed"]) else 0)


if __name__ == "__main__":
    main()
