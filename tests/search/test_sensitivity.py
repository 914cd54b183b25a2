"""Sensitivities against manual cuts, selection against its formula, and workers that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.data.dataset import open_data
from onnxprune.errors import OnnxpruneError, OutputError, UsageError
from onnxprune.ir.io import load
from onnxprune.metrics.base import MetricOptions
from onnxprune.run.adapter import input_types
from onnxprune.search.journal import Journal
from onnxprune.search.layer_selection import Selection, select
from onnxprune.search.sensitivity import (
    SensitivityBench,
    Sweep,
    jobs_of,
    narrowed,
    record_of,
    sweep_key,
)
from onnxprune.search.workers import PARTS, run_jobs
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

FILES, INPUT = demo.files(), "images"


def sweep(out: Path, *more: str) -> list[str]:
    return [
        "sensitivity",
        str(FILES.model),
        "-o",
        str(out),
        "--data",
        str(FILES.calibration),
        "--samples",
        "40",
        "--rates",
        "0.25,0.75",
        *more,
    ]


def test_a_sweep_resumes_and_equals_cuts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis = analyze(load(FILES.model))
    names = [g.name for g in analysis.groups][:2]
    out = tmp_path / "s.jsonl"
    flags = [f"--group={n}" for n in names]
    assert run(sweep(out, *flags, "--labeled", str(FILES.evaluation), "--json")) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 5 and records[0]["group"] == "" and records[0]["quality"] > 0.98
    for r in records[1:]:
        cost = analysis.cost({r["group"]: range(r["kept"])})
        assert (r["params"], r["macs"]) == (cost.params, cost.macs) and r["kept"] == int(
            r["size"] * (1 - r["rate"]) // 2
        ) * 2
        timing = r["timing"]
        assert (
            len(r["per_class"]["top1"]) == 10
            and timing["inference_ms"] > 0
            and timing["nms_ms"] == 0
            and timing["original_ms"] > 0
        )
        assert timing["total_ms"] == timing["inference_ms"] and [
            timing[n] for n in ("batch", "h", "w")
        ] == [timing["shapes"]["images"][i] for i in (0, 2, 3)]
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:30])
    assert run(sweep(out, *flags, "--labeled", str(FILES.evaluation), "--json")) == 0
    said = capsys.readouterr()
    assert "3 of 5 measured before" in said.err
    strip = [{k: v for k, v in r.items() if k != "timing"} for r in records]
    assert [{k: v for k, v in r.items() if k != "timing"} for r in json.loads(said.out)] == strip
    assert (
        run(
            [
                "select",
                str(out),
                "--params-layers",
                "1",
                "--flops-layers",
                "1",
                "--latency-layers",
                "0",
            ]
        )
        == 0
    )
    assert "--ratio" in capsys.readouterr().out
    assert run(["select", str(tmp_path / "none.jsonl")]) == 1
    assert run(sweep(out, "--rates", "2")) == 2


def test_timing_of_a_detector_includes_its_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "boxes.py").write_text(
        "import time, numpy as np\n"
        "def decode(outputs, labels):\n"
        "    time.sleep(0.003)\n"
        "    box = np.array([[0.2, 0.2, 0.8, 0.8, 0.9, 0.0]])\n"
        "    return [box] * len(next(iter(outputs.values())))\n"
    )
    images = np.load(FILES.calibration)[INPUT][:8]
    boxes = np.array([[i, 0, 0.5, 0.5, 0.6, 0.6] for i in range(8)])
    np.savez(tmp_path / "boxes.npz", **{INPUT: images, "boxes": boxes})
    how = [
        "--metric",
        "map50",
        "--labeled",
        str(tmp_path / "boxes.npz"),
        "--decoder",
        f"{tmp_path / 'boxes.py'}:decode",
    ]
    assert (
        run(
            sweep(
                tmp_path / "s.jsonl",
                f"--group={analyze(load(FILES.model)).groups[0].name}",
                "--json",
                *how,
            )
        )
        == 0
    )
    for r in json.loads(capsys.readouterr().out):
        timing = r["timing"]
        assert timing["nms_ms"] >= 3 and timing["total_ms"] == pytest.approx(
            timing["inference_ms"] + timing["nms_ms"]
        )
        assert {"recall", "precision", "map50", "map"} <= set(r["metrics"]["map50"]) and r[
            "metrics"
        ]["map50"]["value"] == pytest.approx(1)


def test_masks_from_the_group_on_equal_the_cut_model() -> None:
    """Without times and labels the nodes from the group on run with masks; losses equal a cut's."""
    analysis = analyze(load(FILES.model))
    data = open_data(FILES.calibration, input_types(analysis.model), samples=24)
    scores = {g.name: np.random.default_rng(0).random(g.size) for g in analysis.groups}
    bench = SensitivityBench(
        Sweep(str(FILES.model), analysis.options, scores, data, time=False), analysis
    )
    for job in jobs_of(bench.sweep, analysis, [0.5]):
        kept = {job.group: narrowed(scores[job.group], 0.5)} if job.group else {}
        model = cut(
            analysis,
            Plan(
                analysis.digest,
                kept,
                {n: analysis.group(n).size for n in kept},
                {},
                analysis.options,
            ),
        )
        expected = {n: v / bench.start[n] for n, v in bench.heads(model).items()}
        assert bench.record(job)["heads"] == pytest.approx(expected, rel=1e-4)


