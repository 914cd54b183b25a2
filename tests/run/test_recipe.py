"""Recipes: equal values from flags, files and Python; errors with suggestions."""

from __future__ import annotations

import dataclasses

import pytest
from graph_text import net
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.analysis.walk import analyze
from onnxprune.errors import UsageError
from onnxprune.ir.io import load
from onnxprune.run.recipe import OPTIONS, Recipe
from onnxprune.run.recipe_file import read, to_toml
from onnxprune.run.resolve import resolve
from onnxprune.run.target import Target


@pytest.mark.parametrize(
    ("text", "limit", "relative"),
    [
        ("macs=50%", 0.5, True),
        ("params=2x", 0.5, True),
        ("macs=4x", 0.25, True),
        ("bytes=1.5MB", 1.5e6, False),
        ("bytes=2KiB", 2048, False),
        ("bytes=1B", 1, False),
        ("activation_bytes=500 B", 500, False),
        ("macs=20M", 20e6, False),
        ("macs=1e6", 1e6, False),
        ("latency.onnxruntime=1.5x", 1 / 1.5, True),
        ("latency.onnxruntime=3ms", 3, False),
        ("latency.openvino=500us", 0.5, False),
    ],
)
def test_target_is_parsed(text: str, limit: float, relative: bool) -> None:
    target = Target.parse(text)
    assert (target.limit, target.relative) == (pytest.approx(limit), relative)
    assert Target.parse(str(target)) == target
    assert target.ceiling(1000.0) == pytest.approx(1000 * limit if relative else limit)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("macs", "COST=AMOUNT"),
        ("mac=50%", "did you mean 'macs'"),
        ("macs=150%", "at most 100%"),
        ("macs=0%", "above 0%"),
        ("macs=0.5x", "at least 1x"),
        ("macs=0.5", "write 50%"),
        ("macs=-3", "not an amount"),
        ("macs=1.2.3", "not an amount"),
        ("macs=3lb", "unknown unit 'lb'"),
        ("params=7B", "unknown unit 'B'"),
        ("params=1MB", "unknown unit 'MB'"),
        ("latency=2x", "latency needs an engine"),
        ("macs.onnxruntime=2x", "only latency takes an engine"),
        ("", "COST=AMOUNT"),
    ],
)
def test_invalid_target_says_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Recipe(target=text)
    assert caught.value.exit_code == 2


