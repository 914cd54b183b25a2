"""Calibration data: what comes out of each source, and that what does not fit is refused in one sentence."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.calibrate import DATA_SOURCES
from onnxprune.calibrate.data import Data, Preprocess, flips, open_data, split, synthetic
from onnxprune.calibrate.inputs import read_inputs
from onnxprune.errors import DataError, MissingExtraError, OnnxpruneError, UsageError

IMAGE = {"x": (["N", 3, 8, 8], "tensor(float)")}
TOKENS = {"ids": (["batch", "seq"], "tensor(int64)"), "mask": (["batch", "seq"], "tensor(int64)")}


def numbered(count: int, shape: tuple[int, ...] = (3, 8, 8)) -> np.ndarray:
    """Sample i holds the number i everywhere."""
    return np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)) * np.ones(shape, np.float32)


def values(data: Data, name: str = "x", batch_size: int = 4) -> np.ndarray:
    """All samples of one input."""
    return np.concatenate([b[name] for b in data.batches(batch_size)])


def first_numbers(data: Data) -> list[int]:
    """The numbers that `numbered` wrote, in the order of the samples."""
    x = values(data)
    return x.reshape(len(x), -1)[:, 0].astype(int).tolist()


def save_npz(folder: Path, compressed: bool = False, name: str = "calib.npz", **arrays: np.ndarray) -> Path:
    path = folder / name
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@contextlib.contextmanager
def refuse(code: str, *words: str, kind: type[OnnxpruneError] = DataError) -> Iterator[None]:
    """The error is ours, has that code, and is one sentence with these words."""
    with pytest.raises(kind) as info:
        yield
    assert info.value.code == code, str(info.value)
    assert "\n" not in str(info.value)
    for word in words:
        assert word in str(info.value)


# ------------------------------------------------------------------ choice, batches, repetition
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
@given(count=st.integers(1, 23), batch=st.integers(1, 9), size=st.integers(1, 30), fixed=st.booleans())
def test_batches_have_the_size_the_model_takes(tmp_path_factory, count, batch, size, fixed):
    path = save_npz(tmp_path_factory.mktemp("npz"), x=numbered(count))
    inputs = {"x": ([batch if fixed else "N", 3, 8, 8], "tensor(float)")}
    if fixed and count < batch:
        with refuse("data-samples", str(count), str(batch)):
            open_data(path, inputs)
        return
    data = open_data(path, inputs)
    sizes = [len(b["x"]) for b in data.batches(size)]
    if fixed:
        assert set(sizes) == {batch} and data.samples == count // batch * batch
    else:
        assert set(sizes[:-1]) <= {size} and sizes[-1] == (count % size or size) and data.samples == count
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
    with refuse("data-shape", "batches of 5"):
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
    with refuse("samples", "0", kind=UsageError):
        open_data(path, IMAGE, samples=0)
    with refuse("batch-size", "0", kind=UsageError):
        next(open_data(path, IMAGE).batches(0))


# ------------------------------------------------------------------ arrays
def test_ranks_an_array_may_have(tmp_path):
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
        with refuse("data-dtype", "calib.npz", "'x'", *words):
            converted(array, kind)
    with refuse("data-not-finite", "range of float16"):
        converted(np.full((3, 2), 1e6), "tensor(float16)")
    with refuse("data-type", "tensor(string)"):
        converted(np.ones((3, 2)), "tensor(string)")


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    bad = numbered(9)
    bad[7, 1, 2, 3] = np.nan
    for arrays, inputs, code, words in (
        ({"x": numbered(4, (3, 8, 9))}, IMAGE, "data-shape", ("3x8x9", "3x8x8")),
        ({"x": numbered(4, (8,))}, IMAGE, "data-shape", ("4x8", "Nx3x8x8")),
        ({"x": bad}, IMAGE, "data-not-finite", ("sample 7", "1 of 192")),
        ({"y": numbered(4)}, IMAGE, "data-names", ("'x'", "'y'")),
        ({"x": numbered(4), "extra": numbered(4)}, IMAGE, "data-names", ("'extra'",)),
        ({"ids": np.ones((4, 5), int), "maks": np.ones((4, 5), int)}, TOKENS, "data-names", ("'mask'",)),
        ({"ids": np.ones((4, 5), int), "mask": np.ones((4, 6), int)}, TOKENS, "data-shape", ("'seq'", "5", "6")),
        ({"ids": np.ones((4, 5), int), "mask": np.ones((3, 5), int)}, TOKENS, "data-shape", ("'ids' 4", "'mask' 3")),
        ({"x": numbered(4)[:0]}, IMAGE, "data-empty", ("no samples",)),
        ({"x": np.array([{}, {}])}, IMAGE, "data-unreadable", ("objects",)),
    ):
        with refuse(code, "calib.npz", *words):
            open_data(save_npz(tmp_path, **arrays), inputs)


@pytest.mark.parametrize("compressed", [False, True])
def test_broken_array_files_are_refused(tmp_path, compressed):
    rng = np.random.default_rng(0)
    whole = save_npz(tmp_path, compressed, x=rng.standard_normal((4, 3, 8, 8)).astype(np.float32)).read_bytes()
    path = tmp_path / "broken.npz"
    middle = bytearray(whole)
    middle[600:900] = b"\xff" * 300
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-30], bytes(middle)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="broken.npz"):
            open_data(path, IMAGE)
    np.save(tmp_path / "cut.npy", numbered(4))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    with refuse("data-unreadable", "cut.npy", "truncated"):
        open_data(tmp_path / "cut.npy", IMAGE)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_mutated_array_files_never_raise_anything_else(tmp_path_factory, draw):
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
    recurrent = {"x": (["seq", "batch", 4], "tensor(float)"), "h": ([1, "batch", 6], "tensor(float)")}
    data = open_data(save_npz(tmp_path, x=np.ones((5, 7, 2, 4)), h=np.ones((5, 1, 2, 6))), recurrent)
    assert data.samples == 5
    assert [{n: a.shape for n, a in b.items()} for b in data.batches(16)] == [{"x": (7, 2, 4), "h": (1, 2, 6)}] * 5
    assert [b["h"].shape for b in synthetic(recurrent, samples=3).batches(16)] == [(1, 32, 6)] * 3


def test_scalars_and_thresholds_are_shared_by_a_batch(tmp_path):
    inputs = {"x": (["N", 3], "tensor(float)"), "scale": ([], "tensor(float)"), "limit": ([1], "tensor(int64)")}
    path = save_npz(tmp_path, x=numbered(6, (3,)), scale=np.float32(2), limit=np.array([4]))
    (batch,) = open_data(path, inputs).batches(8)
    assert batch["x"].shape == (6, 3) and batch["scale"].shape == () and batch["limit"].tolist() == [4]
    path = save_npz(tmp_path, x=numbered(6, (3,)), scale=np.arange(6) // 3 * 1.0, limit=np.array([4]))
    for batch in open_data(path, inputs).batches(8):
        assert set(batch["x"][:, 0] // 3) == {float(batch["scale"])}
    assert [len(b["x"]) for b in synthetic(inputs, samples=10).batches(8)] == [8, 2]


# ------------------------------------------------------------------ images
@pytest.fixture
def photos(tmp_path) -> Path:
    """Six 20x16 colour images in two subfolders; image i has red = 10 i, and a ramp in green."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    for i in range(6):
        pixels = np.zeros((20, 16, 3), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = 10 * i, np.arange(16) * 16, 255
        place = folder / f"class{i % 2}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(place)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image either")
    return folder


