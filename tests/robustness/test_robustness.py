"""Mutated files in processes with limits, and the single changes that found faults."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graph_text import net
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError, OnnxpruneError, UsageError
from onnxprune.ir.io import load
from onnxprune.ir.limits import MOST_NODES
from onnxprune.ir.passes.validate import LONGEST_NAME
from onnxprune.ir.runtime import Session
from onnxprune.repair.normal_equations import NormalEquations
from onnxprune.run.pipeline import make_plan
from onnxprune.run.recipe import Recipe
from onnxprune.run.recipe_file import read_data_only
from onnxprune.statistics.im2col import Moments
from onnxprune.surgery.compare import relative_difference
from onnxprune.surgery.cut import cut
from onnxprune.types import PLAN_FORMAT, Plan
from tests.robustness.bad_inputs import call_functions
from tests.robustness.fuzz import ACCEPTED, REJECTED

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = {"models": 240, "plans": 60, "recipes": 120}
MORE_MUTANTS = {"models": 300, "plans": 60, "recipes": 120}
FIRST_OF_MORE = 100_000  # other mutants than those from 0 on

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs fork and the memory limits of Linux"
)


def documented_codes() -> set[str]:
    """Return the error codes that the page on troubleshooting lists."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return set(re.findall(r'<a id="([^"]+)">', page))


def assert_no_fault(kind: str, files: int, first: int) -> None:
    """Fuzz in a process of its own; some mutants are accepted, some rejected."""
    command = [sys.executable, "-m", "tests.robustness.fuzz", "--json", f"--kind={kind}"]
    command += [f"--files={files}", f"--first={first}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert not result["faults"], done.stderr + json.dumps(result["faults"], indent=1)[:3000]
    assert sum(result["ends"].values()) == files
    assert set(result["ends"]) == {ACCEPTED, REJECTED}
    assert set(result["codes"]) <= documented_codes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTANTS)
def test_mutants_are_accepted_or_rejected_with_one_error_line(kind: str) -> None:
    assert_no_fault(kind, MUTANTS[kind], 0)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE_MUTANTS)
def test_more_mutants_are_accepted_or_rejected(kind: str) -> None:
    assert_no_fault(kind, MORE_MUTANTS[kind], FIRST_OF_MORE)


# Single changes that found faults

IMAGE, WEIGHT = "float[2,4,6,6] x", "float[8,4,3,3] w1"


def chain(nodes: str = "b = Relu(a)", weights: str = "") -> ModelProto:
    """Return a model of two convolutions with nodes from tensor a to tensor b between them."""
    return net(
        f"{IMAGE} | {WEIGHT}, float[5,8,1,1] w2{weights}"
        f" | a = Conv(x, w1); {nodes}; y = Conv(b, w2)"
    )


def with_function(*calls: list[str]) -> ModelProto:
    """Return a model with functions fN of these calls in sequence, and a call of the last one."""
    model = chain()
    call_functions(model, calls)
    return model


def plan_and_cut(model: ModelProto) -> None:
    """Plan and cut like the commands."""
    recipe = Recipe(target="macs=70%", criterion="l2", allocate="knapsack", round_to=1, samples=2)
    plan = make_plan(model.SerializeToString(), recipe)
    cut(analyze(load(model)), plan)


@pytest.mark.parametrize(
    "calls", [[["f0"]], [["f1"], ["f0"]], [["Relu", "f2"], ["f0"], ["f1", "f1"]]]
)
def test_recursive_functions_are_rejected(calls: list[list[str]]) -> None:
    with pytest.raises(ModelError, match="calls itself"):
        analyze(load(with_function(*calls)))


def test_functions_unfold_up_to_a_limit() -> None:
    assert analyze(load(with_function(["Relu"], ["f0", "f0"]))).groups
    with pytest.raises(ModelError, match=f"more than {MOST_NODES} nodes"):
        analyze(load(with_function(["Relu"], *[[f"f{i}"] * 2 for i in range(40)])))


@pytest.mark.parametrize("place", ["graph", "body", "function"])
def test_nodes_are_limited_in_sum(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 50
    steps = "; ".join(f"b{i + 1} = Relu(b{i})" for i in range(count))
    if place == "graph":
        model = chain(f"b0 = Relu(a); {steps}; b = Relu(b{count})")
    elif place == "body":
        branch = "{0}_branch = g{0} () => (float[n, w] {0}) {{ b0 = Relu(a); {1}; {0} = Relu(b9) }}"
        both = ", ".join(branch.format(name, steps) for name in ("then", "else"))
        model = chain(
            f"s = ReduceMax<keepdims=0>(a); c = Cast<to=9>(s); d = If (c) <{both}>; b = Relu(a)"
        )
    else:
        model = with_function(["Relu"] * count, ["f0"])
    monkeypatch.setenv("ONNXPRUNE_MAX_NODES", str(count))
    with pytest.raises(ModelError, match=f"more than {count} nodes.*ONNXPRUNE_MAX_NODES") as caught:
        analyze(load(model))
    assert caught.value.code == "model-too-large"
    monkeypatch.setenv("ONNXPRUNE_MAX_NODES", str(3 * count))
    assert analyze(load(model)).groups
    # a setting that is no number counts as none
    monkeypatch.setenv("ONNXPRUNE_MAX_NODES", "many")
    assert analyze(load(model)).groups


@pytest.mark.parametrize("sizes", [[2**40], [2**62, 2**62], [1, 2**63 - 1, 4], [2**31, 8]])
def test_tensors_above_the_memory_limit_are_rejected(sizes: list[int]) -> None:
    model = chain(
        "s = ConstantOfShape(n); t = ReduceSum<keepdims=0>(s); b = Add(a, t)",
        f", int64[{len(sizes)}] n = {{{', '.join(map(str, sizes))}}}",
    )
    with pytest.raises(ModelError, match="limit on this machine|negative") as caught:
        analyze(load(model))
    assert caught.value.code in ("tensor-too-large", "model-invalid")


def test_long_axes_are_frozen_without_enumeration() -> None:
    model = chain(
        "s = ConstantOfShape(n); t = ReduceSum<keepdims=0>(s); b = Add(a, t)",
        ", int64[1] n = {16777216}",
    )
    assert [g.size for g in analyze(load(model)).groups] == [8]


def test_repeatedly_doubled_channels_are_frozen() -> None:
    doubled = "; ".join(f"c{i + 1} = Concat<axis=1>(c{i}, c{i})" for i in range(20))
    model = net(
        "float[1,4,1,1] x | float[8,4,1,1] w1, float[5,8,1,1] w2"
        f" | c0 = Conv(x, w1); {doubled}; y = ReduceMean<axes=[1]>(c20) | float[1,1,1,1] y"
    )
    analysis = analyze(load(model))
    assert not analysis.groups and any("positions" in f.reason for f in analysis.frozen)


def test_endless_loops_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [
            helper.make_tensor_value_info(n, t, s)
            for n, t, s in (
                ("i", TensorProto.INT64, []),
                ("c", TensorProto.BOOL, []),
                ("s", TensorProto.FLOAT, None),
            )
        ],
        [
            helper.make_tensor_value_info(n, t, s)
            for n, t, s in (("d", TensorProto.BOOL, []), ("t", TensorProto.FLOAT, None))
        ],
    )
    model = chain()
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(2**62), "m"),
            numpy_helper.from_array(np.array(True), "go"),
        ]
    )
    model.graph.node.append(helper.make_node("Loop", ["m", "go", "y"], ["z"], body=body))
    model.graph.output.append(helper.make_empty_tensor_value_info("z"))
    monkeypatch.setenv("ONNXPRUNE_LOOP_LIMIT_S", "0.3")
    session = Session(load(model))
    with pytest.raises(ModelError, match="not end within 0.3 s") as caught:
        session.run({"x": np.zeros((2, 4, 6, 6), np.float32)})
    assert caught.value.code == "run-endless"


