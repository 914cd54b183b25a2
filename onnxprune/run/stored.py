"""Costs of the original and of the artifact as their files store them."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.stored import count_params, count_stored
from onnxprune.analysis.walk import analyze
from onnxprune.errors import plural
from onnxprune.ir.model import Model
from onnxprune.ir.nodes import nested
from onnxprune.report.data import Costs


def count_original(source: Model, analysis: Analysis) -> Costs:
    """Return the costs of the original: counted, and params and bytes as the file stores them.

    A plan counts weights that are stored as copies once, and those that no node uses not at all.
    """
    return Costs.from_json(count_stored(source, analysis.original.cost()).as_dict())


def count_artifact(model: Model, analysis: Analysis) -> Costs:
    """Return the costs of the artifact, at the shapes at which the original's are counted."""
    counted = analyze(model).at(analysis.counted_at.inputs).cost()
    return Costs.from_json(count_stored(model, counted).as_dict())


def describe_unused(source: Model) -> Iterator[str]:
    """Yield a sentence if the file stores weights that no node uses."""
    unused = [source.weights[name] for name in _find_unused(source)]
    params = sum(map(count_params, unused))
    if params:
        yield (
            f"no node uses {plural(len(unused), 'weight')} of the original "
            f"({plural(params, 'parameter')}); the pruned model does not store them"
        )


def describe_added(pruned: Model, repaired: Model) -> str:
    """Return how many biases a repair added to a cut model, "" if none."""
    added = [w for name, w in repaired.weights.items() if name not in pruned.weights]
    params = sum(map(count_params, added))
    # where a layer had no bias, or shared that of another one
    return f"{plural(len(added), 'bias', 'biases')} added ({params} parameters)" if params else ""


def _find_unused(source: Model) -> list[str]:
    """Return the initializers that neither a node nor an output refers to, in order."""
    used: set[str] = set()
    for graph in nested(source.proto.graph):
        used.update(name for node in graph.node for name in node.input)
        used.update(output.name for output in graph.output)
    return [name for name in source.weights if name not in used]
