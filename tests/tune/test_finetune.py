"""Fine-tuning: recovery, guards, equal bytes for equal inputs, interrupted or not."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxprune.data.labeled import LabeledData
from onnxprune.errors import DataError, UsageError
from onnxprune.events import Event
from onnxprune.ir.io import Model, digest, load, save
from onnxprune.ir.runtime import Session

pytest.importorskip("torch")
import torch

from onnxprune.tune import batchnorm
from onnxprune.tune.bridge import as_feeds, to_module
from onnxprune.tune.distributed import own_device
from onnxprune.tune.finetune import tune
from onnxprune.tune.samples import Samples, augment, gather
from onnxprune.tune.settings import TuneSettings
from onnxprune.tune.validate import Validator

Digits = tuple[LabeledData, LabeledData]
QUICK = TuneSettings(epochs=2, batch_size=50)
EXACT = 1e-5  # of the largest output: folding in float64, running in float32


def top1(model: Model, data: LabeledData) -> float:
    samples = gather(data)
    found = Session(model).run(samples.inputs)["logits"].argmax(1)
    return float((found == samples.labels["labels"]).mean())


@pytest.mark.parametrize("loss", ["kd", "dist", "feature", "output", "ce", "kd+0.5*feature"])
def test_tuning_recovers_accuracy(demo: Model, damaged: Model, digits: Digits, loss: str) -> None:
    result = tune(damaged, digits[0], replace(QUICK, loss=loss), teacher=demo)
    assert top1(result.model, digits[1]) > top1(damaged, digits[1]) + 0.05
    assert result.score > result.start_score
    assert result.model.proto == damaged.proto, "the graph stays"


def test_distilling_needs_no_labels(demo: Model, damaged: Model, digits: Digits) -> None:
    unlabeled = Samples(gather(digits[0]).inputs)
    result = tune(damaged, unlabeled, QUICK, teacher=demo)
    assert top1(result.model, digits[1]) > top1(damaged, digits[1]) + 0.05


def test_loss_and_metric_of_the_caller(damaged: Model, digits: Digits) -> None:
    def wrong(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs["logits"], (labels["labels"] + 1) % 10)

    result = tune(
        damaged,
        digits[0],
        replace(QUICK, loss="task", epochs=8, lr=1e-3, force_lr=True),
        task_loss=wrong,
        metric=lambda: Shifted(),
    )
    assert result.score > result.start_score + 0.1, (
        "it learns whatever the loss says, judged by the caller's own metric"
    )


class Shifted:
    """Share of outputs that are the label plus one."""

    higher_is_better, value = True, 0.0

    def update(self, outputs, labels) -> None:
        self.value = float((outputs["logits"].argmax(1) == (labels["labels"] + 1) % 10).mean())

    def result(self):
        return self


def test_result_is_never_below_the_start(demo: Model, digits: Digits) -> None:
    result = tune(demo, digits[0], replace(QUICK, loss="ce", lr=0.5, force_lr=True, ema=0))
    assert result.epoch == 0 and result.score == result.start_score
    assert digest(result.model) == digest(demo)


@pytest.mark.parametrize(
    ("standard_error", "rows", "best"),
    [
        # the least loss of the scores within a standard error of the highest
        (0.01, [(0.90, 1.0), (0.91, 0.9), (0.905, 0.7), (0.88, 0.5)], 2),
        # without a standard error the highest score, of equal ones the least loss
        (0.0, [(0.90, 1.0), (0.91, 0.9), (0.905, 0.7), (0.91, 0.8)], 3),
        # never below the start
        (0.01, [(0.90, 1.0), (0.895, 0.5)], 0),
        # a best score is replaced by a clearly higher one of larger loss
        (0.01, [(0.80, 0.4), (0.90, 0.5), (0.895, 0.6)], 1),
    ],
)
def test_selection_of_the_best_epoch(
    demo: Model,
    damaged: Model,
    digits: Digits,
    monkeypatch: pytest.MonkeyPatch,
    standard_error: float,
    rows: list[tuple[float, float]],
    best: int,
) -> None:
    scores = iter(rows)
    monkeypatch.setattr(Validator, "score", lambda self, module: (*next(scores), standard_error))
    result = tune(damaged, digits[0], replace(QUICK, epochs=len(rows) - 1), teacher=demo)
    assert (result.epoch, result.score) == (best, rows[best][0])


def test_standard_error_of_an_accuracy(
    demo: Model, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float, float]] = []
    score = Validator.score
    monkeypatch.setattr(
        Validator, "score", lambda self, module: seen.append(score(self, module)) or seen[-1]
    )
    tune(demo, digits[0], replace(QUICK, epochs=1), teacher=demo, validation=digits[1])
    share, samples = top1(demo, digits[1]), len(gather(digits[1]))
    np.testing.assert_allclose(seen[0][0], share)
    np.testing.assert_allclose(seen[0][2], np.sqrt(share * (1 - share) / samples))


def test_an_lr_that_destroys_folded_graphs_is_rejected(demo: Model, digits: Digits) -> None:
    with pytest.raises(UsageError, match=r"lr 0.002 is too high .* batchnorm to insert"):
        tune(demo, digits[0], replace(QUICK, loss="ce", lr=2e-3))


def test_equal_seeds_give_equal_bytes(demo: Model, damaged: Model, digits: Digits) -> None:
    runs = [
        tune(damaged, digits[0], replace(QUICK, augment="flip-shift", seed=s), teacher=demo)
        for s in (1, 1, 2)
    ]
    assert digest(runs[0].model) == digest(runs[1].model) != digest(runs[2].model)


def test_half_precision_passes_keep_float32_weights(
    demo: Model, damaged: Model, digits: Digits
) -> None:
    result = tune(damaged, digits[0], replace(QUICK, precision="bfloat16"), teacher=demo)
    assert result.score > result.start_score
    assert {w.array().dtype for w in result.model.weights.values()} <= {
        np.dtype(np.float32),
        np.dtype(np.int64),
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_resumed_run_ends_with_the_same_result(
    demo: Model, damaged: Model, digits: Digits, tmp_path: Path, at: int
) -> None:
    settings = replace(QUICK, epochs=2, checkpoint_s=0)
    whole = tune(damaged, digits[0], settings, teacher=demo)

    seen: list[str] = []

    def stop(event: Event) -> None:
        seen.append(event.state)
        if seen.count("progress") == at:
            raise Stop

    with pytest.raises(Stop):
        tune(damaged, digits[0], settings, teacher=demo, checkpoint=tmp_path / "c", on_event=stop)
    events: list[Event] = []
    again = tune(
        damaged,
        digits[0],
        settings,
        teacher=demo,
        checkpoint=tmp_path / "c",
        on_event=events.append,
    )
    assert at == 1 or f"{at - 1} done" in next(e.detail for e in events if e.state == "begin"), (
        "it resumes, it does not start over"
    )
    assert digest(again.model) == digest(whole.model)
    assert [r["score"] for r in again.history] == [r["score"] for r in whole.history]


def test_a_checkpoint_of_another_run_is_rejected(
    demo: Model, damaged: Model, digits: Digits, tmp_path: Path
) -> None:
    tune(damaged, digits[0], replace(QUICK, steps=1), teacher=demo, checkpoint=tmp_path / "c")
    with pytest.raises(UsageError, match="belongs to a run with another model, data or settings"):
        tune(
            damaged,
            digits[0],
            replace(QUICK, steps=1, loss="dist"),
            teacher=demo,
            checkpoint=tmp_path / "c",
        )
    (tmp_path / "c").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is not a tuning checkpoint"):
        tune(damaged, digits[0], replace(QUICK, steps=1), teacher=demo, checkpoint=tmp_path / "c")


def test_progress_counts_down(demo: Model, damaged: Model, digits: Digits) -> None:
    events: list[Event] = []
    tune(damaged, digits[0], QUICK, teacher=demo, on_event=events.append)
    steps = [e for e in events if e.state == "progress"]
    shares = [e.share for e in steps]
    assert shares == sorted(shares) and shares[-1] == 1
    assert steps[0].left_s > 0 == steps[-1].left_s
    assert [(e.stage, e.state) for e in events if e.state != "progress"] == [
        ("validate", "end"),
        ("tune", "begin"),
        ("validate", "end"),
        ("validate", "end"),
        ("tune", "end"),
    ]


def test_time_limit_ends_the_run(demo: Model, damaged: Model, digits: Digits) -> None:
    result = tune(damaged, digits[0], replace(QUICK, epochs=1000, limit_s=0.5), teacher=demo)
    assert len(result.history) < 1000 and result.score >= result.start_score


def test_inserted_normalization_changes_nothing_and_is_folded(demo: Model, digits: Digits) -> None:
    feeds = gather(digits[0]).inputs
    module = to_module(demo)
    places = batchnorm.find_sites(demo)
    inserted = batchnorm.insert(
        demo, batchnorm.measure_moments(module, places, [as_feeds(feeds, module)])
    )
    assert (
        sum(n.op_type == "BatchNormalization" for n in inserted.proto.graph.node)
        == len(places)
        > 10
    )
    expected = Session(demo).run(feeds)["logits"]
    for model in (inserted, batchnorm.fold(inserted, demo)):
        np.testing.assert_allclose(
            Session(model).run(feeds)["logits"], expected, atol=EXACT * np.abs(expected).max()
        )
    normalized = to_module(inserted).train()(as_feeds(feeds, module))["logits"].detach().numpy()
    np.testing.assert_allclose(
        normalized,
        expected,
        atol=1e-3 * np.abs(expected).max(),
        err_msg="batch statistics on the calibration batch are these",
    )


def test_tuning_with_inserted_normalization(demo: Model, damaged: Model, digits: Digits) -> None:
    result = tune(damaged, digits[0], replace(QUICK, batchnorm="insert", epochs=4), teacher=demo)
    assert top1(result.model, digits[1]) > top1(damaged, digits[1]) + 0.05
    assert result.model.proto == damaged.proto, (
        "all convolutions had a bias: the graph is unchanged"
    )


@pytest.mark.parametrize(
    "settings, hint",
    [
        ({"loss": "kd"}, "pass it as teacher"),
        ({"loss": "task"}, "pass it as task_loss"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"validation": 1.5}, "must be below 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_invalid_settings_are_explained(
    demo: Model, digits: Digits, settings: dict, hint: str
) -> None:
    with pytest.raises(UsageError, match=hint):
        tune(demo, digits[0], replace(QUICK, **settings))


def test_cross_entropy_without_labels_is_explained(demo: Model, digits: Digits) -> None:
    with pytest.raises(DataError, match="no labels .* distil with kd"):
        tune(demo, Samples(gather(digits[0]).inputs), replace(QUICK, loss="ce"))


def test_boxes_are_renumbered_with_their_samples() -> None:
    samples = Samples(
        {"x": np.arange(4)}, {"boxes": np.array([[0, 1.0], [2, 2.0], [2, 3.0], [3, 4.0]])}
    )
    assert samples.take(np.array([3, 2, 1])).labels["boxes"].tolist() == [[0, 4], [1, 2], [1, 3]]


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    images = np.random.default_rng(0).standard_normal((6, 2, 8, 8)).astype(np.float32)
    found = augment({"x": images, "n": np.zeros(6)}, "flip-shift", np.random.default_rng(1))
    again = augment({"x": images, "n": np.zeros(6)}, "flip-shift", np.random.default_rng(1))
    assert (found["x"] == again["x"]).all() and found["x"].shape == images.shape
    inner = found["x"][:, :, 2:-2, 2:-2]
    for image, piece in zip(images, inner, strict=False):
        views = [
            v[:, i : i + 4, j : j + 4]
            for v in (image, image[..., ::-1])
            for i in range(5)
            for j in range(5)
        ]
        assert any((piece == v).all() for v in views)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tuning_on_a_gpu(demo: Model, damaged: Model, digits: Digits) -> None:
    result = tune(
        damaged,
        digits[0],
        replace(QUICK, device="cuda", precision="bfloat16", augment="flip-shift"),
        teacher=demo,
    )
    assert top1(result.model, digits[1]) > top1(damaged, digits[1]) + 0.05


def test_each_process_uses_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(d) for d in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


SCRIPT = """
    import sys
    from dataclasses import replace
    from onnxprune.ir.io import load, save
    from onnxprune.tune.finetune import tune
    from onnxprune.tune.samples import Samples
    from onnxprune.tune.settings import TuneSettings
    import numpy as np
    folder = sys.argv[1]
    arrays = np.load(folder + "/data.npz")
    data = Samples({"images": arrays["images"]}, {"labels": arrays["labels"]})
    epochs = int(sys.argv[2])
    settings = TuneSettings(
        epochs=epochs, batch_size=48, checkpoint_s=0, validation=0.1, clip_norm=0
    )
    result = tune(
        load(folder + "/damaged.onnx"),
        data,
        settings,
        teacher=load(folder + "/demo.onnx"),
        checkpoint=sys.argv[4] or None,
    )
    import os
    if os.environ.get("RANK", "0") == "0":
        save(result.model, sys.argv[3], overwrite=True)