def two_convs(weight: str = "float[5,8,1,1]", first: str = "Conv", second: str = "Conv") -> str:
    """Return the text of two convolutions."""
    return f"{IMAGE} | {WEIGHT}, {weight} w2 | a = {first}(x, w1); y = {second}(a, w2)"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("groups that do not divide", two_convs(second="Conv<group=3>")),
        ("no groups", two_convs(second="Conv<group=0>")),
        ("a weight of another size", two_convs("float[5,16,1,1]")),
        ("an empty weight", two_convs("float[5,0,1,1]")),
        ("a weight of another rank", two_convs("float[1,1,5,8,1,1]")),
        ("an input of another domain", two_convs(first="custom.Conv")),
        (
            "a vector as data",
            "float[8] x | float[8,4] w1, float[8,4,3,3] w2 | a = MatMul(x, w1); y = Conv(a, w2)",
        ),
    ],
)
def test_nodes_with_wrong_operands_are_rejected(what: str, text: str) -> None:
    try:
        plan_and_cut(net(text + " | float[] y"))
    except OnnxpruneError as problem:
        assert problem.message


@pytest.mark.parametrize("branches", [["then_branch"], ["else_branch"], [], ["body"]])
def test_ifs_with_missing_branches_are_rejected(branches: list[str]) -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
    body = helper.make_graph(
        [helper.make_node("Relu", ["y"], ["r"])],
        "body",
        [],
        [helper.make_empty_tensor_value_info("r")],
    )
    model.graph.node.append(
        helper.make_node("If", ["go"], ["z"], **{name: body for name in branches})
    )
    model.graph.output.append(helper.make_empty_tensor_value_info("z"))
    try:
        plan_and_cut(model)
    except OnnxpruneError as problem:
        assert problem.message


@pytest.mark.parametrize("value", [np.float32([1e4, 1e4 + 1]), np.zeros(2, np.float32)])
def test_outputs_above_one_block_are_compared(value: np.ndarray) -> None:
    big = np.tile(value, (1 << 20) + 5)
    other = big.copy()
    other[-1] += 1
    assert relative_difference(big, big) == 0 and relative_difference(other, big) == pytest.approx(
        1 / np.abs(big).max() if big.any() else np.inf, rel=1e-6
    )


