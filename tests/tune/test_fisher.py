"""Pruning while training: importance, masks, target, start and interruption."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.autodiff import LABELS, Loss
from onnxprune.cli import run
from onnxprune.data.dataset import open_data
from onnxprune.data.labeled import LabeledData
from onnxprune.demo import files as demo_files
from onnxprune.errors import TargetError, UsageError
from onnxprune.events import Event
from onnxprune.ir.io import Model, digest
from onnxprune.ir.runtime import Session
from onnxprune.run.adapter import input_types
from onnxprune.statistics.gradients import mask_gradients
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

pytest.importorskip("torch")
import torch

from onnxprune.tune.bridge import as_feeds, to_module
from onnxprune.tune.finetune import score
from onnxprune.tune.fisher import PruneByFisher, Pruning, _sum_by_sample
from onnxprune.tune.heads import heads
from onnxprune.tune.losses import cross_entropy
from onnxprune.tune.pruning import prune_and_tune
from onnxprune.tune.samples import gather
from onnxprune.tune.settings import TuneSettings

Digits = tuple[LabeledData, LabeledData]
QUICK = TuneSettings(epochs=1, batch_size=50, checkpoint_s=0)
OFTEN = Pruning(interval=2)
RTOL = 1e-4  # of the largest: float32 over twenty layers, summed in another order


@pytest.fixture(scope="module")
def analysis(demo: Model) -> Analysis:
    return analyze(demo)


def half(analysis: Analysis, share: float = 0.5) -> Constraints:
    return Constraints({"macs": share * analysis.cost().macs}, round_to=4)


def test_importance_equals_squared_mask_gradients_of_onnxruntime(analysis: Analysis) -> None:
    data = open_data(demo_files().calibration, input_types(analysis.model), samples=24)
    feeds, labels = next(iter(data.batches(24))), np.arange(24) % 10
    reference = mask_gradients(
        analysis, data, [Loss(LABELS, "logits")], labels=labels, batch_size=24
    ).rows
    hook, module = (
        PruneByFisher(analysis, half(analysis), OFTEN, labeled=True),
        to_module(analysis.model),
    )
    hook.start(module)
    found = module(as_feeds(feeds, module))
    hook.observe(
        cross_entropy(found["logits"], torch.from_numpy(labels)),
        found,
        heads(analysis.model),
        24,
        0,
    )
    assert set(hook.groups) == set(reference) and len(reference) > 5
    for name, rows in reference.items():
        expected = np.square(rows).sum(0)
        np.testing.assert_allclose(
            hook.sums[torch.from_numpy(analysis.causes[name])].numpy(),
            expected,
            atol=RTOL * expected.max(),
        )


def test_a_masked_network_equals_the_cut_one(analysis: Analysis) -> None:
    hook, module = (
        PruneByFisher(analysis, half(analysis), OFTEN, labeled=False),
        to_module(analysis.model),
    )
    rng = np.random.default_rng(0)
    for mask in hook.kept.values():
        mask[rng.permutation(len(mask))[: len(mask) // 3]] = False
    hook.start(module)
    feeds = gather(
        open_data(demo_files().calibration, input_types(analysis.model), samples=8)
    ).inputs
    with torch.no_grad():
        masked = module(as_feeds(feeds, module))["logits"].numpy()
    expected = Session(cut(analysis, hook.plan())).run(feeds)["logits"]
    np.testing.assert_allclose(masked, expected, atol=RTOL * np.abs(expected).max())
    assert np.abs(Session(analysis.model).run(feeds)["logits"] - expected).max() > 0.1, (
        "the masks did something"
    )


@pytest.mark.parametrize("loss", ["kd", "ce"])
def test_target_is_met_and_result_is_at_least_the_untuned_cut(
    analysis: Analysis, digits: Digits, loss: str
) -> None:
    settings = replace(QUICK, loss=loss)
    found = prune_and_tune(analysis, digits[0], half(analysis, 0.6), settings, OFTEN)
    assert (
        0.5 * analysis.cost().macs
        < analysis.cost(found.plan.kept).macs
        <= 0.6 * analysis.cost().macs
    )
    assert all(len(k) % 4 == 0 for k in found.plan.kept.values())
    assert analyze(found.result.model).cost() == analysis.cost(found.plan.kept)
    untuned = score(cut(analysis, found.plan), digits[0], settings, teacher=analysis.model)
    assert found.untuned_score == untuned and found.trained_score > untuned
    assert found.result.score >= found.result.start_score == max(found.trained_score, untuned)
    assert found.plan.decided_by["training"] and found.steps % OFTEN.interval == 1


def test_a_better_untuned_cut_becomes_the_start(analysis: Analysis, digits: Digits) -> None:
    """Wrong labels and a learning rate that is far too high destroy the trained start."""

    def wrong(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs["logits"], (labels["labels"] + 1) % 10)

    class Right:
        higher_is_better, value = True, 0.0

        def update(self, outputs, labels) -> None:
            self.value = float((outputs["logits"].argmax(1) == labels["labels"]).mean())

        def result(self):
            return self

    settings = replace(QUICK, loss="task", lr=0.1, force_lr=True)
    found = prune_and_tune(
        analysis, digits[0], half(analysis, 0.8), settings, OFTEN, task_loss=wrong, metric=Right
    )
    assert (
        found.trained_score < found.untuned_score == found.result.start_score <= found.result.score
    )


class Stop(Exception):
    pass


def test_a_resumed_run_ends_with_the_same_result(
    analysis: Analysis, digits: Digits, tmp_path: Path
) -> None:
    def run(place: Path | None, stop_at: int = 0) -> tuple[str, Plan, int]:
        steps = 0

        def listen(event: Event) -> None:
            nonlocal steps
            steps += event.state == "progress"
            if stop_at and steps == stop_at:
                raise Stop

        found = prune_and_tune(
            analysis,
            digits[0],
            half(analysis, 0.85),
            QUICK,
            OFTEN,
            checkpoint=place,
            on_event=listen,
        )
        return digest(found.result.model), found.plan, steps

    model, plan, steps = run(None)
    for at in (4, steps - 2):  # while channels are removed, and while the rest is tuned
        with pytest.raises(Stop):
            run(tmp_path / f"{at}", at)
        assert run(tmp_path / f"{at}") == (model, plan, steps - at + 1), (
            "it resumes, it does not start over"
        )


@pytest.mark.slow
def test_two_processes_remove_the_same_channels(tmp_path: Path) -> None:
    """Each adds the squared gradients of its samples to one sum."""
    files = demo_files()
    arguments = ["tune", str(files.model), "--data", str(files.evaluation), "--loss", "ce"]
    arguments += ["--target", "macs=90%", "--interval", "1", "--steps", "1"]
    plans = [tmp_path / "0.json", tmp_path / "1.json"]
    commands = [
        [*arguments, "-o", str(plan.with_suffix(".onnx")), "--plan", str(plan)] for plan in plans
    ]
    assert run(commands[0]) == 0  # in this process, where torch is imported already
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    # as torchrun starts them, which tests/tune/test_finetune.py does
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "onnxprune", *commands[1]],
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    one, two = (json.loads(plan.read_text())["groups"] for plan in plans)
    assert one == two and one


def test_unreachable_targets_are_explained(analysis: Analysis, digits: Digits) -> None:
    with pytest.raises(TargetError, match="is the least with floor=1, max_fraction=0.3"):
        prune_and_tune(
            analysis,
            digits[0],
            replace(half(analysis, 0.1), max_fraction=0.3),
            QUICK,
            Pruning(interval=1, step=400),
        )
    with pytest.raises(UsageError, match="latency.onnxruntime cannot be followed"):
        prune_and_tune(analysis, digits[0], Constraints({"latency.onnxruntime": 1.0}), QUICK)


def test_sums_by_sample_find_the_sample_axis() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(_sum_by_sample(values, 1, 2), values.sum(2))
    np.testing.assert_array_equal(
        _sum_by_sample(values, 2, 3),
        values.sum(0),
        "the samples lie on axis 1, as in recurrent networks",
    )
    windows = torch.arange(48.0).reshape(4, 3, 4)
    np.testing.assert_array_equal(_sum_by_sample(windows, 2, 2), windows.reshape(2, 6, 4).sum(1))
    np.testing.assert_array_equal(_sum_by_sample(windows[:3], 2, 7)[0], windows[:3].sum((0, 1)))