def test_several_targets_but_one_per_cost() -> None:
    assert [str(t) for t in Recipe(target=["macs=50%", "bytes=1MB"]).target] == [
        "macs=50%",
        "bytes=1MB",
    ]
    assert Recipe(target={"macs": "50%", "params": "2x"}) == Recipe(
        target=["macs=50%", "params=2x"]
    )
    with pytest.raises(UsageError, match="one target per cost"):
        Recipe(target=["macs=50%", "macs=60%"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"round_to": 0}, "round_to: 0 is less than 1"),
        ({"round_to": "many"}, "round_to: 'many' is not an integer"),
        ({"floor": True}, "floor: True is not an integer"),
        ({"samples": 2.5}, "samples: 2.5 is not an integer"),
        ({"max_fraction": "120%"}, "max_fraction: '120%' is not between"),
        ({"max_fraction": float("nan")}, "finite"),
        ({"ratio": {"a": 2}}, "ratio: 2 is not between"),
        ({"ratio": "a"}, "ratio: 'a' is not NAME=VALUE"),
        ({"ratio": "-0.2"}, "ratio: '-0.2' is not between 0 and 1"),
        ({"shape": "x:1,0"}, "shape: 0 is less than 1"),
        ({"layout": "hwc"}, "layout: 'hwc' is not one of auto, nchw, nhwc"),
        ({"resize": "1x2x3"}, "resize: '1x2x3' is not LENGTH or HEIGHTxWIDTH"),
        ({"strict": "perhaps"}, "strict: 'perhaps' is neither true nor false"),
        ({"freeze": [3]}, "freeze: 3 is not text"),
        ({"tolerance": 0}, "tolerance: 0 is not above 0"),
        ({"rount_to": 8}, "unknown key 'rount_to'; did you mean 'round_to'"),
    ],
)
def test_invalid_value_names_option_and_range(values: dict, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.of(values)
    assert says in caught.value.message


def test_text_and_plain_values_are_equivalent() -> None:
    plain = Recipe(
        round_to=4,
        mean=[0.5, 0.25],
        shape={"in:0": [1, 3, 8, 8]},
        ratio={"a=b": 0.5},
        resize=[32, 48],
        max_fraction=0.8,
        engine=["a", "b"],
    )
    text = Recipe(
        round_to="4",
        mean="0.5,0.25",
        shape="in:0:1x3x8x8",
        ratio=("a=b=50%",),
        resize="32x48",
        max_fraction="80%",
        engine="a,b",
    )
    assert plain == text


def test_every_option_has_help_a_stage_and_a_valid_default() -> None:
    recipe = Recipe()
    assert {f.name for f in dataclasses.fields(Recipe)} == set(OPTIONS)
    for name, option in OPTIONS.items():
        assert option.help.endswith(".") and option.stage, name
        assert option.parse(getattr(recipe, name)) == getattr(recipe, name), name


names = st.text(min_size=1).filter(lambda s: s.isprintable() or "\x7f" in s)


@given(
    freeze=st.lists(
        st.text(min_size=1, alphabet=st.characters(blacklist_categories=["Cs"])), max_size=3
    ),
    ratio=st.dictionaries(
        st.text(min_size=1, alphabet=st.characters(blacklist_categories=["Cs"])),
        st.floats(0, 1),
        max_size=3,
    ),
    samples=st.integers(1, 10**9),
    percent=st.floats(0.001, 100),
)
def test_written_recipe_reads_as_equal_recipe(
    tmp_path_factory, freeze, ratio, samples, percent
) -> None:
    recipe = Recipe(
        freeze=freeze,
        ratio=ratio,
        samples=samples,
        target=f"macs={percent!r}%",
        external_data=False,
    )
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    path.write_text(to_toml(recipe, {"onnxprune": "1", "source": 'a"b\n'}), encoding="utf-8")
    assert Recipe.of(read(path)) == recipe


def test_data_in_a_recipe_is_relative_to_the_recipe(tmp_path) -> None:
    path = tmp_path / "r.toml"
    (tmp_path / "images").mkdir()
    given = {
        "images": f"{tmp_path}/images",
        "arrays:a.npz": f"arrays:{tmp_path}/a.npz",
        "l.py:f": f"{tmp_path}/l.py:f",
        "/there": "/there",
        "synthetic": "synthetic",
    }
    for written, meant in given.items():
        path.write_text(f'data = "{written}"\n')
        assert read(path)["data"] == meant


def test_written_recipe_names_the_same_data_from_any_folder(tmp_path, monkeypatch) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    (work / "model.run").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(work)
    recipe = Recipe(data=("a.npz", "images:photos", "more/*.png"), labeled="val", metric=("top1",))
    path = work / "model.run" / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    again = Recipe.of(read(path))
    assert again.data == (f"{work}/a.npz", f"images:{work}/photos", f"{work}/more/*.png")
    assert again.labeled == f"{work}/val"
    path.write_text('data = ["../b.npz"]', encoding="utf-8")
    assert Recipe.of(read(path)).data == f"{work}/model.run/../b.npz"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("rount_to = 3", "unknown-key"),
        ("a = = 1", "recipe-not-toml"),
        (b"\xff\xfe", "recipe-not-toml"),
        (None, "recipe-unreadable"),
    ],
)
def test_invalid_recipe_file_is_one_usage_error(tmp_path, content, code) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        read(path)
    assert caught.value.code == code and str(path) in caught.value.message


def test_layer_selection_notation_is_parsed() -> None:
    """One ratio for all groups, [(number, ratio), ...], and the published numbers of criteria."""
    assert (
        Recipe(ratio="[(2, 0.5), (6, 0.25)]").ratio
        == Recipe(ratio=[(2, 0.5), (6, 0.25)]).ratio
        == {"#2": 0.5, "#6": 0.25}
    )
    assert Recipe(ratio="0.5").ratio == Recipe(ratio=0.5).ratio == {"*": 0.5}
    assert [Recipe(criterion=str(n)).criterion for n in range(7)] == [
        "l2",
        "largest_l2",
        "l1",
        "largest_l1",
        "bn_scale",
        "bn_scale*l1",
        "random",
    ]
    for wrong in ("[(2, 5)]", "[2]", "[(a, 1)]", "[("):
        with pytest.raises(UsageError):
            Recipe(ratio=wrong)


@pytest.mark.parametrize(
    ("side", "expected"), [(8, 2048), (100, 555), (1000, 256)], ids=["small", "medium", "large"]
)
def test_a_run_takes_as_many_inputs_as_its_time_allows(side: int, expected: int) -> None:
    """Without --samples; 36,000 multiply-accumulates per pixel."""
    text = (
        f"float[N,3,{side},{side}] x | float[600,3,1,1] w, float[57,600,1,1] v | "
        "h = Conv(x, w); r = Relu(h); y = Conv(r, v)"
    )
    analysis = analyze(load(net(text)))
    assert analysis.cost().macs == 36_000 * side**2
    recipe = Recipe.of({"data": "images"})
    assert resolve(recipe, analysis)[0].samples == expected
    assert resolve(recipe.but({"samples": 7}), analysis)[0].samples == 7
    # random inputs say nothing, however many they are
    assert resolve(Recipe(), analysis)[0].samples is None