@pytest.mark.parametrize(
    ("xx", "finite"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], True),
        ([[-1e-9, 0.0], [0.0, 1.0]], True),
        ([[np.inf, 0.0], [0.0, 1.0]], False),
    ],
)
def test_indefinite_moments_have_a_solution(xx: list[list[float]], finite: bool) -> None:
    system = NormalEquations(Moments.zeros(2, 1), np.ones((1, 2)), 1e-9, False)
    system.moments.xx, system.moments.yx = np.array(xx), np.ones((1, 2))
    system.solve()
    assert np.isfinite(system.weight).all() == finite


@pytest.mark.parametrize("kind", [0, 99])
def test_inputs_without_a_type_are_rejected(kind: int) -> None:
    model = chain()
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(OnnxpruneError, match="input 'x'"):
        plan_and_cut(model)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('data = "loader.py:feeds"', "data"),
        ('data = "loader:l.py:feeds"', "data"),
        ('metric = ["top1", "mine:score"]', "metric"),
        ('losses = "os:system"', "losses"),
        ('decoder = "m:f"', "decoder"),
    ],
)
def test_recipes_cannot_name_code(tmp_path: Path, line: str, code: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(line)
    with pytest.raises(UsageError, match="a recipe is data only") as caught:
        read_data_only(path)
    assert caught.value.code == "recipe-code"
    assert read_data_only(path, {code}) == {}


@pytest.mark.parametrize(
    "line", ['data = "images/"', 'data = "arrays:a.npz"', 'metric = ["top1"]', "seed = 3"]
)
def test_recipes_of_plain_values_are_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "recipe.toml").write_text(line)
    assert len(read_data_only(tmp_path / "recipe.toml")) == 1


@pytest.mark.parametrize(
    "equation", ["...a...,...->...", "...1,...->...", "....,...->...", "\xe9...,...->"]
)
def test_equations_on_which_inference_never_ends_are_rejected(equation: str) -> None:
    model = chain("b = Relu(a)")
    node = helper.make_node("Einsum", ["x", "x"], ["z"], equation=equation)
    model.graph.node.append(node)
    with pytest.raises(ModelError, match="terms are letters and one '...'"):
        analyze(load(model))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "x", None, [], -1, 4])
def test_plans_with_invalid_indices_are_rejected(value: object) -> None:
    with pytest.raises(UsageError):
        Plan.from_json(
            {"format": PLAN_FORMAT, "source": "s", "groups": {"a": {"size": 4, "kept": [value]}}}
        )


@pytest.mark.parametrize(
    "name", ["w1", "a", "y", "Relu", "group", "strides", "batch"], ids=lambda name: name
)
def test_names_that_are_no_utf8_are_rejected(name: str) -> None:
    """Protobuf gives them as bytes, on which functions of texts fail."""
    model = net(
        "float[batch,4,6,6] x | float[8,4,3,3] w1, float[5,8,1,1] w2"
        " | a = Conv<group=1, strides=[1,1]>(x, w1); b = Relu(a); y = Conv(b, w2)"
    )
    plain = bytes([len(name)]) + name.encode()
    data = model.SerializeToString().replace(plain, bytes([len(name), 0xFF]) + plain[2:])
    with pytest.raises(ModelError, match="not UTF-8"):
        analyze(load(data))


@pytest.mark.parametrize("place", ["count", "condition"])
def test_empty_counts_and_conditions_of_loops_are_rejected(place: str) -> None:
    """An unchecked read in onnxruntime would end the process."""
    goes_on, weights = "go", ", bool c = {1}, bool[0] none = {}"
    if place == "condition":
        goes_on, weights = "none", weights + ", int64 n = {2}"
    else:
        weights += ", int64[0] n = {}"
    body = f"(bool on, float[2,8,6,6] t) {{ on = Identity({goes_on}); t = Add(s, s) }}"
    head = "<body = g (int64 i, bool go, float[2,8,6,6] s) =>"
    model = chain(f"m = Loop(n, c, a) {head} {body}>; b = Relu(m)", weights)
    with pytest.raises(ModelError, match="empty tensor"):
        analyze(load(model))


def test_attributes_of_another_type_are_rejected() -> None:
    model = chain()
    model.graph.node[2].attribute.append(helper.make_attribute("group", [1]))
    with pytest.raises(ModelError, match="'group' of another type"):
        analyze(load(model))
    model.graph.node[2].attribute[-1].CopyFrom(helper.make_attribute("group", 1))
    assert analyze(load(model)).groups


def test_quantizers_of_other_domains_need_a_scale() -> None:
    model = chain("q = com.microsoft.DequantizeLinear(a); b = Relu(q)")
    with pytest.raises(ModelError, match="needs at least 2"):
        analyze(load(model))


def test_names_have_a_limit() -> None:
    model = chain()
    model.graph.node[0].name = "n" * LONGEST_NAME
    assert analyze(load(model)).groups
    model.graph.node[0].name += "n"
    with pytest.raises(ModelError, match="a name of 65537 characters"):
        analyze(load(model))
