"""Rows of plug-ins, and the contract tests for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graph_text import net

from onnxprune.analysis import rules
from onnxprune.analysis.defects import FAILED
from onnxprune.analysis.rule import View
from onnxprune.analysis.rules import Rule
from onnxprune.analysis.walk import analyze
from onnxprune.cli.inspect import inspect
from onnxprune.errors import OnnxpruneError, VerificationError
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.registry import Registry
from onnxprune.testing.plans import check_plan
from onnxprune.testing.rules import check_rule
from onnxprune.types import Plan

INVERSE = Rule("... -> ...")
DISTANCE = Rule("m k, n k -> m n", macs=("m n k",))
WRONG = Rule("b t c -> b c t")

TOKENS = (
    "float[2,6,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); "
    "b = com.microsoft.{op}(a); y = MatMul(b, w2) | float[2,6,5] y"
)


class Plugins(Registry):
    """A registry with entry points of its own."""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, EntryPoint]]:
    """Return entry points by name, as of an installed package."""
    registry, found = Plugins("rule", "onnxprune.rules"), {}
    registry.__dict__["plugins"] = found
    monkeypatch.setattr(rules, "PLUGINS", registry)
    yield found


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "onnxprune.rules")


def model(op: str) -> Model:
    proto = net(TOKENS.format(op=op))
    proto.graph.value_info.add(name="b").type.CopyFrom(
        net(
            TOKENS.format(op=op).replace(
                "y = MatMul(b, w2) | float[2,6,5] y", "y = Relu(b) | float[2,6,8] y"
            )
        )
        .graph.output[0]
        .type
    )
    return load(proto)


def test_an_unknown_op_freezes_what_it_touches() -> None:
    analysis = analyze(model("Inverse"))
    assert not analysis.groups
    assert "no rule for com.microsoft::Inverse" in {f.reason for f in analysis.why("a")}


def test_a_plugin_adds_a_row(plugins: dict[str, EntryPoint]) -> None:
    plugins["com.microsoft::Inverse"] = entry("com.microsoft::Inverse", f"{__name__}:INVERSE")
    assert [g.size for g in analyze(model("Inverse")).groups] == [8]


def test_a_row_tells_shapes_that_nothing_declares(plugins: dict[str, EntryPoint]) -> None:
    """Shapes after custom operators follow from the pattern, as onnx does not know them."""
    text = (
        "float[3,4] x, float[5,4] z | float[4,8] w1, float[5,6] w2, float[6,7] w3 | "
        "a = MatMul(x, w1); b = MatMul(z, w1);"
        "d = com.microsoft.CDist(a, b); e = MatMul(d, w2); y = MatMul(e, w3) | float[3,7] y"
    )
    assert not analyze(load(net(text))).groups
    plugins["com.microsoft::CDist"] = entry("com.microsoft::CDist", f"{__name__}:DISTANCE")
    analysis = analyze(load(net(text)))
    assert analysis.shapes.shape("d") == (3, 5)
    assert [g.size for g in analysis.groups] == [8, 6]
    check_rule("com.microsoft::CDist", load(net(text)))


@pytest.mark.parametrize(
    ("pattern", "given", "expected"),
    [
        ("b c t -> b t c", [(2, 3, 4)], (2, 4, 3)),
        ("b (g c) -> b g c", [(2, 12)], (2, 4, 3)),
        ("b c, c d -> b d", [("n", 3), (3, 7)], ("n", 7)),
        ("..., ... -> ...", [(2, 1, 5), (4, 1)], (2, 4, 5)),
        ("b c t -> b (c t)", [("n", 3, 4)], ("n", 12)),
        ("n c * -> n c *", [(2, 3, 8, 9)], (2, 3, None, None)),
        ("b c -> b c 1", [(2, 3)], (2, 3, None)),
    ],
)
def test_shapes_by_letters(
    plugins: dict[str, EntryPoint],
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    given: list[tuple],
    expected: tuple,
) -> None:
    """A pattern does not determine the lengths of frozen marks and new axes."""
    monkeypatch.setitem(globals(), "ROW", Rule(pattern, {"g": 4}, freeze="*"))
    plugins["custom::Op"] = entry("custom::Op", f"{__name__}:ROW")
    names = [f"x{i}" for i in range(len(given))]
    inputs = [
        onnx.helper.make_tensor_value_info(n, 1, s) for n, s in zip(names, given, strict=False)
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Op", names, ["y"], domain="custom")],
        "g",
        inputs,
        [onnx.helper.make_empty_tensor_value_info("y")],
    )
    found = analyze(
        load(
            onnx.helper.make_model(
                graph,
                opset_imports=[
                    onnx.helper.make_opsetid("", 17),
                    onnx.helper.make_opsetid("custom", 1),
                ],
            )
        )
    ).shapes.shape("y")
    assert found is not None
    assert tuple(None if isinstance(d, str) and d.startswith("?") else d for d in found) == expected


def test_a_broken_plugin_freezes_and_says_so(plugins: dict[str, EntryPoint]) -> None:
    plugins["com.microsoft::Inverse"] = entry("com.microsoft::Inverse", "no_such_module:ROW")
    analysis = analyze(model("Inverse"))
    assert not analysis.groups
    assert "no_such_module" in analysis.why("a")[-1].reason


def broken(view: View) -> Rule:
    """Fail as a rule with a mistake does."""
    return {}[view.op]


def test_a_rule_that_fails_is_a_defect_and_no_reason(
    plugins: dict[str, EntryPoint], tmp_path: Path
) -> None:
    plugins["com.microsoft::Inverse"] = entry("com.microsoft::Inverse", f"{__name__}:broken")
    analysis = analyze(model("Inverse"))
    assert not analysis.groups
    (defect,) = analysis.defects
    for part in ("Inverse", "'b'", "KeyError", "report it"):
        assert part in defect
    assert not any("KeyError" in f.reason for f in analysis.why("a"))
    assert FAILED in {f.reason for f in analysis.why("a")}
    path = tmp_path / "model.onnx"
    path.write_bytes(to_bytes(model("Inverse")))
    result = CliRunner().invoke(inspect, [str(path)])
    assert result.exit_code == 0
    assert f"warning: {defect}" in result.stderr


def test_an_invalid_node_is_no_defect() -> None:
    text = (
        "float[2,6,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); b = Relu(a); "
        "y = MatMul(b, w2) | float[2,6,5] y"
    )
    proto = net(text)
    # an axis that the tensor does not have
    node = onnx.helper.make_node("Transpose", ["a"], ["b"], name="t", perm=[0, 1, 7])
    proto.graph.node[1].CopyFrom(node)
    proto.graph.value_info.add(name="b").CopyFrom(
        onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [2, 6, 8])
    )
    analysis = analyze(load(proto))
    assert not analysis.defects
    assert any("not used as its definition says" in f.reason for f in analysis.why("a"))


@pytest.mark.parametrize("op", ["Conv", "LSTM", "Einsum"])
def test_a_plugin_cannot_replace_a_row(plugins: dict[str, EntryPoint], op: str) -> None:
    plugins[op] = entry(op, f"{__name__}:INVERSE")
    assert rules.row(op, "") is rules.RULES[op]


def test_check_rule_passes_a_right_row() -> None:
    check_rule("com.microsoft::ScaledSiLU", model("ScaledSiLU"))


def test_check_rule_refuses_a_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, "Relu", Rule("b c t -> b t c"))
    text = (
        "float[2,6,4] x | float[4,6] w1, float[6,5] w2 | a = MatMul(x, w1); b = Relu(a); "
        "y = MatMul(b, w2)"
    )
    with pytest.raises(OnnxpruneError):
        check_rule("Relu", load(net(text)))


def test_check_rule_refuses_a_row_that_hides_mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        rules.RULES, "LayerNormalization", replace(INVERSE, pattern="..., e, e -> ...")
    )
    text = (
        "float[2,6,4] x | float[4,8] w1, float[8] s, float[8] b, float[8,5] w2 | "
        "a = MatMul(x, w1); n = LayerNormalization(a, s, b); y = MatMul(n, w2)"
    )
    monkeypatch.setitem(rules.RULES, "LayerNormalization", Rule("b t e, e, e -> b t e"))
    with pytest.raises(VerificationError, match="differ"):
        check_rule("LayerNormalization", load(net(text)))


def test_check_rule_wants_a_graph_that_can_be_cut() -> None:
    text = (
        "float[2,6,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); b = Softmax(a); "
        "y = MatMul(b, w2)"
    )
    with pytest.raises(OnnxpruneError, match="mixes along this axis"):
        check_rule("Softmax", load(net(text)))
    with pytest.raises(OnnxpruneError, match="no node"):
        check_rule("Relu", load(net(text)))


def test_check_plan() -> None:
    analysis = analyze(
        load(
            net(
                "float[2,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); y = MatMul(a, w2)"
            )
        )
    )
    name = analysis.groups[0].name
    plan = Plan(analysis.digest, {name: (0, 2, 5)}, {name: 8}, {"seed": 0}, analysis.options)
    check_plan(analysis, plan)
    for wrong in (
        replace(plan, source="0" * 64),
        replace(plan, sizes={}),
        replace(plan, options={}),
        replace(plan, kept={name: (9,)}),
        replace(plan, kept={name: ()}),
    ):
        with pytest.raises(OnnxpruneError):
            check_plan(analysis, wrong)
    with pytest.raises(OnnxpruneError):
        check_plan(analysis, replace(plan, kept={name: tuple(np.array([3, 1]).tolist())}))
