"""Least squares against ridge regression by definition, on every kind of consumer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repair_reference import Repaired, by_channel, design, filters, initializer, node_of, ridge

RIDGE, LAST_RIDGE = 1e-3, 1e-2  # as the repair states them: of the mean diagonal
SINGLE = 2e-3  # of the largest weight: sums in float32, a condition of up to 1 / RIDGE
HALF = 2e-2  # float16 weights, of which rounding is 5e-4, in the inputs of what is refitted as well
SLACK = 1.0 + 1e-6


@dataclass(frozen=True)
class Case:
    """A graph and its refitted nodes: output -> (target, shortcut that is added to it)."""

    text: str
    fits: dict[str, tuple[str, str]]
    tolerance: float = SINGLE


def plain(*names: str) -> dict[str, tuple[str, str]]:
    """Nodes whose target is their own output."""
    return {n: (n, "") for n in names}


STEM = (
    "float[n,4,9,8] x | float[8,4,3,3] w1, float[8] b1, {} | "
    "a = Conv<pads=[1,1,1,1]>(x, w1, b1); r = Relu(a); {}"
)
CASES = {
    "pointwise": Case(
        STEM.format("float[5,8,1,1] w2, float[5] b2", "y = Conv(r, w2, b2)"), plain("a", "y")
    ),
    "without bias": Case(STEM.format("float[5,8,1,1] w2", "y = Conv(r, w2)"), plain("a", "y")),
    "strided": Case(
        STEM.format(
            "float[5,8,3,3] w2, float[5] b2", "y = Conv<strides=[2,1],pads=[1,0,0,1]>(r, w2, b2)"
        ),
        plain("y"),
    ),
    "dilated": Case(
        STEM.format("float[5,8,3,2] w2", "y = Conv<dilations=[2,3],pads=[2,1,2,2]>(r, w2)"),
        plain("y"),
    ),
    "same upper": Case(
        STEM.format("float[5,8,3,3] w2", 'y = Conv<strides=[2,2],auto_pad="SAME_UPPER">(r, w2)'),
        plain("y"),
    ),
    "same lower": Case(
        STEM.format("float[5,8,2,2] w2", 'y = Conv<strides=[2,3],auto_pad="SAME_LOWER">(r, w2)'),
        plain("y"),
    ),
    "grouped": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[6,4,3,3] w2, float[6] b2, float[5,6,1,1] w3 |"
        "a = Conv(x, w1); r = Relu(a); b = Conv<group=2>(r, w2, b2); s = Relu(b); y = Conv(s, w3)",
        plain("a", "b", "y"),
    ),
    "transposed": Case(
        STEM.format(
            "float[8,5,3,2] w2, float[5] b2",
            "y = ConvTranspose<strides=[2,3],pads=[1,0,1,1]>(r, w2, b2)",
        ),
        plain("y"),
    ),
    "transposed, dilated": Case(
        STEM.format(
            "float[8,5,3,3] w2",
            "y = ConvTranspose<dilations=[2,1],output_padding=[1,0],strides=[2,1]>(r, w2)",
        ),
        plain("y"),
    ),
    "transposed, grouped": Case(
        STEM.format("float[8,3,3,3] w2", "y = ConvTranspose<group=2,strides=[2,2]>(r, w2)"),
        plain("y"),
    ),
    "depthwise": Case(
        STEM.format(
            "float[8,1,3,3] wd, float[8] bd, float[5,8,1,1] w2",
            "d = Conv<group=8>(r, wd, bd); s = Relu(d); y = Conv(s, w2)",
        ),
        plain("a", "y"),
    ),
    "one axis": Case(
        (
            "float[n,4,12] x | float[8,4,3] w1, float[5,8,4] w2 | a = Conv(x, w1); r = Relu(a); "
            "y = Conv<strides=[3]>(r, w2)"
        ),
        plain("y"),
    ),
    "three axes": Case(
        (
            "float[n,2,4,5,3] x | float[6,2,2,2,2] w1, float[3,6,2,2,1] w2 | a = Conv(x, w1); "
            "r = Relu(a); y = Conv<pads=[1,0,0,0,1,0]>(r, w2)"
        ),
        plain("y"),
    ),
    "concat": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[6,4,3,3] w2, float[5,14,3,3] w3 |"
        "a = Conv(x, w1); b = Conv<pads=[1,1,1,1]>(x, w2); c = Concat<axis=1>(a, b); "
        "r = Relu(c); y = Conv(r, w3)",
        plain("a", "b", "y"),
    ),
    "shared input": Case(
        STEM.format(
            "float[6,8,1,1] w2, float[6,8,3,3] w3, float[5,12,1,1] w4",
            (
                "b = Conv(r, w2); c = Conv<pads=[1,1,1,1]>(r, w3); d = Concat<axis=1>(b, c); "
                "y = Conv(d, w4)"
            ),
        ),
        plain("a", "b", "c", "y"),
    ),
    "shared weights": Case(
        (
            "float[n,6,5,5] x | float[6,6,1,1] w, float[4,6,1,1] w2 | a = Conv(x, w); "
            "r = Relu(a); b = Conv(r, w); s = Relu(b); y = Conv(s, w2)"
        ),
        plain("a", "b", "y"),
    ),
    "gemm": Case(
        "float[n,6] x | float[12,6] w1, float[12] b1, float[12,7] w2, float[7] b2 |"
        "a = Gemm<transB=1>(x, w1, b1); r = Relu(a); y = Gemm<alpha=0.5>(r, w2, b2)",
        plain("a", "y"),
    ),
    "product and sum": Case(
        "float[n,5,6] x | float[6,12] w1, float[12] b1, float[12,7] w2, float[7] b2 |"
        "m = MatMul(x, w1); a = Add(m, b1); r = Relu(a); o = MatMul(r, w2); y = Add(b2, o)",
        {"m": ("a", ""), "o": ("y", "")},
    ),
    "product": Case(
        (
            "float[n,5,6] x | float[6,12] w1, float[12,7] w2 | a = MatMul(x, w1); r = Relu(a); "
            "y = MatMul(r, w2)"
        ),
        plain("a", "y"),
    ),
    "flattened": Case(
        (
            "float[n,4,6,6] x | float[8,4,3,3] w1, float[128,6] w2, float[6,5] w3 | "
            "a = Conv(x, w1); f = Flatten(a); g = Gemm(f, w2); y = Gemm(g, w3)"
        ),
        plain("g", "y"),
    ),
    "residual": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w0, float[12,8,3,3] w1, float[8,12,1,1] w2, "
        "float[12,8,1,1] w3, float[8,12,1,1] w4, float[5,8,1,1] w5 |"
        "t = Conv(x, w0); a = Conv<pads=[1,1,1,1]>(t, w1); r = Relu(a); b = Conv(r, w2); "
        "u = Add(t, b); v = Relu(u);"
        "c = Conv(v, w3); s = Relu(c); d = Conv(s, w4); z = Add(d, v); y = Conv(z, w5)",
        {**plain("a", "c", "y"), "b": ("b", "t"), "d": ("d", "v")},
    ),
    "double": Case(
        (
            "double[n,3,6] x | double[6,12] w1, double[12,7] w2 | a = MatMul(x, w1); "
            "r = Relu(a); y = MatMul(r, w2)"
        ),
        plain("a", "y"),
    ),
    "half": Case(
        (
            "float16[n,4,6,6] x | float16[8,4,1,1] w1, float16[5,8,3,3] w2, float16[5] b2 | "
            "a = Conv(x, w1); r = Relu(a); y = Conv(r, w2, b2)"
        ),
        plain("a", "y"),
        HALF,
    ),
}


def expected(
    repaired: Repaired, out: str, target: str, shortcut: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (design, targets, cut filters, filters by definition) of a node.

    On the inputs that it has in the repaired model.
    """
    node, before = node_of(repaired.after, out), node_of(repaired.before, out)
    start = initializer(repaired.before, before.input[1])
    axis = (
        1 if node.op_type.startswith("Conv") else len(repaired.analysis.shapes.shape(out) or ()) - 1
    )
    kept = repaired.kept_of(out, axis)
    (x,), (y,) = (
        repaired.values(repaired.after, node.input[0]),
        repaired.values(repaired.original, target),
    )
    y = np.take(y, kept, axis)
    if shortcut:
        (dense,), (lossy,) = (
            repaired.values(repaired.original, shortcut),
            repaired.values(repaired.after, shortcut),
        )
        y = y + np.take(dense, kept, axis) - lossy
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    flat = filters(node, start, groups)
    rows = design(node, start, x)
    last = not any(out in n.input for n in repaired.after.proto.graph.node) or target in {
        o.name for o in repaired.original.proto.graph.output
    }
    centered = node.op_type != "MatMul" or target != out
    return (
        rows,
        by_channel(y, node),
        flat,
        ridge(rows, by_channel(y, node), flat, LAST_RIDGE if last else RIDGE, centered),
    )


