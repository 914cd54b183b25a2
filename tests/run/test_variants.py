"""Alternative models of a run: each equals a separate run, measured on held-out inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxprune import demo
from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import eliminate
from onnxprune.criteria.reconstruction import group_consumers, moments, reconstruction
from onnxprune.data.dataset import Data
from onnxprune.errors import DataError, TargetError
from onnxprune.events import Event
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.metrics.fidelity import Fidelity, OutputFidelity
from onnxprune.report.collect import MOST_POINTS, sensitivity_rows
from onnxprune.report.data import Report
from onnxprune.run.adapter import open_data_for, open_labels
from onnxprune.run.comparison import CURVE
from onnxprune.run.pipeline import optimize
from onnxprune.run.recipe import Recipe
from onnxprune.run.results import Result
from onnxprune.run.splits import split_inputs
from onnxprune.search.base import keep_best
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

MODEL, CALIBRATION, EVALUATION = demo.files()
FAST: dict[str, Any] = {
    "criterion": "l2",
    "allocate": "knapsack",
    "repair": "bias",
    "engine": "none",
    "round_to": 1,
    "data": str(CALIBRATION),
    "samples": 64,
    "target": "macs=50%",
}
LABELS: dict[str, Any] = {"metric": "top1", "labeled": str(EVALUATION)}


def small(output: Path | None = None, **options: Any) -> Result:
    return optimize(MODEL, output, **{**FAST, **options})


def relative_error(pruned_model: Model, data: Data) -> float:
    """||a - b|| / ||a|| of the demo's one output, by numpy."""
    original, pruned = (
        onnxruntime.InferenceSession(m) for m in (MODEL.read_bytes(), to_bytes(pruned_model))
    )
    batches = [next(iter(b.values())) for b in data.batches(64)]
    a, b = (
        np.concatenate([s.run(None, {"images": x})[0] for x in batches]).astype(np.float64)
        for s in (original, pruned)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def split_of(result: Result) -> Any:
    """The parts that the run took, made again from its recipe."""
    recipe, model = Recipe.of(dict(result.report.recipe)), load(MODEL)
    return split_inputs(open_data_for(model, recipe), open_labels(model, recipe), recipe)


def test_point_of_the_curve_equals_a_run_with_its_target(tmp_path: Path) -> None:
    """The written model does not depend on the curve."""
    plain, curved = (
        small(tmp_path / "plain.onnx", **LABELS),
        small(tmp_path / "curved.onnx", curve=True, **LABELS),
    )
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "curved.onnx").read_bytes()
    points = {p["label"]: p for p in curved.report.curve}
    assert list(points) == [*(f"macs={s:.0%}" for s in reversed(CURVE)), "original"] and [
        n for n, p in points.items() if p.get("chosen")
    ] == ["macs=50%"]
    alone = small(target="macs=70%", **LABELS).report
    for point, report in ((points["macs=70%"], alone), (points["macs=50%"], plain.report)):
        assert point["macs"] == report.after["macs"] / report.before["macs"]
        assert (
            point["relative_error"] == report.fidelity["relative_error"]
            and point["agreement"] == report.fidelity["agreement"]
        )
        assert (
            point["quality"] == point["metrics"]["top1"]["value"] == report.quality["top1"]["after"]
        )
    assert (
        points["original"]["quality"] == plain.report.quality["top1"]["before"]
        and points["original"]["relative_error"] == 0
    )


def test_curve_without_held_out_inputs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    details: list[str] = []
    report = small(curve=True, samples=1, on_event=lambda event: details.append(str(event))).report
    assert not any("inf" in text for text in details if "curve" in text)
    assert any("no held-out inputs" in text for text in details)
    assert [w for w in report.warnings if w.startswith("trade-off curve: quality not measured")]


def test_target_between_the_points_is_an_additional_point() -> None:
    found = small(curve=True, target="params=80%", max_fraction=0.3).report
    assert [p["label"] for p in found.curve if p.get("chosen")] == ["params=80%"]
    shares = [p["macs"] for p in found.curve]
    assert shares == sorted(shares) and all(
        p["metric"] == "relative output error" for p in found.curve
    )
    assert (
        len(
            [
                w
                for w in found.warnings
                if w.startswith("trade-off curve: target macs <= 40.0% cannot be met")
            ]
        )
        == 1
    )
    assert "macs=40%" not in [p["label"] for p in found.curve]


