"""Default run and every criterion on random networks of realistic blocks.

    python -m benchmarks.random_networks --rows FILE [--networks 1000] [--json FILE]

Each network of tests/robustness/realistic.py goes through a random cut, which is compared with the
masked original, through the default run, and through one run per criterion. An internal error, a
wrong cut, a right cut that the verification rejects and a result that onnxruntime does not run are
faults. Networks that FILE holds already are skipped, so an interrupted command continues.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runner import Row, complete, make_parser, markdown, write_results
from onnxprune.criteria import CRITERIA
from tests.robustness.hunting import (
    EXPECTED_CODES,
    check_cut,
    describe_exception,
    run_outcome,
    runs,
)
from tests.robustness.realistic import Network, network

NETWORKS = 1000
COMPLETED, NO_NETWORK = "completed", "rejected by onnxruntime"
# widths of these networks are below a block of eight, so that most targets are out of reach there
SMALL_WIDTHS = {"target": "macs=70%", "round_to": 1, "engine": "none"}
ALLOCATORS = ("auto", "knapsack")  # in turn: by the divergence of groups, by scores of channels


def variants_of(seed: int) -> dict[str, dict[str, Any]]:
    """Return the options of each run on the network of a seed, by the name of the run."""
    allocate = ALLOCATORS[seed % len(ALLOCATORS)]
    # the repair of the default run sees the same kinds of cuts, and takes most of the time
    scored = {**SMALL_WIDTHS, "allocate": allocate, "repair": "bias"}
    criteria = [name for name in sorted(CRITERIA) if ":" not in name]  # those of this package
    return {
        "default": {"seconds": 0.02},
        "default, no rounding": SMALL_WIDTHS,
        **{name: {**scored, "criterion": name} for name in criteria},
    }


def measure(seed: int, variants: Mapping[str, Mapping[str, Any]] | None = None) -> Row:
    """Return the outcome of a network's cut and runs.

    Parameters
    ----------
    seed
        Seed of the network.
    variants
        Options by the name of the run; default: `variants_of`.
    """
    start = time.perf_counter()
    net = network(seed)
    if not runs(net):
        return {"kinds": net.kinds, "outcomes": {}, "faults": [NO_NETWORK], "seconds": 0.0}
    outcomes, faults = {"cut": COMPLETED}, []
    try:
        problems = list(check_cut(net))
    except Exception as problem:  # any exception is a fault
        problems = [describe_exception(problem)]
    if problems:
        outcomes["cut"], faults = "faulty", [f"cut: {text}" for text in problems]
    for name, options in (variants_of(seed) if variants is None else variants).items():
        outcomes[name], text = _run(net, options)
        if text:
            faults.append(f"{name}: {text}")
    seconds = round(time.perf_counter() - start, 2)
    return {"kinds": net.kinds, "outcomes": outcomes, "faults": faults, "seconds": seconds}


def _run(net: Network, options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the outcome of a run, and its fault or ""."""
    try:
        code, text = run_outcome(net, options)
    except Exception as problem:  # any exception is a fault
        return type(problem).__name__, describe_exception(problem)
    return code or COMPLETED, "" if code in ("", *EXPECTED_CODES) else text


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the number of networks, outcomes per run, and the faults."""
    networks = [row for row in rows if row["outcomes"]]
    outcomes: dict[str, Counter[str]] = {}
    for row in networks:
        for name, outcome in row["outcomes"].items():
            outcomes.setdefault(name, Counter())[outcome] += 1
    return {
        "networks": len(networks),
        "rejected_by_onnxruntime": len(rows) - len(networks),
        "blocks": dict(sorted(Counter(k for row in networks for k in row["kinds"]).items())),
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
        "faults": [[row["network"], text] for row in networks for text in row["faults"]],
        "slowest_network_s": max((row["seconds"] for row in networks), default=0.0),
    }


def report(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    columns = [COMPLETED, *EXPECTED_CODES]
    lines = []
    for name, counts in results["outcomes"].items():
        other = sum(n for outcome, n in counts.items() if outcome not in columns)
        lines.append([name, *(str(counts.get(c, 0)) for c in columns), str(other)])
    return (
        f"{results['networks']} networks, faults: {len(results['faults'])}; the slowest took "
        f"{results['slowest_network_s']:.0f} s for all of its runs.\n\n"
        f"{markdown(['run', *columns, 'faulty'], lines)}"
    )


def describe(row: Row) -> str:
    """Return the line of a network."""
    text = "; ".join(row["faults"]) or "sound"
    return f"network {row['network']}: {text[:500]} ({row['seconds']} s)"


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = make_parser(__doc__ or "", "json")
    parser.add_argument("--networks", type=int, default=NETWORKS, help="number of networks")
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        required=True,
        help="finished networks; skipped if run again",
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keys = [{"network": s} for s in range(options.first, options.first + options.networks)]
    rows = complete(options.rows, keys, lambda key: measure(key["network"]), describe)
    results = summarize(rows)
    write_results(options.json, results)
    print(report(results))
    raise SystemExit(bool(results["faults"]))


if __name__ == "__main__":
    main()
