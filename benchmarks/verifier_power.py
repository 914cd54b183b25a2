"""Power of the verification: corruptions of right cuts that it catches, by their effect.

    python -m benchmarks.verifier_power [--networks 400] [--json FILE]

Random networks of tests/robustness/realistic.py, every third in float16, and models of the zoo are
cut at random. A right cut is corrupted in one place, and `verify` compares it with the masked
original. The effect is the largest difference between the outputs of the right and of the corrupted
cut on the same inputs, relative to the largest output. Of quantized networks in float16 it is taken
in float32: a rounding to float16 there may move a quantized value by a step, whose effect is larger
than that of the change itself. From LIMITS on, every corruption must be caught; below, the rounding
of the models hides it.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto

from benchmarks.runner import Row, make_parser, markdown, write_results
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.half import to_half
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.weights import from_array
from onnxprune.surgery.compare import relative_difference
from onnxprune.surgery.cut import cut
from onnxprune.surgery.integers import is_quantized
from onnxprune.surgery.verify import verify
from onnxprune.surgery.widen import widen, widen_feeds
from onnxprune.types import Plan
from tests.robustness.draws import pick
from tests.robustness.hunting import runs
from tests.robustness.realistic import network

Feeds = Mapping[str, np.ndarray]
LIMITS = {"float32": 1e-4, "float16": 4e-3}  # effects that must be caught
HALF_EVERY = 3
TIMES = 3  # of each corruption on each cut
ZOO = "cifar10_resnet20 vww_mobilenetv1_0.25 cifar10_vit_pgd_2_3_16 imagenet_squeezenet1.1".split()
CAUGHT, REJECTED, MISSED = "caught", "rejected", "missed"
REPLACEMENTS = {
    "Relu": "Abs LeakyRelu Sigmoid Softplus",
    "Sigmoid": "Tanh HardSigmoid Relu",
    "Tanh": "Sigmoid Softsign",
    "Add": "Sub Mul Max",
    "Mul": "Add Div",
    "Sub": "Add",
    "Div": "Mul",
    "Erf": "Tanh",
    "Softmax": "LogSoftmax Hardmax",
    "MaxPool": "AveragePool",
    "GlobalAveragePool": "GlobalMaxPool",
    "ReduceMean": "ReduceSum ReduceMax",
    "Sqrt": "Abs",
    "Exp": "Relu",
}


@dataclass(frozen=True)
class RightCut:
    """A model that was cut correctly.

    Attributes
    ----------
    analysis, plan
        What it was cut by.
    pruned
        The cut model.
    feeds
        One batch of inputs.
    precision
        "float32" or "float16".
    """

    analysis: Analysis
    plan: Plan
    pruned: Model
    feeds: Feeds
    precision: str

    def floats(self) -> list[str]:
        """Return the names of weights with filters."""
        weights = self.pruned.weights
        names = [n for n, w in weights.items() if len(w.shape) > 1 and w.shape[0] > 1]
        return sorted(n for n in names if weights[n].array().dtype.kind == "f")

    def with_values(self, name: str, values: np.ndarray) -> Model:
        """Return the cut model with other values of a weight."""
        copy = self.pruned.edit()
        copy.weights[name] = from_array(values)
        return copy.freeze()


Corruption = Callable[[RightCut, np.random.Generator], Model | None]  # None: nothing to corrupt


def swap_filters(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Exchange two filters of one weight."""
    if not (names := right.floats()):
        return None
    name = str(pick(rng, names))
    values = np.array(right.pruned.weights[name].array())
    first, second = rng.choice(len(values), 2, replace=False)
    values[[first, second]] = values[[second, first]]
    return right.with_values(name, values)


