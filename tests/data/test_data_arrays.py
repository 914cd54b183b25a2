"""Arrays as calibration data: values and rejected inputs."""

from __future__ import annotations

import numpy as np
import pytest
from data_cases import IMAGE, TOKENS, first_numbers, numbered, rejects, save_npz, values
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data.dataset import open_data, synthetic
from onnxprune.errors import DataError


def test_accepted_array_ranks(tmp_path):
    fixed = {"x": ([2, 3, 8, 8], "tensor(float)")}
    for x, inputs, count in (
        (numbered(6), IMAGE, 6),
        (numbered(1)[0], IMAGE, 1),
        (numbered(6).reshape(3, 2, 3, 8, 8), fixed, 6),
        (numbered(6).reshape(3, 2, 3, 8, 8), IMAGE, 6),
        (np.asfortranarray(numbered(6)), IMAGE, 6),
    ):
        for compressed in (False, not np.isfortran(x)):
            data = open_data(save_npz(tmp_path, compressed, x=x), inputs)
            assert sorted(first_numbers(data)) == list(range(count))


def test_npy_and_unnamed_arrays_feed_the_one_input(tmp_path):
    np.save(tmp_path / "a.npy", numbered(5))
    np.savez(tmp_path / "b.npz", numbered(5))
    np.savez(tmp_path / "c.npz", x=numbered(5), labels=np.arange(5))
    for name in ("a.npy", "b.npz", "c.npz"):
        assert sorted(first_numbers(open_data(tmp_path / name, IMAGE))) == [0, 1, 2, 3, 4]


def test_folders_of_arrays(tmp_path):
    one, named, many = (tmp_path / n for n in ("one", "named", "many"))
    for folder in (one, named, many):
        folder.mkdir()
    for i in range(4):
        np.save(one / f"{i}.npy", numbered(8)[2 * i : 2 * i + 2])
        np.savez(many / f"{i}.npz", ids=np.full((3, 5), i), mask=np.ones((3, 5), np.int64))
    np.save(named / "ids.npy", np.arange(10).reshape(2, 5))
    np.save(named / "mask.npy", np.ones((2, 5), np.int32))
    assert sorted(first_numbers(open_data(one, IMAGE))) == list(range(8))
    assert open_data(many, TOKENS).samples == 12
    assert sorted(values(open_data(named, TOKENS), "ids").ravel()) == list(range(10))


def test_conversion_of_types(tmp_path):
    def converted(array: np.ndarray, kind: str) -> np.ndarray:
        return values(open_data(save_npz(tmp_path, x=array), {"x": (["N", 2], kind)}))

    assert converted(np.ones((3, 2), np.float64), "tensor(float)").dtype == np.float32
    assert converted(np.ones((3, 2), ">f4"), "tensor(float16)").dtype == np.float16
    assert converted(np.full((3, 2), 255), "tensor(uint8)").dtype == np.uint8
    assert converted(np.ones((3, 2), bool), "tensor(bool)").dtype == bool
    for array, kind, words in (
        (np.full((3, 2), 256), "tensor(uint8)", ("256", "0..255")),
        (np.ones((3, 2), np.int64), "tensor(float)", ("int64", "float32")),
        (np.ones((3, 2), np.uint8), "tensor(float)", ("uint8", "float32")),
        (np.ones((3, 2), np.float32), "tensor(int64)", ("float32", "int64")),
        (np.ones((3, 2), np.uint8), "tensor(bool)", ("uint8", "bool")),
        (np.ones((3, 2), complex), "tensor(float)", ("complex128",)),
        (np.full((3, 2), "a"), "tensor(float)", ("<U1",)),
    ):
        with rejects("data-dtype", "calib.npz", "'x'", *words):
            converted(array, kind)
    with rejects("data-not-finite", "range of float16"):
        converted(np.full((3, 2), 1e6), "tensor(float16)")
    with rejects("data-type", "tensor(string)"):
        converted(np.ones((3, 2)), "tensor(string)")