def fitted(repaired: Repaired, out: str) -> np.ndarray:
    """Return the filters after the repair."""
    node = node_of(repaired.after, out)
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return filters(node, initializer(repaired.after, node.input[1]), groups)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_ridge_regression(name: str) -> None:
    """From pruned inputs to original outputs plus the error of a shortcut; all else is as cut."""
    case = CASES[name]
    repaired = Repaired.of(case.text)
    for out, (target, shortcut) in case.fits.items():
        *_, flat, reference = expected(repaired, out, target, shortcut)
        np.testing.assert_allclose(
            fitted(repaired, out),
            reference,
            atol=case.tolerance * np.abs(reference).max(),
            err_msg=out,
        )
    if name != "shared weights":  # of which one node's are its own now
        untouched = {
            i
            for n in repaired.after.proto.graph.node
            if n.op_type == "Conv" and n.output[0] == "d" and len(n.input) > 2
            for i in n.input[1:]
        }
        assert all(
            np.array_equal(initializer(repaired.after, i), initializer(repaired.before, i))
            for i in untouched
            if name == "depthwise"
        )
    assert (
        repaired.error(repaired.after) <= repaired.error(repaired.before) * SLACK + repaired.noise
    )


@pytest.mark.parametrize(
    "name",
    [
        "pointwise",
        "strided",
        "transposed, grouped",
        "gemm",
        "product and sum",
        "residual",
        "concat",
    ],
)
def test_refitted_channels_have_the_mean_of_their_target(name: str) -> None:
    case = CASES[name]
    repaired = Repaired.of(case.text)
    for out, (target, shortcut) in case.fits.items():
        axis = (
            1
            if node_of(repaired.original, out).op_type.startswith("Conv")
            else len(repaired.analysis.shapes.shape(out) or ()) - 1
        )
        kept = repaired.kept_of(out, axis)
        target_values = np.take(repaired.values(repaired.original, target)[0], kept, axis)
        (actual,) = repaired.values(repaired.after, target)
        if shortcut:
            target_values = (
                target_values
                + np.take(repaired.values(repaired.original, shortcut)[0], kept, axis)
                - repaired.values(repaired.after, shortcut)[0]
            )
        others = tuple(i for i in range(actual.ndim) if i != axis)
        np.testing.assert_allclose(
            actual.mean(others),
            target_values.mean(others),
            atol=1e-4 * np.abs(target_values).max(),
            err_msg=out,
        )


