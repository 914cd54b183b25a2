"""Calibration data: which samples, in which batches, from which source."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from data_cases import IMAGE, TOKENS, first_numbers, numbered, rejects, save_npz, values
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data import DATA_SOURCES
from onnxprune.data.dataset import Preprocess, flips, open_data, split, synthetic
from onnxprune.data.inputs import read_inputs
from onnxprune.errors import DataError, UsageError


@pytest.mark.parametrize("compressed", [False, True])
def test_samples_are_a_seeded_subset_of_all(tmp_path, compressed):
    path = save_npz(tmp_path, compressed, x=numbered(100))
    a, b, c = (open_data(path, IMAGE, samples=20, seed=s) for s in (0, 0, 1))
    chosen = first_numbers(a)
    assert a.samples == 20 and len(set(chosen)) == 20 and max(chosen) > 20
    assert chosen == first_numbers(b) == list(a.chosen) != first_numbers(c)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert "20 of 100" in a.describe() and "calib.npz" in a.describe()
    assert a.warning is None


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 23), batch=st.integers(1, 9), size=st.integers(1, 30), fixed=st.booleans()
)
def test_batches_have_the_size_the_model_takes(tmp_path_factory, count, batch, size, fixed):
    path = save_npz(tmp_path_factory.mktemp("npz"), x=numbered(count))
    inputs = {"x": ([batch if fixed else "N", 3, 8, 8], "tensor(float)")}
    if fixed and count < batch:
        with rejects("data-samples", str(count), str(batch)):
            open_data(path, inputs)
        return
    data = open_data(path, inputs)
    sizes = [len(b["x"]) for b in data.batches(size)]
    if fixed:
        assert set(sizes) == {batch} and data.samples == count // batch * batch
    else:
        assert (
            set(sizes[:-1]) <= {size}
            and sizes[-1] == (count % size or size)
            and data.samples == count
        )
    assert sum(sizes) == data.samples and len(set(first_numbers(data))) == data.samples


def test_two_passes_at_once_do_not_disturb_each_other(tmp_path):
    data = open_data(save_npz(tmp_path, True, x=numbered(12)), IMAGE)
    for one, other in zip(data.batches(5), data.batches(5), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        assert one["x"].flags.c_contiguous and one["x"].dtype == np.float32


def test_samples_of_different_size_are_not_stacked(tmp_path):
    for i, side in enumerate((8, 8, 9, 9, 9)):
        np.save(tmp_path / f"{i}.npy", np.full((3, side, side), i, np.float32))
    free = {"x": (["N", 3, "H", "W"], "tensor(float)")}
    data = open_data(tmp_path, free)
    batches = list(data.batches(8))
    assert sum(len(b["x"]) for b in batches) == 5 and {b["x"].shape[2] for b in batches} == {8, 9}
    with rejects("data-shape", "batches of 5"):
        list(open_data(tmp_path, {"x": ([5, 3, "H", "W"], "tensor(float)")}).batches(1))


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_samples(tmp_path, compressed):
    path = save_npz(tmp_path, compressed, x=np.zeros((512, 3, 64, 64), np.float32))
    inputs = {"x": (["N", 3, 64, 64], "tensor(float)")}
    tracemalloc.start()
    data = open_data(path, inputs, samples=512)
    for batch in data.batches(4):
        assert len(batch["x"]) == 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4 * 3 * 64 * 64 * 4  # some batches of 4, against 128 of them in the file


def test_batch_size_and_samples_must_be_positive(tmp_path):
    path = save_npz(tmp_path, x=numbered(3))
    with rejects("samples", "0", kind=UsageError):
        open_data(path, IMAGE, samples=0)
    with rejects("batch-size", "0", kind=UsageError):
        next(open_data(path, IMAGE).batches(0))


@settings(deadline=None, max_examples=30)
@given(
    first=st.integers(1, 12),
    second=st.integers(1, 12),
    batch=st.sampled_from([None, 1, 3]),
    compressed=st.booleans(),
)
def test_split_is_disjoint_and_seeded(tmp_path_factory, first, second, batch, compressed):
    path = save_npz(tmp_path_factory.mktemp("npz"), compressed, x=numbered(18))
    data = open_data(path, {"x": ([batch, 3, 8, 8], "tensor(float)")})
    if first + second > 18 or min(first, second) < (batch or 1):
        with pytest.raises(DataError):
            split(data, first, second)
        return
    one, other = split(data, first, second)
    assert (one.samples, other.samples) == (
        first - first % (batch or 1),
        second - second % (batch or 1),
    )
    assert not set(first_numbers(one)) & set(first_numbers(other))
    assert one.fingerprint() == split(data, first, second)[0].fingerprint() != other.fingerprint()


def test_flips_mirror_images_only(tmp_path):
    rng = np.random.default_rng(0)
    x, v = rng.random((5, 3, 5, 6), np.float32), rng.random((5, 7), np.float32)
    inputs = {"x": ([None, 3, 5, 6], "tensor(float)"), "v": ([None, 7], "tensor(float)")}
    data = open_data(save_npz(tmp_path, x=x, v=v), inputs)
    both = flips(data)
    assert (
        both.samples == 10
        and both.fingerprint() != data.fingerprint()
        and "mirrored" in both.describe()
    )
    np.testing.assert_array_equal(values(both, batch_size=3)[0::2], x[list(data.chosen)])
    np.testing.assert_array_equal(values(both, batch_size=3)[1::2], x[list(data.chosen)][..., ::-1])
    np.testing.assert_array_equal(values(both, "v")[1::2], v[list(data.chosen)])
    last = flips(
        open_data(
            save_npz(tmp_path, x=x.transpose(0, 2, 3, 1)), {"x": ([None, 5, 6, 3], "tensor(float)")}
        )
    )
    np.testing.assert_array_equal(values(last)[1::2], values(last)[0::2][:, :, ::-1])
    with rejects("data-split", "mirror"):
        split(both, 2, 2)
    with rejects("data-flip", "'ids'"):
        flips(synthetic(TOKENS))


def test_specifications_select_the_kind_of_source(tmp_path, photos):
    assert open_data(f"images:{photos}", IMAGE).samples == 6
    assert open_data(photos / "class0" / "0.png", IMAGE).samples == 1
    np.save(photos / "x.npy", numbered(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.csv").write_text("1,2")
    for spec, code, word in (
        (photos, "data-kind", "arrays:"),
        (tmp_path / "empty", "data-empty", "no images"),
        (tmp_path / "none", "data-missing", "none"),
        ("", "data-missing", "empty"),
        (f"arrays:{tmp_path / 'none.npz'}", "data-missing", "none.npz"),
        (f"images:{tmp_path / 'empty'}", "data-empty", "no images"),
        (tmp_path / "data.csv", "data-kind", "data.csv"),
    ):
        with rejects(code, word):
            open_data(spec, IMAGE)


def test_plug_ins_are_sources_like_the_built_in_ones(monkeypatch):
    class Ones:
        count, sequential, checked, warning = 9, False, False, "ones only"

        def read(self, indices):
            for i in indices:
                yield f"one {i}", {"x": np.ones((3, 8, 8))}

        def describe(self):
            return "ones"

        def digest(self, indices):
            return "1"

    class Entry:
        value = "somewhere:ones"

        def load(self):
            return lambda location, inputs, samples, seed: Ones()

    monkeypatch.setitem(DATA_SOURCES.__dict__, "plugins", {"ones": Entry()})
    data = open_data("ones:anything", IMAGE, samples=4)
    assert data.samples == 4 and data.warning == "ones only" and values(data).dtype == np.float32


def test_every_built_in_source_is_registered():
    for name in ("images", "arrays", "loader", "synthetic"):
        assert callable(DATA_SOURCES.get(name))


def test_a_real_model_is_as_accurate_as_published_on_its_images(zoo):
    """0.9175 on all 4,000 test images; wrong scaling, order or layout costs tens of points."""
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session

    path = zoo / "data" / "cifar10_test_4000.npz"
    session = Session(load(zoo / "cifar10_resnet20.onnx"))
    data = open_data(
        path,
        session.inputs,
        samples=400,
        preprocess=Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    outputs = np.concatenate(
        [next(iter(session.run(feeds).values())) for feeds in data.batches(50)]
    )
    accuracy = np.mean(outputs.argmax(1) == np.load(path)["labels"][list(data.chosen)])
    assert abs(accuracy - 0.9175) < 3 * np.sqrt(
        0.9175 * 0.0825 / 400
    )  # three standard errors of 400 draws


def test_data_of_real_models_run(zoo):
    """Every trained model runs on synthetic inputs; super-resolution at a small size."""
    from onnxprune.ir.io import load
    from onnxprune.ir.runtime import Session

    for name in (
        "cifar10_vit_pgd_2_3_16",
        "vww_mobilenetv1_0.25",
        "coco_yolofastestv2",
        "sr_imdn_x2",
    ):
        session = Session(load(zoo / f"{name}.onnx"))
        shapes = {"input": (1, 3, 16, 16)} if name == "sr_imdn_x2" else None
        (feeds,) = synthetic(session.inputs, samples=1, shapes=shapes).batches(8)
        assert all(np.isfinite(v).all() for v in session.run(feeds).values())


def test_inputs_keep_their_order_and_types():
    inputs = read_inputs({"b": ([1], "tensor(bool)"), "a": (["N", 2], "tensor(int8)")})
    assert [(i.name, i.dtype.name, i.shared) for i in inputs.items.values()] == [
        ("b", "bool", True),
        ("a", "int8", False),
    ]


def test_several_locations_and_patterns_are_joined(tmp_path, photos):
    for number in range(3):
        save_npz(tmp_path, name=f"part{number}.npz", x=numbered(4) + 10 * number)
    parts = open_data([tmp_path / "part0.npz", str(tmp_path / "part2.npz")], IMAGE)
    assert sorted(first_numbers(parts)) == [0, 1, 2, 3, 20, 21, 22, 23]
    assert parts.fingerprint() != open_data(tmp_path / "part0.npz", IMAGE).fingerprint()
    pattern = open_data(str(tmp_path / "part[01].np*"), IMAGE)
    assert sorted(first_numbers(pattern)) == [0, 1, 2, 3, 10, 11, 12, 13]
    # photos/class0/* matches the images alone
    both = open_data([str(photos / "class0" / "*"), tmp_path / "part0.npz"], IMAGE)
    assert both.samples == 7 and "2 other files" in both.describe()
    files = open_data(str(photos / "**" / "*.png"), IMAGE)
    assert files.fingerprint() == open_data(sorted(photos.glob("*/*.png")), IMAGE).fingerprint()
    with rejects("data-missing", "no file matches the pattern"):
        open_data(str(tmp_path / "none*.npz"), IMAGE)


def test_copies_in_two_locations_are_equal(tmp_path):
    first = save_npz(tmp_path, name="a.npz", x=numbered(4))
    second = save_npz(tmp_path, name="b.npz", x=numbered(4))
    data = open_data([first, second], IMAGE)
    assert len(set(data.digests())) == 4


def test_unreadable_images_of_several_locations_are_skipped(tmp_path, photos):
    (photos / "class0" / "2.png").write_bytes(b"")
    arrays = save_npz(tmp_path, x=numbered(4))
    data = open_data([arrays, photos], IMAGE)
    assert data.samples == 9 and "2.png" in data.skipped[0]
    (missing,) = set(range(10)) - set(data.chosen)
    assert data.source.find_unreadable([missing]).keys() == {missing}
