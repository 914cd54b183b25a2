"""Options, loop over rows, tables and raw results that benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
ORIGINAL = "original"  # method of the rows that measure the unpruned model
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "zoo": {
        "type": Path,
        "default": Path(os.environ.get("ONNXPRUNE_ZOO", ROOT.parent / "shared" / "zoo")),
        "metavar": "FOLDER",
        "help": "trained models with data; see benchmarks/zoo.py",
    },
    "models": {"nargs": "*", "metavar": "NAME", "help": "models to measure; default: all"},
    "seeds": {"type": int, "default": 1, "help": "number of seeds"},
    "limit": {"type": int, "help": "evaluate on the first N samples of each file"},
    "engine": {"default": "onnxruntime,openvino,ncnn,mnn", "help": "engines, comma-separated"},
    "threads": {"type": int, "default": 1},
    "seconds": {"type": float, "default": 2.0, "help": "timing per model and engine"},
    "json": {"type": Path, "metavar": "FILE", "help": "file for the raw results"},
}


def make_parser(doc: str, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with shared options.

    Parameters
    ----------
    doc
        Docstring of the benchmark, shown by --help.
    names
        Options from OPTIONS.
    defaults
        Further options from OPTIONS, with another default.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in (*names, *defaults):
        settings = dict(OPTIONS[name])
        if name in defaults:
            settings["default"] = defaults[name]
        parser.add_argument(f"--{name}", **settings)
    return parser


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file, none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def complete(
    path: Path,
    keys: Iterable[Row],
    measure: Callable[[Row], Row],
    describe: Callable[[Row], str],
) -> list[Row]:
    """Measure the rows that a JSON Lines file lacks.

    Parameters
    ----------
    path
        File of the rows; a row is appended as soon as it is measured.
    keys
        What identifies each row: a row with these values is not measured again.
    measure
        Returns the measured values of a row from its key.
    describe
        Returns the line that is printed for a row.

    Returns
    -------
    All rows of the file.
    """
    rows = read_rows(path)
    for key in keys:
        if any(all(row.get(k) == v for k, v in key.items()) for row in rows):
            continue
        row = {**key, **measure(key)}
        rows.append(row)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(describe(row), flush=True)
    return rows


def write_results(path: Path | None, results: Any) -> None:
    """Write raw results as JSON, if there is a path."""
    from onnxprune.files import write_json

    if path:
        write_json(path, results)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def format_values(values: Sequence[float]) -> str:
    """Return the mean and half the range; "" without values."""
    if not values:
        return ""
    half_range = (max(values) - min(values)) / 2
    return f"{mean(values):.4f} ± {half_range:.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def quality_table(rows: Sequence[Row], methods: Sequence[str], mark_best: bool = False) -> str:
    """Return a Markdown table of quality: a line per model and target, a column per method.

    Parameters
    ----------
    rows
        Rows with "model", "target", "method" and "metric"; those of ORIGINAL fill their own column.
    methods
        Columns, in order; those without rows are left out.
    mark_best
        Print the best mean of a line in bold.
    """
    columns = [m for m in methods if any(row["method"] == m for row in rows)]
    originals = {row["model"]: row["metric"] for row in rows if row["method"] == ORIGINAL}
    places = {(row["model"], row["target"]) for row in rows if row["method"] != ORIGINAL}
    order = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for model, target in sorted(places, key=lambda place: (order.index(place[0]), -place[1])):
        values = {m: quality_values(rows, model, target, m) for m in columns}
        best = max(mean(v) for v in values.values() if v)
        cells = []
        for of_method in values.values():
            text = format_values(of_method)
            if mark_best and of_method and mean(of_method) == best:
                text = f"**{text.split()[0]}**{text[len(text.split()[0]) :]}"
            cells.append(text)
        lines.append([model, f"{target:.0%}", _format_original(originals.get(model)), *cells])
    return markdown(["model", "MACs", ORIGINAL, *columns], lines)


def quality_values(rows: Iterable[Row], model: str, target: float, method: str) -> list[float]:
    """Return the metric of a model, target and method for each seed."""
    place = (model, target, method)
    return [
        row["metric"]["value"]
        for row in rows
        if (row["model"], row["target"], row["method"]) == place
    ]


def _format_original(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    error = metric["standard_error"] or 0
    return f"{metric['value']:.4f} (se {error:.4f}, n {metric['n']})"


def available_engines(names: str) -> list[str]:
    """Return the comma-separated engines that are installed."""
    from onnxprune.engines import ENGINES

    return [name for name in names.split(",") if ENGINES.get(name).available() is None]


def run_apart(module: str, *arguments: str, checkout: Path | None = None) -> dict[str, Any]:
    """Run a benchmark in its own process on one thread; return the JSON that it prints last.

    Parameters
    ----------
    module
        Module of the benchmarks.
    arguments
        Its command line; paths are absolute if `checkout` is given.
    checkout
        Root of the onnxprune whose code and benchmark run; default: what this process imports.
    """
    environment = {**os.environ, **ONE_THREAD}
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=checkout,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
