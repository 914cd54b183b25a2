"""Record of CPU times per commit, compared with the record before.

    python -m benchmarks.record                 # measure, write COMMIT.json in benchmarks/records
    python -m benchmarks.record --check         # measure and compare, write nothing

Every command runs in a process of its own, on models that the repository has or that are generated,
with the variables that limit BLAS to one thread (the last one without), alternating with a fixed
onnxruntime workload. A figure is the median over the rounds of CPU seconds (user and system)
divided by those of the workload in the same round, so that records of hours with other loads can be
compared; its interval is the range over the rounds. Only records of the same processor are
compared: another one may compute convolutions twice as fast and run Python hardly faster. Exit
status 1 if a figure exceeds that of the last such record by more than
WORST while the intervals do not overlap.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runner import ONE_THREAD, ROOT, make_parser, markdown
from benchmarks.speed import chain

RECORDS = ROOT / "benchmarks" / "records"
WORST = 0.15  # slower than the last record by more than this is reported
ROUNDS = 3
NODES_PER_BLOCK = 5
NODES = 2500  # of the generated graph
DEMO = ROOT / "onnxprune" / "demo"
_UNIT = "reference"
_FREE = "optimize, default, threads not limited by variables"
# about a second of convolutions and products, with the seeds and sizes of the first record
_WORKLOAD = """
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper
rng = np.random.default_rng(0)
def weight(name, *shape):
    return numpy_helper.from_array(rng.standard_normal(shape, np.float32), name)
nodes = [
    helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Conv", ["b", "v"], ["c"], pads=[1, 1, 1, 1]),
    helper.make_node("GlobalAveragePool", ["c"], ["d"]),
    helper.make_node("Flatten", ["d"], ["e"]),
    helper.make_node("MatMul", ["e", "m"], ["y"]),
]
ends = [
    helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    for name, shape in (("x", [16, 32, 56, 56]), ("y", [16, 64]))
]
weights = [weight("w", 64, 32, 3, 3), weight("v", 64, 64, 3, 3), weight("m", 64, 64)]
graph = helper.make_graph(nodes, "reference", ends[:1], ends[1:], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
)
feeds = {"x": rng.standard_normal((16, 32, 56, 56), np.float32)}
for _ in range(12):
    session.run(None, feeds)
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the measured commands by name; their models and outputs are in `folder`."""
    graph = folder / "chain.onnx"
    graph.write_bytes(chain(NODES // NODES_PER_BLOCK))
    demo, data = DEMO / "digits.onnx", DEMO / "digits_calibration.npz"
    output = ["-o", str(folder / "out.onnx"), "--overwrite", "--engine", "none", "--quiet"]
    free_output = ["-o", str(folder / "free.onnx"), "--engine", "none", "--quiet"]
    plain = ["--criterion", "l2", "--repair", "none", "--round-to", "1"]
    run = [sys.executable, "-m", "onnxprune"]
    return {
        _UNIT: [sys.executable, "-c", _WORKLOAD],
        "help": [*run, "--help"],
        "inspect": [*run, "inspect", str(demo)],
        f"inspect, {NODES} nodes": [*run, "inspect", str(graph)],
        "optimize, l2": [*run, "optimize", str(demo), *output, *plain],
        f"optimize, l2, {NODES} nodes": [*run, "optimize", str(graph), *output, *plain],
        "optimize, default": [*run, "optimize", str(demo), *output, "--data", str(data)],
        # with an output of its own, since a run that is repeated takes stages from the first
        _FREE: [*run, "optimize", str(demo), *free_output, "--data", str(data)],
    }


def measure(command: Sequence[str], free: bool = False) -> float:
    """Return the CPU seconds of a command and its children.

    Parameters
    ----------
    free
        Set no variable that limits threads, as a user does not.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    environment = {**given, **({} if free else ONE_THREAD), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_record(rounds: int) -> dict[str, Any]:
    """Measure all commands in turn, and return the record."""
    ratios: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        # a new folder, because a run directory would be resumed
        with tempfile.TemporaryDirectory() as folder:
            times = {n: measure(c, n == _FREE) for n, c in commands(Path(folder)).items()}
        for name, value in times.items():
            seconds.setdefault(name, []).append(value)
            ratios.setdefault(name, []).append(value / times[_UNIT])
    figures = {
        name: {
            "median": round(median(values), 4),
            "interval": [round(min(values), 4), round(max(values), 4)],
            "cpu_s": round(median(seconds[name]), 3),
        }
        for name, values in ratios.items()
    }
    return {
        "commit": _git("rev-parse", "HEAD"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": name_processor(),
        "rounds": rounds,
        "figures": figures,
    }


def compare(record: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """Return figure -> ratio to that of the last record, of those that are slower."""
    slower = {}
    for name, row in record["figures"].items():
        before = last["figures"].get(name)
        if before is None or name == _UNIT:
            continue
        ratio = row["median"] / before["median"]
        # ranges that overlap are noise of the machine
        if ratio > 1 + WORST and row["interval"][0] > before["interval"][1]:
            slower[name] = ratio
    return slower


def read_last(folder: Path, processor: str) -> dict[str, Any] | None:
    """Return the newest record of a processor in a folder, None if it has none."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    # the first record names no processor
    same = [record for record in records if record.get("processor") == processor]
    return max(same, key=lambda record: record["date"], default=None)


def name_processor() -> str:
    """Return name, family, model and stepping, as far as the system tells them."""
    try:
        # of the first processor; several may share a name
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in facts.items()}
    words = [known[k] for k in ("model name", "cpu family", "model", "stepping") if k in known]
    return ", ".join(words) or platform.machine()


def table(record: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    """Return the figures as a Markdown table, beside those of the last record."""
    before = last["figures"] if last else {}
    rows = []
    for name, row in record["figures"].items():
        low, high = row["interval"]
        old = before.get(name)
        change = f"{row['median'] / old['median']:.2f}" if old else ""
        rows.append(
            (name, f"{row['cpu_s']:.2f}", f"{row['median']:.2f} ({low:.2f} to {high:.2f})", change)
        )
    return markdown(("command", "CPU s", "of the reference", "of the last record"), rows)


def main() -> int:
    """Measure, print, compare and write; return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--check", action="store_true", help="write no record")
    options = parser.parse_args()
    last = read_last(options.records, name_processor())
    if last is None:
        print(f"no record of this processor ({name_processor()}) to compare with")
    record = make_record(options.rounds)
    print(table(record, last))
    slower = compare(record, last) if last else {}
    for name, ratio in slower.items():
        print(f"warning: {name} takes {ratio:.2f} times that of {last['commit'][:10]}")
    if not options.check:
        options.records.mkdir(parents=True, exist_ok=True)
        path = options.records / f"{record['commit'][:10]}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")
    return 1 if slower else 0


def _git(*words: str) -> str:
    """Return what git prints, "" outside of a repository."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