"""


@pytest.fixture
def folder(demo: Model, damaged: Model, digits: Digits, tmp_path: Path) -> Path:
    samples = gather(digits[0])
    np.savez(
        tmp_path / "data.npz", images=samples.inputs["images"], labels=samples.labels["labels"]
    )
    save(demo, tmp_path / "demo.onnx")
    save(damaged, tmp_path / "damaged.onnx")
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))
    return tmp_path


def run_here(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script in this process, where torch is imported already."""
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(arguments[0])


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(out: str, checkpoint: str) -> list[str]:
        return [str(folder / "run.py"), str(folder), "6", str(folder / out), checkpoint]

    run_here(arguments("whole.onnx", ""), monkeypatch)
    checkpoint = folder / "c"
    resumed = arguments("again.onnx", str(checkpoint))
    process = subprocess.Popen([sys.executable, *resumed])
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process ended before it was killed"
    run_here(resumed, monkeypatch)
    assert digest(load(folder / "again.onnx")) == digest(load(folder / "whole.onnx"))


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without statistics over the batch, averaged gradients are those of one process."""
    arguments = [str(folder / "run.py"), str(folder), "1"]
    run_here([*arguments, str(folder / "one.onnx"), ""], monkeypatch)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    subprocess.run(
        [*launch, *arguments, str(folder / "two.onnx"), ""],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    one, two = load(folder / "one.onnx"), load(folder / "two.onnx")
    moved = 0.0
    for name, weight in load(folder / "damaged.onnx").weights.items():
        a, b, start = one.weights[name].array(), two.weights[name].array(), weight.array()
        if a.dtype == np.float32:
            moved = max(moved, float(np.abs(a - start).max()))
            assert np.abs(a - b).mean() < 0.02 * np.abs(a - start).mean() + 1e-9
    assert moved > 1e-4


def test_weights_in_constant_nodes_are_tuned_too(
    demo: Model, damaged: Model, digits: Digits
) -> None:
    hidden = damaged.edit()
    name = next(n.input[1] for n in hidden.proto.graph.node if n.op_type == "Gemm")
    hidden.proto.graph.node.insert(
        0,
        helper.make_node(
            "Constant",
            [],
            [name],
            value=numpy_helper.from_array(damaged.weights[name].array(), name),
        ),
    )
    del hidden.weights[name]
    kept = [t for t in hidden.proto.graph.initializer if t.name != name]
    del hidden.proto.graph.initializer[:]
    hidden.proto.graph.initializer.extend(kept)
    result = tune(hidden, digits[0], replace(QUICK, steps=3), teacher=demo)
    assert (result.model.weights[name].array() != damaged.weights[name].array()).any()
