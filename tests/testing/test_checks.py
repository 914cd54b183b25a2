"""Contract checks find violations and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_nets import residual
from graph_text import net

from onnxprune.allocators.base import Constraints, Ranking, WidthStep
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.engines import ENGINES
from onnxprune.engines.base import Compiled
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import Model, load
from onnxprune.metrics import MetricOptions
from onnxprune.metrics.classification import TopK
from onnxprune.search.base import Search
from onnxprune.testing.allocators import check_allocator
from onnxprune.testing.contract import ContractError
from onnxprune.testing.criteria import check_criterion
from onnxprune.testing.engines import check_engine
from onnxprune.testing.methods import check_method
from onnxprune.testing.metrics import check_metric
from onnxprune.testing.repairs import check_repair
from onnxprune.types import Plan, Scores

CONTEXT = Context(
    analyze(
        load(
            net(
                "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,8,1,1] w2, float[5,8,1,1] w3 | "
                "a = Conv(x, w1); r = Relu(a); b = Conv(r, w2); y = Conv(b, w3)"
            )
        )
    )
)
SCORES = CRITERIA.get("l2")(CONTEXT)


def counter() -> Callable[[], int]:
    """Return a function that counts its calls."""
    calls: list[None] = []

    def count() -> int:
        calls.append(None)
        return len(calls)

    return count


def test_a_violation_is_an_error_of_ours_and_a_failed_assertion() -> None:
    assert issubclass(ContractError, OnnxpruneError) and issubclass(ContractError, AssertionError)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda scores, call: {n: v[:-1] for n, v in scores.items()}, "8 finite float64"),
        (lambda scores, call: {n: v.astype(np.float32) for n, v in scores.items()}, "float32"),
        (lambda scores, call: {n: v * np.nan for n, v in scores.items()}, "finite"),
        (lambda scores, call: {n: v + call for n, v in scores.items()}, "differ between two calls"),
        (lambda scores, call: scores if call == 1 else {}, "different groups"),
    ],
)
def test_criterion(change: Callable[[Scores, int], Scores], sentence: str) -> None:
    count = counter()
    with pytest.raises(ContractError, match=sentence):
        check_criterion(lambda context: change(SCORES, count()), CONTEXT)


def ones(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Rank all steps alike."""
    return Ranking(np.ones(len(steps)), False)


def test_allocator() -> None:
    check_allocator(ones, CONTEXT, SCORES, Constraints(round_to=2))
    count = counter()

    def spoil(context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
        next(iter(scores.values()))[:] = 0
        return ones(context, scores, steps)

    broken: list[tuple[Any, str]] = [
        (lambda *_: np.ones(3), "must be a Ranking"),
        (lambda *_: Ranking(np.ones(1), False), "one per step"),
        (lambda c, s, steps: Ranking(np.full(len(steps), np.inf), False), "finite"),
        (lambda c, s, steps: Ranking(np.full(len(steps), count()), False), "different rankings"),
        (spoil, "changed in place"),
    ]
    for allocator, sentence in broken:
        scores = {name: values.copy() for name, values in SCORES.items()}
        with pytest.raises(ContractError, match=sentence):
            check_allocator(allocator, CONTEXT, scores)


def test_method() -> None:
    analysis = CONTEXT.analysis
    search = Search(CONTEXT, Constraints({"macs": 0.5 * analysis.cost().macs}))

    def keep(count: int) -> Plan:
        return search.plan({g.name: tuple(range(count)) for g in analysis.groups})

    check_method(lambda search: keep(3), search)
    with pytest.raises(ContractError, match="misses a budget"):
        check_method(lambda search: keep(7), search)
    count = counter()
    with pytest.raises(ContractError, match="different plans"):
        check_method(lambda search: keep(1 + count()), search)
    with pytest.raises(ContractError, match="same groups"):
        check_method(lambda search: replace(keep(3), sizes={}), search)


def test_repair() -> None:
    plan = CONTEXT.analysis.plan({g.name: (0, 2, 3) for g in CONTEXT.analysis.groups})

    def with_weight(value: float) -> Callable[..., Model]:
        def repair(analysis: Any, plan: Plan, pruned: Model, context: Context) -> Model:
            copy = pruned.edit()
            for tensor in copy.proto.graph.initializer:
                weight = np.full(list(tensor.dims), value, np.float32)
                tensor.raw_data = weight.tobytes()
            return load(copy.proto)

        return repair

    check_repair(with_weight(1.0), CONTEXT, plan)
    with pytest.raises(ContractError, match="NaN or infinity"):
        check_repair(with_weight(np.inf), CONTEXT, plan)
    with pytest.raises(ContractError, match="outputs are a, not y"):
        other = net("float[2,4,6,6] x | float[8,4,3,3] w1 | a = Conv(x, w1) | float[2,8,4,4] a")
        check_repair(lambda *_: load(other), CONTEXT, plan)


def test_engine() -> None:
    class Broken(Compiled):
        outputs = ("y",)

        def run(self, feeds: object) -> dict[str, np.ndarray]:
            return {"z": np.zeros(1)}

    engine = ENGINES.get("onnxruntime")
    wrong = type("Wrong", (type(engine),), {"compile": lambda *_: Broken()})
    with pytest.raises(AssertionError, match=r"run returns \['z'\], outputs are \['y'\]"):
        check_engine(
            wrong("onnxruntime", engine.provider, engine.install, {}),
            residual(),
            {},
        )


def test_metric() -> None:
    class Forgetful(TopK):
        def update(self, outputs: Any, labels: Any) -> None:
            if not self.n:
                super().update(outputs, labels)

    class Heavy(TopK):
        def estimate(self, weights: Any = None, classes: Any = None) -> Any:
            return super().estimate(None, classes)

    rng = np.random.default_rng(4)
    batches = [
        ({"y": rng.normal(size=(1, 8))}, {"labels": rng.integers(0, 8, 1)}) for _ in range(6)
    ]
    for broken, sentence in ((Forgetful, "were counted"), (Heavy, "weight of zero")):
        with pytest.raises(AssertionError, match=sentence):
            check_metric(lambda made=broken: made(1, MetricOptions()), batches)
    with pytest.raises(AssertionError, match="is missing"):
        check_metric(lambda: object(), [])  # type: ignore[arg-type, return-value]