def test_images_become_what_the_formula_says(photos):
    full = {"x": (["N", 3, 20, 16], "tensor(float)")}
    p = Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), post=3.0, order="bgr")
    x = values(open_data(photos, full, preprocess=p))
    assert x.shape == (6, 3, 20, 16) and x.dtype == np.float32
    ramp = np.arange(16) * 16
    np.testing.assert_allclose(x[:, 0], np.full((6, 20, 16), (255 * 0.5 - 1) / 2 * 3), rtol=1e-6)
    np.testing.assert_allclose(x[:, 1], np.broadcast_to((ramp * 0.5 - 2) / 4 * 3, (6, 20, 16)), rtol=1e-6)
    assert sorted(np.round((x[:, 2, 0, 0] / 3 * 8 + 3) * 2).astype(int)) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("shape", "p", "expected"),
    [
        (["N", 3, 8, 8], Preprocess(), (3, 8, 8)),
        (["N", 8, 6, 3], Preprocess(), (8, 6, 3)),
        (["N", 3, "H", "W"], Preprocess(), (3, 20, 16)),
        (["N", None, None, None], Preprocess(layout="nhwc"), (20, 16, 3)),
        (["N", 3, 8, 8], Preprocess(resize=10), (3, 8, 8)),
        (["N", 3, "H", "W"], Preprocess(resize=8), (3, 10, 8)),
        (["N", 3, "H", "W"], Preprocess(resize=(9, 7)), (3, 9, 7)),
        (["N", 3, "H", "W"], Preprocess(crop=(12, 10)), (3, 12, 10)),
        (["N", 3, 6, 6], Preprocess(resize=(12, 10), crop=6), (3, 6, 6)),
        (["N", 1, 8, 8], Preprocess(), (1, 8, 8)),
        (["N", 4, 8, 8], Preprocess(), (4, 8, 8)),
    ],
)
def test_geometry_and_layout(photos, shape, p, expected):
    assert values(open_data(photos, {"x": (shape, "tensor(float)")}, preprocess=p)).shape == (6, *expected)


