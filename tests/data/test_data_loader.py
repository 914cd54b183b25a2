"""Loader functions of the user as calibration data."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_cases import IMAGE, first_numbers, rejects

from onnxprune.data.dataset import open_data, split


def loader(folder: Path, body: str, setup: str = "") -> str:
    """loader.py with a function `feeds` of that body."""
    (folder / "loader.py").write_text(
        "import numpy as np\nimport helper_of_loader\n"
        + setup
        + "\ndef feeds():\n"
        + "\n".join(f"    {line}" for line in body.splitlines())
    )
    (folder / "helper_of_loader.py").write_text("")
    return f"{folder / 'loader.py'}:feeds"


def test_loader_yields_batches_or_samples(tmp_path):
    single = "yield {'x': np.zeros((3, 8, 8))}\n"
    batch = "yield {'x': np.arange(1, 4).reshape(3, 1, 1, 1) * np.ones((3, 3, 8, 8))}\n"
    endless = "for i in range(4, 10**9):\n    yield {'x': np.full((1, 3, 8, 8), float(i))}"
    spec = loader(tmp_path, single + batch + endless)
    data = open_data(spec, IMAGE, samples=7)
    assert first_numbers(data) == first_numbers(data) == list(range(7)) and data.samples == 7
    assert (
        data.fingerprint()
        == open_data(spec, IMAGE, samples=7).fingerprint()
        != open_data(spec, IMAGE, samples=6).fingerprint()
    )
    one, other = split(data, 3, 4)
    assert sorted(first_numbers(one) + first_numbers(other)) == list(range(7))


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return iter(())", "data-empty", ("yields nothing",)),
        ("return None", "data-loader", ("TypeError",)),
        ("yield np.zeros((1, 3, 8, 8))", "data-loader", ("item 0", "ndarray", "dict")),
        ("return {'x': np.zeros((1, 3, 8, 8))}", "data-loader", ("str", "dict")),
        (
            "yield {'x': np.zeros((1, 3, 8, 8))}\nraise ValueError('no disk\\nsecond line')",
            "data-loader",
            ("item 1", "ValueError: no disk"),
        ),
        ("raise SystemExit(3)\nyield", "data-loader", ("SystemExit",)),
        ("yield {'y': np.zeros((1, 3, 8, 8))}", "data-names", ("'x'", "'y'")),
        ("yield {'x': [[1, 2], [3]]}", "data-loader", ("'x'",)),
        ("yield {'x': np.zeros((1, 3, 8, 9))}", "data-shape", ("3x8x9", "3x8x8")),
        ("yield {'x': np.full((1, 3, 8, 8), np.inf)}", "data-not-finite", ("192 of 192",)),
        ("yield {'x': np.zeros((1, 3, 8, 8), int)}", "data-dtype", ("int64", "float32")),
    ],
)
def test_loaders_that_do_not_fit_are_rejected(tmp_path, body, code, words):
    with rejects(code, "loader.py:feeds", *words):
        open_data(loader(tmp_path, body), IMAGE)


def test_loaders_that_change_are_rejected(tmp_path):
    spec = loader(tmp_path, "yield {'x': np.random.rand(1, 3, 8, 8)}")
    with rejects("data-loader", "seed"):
        list(open_data(spec, IMAGE).batches(1))
    spec = loader(
        tmp_path,
        "while calls.pop():\n    yield {'x': np.zeros((1, 3, 8, 8))}",
        "calls = [0, 1, 0, 1, 1]",
    )
    with rejects("data-loader", "yielded 1 samples, 2 before"):
        list(open_data(spec, IMAGE).batches(1))


@pytest.mark.parametrize(
    ("setup", "old", "new", "code", "word"),
    [
        ("", "loader.py", "none.py", "data-missing", "none.py"),
        ("", ":feeds", ":fields", "data-loader", "'fields'"),
        ("", ":feeds", "", "data-loader", "loader.py:FUNCTION"),
        ("import nothing_of_that_name", "", "", "data-loader", "ModuleNotFoundError"),
        ("this is no python", "", "", "data-loader", "SyntaxError"),
    ],
)
def test_loader_files_that_do_not_load_are_rejected(tmp_path, setup, old, new, code, word):
    with rejects(code, word):
        open_data(loader(tmp_path, "yield", setup).replace(old, new), IMAGE)
