"""Files of the demo: size, accuracy, disjoint data, and the script that writes them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxprune import demo

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