def test_one_number_resizes_the_shorter_side_and_crops_the_centre(photos):
    """20x16 becomes 16x13; of that rows 4..12 and columns 2..10, as torchvision's Resize(13) and CenterCrop(8) do."""
    image = pytest.importorskip("PIL.Image")
    data = open_data(photos, IMAGE, preprocess=Preprocess(resize=13))
    for index, x in zip(data.chosen, values(data), strict=True):
        with image.open(data.source.files[index]) as picture:
            reference = np.asarray(picture.resize((13, 16), image.Resampling.BILINEAR))[4:12, 2:10]
        np.testing.assert_array_equal(np.round(x * 255).astype(np.uint8), reference.transpose(2, 0, 1))


def test_uint8_models_take_pixels(photos):
    inputs = {"x": (["N", 20, 16, 3], "tensor(uint8)")}
    x = values(open_data(photos, inputs, preprocess=Preprocess(order="bgr")))
    assert x.dtype == np.uint8 and (x[..., 0] == 255).all()
    with refuse("preprocess-uint8", "uint8", kind=UsageError):
        open_data(photos, inputs, preprocess=Preprocess(mean=3.0))


def test_uint8_arrays_of_images_are_preprocessed(tmp_path, photos):
    p = Preprocess(mean=0.5, std=0.25, order="bgr")
    files = sorted(photos.rglob("[0-9].png"))
    image = pytest.importorskip("PIL.Image")
    pixels = np.stack([np.asarray(image.open(f)) for f in files])
    by_file = open_data(photos, IMAGE, preprocess=p)
    for array in (pixels, pixels.transpose(0, 3, 1, 2)):
        for name in ("x", "images"):
            by_array = open_data(save_npz(tmp_path, **{name: array}), IMAGE, preprocess=p)
            np.testing.assert_array_equal(values(by_array), values(by_file))
    grey = {"x": ([None, 1, 20, 16], "tensor(float)")}
    np.testing.assert_allclose(values(open_data(save_npz(tmp_path, x=pixels[..., 0]), grey)).max(), 50 / 255, rtol=1e-6)


def test_images_equal_the_zoos_own_protocol(zoo):
    """Bit for bit what eval.py of the trained models feeds, with no resize."""
    images = np.load(zoo / "data" / "cifar10_field_1000.npz")["images"]
    mean, std, scale = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.00392156862745098
    data = open_data(
        zoo / "data" / "cifar10_field_1000.npz",
        {"input": (["N", 3, 32, 32], "tensor(float)")},
        samples=64,
        preprocess=Preprocess(mean=tuple(mean), std=tuple(std)),
    )
    x = images[list(data.chosen)].astype(np.float32)
    x = (x * np.float32(scale) - np.array(mean, np.float32)) / np.array(std, np.float32)
    np.testing.assert_array_equal(values(data, "input"), x.transpose(0, 3, 1, 2))