def test_the_target_is_the_output_of_a_following_normalization() -> None:
    """The shift is in its bias; weights times its factor are those of ridge regression."""
    text = (
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[5,8,3,3] w2, float[5] b2, float[5] g, "
        "float[5] o, float[5] m, float[5] v |"
        "a = Conv(x, w1); r = Relu(a); c = Conv(r, w2, b2); "
        "y = BatchNormalization<epsilon=0.01>(c, g, o, m, v)"
    )
    repaired = Repaired.of(text)
    factor = (
        initializer(repaired.original, "g") / np.sqrt(initializer(repaired.original, "v") + 0.01)
    )[:, None]
    rows, targets, flat, _ = expected(repaired, "c", "y", "")
    reference = ridge(rows, targets, flat * factor, LAST_RIDGE, centered=True)
    np.testing.assert_allclose(
        fitted(repaired, "c") * factor, reference, atol=SINGLE * np.abs(reference).max()
    )
    (actual,) = repaired.values(repaired.after, "y")
    np.testing.assert_allclose(
        by_channel(actual, node_of(repaired.after, "c")).mean(1), targets.mean(1), atol=1e-4
    )


def test_outputs_with_a_zero_factor_are_not_refitted() -> None:
    """They do not depend on the weights, which stay as they were cut."""
    text = (
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[3,8,1,1] w2, float[3] g = {0.0, 1.0, "
        "2.0}, float[3] o, float[3] m, float[3] v |"
        "a = Conv(x, w1); r = Relu(a); c = Conv(r, w2); y = BatchNormalization(c, g, o, m, v)"
    )
    repaired = Repaired.of(text)
    before = filters(
        node_of(repaired.before, "c"),
        initializer(repaired.before, node_of(repaired.before, "c").input[1]),
        1,
    )
    np.testing.assert_array_equal(fitted(repaired, "c")[0], before[0])
    assert (fitted(repaired, "c")[1:] != before[1:]).any(1).all()


BEHIND = {
    "relu": "r = Relu(a)",
    "clip": "r = Clip(a, zero, six)",
    "sum": "u = Add(a, x); r = Relu(u)",
}


@pytest.mark.parametrize("name", BEHIND)
def test_respecting_saturation_reduces_the_error_after_the_activation(name: str) -> None:
    """Saturated values of a Relu or Clip need not be met exactly, also after adding a shortcut."""
    text = (
        "float[n,5,9,8] x | float[8,5,3,3] w0, float[5,8,3,3] w1, float[5] b1, "
        "float[4,5,1,1] w2, float zero = {0.0}, float six = {0.7} |"
        "s = Conv<pads=[1,1,1,1]>(x, w0); t = Relu(s); a = Conv<pads=[1,1,1,1]>(t, w1, b1);"
        + BEHIND[name]
        + "; y = Conv(r, w2)"
    )
    linear, saturating = (Repaired.of(text, share=0.5, passes=passes) for passes in (0, 3))
    errors = []
    for repaired in (linear, saturating):
        (original,), (after,) = (
            repaired.values(repaired.original, "r"),
            repaired.values(repaired.after, "r"),
        )
        errors.append(
            float(np.square(np.take(original, repaired.kept_of("r", 1), 1) - after).sum())
        )
    assert errors[1] < errors[0], errors


def test_a_plan_that_keeps_all_changes_no_output() -> None:
    """The present weights meet every target."""
    for name in ("residual", "grouped", "transposed", "product and sum"):
        repaired = Repaired.of(CASES[name].text, share=1.0)
        for out in CASES[name].fits:
            before = node_of(repaired.before, out)
            groups = next((a.i for a in before.attribute if a.name == "group"), 1)
            start = filters(before, initializer(repaired.before, before.input[1]), groups)
            np.testing.assert_allclose(
                fitted(repaired, out), start, atol=SINGLE * np.abs(start).max()
            )


@st.composite
def consumers(draw: st.DrawFn) -> str:
    """Draw a convolution, plain or transposed, of any geometry after a pruned layer."""
    transposed, group, kernel = (
        draw(st.booleans()),
        draw(st.sampled_from([1, 1, 2])),
        [draw(st.integers(1, 3)) for _ in range(2)],
    )
    stride, dilation = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    shape = [8, 6 // group, *kernel] if transposed else [6, 8 // group, *kernel]
    bias = draw(st.booleans())
    attributes = f"group={group},strides={stride},dilations={dilation},pads={pads}"
    weights = f"float[8,3,1,1] w1, float[{','.join(map(str, shape))}] w2" + (
        ", float[6] b2" if bias else ""
    )
    op = "ConvTranspose" if transposed else "Conv"
    return (
        f"float[n,3,9,8] x | {weights} | a = Conv(x, w1); r = Relu(a); "
        f"y = {op}<{attributes}>(r, w2{', b2' if bias else ''})"
    )


@settings(max_examples=25, deadline=None)
@given(consumers(), st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 0.9]))
def test_any_geometry_is_refitted_and_not_worse_than_unrepaired(
    text: str, seed: int, share: float
) -> None:
    repaired = Repaired.of(text, samples=12, share=share, seed=seed)
    *_, reference = expected(repaired, "y", "y", "")
    np.testing.assert_allclose(
        fitted(repaired, "y"), reference, atol=SINGLE * max(np.abs(reference).max(), 1e-3)
    )
    assert (
        repaired.error(repaired.after) <= repaired.error(repaired.before) * SLACK + repaired.noise
    )
