"""Sentences about layers whose time did not follow their MACs."""

from __future__ import annotations

from engine_nets import residual

from onnxprune.engines import ENGINES
from onnxprune.engines.cost.explain import explain
from onnxprune.engines.cost.systolic import ArrayEngine, preset

ENGINE = ArrayEngine(preset("systolic16"))


def row(
    node: str, macs: tuple[int, int], time_ms: tuple[float | None, float | None]
) -> dict[str, object]:
    return {"node": node, "op": "Conv", "macs": list(macs), "time_ms": list(time_ms)}


def test_an_unaligned_width_is_named_with_its_multiple() -> None:
    (sentence,) = explain([row("n_c1", (100, 50), (1.0, 1.02))], residual(22), ENGINE)
    assert "50% of its MACs remain and 102% of its time" in sentence
    assert "22 input channels and 22 output channels are not a multiple of 16" in sentence


def test_faster_and_negligible_layers_are_omitted() -> None:
    rows = [
        row("n_c1", (100, 50), (1.0, 0.6)),
        row("n_c2", (100, 50), (0.01, 0.01)),
        row("n_c0", (100, 95), (1.0, 1.0)),
        row("n_g", (100, 50), (1.0, None)),
        {"node": "n_p", "macs": [4, 2]},
    ]
    assert explain(rows, residual(16), ENGINE) == ()


def test_the_slowest_comes_first_and_short_layers_have_their_reason() -> None:
    sentences = explain(
        [row("n_g", (100, 50), (0.004, 0.004)), row("n_c1", (100, 25), (0.05, 0.05))],
        residual(8),
        ENGINE,
    )
    assert (
        sentences[0].startswith("n_c1")
        and "8 output channels fill less than one block of 16" in sentences[0]
    )
    assert sentences[1].startswith("n_g") and sentences[1].endswith("of all layers')")
    (called,) = explain(
        [row("n_g", (100, 50), (0.004, 0.004))], residual(8), ENGINES.get("onnxruntime")
    )
    assert "the kernel call dominates" in called


def test_many_layers_are_counted() -> None:
    rows = [row(f"layer{i}", (100, 50), (1.0, 1.0)) for i in range(9)]
    sentences = explain(rows, residual(16), ENGINE, most=2)
    assert len(sentences) == 3 and sentences[-1].startswith("7 more layers")
