"""Objects in place of paths: arrays, dicts, iterables and functions give what files give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune import demo
from onnxprune.data.dataset import Data, open_data
from onnxprune.data.labeled import open_labeled
from onnxprune.errors import OnnxpruneError
from onnxprune.named import Named, describe, shown

IMAGE = {"x": (["batch", 1, 4, 4], "tensor(float)")}
PAIR = {"x": (["batch", 3], "tensor(float)"), "y": (["batch", 2], "tensor(int64)")}
ROWS = np.arange(12 * 16, dtype=np.float32).reshape(12, 1, 4, 4)
BATCHES = [ROWS[:5], ROWS[5:10], ROWS[10:]]


def content(data: Data) -> np.ndarray:
    """Return all samples in their order."""
    return np.concatenate([batch["x"] for batch in data.batches(5)])


def generate() -> Iterator[np.ndarray]:
    """Yield the batches."""
    yield from BATCHES


@pytest.mark.parametrize(
    "make",
    [
        lambda: BATCHES,
        lambda: iter(BATCHES),
        lambda: generate(),
        lambda: generate,
        lambda: [{"x": batch} for batch in BATCHES],
        lambda: [(batch, np.zeros(len(batch))) for batch in BATCHES],
        lambda: list(ROWS),
        lambda: [{"x": row, "labels": 3} for row in ROWS],
    ],
)
def test_iterables_give_their_first_samples_in_order(make: Callable[[], Any]) -> None:
    data = open_data(make(), IMAGE, samples=7)
    np.testing.assert_array_equal(content(data), ROWS[: data.samples])
    assert data.samples == 7
    # a second pass gives the same, also of a generator
    np.testing.assert_array_equal(content(data), ROWS[:7])


@pytest.mark.parametrize("value", [ROWS, {"x": ROWS}, {"images": ROWS}, {"x": ROWS, "labels": 0}])
def test_arrays_give_what_the_same_file_gives(tmp_path: Path, value: Any) -> None:
    np.savez(tmp_path / "rows.npz", x=ROWS)
    file = open_data(tmp_path / "rows.npz", IMAGE, samples=7, seed=3)
    data = open_data(value, IMAGE, samples=7, seed=3)
    assert data.chosen == file.chosen and data.fingerprint() == file.fingerprint()
    np.testing.assert_array_equal(content(data), content(file))


def test_several_inputs_by_name_or_position() -> None:
    x, y = np.ones((6, 3), np.float32), np.zeros((6, 2), np.int64)
    for value in ({"x": x, "y": y}, [(x, y, np.zeros(6))], [{"y": y[:3], "x": x[:3]}] * 2):
        (batch,) = open_data(value, PAIR).batches(6)
        assert (batch["x"].shape, batch["y"].shape) == ((6, 3), (6, 2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ROWS[0, 0], "float32 array (4x4): 'x' has shape 4x4"),
        ({"z": ROWS}, "dict of 'z': no array for input 'x'"),
        ([ROWS, 5], "list of 2 item 1 is int"),
        (iter(()), "tuple_iterator yields nothing"),
        ([np.array(["a"])], "'x' is <U1 array (1), not an array of numbers"),
        (lambda: 5, "fails: TypeError: 'int' object is not iterable"),
        ([ROWS, ROWS[:, :, :3]], "list of 2 item 1 has shape"),
    ],
)
def test_errors_name_the_object_without_its_values(value: Any, message: str) -> None:
    with pytest.raises(OnnxpruneError) as caught:
        list(open_data(value, IMAGE, samples=99).batches(4))
    text = str(caught.value)
    assert (message in text or "per sample" in text) and len(text) < 300


def test_an_error_of_the_iterable_is_ours() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield ROWS
        raise ValueError("disk on fire")

    with pytest.raises(OnnxpruneError, match="ValueError: disk on fire"):
        open_data(broken(), IMAGE, samples=99)


def test_torch_loaders_shuffle_once_and_give_tensors() -> None:
    torch = pytest.importorskip("torch")
    rows = torch.tensor(ROWS, requires_grad=True)
    sets = torch.utils.data.TensorDataset(rows, torch.arange(12))
    loader = torch.utils.data.DataLoader(sets, batch_size=5, shuffle=True)
    data = open_data(loader, IMAGE, samples=12)
    first = content(data)
    np.testing.assert_array_equal(first, content(data))
    np.testing.assert_array_equal(np.sort(first, axis=0), ROWS)


def test_objects_do_not_import_torch() -> None:
    code = (
        "import sys, numpy as np\nfrom onnxprune.data.dataset import open_data\n"
        "x = {'x': (['b', 2], 'tensor(float)')}\n"
        "open_data([np.zeros((3, 2), np.float32)], x)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    "value",
    [
        {"x": ROWS, "labels": np.arange(12)},
        (ROWS, np.arange(12)),
        [(ROWS[:5], np.arange(5)), (ROWS[5:], {"labels": np.arange(5, 12)})],
        [(row, label) for label, row in enumerate(ROWS)],
    ],
)
def test_labels_of_objects(value: Any) -> None:
    data = open_labeled(Named(describe(value), value), IMAGE)
    batches = list(data.labeled_batches(5))
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in batches]), ROWS)
    labels = np.concatenate([b.labels["labels"] for b in batches])
    np.testing.assert_array_equal(labels, np.arange(12))
    assert len(data.fingerprint()) == 64


def top1(outputs: Any, labels: Any) -> np.ndarray:
    """Return 1 where the largest output is the label."""
    return np.float64(outputs["logits"].argmax(1) == labels["labels"])


def test_a_run_on_objects_with_a_function_as_metric(tmp_path: Path) -> None:
    """Equals a run on files with the named metric; other arrays are not taken for the same."""
    model, calibration, evaluation = demo.files()
    with np.load(calibration) as file:
        images = file["images"]
    with np.load(evaluation) as file:
        labeled = {name: file[name][:200] for name in file.files}
    options: dict[str, Any] = {"samples": 32, "fast": True, "engine": "none", "candidate": "none"}
    run = {"output": tmp_path / "o.onnx", "overwrite": True, **options}
    result = onnxprune.optimize(model, data=images, labeled=labeled, metric=[top1, "top1"], **run)
    own, named = result.report.quality.values()
    assert list(result.report.quality)[0].endswith(":top1")
    assert (own.before, own.after, own.samples) == (named.before, named.after, 200)
    assert result.report.data.startswith("32 of 256 float32 array (256x1x8x8)")
    assert not result.report.next_steps  # an object stands in no command
    other = onnxprune.optimize(model, data=images[:, :, ::-1] * 1, **run)
    assert not any(s.reused for s in other.report.stages if s.name in ("score", "plan", "repair"))
    same = onnxprune.optimize(model, data=images[:, :, ::-1] * 1, **run)
    assert any(stage.reused for stage in same.report.stages)


@pytest.mark.parametrize("name", ["target", "samples", "mean", "metric", "criterion", "freeze"])
def test_errors_print_no_array(name: str) -> None:
    value = np.full(1000, 12345.0)
    with pytest.raises(OnnxpruneError, match="float64 array") as caught:
        onnxprune.Recipe.of({name: value.reshape(10, 100) if name == "mean" else value})
    assert "12345" not in str(caught.value) and len(str(caught.value)) < 150


def test_long_values_are_described() -> None:
    assert shown("x" * 3) == "'xxx'" and shown([1, 2]) == "[1, 2]"
    assert shown(list(range(100))) == "list of 100"
    assert describe({str(i): i for i in range(9)}).endswith("and 5 more")