def test_images_that_do_not_fit_are_refused(photos, tmp_path):
    with refuse("data-shape", "3x10", "8x8"):
        open_data(photos, IMAGE, preprocess=Preprocess(resize=(3, 10)))
    with refuse("data-shape", "20x16", "30x30"):
        open_data(photos, {"x": (["N", 3, 30, 30], "tensor(float)")}, preprocess=Preprocess(crop=30))
    with refuse("data-shape", "'x'", "16"):
        open_data(photos, {"x": (["N", 16, 8, 8], "tensor(float)")})
    with refuse("data-names", "'ids'", "'mask'"):
        open_data(photos, TOKENS)
    with refuse("preprocess-number", "2 numbers", "3 channels", kind=UsageError):
        open_data(photos, IMAGE, preprocess=Preprocess(mean=(1.0, 2.0)))
    whole = (photos / "class0" / "0.png").read_bytes()
    for content in (b"", b"GIF89a", whole[: len(whole) // 2]):
        (photos / "class0" / "2.png").write_bytes(content)
        with refuse("data-image", "2.png"):
            open_data(photos, IMAGE)
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((20, 16), np.uint16)).save(photos / "class0" / "2.png")
    with refuse("data-image", "2.png", "8 bits"):
        open_data(photos, IMAGE)


def test_without_pillow_the_extra_is_named(photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'pip install "onnxprune\[images\]"'):
        open_data(photos, IMAGE)


@pytest.mark.parametrize(
    ("settings_", "code"),
    [
        ({"order": "gbr"}, "unknown-order"),
        ({"layout": "nhcw"}, "unknown-layout"),
        ({"interp": "linear"}, "unknown-interp"),
        ({"std": 0.0}, "preprocess-number"),
        ({"std": (1.0, 0.0, 1.0)}, "preprocess-number"),
        ({"mean": float("nan")}, "preprocess-number"),
        ({"mean": "a"}, "preprocess-number"),
        ({"scale": (1.0, 2.0)}, "preprocess-number"),
        ({"resize": 0}, "preprocess-size"),
        ({"resize": (3, 4, 5)}, "preprocess-size"),
        ({"crop": 2.5}, "preprocess-size"),
    ],
)
def test_preprocess_refuses_nonsense(settings_, code):
    with refuse(code, kind=UsageError):
        Preprocess(**settings_)


def test_preprocess_is_the_same_however_it_is_spelled():
    assert Preprocess(mean=1, std=[2, 3, 4], resize=[5, 6]) == Preprocess(mean=(1.0,), std=(2.0, 3.0, 4.0), resize=(5, 6))
    assert hash(Preprocess(std=[1, 2, 3])) == hash(Preprocess(std=(1.0, 2.0, 3.0)))


# ------------------------------------------------------------------ loader
def loader(folder: Path, body: str, setup: str = "") -> str:
    """loader.py with a function `feeds` of that body."""
    (folder / "loader.py").write_text(
        "import numpy as np\nimport helper_of_loader\n" + setup + "\ndef feeds():\n" + "\n".join(f"    {line}" for line in body.splitlines())
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
    assert data.fingerprint() == open_data(spec, IMAGE, samples=7).fingerprint() != open_data(spec, IMAGE, samples=6).fingerprint()
    one, other = split(data, 3, 4)
    assert sorted(first_numbers(one) + first_numbers(other)) == list(range(7))


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return iter(())", "data-empty", ("yields nothing",)),
        ("return None", "data-loader", ("TypeError",)),
        ("yield np.zeros((1, 3, 8, 8))", "data-loader", ("item 0", "ndarray", "dict")),
        ("return {'x': np.zeros((1, 3, 8, 8))}", "data-loader", ("str", "dict")),
        ("yield {'x': np.zeros((1, 3, 8, 8))}\nraise ValueError('no disk\\nsecond line')", "data-loader", ("item 1", "ValueError: no disk")),
        ("raise SystemExit(3)\nyield", "data-loader", ("SystemExit",)),
        ("yield {'y': np.zeros((1, 3, 8, 8))}", "data-names", ("'x'", "'y'")),
        ("yield {'x': [[1, 2], [3]]}", "data-loader", ("'x'",)),
        ("yield {'x': np.zeros((1, 3, 8, 9))}", "data-shape", ("3x8x9", "3x8x8")),
        ("yield {'x': np.full((1, 3, 8, 8), np.inf)}", "data-not-finite", ("192 of 192",)),
        ("yield {'x': np.zeros((1, 3, 8, 8), int)}", "data-dtype", ("int64", "float32")),
    ],
)
def test_loaders_that_do_not_fit_are_refused(tmp_path, body, code, words):
    with refuse(code, "loader.py:feeds", *words):
        open_data(loader(tmp_path, body), IMAGE)