def record(group: str, rate: float, quality: float, params: int, macs: int) -> dict:
    return {
        "group": group,
        "index": int(group[1:]),
        "rate": rate,
        "quality": quality,
        "saved_params": params,
        "saved_macs": macs,
        "timing": {},
    }


def test_results_are_reused_only_with_equal_settings() -> None:
    model, calibration, _ = demo.files()
    gate = open_data(calibration, input_types(load(model)), samples=4)
    plain = Sweep(str(model), {}, {}, gate, metrics=("top1",))
    others = [
        replace(plain, time=False),
        replace(plain, metric_options=MetricOptions(class_offset=1)),
        replace(plain, metric_options=MetricOptions(decoder="yolo:boxes")),
    ]
    assert len({sweep_key(s) for s in (plain, *others)}) == 4
    assert sweep_key(replace(plain, threads=2)) == sweep_key(plain)


def test_jobs_of_a_sweep_share_a_bench_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calibration, _ = demo.files()
    analysis = analyze(load(model))
    scores = {g.name: np.arange(g.size, dtype=np.float64) for g in analysis.groups}
    gate = open_data(calibration, input_types(load(model)), samples=8)
    plain = Sweep(str(model), analysis.options, scores, gate, time=False)
    benches = []

    class Counted(SensitivityBench):
        def __init__(self, sweep: Sweep) -> None:
            benches.append(sweep)
            super().__init__(sweep)

    monkeypatch.setattr("onnxprune.search.sensitivity.SensitivityBench", Counted)
    jobs = jobs_of(plain, analysis, [0.5])
    # each job comes with a copy of its sweep
    copies = [replace(job, sweep=copy(job.sweep)) for job in jobs]
    found = [record_of(job) for job in copies]
    assert len(benches) == 1
    assert found == [SensitivityBench(plain).record(job) for job in jobs]
    # other settings are another sweep
    record_of(replace(jobs[1], sweep=replace(plain, batch_size=4)))
    assert len(benches) == 2


def test_selection_equals_its_formula() -> None:
    rows = [
        record("g0", 0.25, 1.0, 10, 1),
        record("g0", 0.5, 0.9, 30, 2),
        record("g1", 0.25, 0.99, 20, 50),
        record("g2", 0.5, 0.5, 900, 900),
    ]
    # params: g0 max(10, 30 * 0.9^2 = 24.3), g1 20 * 0.9801 = 19.6, g2 225
    # flops with exponent 20: g2 0.0009, g1 40.9, g0 1
    found = select(rows, Selection(1, 1, 0, params_map=2, flops_map=20))
    assert [(c.group, c.rate, c.lists) for c in found] == [
        ("g1", 0.25, ("flops",)),
        ("g2", 0.5, ("params",)),
    ]
    found = select(rows, Selection(3, 3, 0, params_map=2, flops_map=20))
    assert [(c.group, c.rate) for c in found] == [
        ("g0", 0.25),
        ("g1", 0.25),
        ("g2", 0.5),
    ]  # g0: 0.5 by params, 0.25 by flops
    ties = [record(f"g{i}", 0.5, 1.0, 7, 7) for i in range(20)]
    assert len(select(ties, Selection(6, 0, 0))) == 6
    with pytest.raises(UsageError, match="timings"):
        select(rows, Selection(1, 1, 1))


def square(x: int) -> int:
    return x * x


def dies_once(job: tuple[str, int]) -> int:
    """Return the square; job 3 ends its process the first time."""
    folder, number = job
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return number * number


def test_workers_equal_one_process(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    expected = dict(run_jobs(square, range(5)))
    assert dict(run_jobs(square, range(5), workers=2)) == expected == {i: i * i for i in range(5)}


def pid_of(job: int) -> int:
    """Return the process of the job."""
    return os.getpid()


def test_workers_do_contiguous_jobs() -> None:
    """Consecutive jobs share the activations in front of their group."""
    pytest.importorskip("joblib")
    pids = [pid for _, pid in sorted(run_jobs(pid_of, range(60), workers=2))]
    assert os.getpid() not in pids
    assert sum(a != b for a, b in zip(pids, pids[1:], strict=False)) < 2 * PARTS
    # fewer jobs than parts
    assert len(list(run_jobs(pid_of, range(1), workers=2))) == 1


def test_a_worker_that_dies_loses_no_job(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    jobs = [(str(tmp_path), i) for i in range(6)]
    found = list(run_jobs(dies_once, jobs, workers=2))
    assert sorted(r for _, r in found) == [i * i for i in range(6)] and (tmp_path / "died").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_local_cluster_whose_worker_dies(cluster: str, package: str, tmp_path: Path) -> None:
    """In a process of its own, as on the command line: two workers, one of which a job ends."""
    pytest.importorskip(package)
    script = Path(__file__).with_name("cluster_job.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), cluster],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=script.parents[2],
    )
    assert "RESULT [0, 1, 4, 9, 16, 25]" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / "died").exists()


def test_an_unknown_cluster() -> None:
    with pytest.raises(OnnxpruneError, match="ray"):
        list(run_jobs(square, [1], cluster="slurm"))


@pytest.mark.parametrize("content", [b'{"format": 1}\n', b"\x08\x07model"])
def test_file_of_another_kind_is_no_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="holds no measurements"):
        Journal(path)
    assert path.read_bytes() == content
    # what a kill may leave of a journal
    for start in (b"", b'{"k', b'{"key": "a", "val'):
        path.write_bytes(start)
        Journal(path).write("b", {"value": 1})
        assert Journal(path).has("b")