ALL: dict[str, Any] = {**LABELS, "curve": True, "control": 1, "candidate": "l1+uniform"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Report]:
    """The output and the report of a run that makes everything."""
    folder = tmp_path_factory.mktemp("undisturbed")
    report = small(folder / "out.onnx", **ALL).report
    return (folder / "out.onnx").read_bytes(), report


@pytest.mark.parametrize("stage", ["candidate 2", "control 1", "curve 60%"])
def test_interrupted_run_resumes_after_the_last_model(
    tmp_path: Path, stage: str, undisturbed: tuple[bytes, Report]
) -> None:
    def stop(event: Event) -> None:
        if event.stage == stage:
            raise KeyboardInterrupt

    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        optimize(MODEL, tmp_path / "out.onnx", on_event=stop, **{**FAST, **ALL})
    again = optimize(MODEL, tmp_path / "out.onnx", on_event=events.append, **{**FAST, **ALL})
    output, report = undisturbed
    order = [s.name for s in report.stages]
    assert {e.stage for e in events if e.state == "reused"} == {
        n for n in order[: order.index(stage)] if n not in ("load", "analyze", "cut")
    }
    assert (tmp_path / "out.onnx").read_bytes() == output
    for name in ("curve", "control", "selection", "fidelity", "quality"):
        assert getattr(again.report, name) == getattr(report, name)


def test_splits_share_no_input() -> None:
    recipe = Recipe.of(
        {
            "data": str(CALIBRATION),
            "samples": 128,
            "max_divergence": 0.1,
            "candidate": "l2+uniform",
            **LABELS,
        }
    )
    parts = split_inputs(
        open_data_for(load(MODEL), recipe), open_labels(load(MODEL), recipe), recipe
    )
    chosen = [set(p.chosen) for p in (parts.calibration, parts.selection, parts.report)]
    labeled = [set(p.chosen) for p in (parts.selection_labels, parts.report_labels)]
    assert sum(map(len, chosen)) == len(set.union(*chosen)) == 128 + 2 * 32 and all(chosen)
    assert [len(p) for p in labeled] == [125, 375] and not labeled[0] & labeled[1]


def test_model_is_within_tolerance_and_the_next_smaller_one_is_not(tmp_path: Path) -> None:
    result = small(tmp_path / "out.onnx", target=(), max_divergence=0.3)
    found = result.report.bisection
    parts = split_of(result)
    assert parts.selection.samples == found["samples"] > 0
    assert relative_error(result.model, parts.selection) == pytest.approx(
        found["reached"], rel=1e-4
    )
    assert relative_error(result.model, parts.report) == pytest.approx(
        result.report.fidelity["relative_error"], rel=1e-4
    )
    within = [row["macs"] for row in found["rows"] if row["divergence"] <= 0.3]
    beyond = [row["macs"] for row in found["rows"] if row["divergence"] > 0.3]
    assert found["reached"] <= 0.3 and min(within) == result.report.after[
        "macs"
    ] / result.report.before["macs"] > max(beyond)
    assert found["reached"] > 0.98 * 0.3 or min(within) - max(beyond) < 0.03
    assert [t.target for t in result.report.targets] == ["max_divergence=0.3"] and len(
        found["rows"]
    ) <= 10


def test_of_target_and_tolerance_the_weaker_pruning_holds() -> None:
    loose = small(target="macs=80%", max_divergence=10.0).report
    assert (
        0.75 < loose.after["macs"] / loose.before["macs"] <= 0.8
        and len(loose.bisection["rows"]) == 1
        and not loose.warnings
    )
    tight = small(target=["macs=30%", "params=40%"], max_divergence=0.3).report
    assert tight.bisection["reached"] <= 0.3 and tight.after["macs"] > 0.3 * tight.before["macs"]
    assert (
        len(
            [
                w
                for w in tight.warnings
                if "max_divergence 0.3 stopped pruning" in w
                and "before the target macs=30%, params=40%" in w
            ]
        )
        == 1
    )
    with pytest.raises(TargetError, match=r"cannot be met: .*\(macs=.*\) diverges by"):
        small(max_divergence=1e-6)