def test_arrays_that_do_not_fit_are_rejected(tmp_path):
    bad = numbered(9)
    bad[7, 1, 2, 3] = np.nan
    for arrays, inputs, code, words in (
        ({"x": numbered(4, (3, 8, 9))}, IMAGE, "data-shape", ("3x8x9", "3x8x8")),
        ({"x": numbered(4, (8,))}, IMAGE, "data-shape", ("4x8", "Nx3x8x8")),
        ({"x": bad}, IMAGE, "data-not-finite", ("sample 7", "1 of 192")),
        ({"y": numbered(4)}, IMAGE, "data-names", ("'x'", "'y'")),
        ({"x": numbered(4), "extra": numbered(4)}, IMAGE, "data-names", ("'extra'",)),
        (
            {"ids": np.ones((4, 5), int), "maks": np.ones((4, 5), int)},
            TOKENS,
            "data-names",
            ("'mask'",),
        ),
        (
            {"ids": np.ones((4, 5), int), "mask": np.ones((4, 6), int)},
            TOKENS,
            "data-shape",
            ("'seq'", "5", "6"),
        ),
        (
            {"ids": np.ones((4, 5), int), "mask": np.ones((3, 5), int)},
            TOKENS,
            "data-shape",
            ("'ids' 4", "'mask' 3"),
        ),
        ({"x": numbered(4)[:0]}, IMAGE, "data-empty", ("no samples",)),
        ({"x": np.array([{}, {}])}, IMAGE, "data-unreadable", ("objects",)),
    ):
        with rejects(code, "calib.npz", *words):
            open_data(save_npz(tmp_path, **arrays), inputs)


@pytest.mark.parametrize("compressed", [False, True])
def test_broken_array_files_are_rejected(tmp_path, compressed):
    rng = np.random.default_rng(0)
    whole = save_npz(
        tmp_path, compressed, x=rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    ).read_bytes()
    path = tmp_path / "broken.npz"
    middle = bytearray(whole)
    middle[600:900] = b"\xff" * 300
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-30], bytes(middle)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="broken.npz"):
            open_data(path, IMAGE)
    np.save(tmp_path / "cut.npy", numbered(4))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    with rejects("data-unreadable", "cut.npy", "truncated"):
        open_data(tmp_path / "cut.npy", IMAGE)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_mutated_array_files_raise_only_data_errors(tmp_path_factory, draw):
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(save_npz(folder, draw.draw(st.booleans()), x=numbered(2)).read_bytes())
    for _ in range(draw.draw(st.integers(1, 4))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    (folder / "calib.npz").write_bytes(content)
    try:
        for batch in open_data(folder / "calib.npz", IMAGE).batches(1):
            assert batch["x"].shape == (1, 3, 8, 8) and np.isfinite(batch["x"]).all()
    except DataError as problem:
        assert "\n" not in str(problem)


def test_models_without_a_common_batch_axis_get_whole_feeds(tmp_path):
    recurrent = {"x": ([7, 2, 4], "tensor(float)"), "h": ([1, 2, 6], "tensor(float)")}
    data = open_data(
        save_npz(tmp_path, x=np.ones((5, 7, 2, 4)), h=np.ones((5, 1, 2, 6))), recurrent
    )
    assert data.samples == 5
    assert [{n: a.shape for n, a in b.items()} for b in data.batches(16)] == [
        {"x": (7, 2, 4), "h": (1, 2, 6)}
    ] * 5
    assert [b["h"].shape for b in synthetic(recurrent, samples=3).batches(16)] == [(1, 2, 6)] * 3


def test_scalars_and_thresholds_are_shared_by_a_batch(tmp_path):
    inputs = {
        "x": (["N", 3], "tensor(float)"),
        "scale": ([], "tensor(float)"),
        "limit": ([1], "tensor(int64)"),
    }
    path = save_npz(tmp_path, x=numbered(6, (3,)), scale=np.float32(2), limit=np.array([4]))
    (batch,) = open_data(path, inputs).batches(8)
    assert (
        batch["x"].shape == (6, 3) and batch["scale"].shape == () and batch["limit"].tolist() == [4]
    )
    path = save_npz(
        tmp_path, x=numbered(6, (3,)), scale=np.arange(6) // 3 * 1.0, limit=np.array([4])
    )
    for batch in open_data(path, inputs).batches(8):
        assert set(batch["x"][:, 0] // 3) == {float(batch["scale"])}
    assert [len(b["x"]) for b in synthetic(inputs, samples=10).batches(8)] == [8, 2]