def test_loaders_that_change_are_refused(tmp_path):
    spec = loader(tmp_path, "yield {'x': np.random.rand(1, 3, 8, 8)}")
    with refuse("data-loader", "seed"):
        list(open_data(spec, IMAGE).batches(1))
    spec = loader(tmp_path, "while calls.pop():\n    yield {'x': np.zeros((1, 3, 8, 8))}", "calls = [0, 1, 0, 1, 1]")
    with refuse("data-loader", "yielded 1 samples, 2 before"):
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
def test_loader_files_that_do_not_load_are_refused(tmp_path, setup, old, new, code, word):
    with refuse(code, word):
        open_data(loader(tmp_path, "yield", setup).replace(old, new), IMAGE)


# ------------------------------------------------------------------ synthetic
def test_synthetic_inputs_fit_types_and_shapes():
    inputs = {
        "image": (["batch", 3, "h", "w"], "tensor(float)"),
        "half": (["batch", 5], "tensor(float16)"),
        "ids": (["batch", "seq"], "tensor(int64)"),
        "mask": (["batch", "past + seq"], "tensor(bool)"),
        "past": (["batch", 2, "past", 64], "tensor(double)"),
    }
    data = synthetic(inputs, samples=5)
    batches = list(data.batches(4))
    assert [len(b["ids"]) for b in batches] == [4, 1] and data.samples == 5
    assert {n: (a.shape[1:], a.dtype.name) for n, a in batches[0].items()} == {
        "image": ((3, 128, 128), "float32"),
        "half": ((5,), "float16"),
        "ids": ((32,), "int64"),
        "mask": ((64,), "bool"),
        "past": ((2, 32, 64), "float64"),
    }
    image = batches[0]["image"]
    assert abs(image.mean()) < 0.02 and abs(image.std() - 1) < 0.02  # 196,608 normal numbers: 5 sigma is 0.011
    assert set(np.unique(batches[0]["ids"])) == {0, 1}
    assert len(np.unique(image[:, 0, 0, 0])) == 4
    assert "no data" in data.warning and open_data(None, inputs).warning == data.warning == open_data("synthetic", inputs).warning
    again, other = synthetic(inputs, samples=5), synthetic(inputs, samples=5, seed=1)
    np.testing.assert_array_equal(values(again, "image"), values(data, "image"))
    assert again.fingerprint() == data.fingerprint() != other.fingerprint()
    assert values(synthetic({"x": (["N", 3, 9, 9], "tensor(uint8)")})).max() == 255


def test_shape_overrides():
    inputs = {"x": (["N", 3, "h", None], "tensor(float)"), "y": (["N", "h"], "tensor(float)")}
    data = synthetic(inputs, samples=6, shapes={"x": (2, 3, 7, 9)})
    assert [(b["x"].shape, b["y"].shape) for b in data.batches(4)] == [((2, 3, 7, 9), (2, 7))] * 3
    data = synthetic(inputs, samples=6, shapes={"x": (-1, 3, 7, 9)})
    assert [len(b["x"]) for b in data.batches(4)] == [4, 2]
    for shapes, code, words in (
        ({"x": (1, 4, 7, 9)}, "shape-override", ("1x4x7x9", "Nx3xhx?")),
        ({"x": (1, 3, 7)}, "shape-override", ("rank 3", "4")),
        ({"x": (1, 3, 0, 9)}, "shape-override", ("1x3x0x9",)),
        ({"x": (1, 3, 7, 9), "y": (1, 8)}, "shape-override", ("'h'", "7")),
        ({"z": (1,)}, "unknown-input", ("'z'",)),
    ):
        with refuse(code, *words, kind=UsageError):
            synthetic(inputs, shapes=shapes)


def test_fixed_batch_gives_at_least_one_batch():
    (batch,) = synthetic({"x": ([8, 3], "tensor(float)")}, samples=1).batches(1)
    assert batch["x"].shape == (8, 3)