def test_a_tolerance_below_the_default_multiple_takes_any_width() -> None:
    """Nobody asked for multiples of 8; whoever does gets the error."""
    options = {**FAST, "max_divergence": 0.12, "target": ()}
    del options["round_to"]
    events: list[Event] = []
    result = optimize(MODEL, on_event=events.append, **options)
    assert result.report.bisection.reached <= 0.12
    assert any(len(kept) % 8 for kept in result.plan.kept.values()), "a width that is no multiple"
    notes = [e.detail for e in events if e.state == "note"]
    assert any("multiples of 8" in note and "all widths" in note for note in notes)
    with pytest.raises(TargetError, match="or lower --round-to"):
        optimize(MODEL, round_to=8, **options)
    with pytest.raises(TargetError, match="; raise it$"):
        optimize(MODEL, **{**options, "max_divergence": 0.01})


def test_divergence_of_outputs_and_of_boxes() -> None:
    assert (
        Fidelity(
            {"y": OutputFidelity(0.25, None, 1.0), "z": OutputFidelity(0.5, None, 1.0)}, 8
        ).divergence
        == 0.5
    )
    assert Fidelity({"y": OutputFidelity(float("nan"), None, 1.0)}, 8).divergence == float("inf")
    assert Fidelity({}, 8, box_agreement=0.75).divergence == 0.25


def test_better_candidate_is_written_and_reported_on_other_labels(tmp_path: Path) -> None:
    """Random channels are far worse; a failed candidate is listed with its reason."""
    worse = {**LABELS, "criterion": "random", "allocate": "uniform", "target": "macs=70%"}
    found = small(
        tmp_path / "chosen.onnx", candidate=["l2+uniform", "bn_scale+uniform"], **worse
    ).report
    small(tmp_path / "alone.onnx", **{**worse, "criterion": "l2"})
    assert (tmp_path / "chosen.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    rows = found.selection["rows"]
    assert [row["chosen"] for row in rows] == [False, True, False] and rows[1]["value"] > rows[0][
        "value"
    ] + rows[1]["standard_error"]
    assert "BatchNormalization" in rows[2]["problem"] and rows[2]["value"] is None
    assert (found.selection["samples"], found.quality["top1"]["samples"]) == (
        125,
        375,
    ) and found.decided_by["criterion"] == "l2"


@pytest.mark.parametrize("own", ["random", "l2"])
def test_without_labels_the_candidate_of_least_divergence_is_written(
    tmp_path: Path, own: str
) -> None:
    """It is measured on inputs that fit nothing and are not those of the report."""
    other = {"random": "l2", "l2": "random"}[own]
    options = {**FAST, "criterion": own, "allocate": "uniform", "samples": 96}
    result = optimize(MODEL, tmp_path / "chosen.onnx", candidate=f"{other}+uniform", **options)
    selection = result.report.selection
    rows = selection.rows
    assert (selection.metric, selection.samples) == ("divergence", 24)
    assert [row.chosen for row in rows] == [own == "l2", own == "random"]
    split = split_of(result)
    assert split.selection is not None
    assert not set(split.selection.digests()) & set(split.report.digests())
    values = {}
    for criterion in (own, other):
        model = optimize(
            MODEL, **{**options, "criterion": criterion}, candidate=f"{criterion}+uniform"
        ).model
        values[criterion] = relative_error(model, split.selection)
    for row in rows:
        assert row.value == pytest.approx(values[row.criterion], rel=1e-5)
    assert result.plan.decided_by["criterion"] == "l2"


def test_thorough_runs_compare_the_weight_of_residual_streams(tmp_path: Path) -> None:
    options = {"data": str(CALIBRATION), "samples": 64, "engine": "none", "target": "macs=40%"}
    report = optimize(MODEL, thorough=True, round_to=1, **options).report
    allocators = [row.allocate for row in report.selection.rows]
    assert allocators == ["divergence", "divergence-unweighted"]
    least = min(report.selection.rows, key=lambda row: row.value)
    assert least.chosen and report.decided_by["allocate"] == least.allocate


def test_candidate_that_is_not_better_changes_nothing(tmp_path: Path) -> None:
    small(tmp_path / "plain.onnx", **LABELS)
    found = small(tmp_path / "compared.onnx", candidate="largest_l2+uniform", **LABELS).report
    assert [row["chosen"] for row in found.selection["rows"]] == [True, False]
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "compared.onnx").read_bytes()


