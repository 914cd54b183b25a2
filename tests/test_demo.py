"""Files of the demo: size, accuracy, disjoint data, and the script that writes them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from draw_pictures import DEMO, draw_terminal, run

from onnxprune import demo
from onnxprune.cli import run as app

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("latency", "speed  ")  # starts of lines with measured times
NUMBER = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?")
SHIPPED_BYTES = 1_000_000  # what the package may carry for the demo
TOP1 = 0.97


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of the evaluation split."""
    with np.load(demo.files().evaluation) as data:
        return data["images"], data["labels"]


def training_script() -> ModuleType:
    """Return tools/train_demo.py as a module; skip without its libraries."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parents[1] / "tools" / "train_demo.py"
    spec = importlib.util.spec_from_file_location("train_demo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_model_classifies_held_out_digits_at_any_batch_size() -> None:
    images, labels = images_and_labels()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(demo.files().model), options)
    logits = session.run(None, {"images": images})[0]
    assert (logits.argmax(1) == labels).mean() >= TOP1
    one_by_one = np.concatenate(
        [session.run(None, {"images": images[i : i + 1]})[0] for i in range(8)]
    )
    # float32 sums in another order
    np.testing.assert_allclose(one_by_one, logits[:8], rtol=1e-4, atol=1e-4)


def test_calibration_and_evaluation_images_are_disjoint() -> None:
    with np.load(demo.files().calibration) as data:
        assert data.files == ["images"], "calibration data have no labels"
        calibration = {image.tobytes() for image in data["images"]}
    assert len(calibration) == 256
    assert not calibration & {image.tobytes() for image in images_and_labels()[0]}


def test_model_is_a_small_folded_opset_17_graph_with_class_names() -> None:
    assert sum(path.stat().st_size for path in demo.files()) < SHIPPED_BYTES
    model = onnx.load(demo.files().model)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    ops = {node.op_type for node in model.graph.node}
    assert {"Conv", "Add", "Concat", "Gemm"} <= ops and "BatchNormalization" not in ops
    depthwise = [
        n
        for n in model.graph.node
        if n.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in n.attribute)
    ]
    assert len(depthwise) == 2
    names = json.loads({p.key: p.value for p in model.metadata_props}["names"])
    assert list(names) == [str(i) for i in range(10)] and names["7"] == "seven"


def test_data_are_those_of_the_script() -> None:
    parts = training_script().splits()
    with np.load(demo.files().calibration) as data:
        np.testing.assert_array_equal(data["images"], parts["calibration"][0])
    for shipped, written in zip(images_and_labels(), parts["evaluation"], strict=True):
        np.testing.assert_array_equal(shipped, written)
    seen = {image.tobytes() for image in parts["training"][0]}
    assert not seen & {image.tobytes() for image in parts["evaluation"][0]}


@pytest.mark.slow
def test_script_exports_the_shipped_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = training_script()
    monkeypatch.setattr(script, "EPOCHS", 1)  # the graph is the same however long it is trained
    script.export(script.train(*script.splits()["training"]), tmp_path / "digits.onnx")
    again, shipped = onnx.load(tmp_path / "digits.onnx").graph, onnx.load(demo.files().model).graph
    assert [(n.op_type, list(n.input), list(n.output)) for n in again.node] == [
        (n.op_type, list(n.input), list(n.output)) for n in shipped.node
    ]
    assert {t.name: list(t.dims) for t in again.initializer} == {
        t.name: list(t.dims) for t in shipped.initializer
    }


def test_exported_images_are_the_calibration_data(tmp_path: Path) -> None:
    """As the commands of the documentation read them: one channel, divided by 255."""
    image = pytest.importorskip("PIL.Image")
    assert app(["demo", "--export", str(tmp_path / "digits")]) == 0
    paths = sorted((tmp_path / "digits" / "images").glob("*.png"))
    pixels = np.stack([np.asarray(image.open(path)) for path in paths])
    with np.load(tmp_path / "digits" / "calibration.npz") as data:
        np.testing.assert_allclose(pixels[:, None] / 255, data["images"], atol=0.5 / 255)
    for name, source in zip(("model.onnx", "evaluation.npz"), demo.files()[::2], strict=True):
        assert (tmp_path / "digits" / name).read_bytes() == source.read_bytes()


def test_export_replaces_files_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"mine")
    assert app(["demo", "--export", str(tmp_path)]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert app(["demo", "--export", str(tmp_path), "-o", "small.onnx"]) == 2
    assert app(["demo", "--export", str(tmp_path), "--overwrite"]) == 0


class Shown(NamedTuple):
    """A run of the demo: its folder and what it printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Run the demo once."""
    folder = tmp_path_factory.mktemp("demo")
    return Shown(folder, run(folder, f"{DEMO} --engine none"))


@pytest.mark.slow
def test_random_channels_are_visibly_worse_in_the_demo(
    shown: Shown, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the controls is, in its top-1 and in its output error; unrepaired they are chance."""
    monkeypatch.chdir(shown.folder)
    # reuses the stages of the run
    assert app(["demo", "--engine", "none", "--json", "--overwrite"]) == 0
    report = json.loads(capsys.readouterr().out)
    own, error = report["quality"]["top1"]["after"], report["fidelity"]["relative_error"]
    assert len(report["control"]) == len(report["control_unrepaired"]) == 3
    assert report["after"]["macs"] <= 0.12 * report["before"]["macs"] and own > 0.95
    for row in report["control"]:
        assert row["metrics"]["top1"]["value"] < own - 0.01
        assert row["relative_error"] > 1.15 * error
    for row in report["control_unrepaired"]:
        assert row["metrics"]["top1"]["value"] < 0.2


@pytest.mark.slow
def test_picture_of_the_terminal_shows_what_the_demo_prints(shown: Shown) -> None:
    """Line by line, without times; figures within 2 %, since processors round differently."""
    printed = draw_terminal(shown.printed)
    stored = (ROOT / "docs" / "pictures" / "terminal.svg").read_text(encoding="utf-8")
    now, then = (
        [line for line in re.findall(r">([^<]+)</text>", picture) if line[:7] not in TIMES]
        for picture in (printed, stored)
    )
    # without a latency, the columns of the table are narrower
    words = [[" ".join(NUMBER.sub("#", line).split()) for line in lines] for lines in (now, then)]
    assert words[0] == words[1], "run: python tools/draw_pictures.py"
    figures = [np.array(NUMBER.findall(" ".join(lines)), float) for lines in (now, then)]
    np.testing.assert_allclose(*figures, rtol=0.02, atol=0.01)
