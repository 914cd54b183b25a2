"""External data of every tensor in a file are read from the model's folder, or rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.ir.io import digest, load
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.runtime import Session
from tests.robustness.carriers import (
    CARRIERS,
    NOT_RUN,
    TRICKS,
    VALUES,
    external,
    place_folder,
    place_pipe,
    place_socket,
)

DECOY = VALUES + 100  # a file of the same name in the current directory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder; the current directory is another one."""
    inner, home = tmp_path / "model", tmp_path / "home"
    inner.mkdir()
    home.mkdir()
    (home / "w.bin").write_bytes(DECOY.tobytes() * 200)
    monkeypatch.chdir(home)
    return inner


@pytest.mark.parametrize("name", CARRIERS)
def test_values_come_from_the_models_folder(folder: Path, name: str) -> None:
    value, carrier = CARRIERS[name]
    (folder / "w.bin").write_bytes(b"\0" * 8 + value.raw_data)
    moved = external(value, location="w.bin", offset="8", length=str(len(value.raw_data)))
    (folder / "m.onnx").write_bytes(carrier(moved).SerializeToString())
    assert digest(load(folder / "m.onnx")) == digest(load(carrier(value)))


@pytest.mark.parametrize("name", [n for n in CARRIERS if n not in NOT_RUN])
def test_a_model_with_external_data_computes_the_same(folder: Path, name: str) -> None:
    value, carrier = CARRIERS[name]
    (folder / "w.bin").write_bytes(value.raw_data)
    (folder / "m.onnx").write_bytes(carrier(external(value, location="w.bin")).SerializeToString())
    expected = Session(load(carrier(value)))
    feeds = {n: np.ones(shape, np.float32) for n, (shape, _) in expected.inputs.items()}
    actual = Session(canonicalize(load(folder / "m.onnx")))
    np.testing.assert_array_equal(actual.run(feeds)["y"], expected.run(feeds)["y"])


@pytest.mark.parametrize("name", CARRIERS)
def test_a_model_without_a_path_has_no_external_data(folder: Path, name: str) -> None:
    value, carrier = CARRIERS[name]
    with pytest.raises(ModelError, match="not read from a file") as caught:
        load(carrier(external(value, location="w.bin")))
    assert caught.value.code == "external-data"


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", CARRIERS)
def test_a_location_that_is_wrong_is_rejected(folder: Path, name: str, trick: str) -> None:
    place, entries, code = TRICKS[trick]
    value, carrier = CARRIERS[name]
    place(folder)
    (folder / "m.onnx").write_bytes(carrier(external(value, **entries)).SerializeToString())
    with pytest.raises(ModelError) as caught:
        load(folder / "m.onnx")
    assert caught.value.code == code
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize(
    ("kind", "dims"),
    [
        (TensorProto.STRING, [0]),
        (TensorProto.UNDEFINED, [1]),
        (99, [1]),
        (TensorProto.FLOAT, [-1]),
        (TensorProto.FLOAT, [2**62] * 300),
    ],
)
def test_a_type_or_shape_that_is_wrong_is_rejected(
    folder: Path, name: str, kind: int, dims: list[int]
) -> None:
    value, carrier = CARRIERS[name]
    (folder / "w.bin").touch()
    wrong = external(value, location="w.bin")
    wrong.data_type = kind
    wrong.dims[:] = dims
    (folder / "m.onnx").write_bytes(carrier(wrong).SerializeToString())
    with pytest.raises(ModelError) as caught:
        load(folder / "m.onnx")
    assert caught.value.code in ("model-invalid", "external-data")
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize("place", [place_pipe, place_folder, place_socket])
def test_a_model_that_is_no_regular_file_is_rejected(
    folder: Path, place: Callable[[Path], None]
) -> None:
    place(folder)
    with pytest.raises(ModelError, match="not a regular file") as caught:
        load(folder / "w.bin")
    assert caught.value.code == "model-unreadable"