# ------------------------------------------------------------------ split, flips
@settings(deadline=None, max_examples=30)
@given(first=st.integers(1, 12), second=st.integers(1, 12), batch=st.sampled_from([None, 1, 3]), compressed=st.booleans())
def test_split_is_disjoint_and_seeded(tmp_path_factory, first, second, batch, compressed):
    path = save_npz(tmp_path_factory.mktemp("npz"), compressed, x=numbered(18))
    data = open_data(path, {"x": ([batch, 3, 8, 8], "tensor(float)")})
    if first + second > 18 or min(first, second) < (batch or 1):
        with pytest.raises(DataError):
            split(data, first, second)
        return
    one, other = split(data, first, second)
    assert (one.samples, other.samples) == (first - first % (batch or 1), second - second % (batch or 1))
    assert not set(first_numbers(one)) & set(first_numbers(other))
    assert one.fingerprint() == split(data, first, second)[0].fingerprint() != other.fingerprint()


def test_flips_mirror_images_only(tmp_path):
    rng = np.random.default_rng(0)
    x, v = rng.random((5, 3, 5, 6), np.float32), rng.random((5, 7), np.float32)
    inputs = {"x": ([None, 3, 5, 6], "tensor(float)"), "v": ([None, 7], "tensor(float)")}
    data = open_data(save_npz(tmp_path, x=x, v=v), inputs)
    both = flips(data)
    assert both.samples == 10 and both.fingerprint() != data.fingerprint() and "mirrored" in both.describe()
    np.testing.assert_array_equal(values(both, batch_size=3)[0::2], x[list(data.chosen)])
    np.testing.assert_array_equal(values(both, batch_size=3)[1::2], x[list(data.chosen)][..., ::-1])
    np.testing.assert_array_equal(values(both, "v")[1::2], v[list(data.chosen)])
    last = flips(open_data(save_npz(tmp_path, x=x.transpose(0, 2, 3, 1)), {"x": ([None, 5, 6, 3], "tensor(float)")}))
    np.testing.assert_array_equal(values(last)[1::2], values(last)[0::2][:, :, ::-1])
    with refuse("data-split", "mirror"):
        split(both, 2, 2)
    with refuse("data-flip", "'ids'"):
        flips(synthetic(TOKENS))


# ------------------------------------------------------------------ which source, plug-ins
def test_what_a_specification_names(tmp_path, photos):
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
        with refuse(code, word):
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


def test_every_built_in_source_is_there():
    for name in ("images", "arrays", "loader", "synthetic"):
        assert callable(DATA_SOURCES.get(name))


def test_a_real_model_is_as_accurate_as_published_on_its_images(zoo):
    """resnet20 has 0.9175 on all 4,000 test images; wrong scaling, order or layout costs tens of points."""
    from onnxprune.model.io import load
    from onnxprune.model.runtime import Session

    path = zoo / "data" / "cifar10_test_4000.npz"
    session = Session(load(zoo / "cifar10_resnet20.onnx"))
    data = open_data(path, session.inputs, samples=400, preprocess=Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    outputs = np.concatenate([next(iter(session.run(feeds).values())) for feeds in data.batches(50)])
    accuracy = np.mean(outputs.argmax(1) == np.load(path)["labels"][list(data.chosen)])
    assert abs(accuracy - 0.9175) < 3 * np.sqrt(0.9175 * 0.0825 / 400)  # three standard errors of 400 draws


def test_data_of_real_models_run(zoo):
    """Every trained model runs on synthetic inputs; the dynamic size of the super-resolution one is given to keep it short."""
    from onnxprune.model.io import load
    from onnxprune.model.runtime import Session

    for name in ("cifar10_vit_pgd_2_3_16", "vww_mobilenetv1_0.25", "coco_yolofastestv2", "sr_imdn_x2"):
        session = Session(load(zoo / f"{name}.onnx"))
        shapes = {"input": (1, 3, 16, 16)} if name == "sr_imdn_x2" else None
        (feeds,) = synthetic(session.inputs, samples=1, shapes=shapes).batches(8)
        assert all(np.isfinite(v).all() for v in session.run(feeds).values())


def test_inputs_keep_their_order_and_types():
    inputs = read_inputs({"b": ([1], "tensor(bool)"), "a": (["N", 2], "tensor(int8)")})
    assert [(i.name, i.dtype.name, i.shared) for i in inputs.items.values()] == [("b", "bool", True), ("a", "int8", False)]