def test_auto_compares_candidates_only_if_no_option_excludes_them() -> None:
    auto = {k: v for k, v in FAST.items() if k not in ("criterion", "allocate", "repair")} | LABELS
    stages: list[str] = []

    def stop(event: Event) -> None:
        stages.append(event.stage)
        if event.stage.startswith("candidate") or event.stage == "plan":
            raise KeyboardInterrupt

    def first(**options: Any) -> str:
        with pytest.raises(KeyboardInterrupt):
            optimize(MODEL, on_event=stop, **{**auto, **options})
        return stages[-1]

    assert first() == "candidate 1"
    for other in (
        {"fast": True},
        {"criterion": "l2"},
        {"allocate": "uniform"},
        {"candidate": "none"},
        {"metric": ()},
        {"data": None},
    ):
        assert first(**other) == "plan", other


def test_controls_have_random_channels_and_equal_widths() -> None:
    result = small(control=2, repair="none", **LABELS)
    analysis, parts = analyze(load(MODEL)), split_of(result)
    figures = []
    for seed in (1, 2):
        scores = CRITERIA.get("random")(Context(analysis, seed=seed))
        kept = {name: keep_best(scores[name], len(k)) for name, k in result.plan.kept.items()}
        figures.append(
            relative_error(
                cut(analysis, Plan(analysis.digest, kept, result.plan.sizes)), parts.report
            )
        )
    assert [row["relative_error"] for row in result.report.control] == pytest.approx(
        figures, rel=1e-4
    )
    assert (
        result.report.control[0] != result.report.control[1]
        and small(control=2, repair="none", **LABELS).report.control == result.report.control
    )
    assert all(0 <= row["metrics"]["top1"]["value"] <= 1 for row in result.report.control)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_divergence": "0.1", "target": "latency.onnxruntime=2x"}, "counted"),
        ({"max_divergence": "0.1", "candidate": "l2+uniform"}, "one target"),
        ({"max_divergence": "0.1", "method": "pagcp"}, "one-shot"),
        ({"max_divergence": "0.1", "data": None}, "--data"),
        ({"max_divergence": "0"}, "not above 0"),
        ({"candidate": "l2+uniform", "data": None}, "pass --data"),
        ({"thorough": True, "data": None}, "pass --data"),
        ({"candidate": "l2"}, "CRITERION+ALLOCATOR"),
        ({"candidate": "l2+unifrom"}, "did you mean 'uniform'"),
        ({"curve": True, "data": None}, "--data"),
        ({"control": "1", "data": None}, "--data"),
        ({"control": "1000000000"}, "more than the limit of 20"),
    ],
)
def test_options_that_exclude_each_other(
    options: Mapping[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"data": str(CALIBRATION), "engine": "none", **options}
    flags = [
        f"--{n.replace('_', '-')}" if v is True else f"--{n.replace('_', '-')}={v}"
        for n, v in given.items()
        if v is not None
    ]
    assert run(["optimize", str(MODEL), "-o", str(tmp_path / "out.onnx"), *flags]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_too_few_inputs(tmp_path: Path) -> None:
    with np.load(EVALUATION) as data:
        np.savez(tmp_path / "few.npz", images=data["images"][:60], labels=data["labels"][:60])
    found = small(candidate="l1+uniform", metric="top1", labeled=str(tmp_path / "few.npz")).report
    assert (
        not found.selection
        and found.quality["top1"]["samples"] == 60
        and [w for w in found.warnings if "too few labeled samples (60)" in w]
    )
    np.savez(tmp_path / "two.npz", images=np.arange(256, dtype=np.float32).reshape(4, 1, 8, 8))
    with pytest.raises(DataError, match="too few"):
        small(max_divergence=0.1, data=str(tmp_path / "two.npz"))


def test_sensitivity_is_the_error_curve_of_the_elimination() -> None:
    """The scores smooth the costs of the elimination without changing their sums."""
    analysis = analyze(load(MODEL))
    recipe = Recipe.of({"data": str(CALIBRATION), "samples": 64})
    context = Context(analysis, open_data_for(analysis.model, recipe))
    curves = sensitivity_rows(reconstruction(context), 0.9)
    assert set(curves) == {g.name for g in analysis.groups}
    for name, points in curves.items():
        _, cost = eliminate(
            group_consumers(analysis, name, *moments(context)), analysis.group(name).size
        )
        shares, errors = np.array(points).T
        counts = np.round(shares * analysis.group(name).size).astype(int)
        assert (
            len(points) <= MOST_POINTS
            and 0.8 < shares[-1] <= 0.9
            and (np.diff(shares) > 0).all()
            and (np.diff(errors) > 0).all()
        )
        np.testing.assert_allclose(
            errors, np.cumsum(cost)[counts - 1], rtol=0.1, atol=0.02 * cost.sum()
        )