def double_weight(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Double one value of a weight."""
    if not (names := right.floats()):
        return None
    name = str(pick(rng, names))
    values = np.array(right.pruned.weights[name].array())
    values[tuple(int(rng.integers(n)) for n in values.shape)] *= 2
    return right.with_values(name, values)


def cut_another_channel(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Keep a removed channel of one group in place of a kept one."""
    kept = {name: list(indices) for name, indices in right.plan.kept.items()}
    sizes = {group.name: group.size for group in right.analysis.groups}
    names = sorted(n for n in kept if len(kept[n]) < sizes[n])
    if not names:
        return None
    name = str(pick(rng, names))
    removed = sorted(set(range(sizes[name])) - set(kept[name]))
    kept[name][int(rng.integers(len(kept[name])))] = int(pick(rng, removed))
    return cut(right.analysis, right.analysis.plan({**kept, name: sorted(kept[name])}))


def slice_wrong_index(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Give one channel of one weight the values of another channel of the original."""
    original = right.analysis.model.weights
    names = []
    for name in right.floats():
        before = original[name].shape if name in original else ()
        shape = right.pruned.weights[name].shape
        if len(before) == len(shape) and before != shape:
            names.append(name)
    if not names:
        return None
    name = str(pick(rng, names))
    values = np.array(right.pruned.weights[name].array())
    source = original[name].array()
    axes = [a for a, n in enumerate(values.shape) if source.shape[a] != n]
    axis = int(pick(rng, axes))
    # of the other axes, as many positions as are left: the values are wrong in any case
    cropped = source[tuple(slice(n if a != axis else None) for a, n in enumerate(values.shape))]
    to, index = int(rng.integers(values.shape[axis])), int(rng.integers(source.shape[axis]))
    np.moveaxis(values, axis, 0)[to] = np.moveaxis(cropped, axis, 0)[index]
    return right.with_values(name, values)


def change_attribute(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Change one number in an attribute."""
    copy = right.pruned.edit()
    kinds = (AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS)
    items = [a for node in copy.proto.graph.node for a in node.attribute if a.type in kinds]
    if not items:
        return None
    item = pick(rng, items)
    if item.type == AttributeProto.FLOAT:
        item.f = item.f * 2 + 0.1
    elif item.type == AttributeProto.INT:
        item.i = 1 - item.i if item.i in (0, 1) else item.i + int(pick(rng, (-1, 1)))
    elif item.ints:
        item.ints[int(rng.integers(len(item.ints)))] += int(pick(rng, (-1, 1)))
    return copy.freeze()


def replace_operator(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Give one node another operator."""
    copy = right.pruned.edit()
    nodes: list[NodeProto] = [n for n in copy.proto.graph.node if n.op_type in REPLACEMENTS]
    if not nodes:
        return None
    node = pick(rng, nodes)
    node.op_type = str(pick(rng, REPLACEMENTS[node.op_type].split()))
    return copy.freeze()


def rotate_indices(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Rotate a list of integers: indices, sizes, axes or lengths."""
    lists = {}
    for name, weight in right.pruned.weights.items():
        if len(weight.shape) == 1 and weight.shape[0] > 1:
            values = weight.array()
            if values.dtype.kind == "i" and len(np.unique(values)) > 1:
                lists[name] = values
    if not lists:
        return None
    name = str(pick(rng, sorted(lists)))
    return right.with_values(name, np.roll(lists[name], 1))


def drop_output(right: RightCut, rng: np.random.Generator) -> Model | None:
    """Remove one of several outputs of the graph."""
    copy = right.pruned.edit()
    outputs = copy.proto.graph.output
    if len(outputs) < 2:
        return None
    del outputs[int(rng.integers(len(outputs)))]
    return copy.freeze()


CORRUPTIONS: dict[str, Corruption] = {
    "two filters swapped": swap_filters,
    "one weight doubled": double_weight,
    "another channel cut": cut_another_channel,
    "one channel of a weight from another index": slice_wrong_index,
    "an attribute changed": change_attribute,
    "an operator replaced": replace_operator,
    "a list of integers rotated": rotate_indices,
    "an output dropped": drop_output,
}


def cut_at_random(model: Model, feeds: Feeds, seed: int, precision: str) -> RightCut | None:
    """Cut a third to all but one of the channels of every group; None without groups."""
    rng = np.random.default_rng(seed)
    analysis = analyze(model)
    kept = {}
    for group in analysis.groups:
        if group.size > 1:
            count = int(rng.integers(max(1, group.size // 3), group.size))
            kept[group.name] = sorted(rng.choice(group.size, count, replace=False).tolist())
    if not kept:
        return None
    plan = analysis.plan(kept)
    right = RightCut(analysis, plan, cut(analysis, plan), feeds, precision)
    if not verify(analysis, plan, right.pruned, feeds).ok:
        raise SystemExit(f"a right cut is rejected (seed {seed})")
    return right


def try_corruption(right: RightCut, corrupt: Corruption, rng: np.random.Generator) -> Row | None:
    """Return effect and result of one corruption; None where it does not apply."""
    bad = corrupt(right, rng)
    if bad is None:
        return None
    try:
        result = verify(right.analysis, right.plan, bad, right.feeds)
    except OnnxpruneError:
        return {"effect": None, "result": REJECTED}
    row: Row = {"effect": _effect(right, bad), "result": MISSED if result.ok else CAUGHT}
    return {**row, "ties": True} if result.ok and result.ties else row


def _effect(right: RightCut, bad: Model) -> float:
    """Return the largest relative difference of any output, infinite if the model does not run."""
    pruned, feeds = right.pruned, right.feeds
    if right.precision == "float16" and is_quantized(pruned):
        pruned, bad, feeds = widen(pruned), widen(bad), widen_feeds(feeds)
    try:
        expected = Session(pruned, optimize=False).run(feeds)
        actual = Session(bad, optimize=False).run(feeds)
    except OnnxpruneError:
        return float("inf")
    if actual.keys() != expected.keys():
        return float("inf")
    return max(relative_difference(actual[n], expected[n]) for n in expected)


def cuts(numbers: range, zoo: Path | None = None) -> Iterator[tuple[str, RightCut]]:
    """Yield right cuts of random networks and of the models of a zoo, with their names."""
    for number in numbers:
        net = network(number)
        if not runs(net):
            continue
        model = load(net.model.SerializeToString())
        feeds = net.feeds(np.random.default_rng(number))
        half = {w.array().dtype for w in model.weights.values()} & {np.dtype(np.float16)}
        precision = "float16" if half else "float32"
        if not half and number % HALF_EVERY == 0:
            try:
                model, precision = to_half(model), "float16"
                analyze(model)
                Session(model, optimize=False).run(feeds)
            except Exception:  # the converter does not know all operators
                continue
        right = cut_at_random(model, feeds, number, precision)
        if right:
            yield f"network {number}", right
    for index, name in enumerate(ZOO if zoo else ()):
        model = load(zoo / f"{name}.onnx")
        right = cut_at_random(model, example_feeds(model), index, "float32")
        if right:
            yield name, right


def measure(numbers: range, zoo: Path | None = None, times: int = TIMES) -> list[Row]:
    """Try every corruption some times on every cut."""
    rows = []
    for name, right in cuts(numbers, zoo):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        for what, corrupt in [*CORRUPTIONS.items()] * times:
            row = try_corruption(right, corrupt, rng)
            if row is not None:
                rows.append({"model": name, "what": what, "precision": right.precision, **row})
                if is_failure(rows[-1]):
                    print(rows[-1], flush=True)
    return rows


def is_failure(row: Row) -> bool:
    """Return whether a corruption was missed although its effect reaches the limit."""
    return row["result"] == MISSED and row["effect"] >= LIMITS[row["precision"]]


def summarize(rows: list[Row]) -> dict[str, Any]:
    """Return counts per precision and corruption."""
    table = []
    for precision, limit in LIMITS.items():
        for what in CORRUPTIONS:
            these = [r for r in rows if (r["what"], r["precision"]) == (what, precision)]
            missed = [r["effect"] for r in these if r["result"] == MISSED]
            caught = [r["effect"] for r in these if r["result"] == CAUGHT]
            table.append(
                {
                    "precision": precision,
                    "what": what,
                    "tried": len(these),
                    "rejected": len(these) - len(missed) - len(caught),
                    "caught": sum(e >= limit for e in caught),
                    "missed": sum(e >= limit for e in missed),
                    "caught_below": sum(e < limit for e in caught),
                    "missed_below": sum(0 < e < limit for e in missed),
                    "without_effect": sum(e == 0 for e in missed),
                    "largest_missed": max(missed, default=0.0),
                }
            )
    return {"models": len({r["model"] for r in rows}), "limits": LIMITS, "rows": table}


def report(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = []
    for row in results["rows"]:
        counts = [row[k] for k in ("tried", "rejected", "caught", "missed", "caught_below")]
        counts += [row["missed_below"], row["without_effect"]]
        cells = [row["precision"], row["what"], *map(str, counts), f"{row['largest_missed']:.1g}"]
        lines.append(cells)
    limits = ", ".join(f"{limit:g} in {name}" for name, limit in results["limits"].items())
    tried, missed = (sum(row[k] for row in results["rows"]) for k in ("tried", "missed"))
    head = "precision|corruption|tried|not a valid model|caught|missed|caught below the limit"
    head += "|missed below the limit|without any effect|largest effect missed"
    return (
        f"{tried} corruptions of {results['models']} right cuts; missed from the limit on "
        f"({limits}): {missed}.\n\n{markdown(head.split('|'), lines)}"
    )


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = make_parser(__doc__ or "", "zoo", "json")
    parser.add_argument("--networks", type=int, default=400, help="number of random networks")
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    zoo = options.zoo if options.zoo.is_dir() else None
    results = summarize(measure(range(options.first, options.first + options.networks), zoo))
    write_results(options.json, results)
    print(report(results))
    raise SystemExit(bool(sum(row["missed"] for row in results["rows"])))


if __name__ == "__main__":
    main()
