"""inspect: what can be cut, what cannot, and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import emit, model_argument, recipe_from, recipe_options, shared
from onnxprune.errors import plural, unknown

if TYPE_CHECKING:
    from onnxprune.analysis.groups import Analysis

_MOST_GROUPS = 40
_MOST_REASONS = 12


@click.command()
@model_argument()
@click.option(
    "--why",
    metavar="TENSOR",
    help="Explain which axes of this tensor (or this node's outputs) are frozen, and why.",
)
@recipe_options("analyze")
@shared
def inspect(
    model: str, why: str | None, recipe_file: str | None, as_json: bool, **values: Any
) -> None:
    """Show which channels of MODEL can be pruned, which cannot, and why."""
    from onnxprune.run.pipeline import analyzed

    analysis = analyzed(model, recipe_from(recipe_file, values))
    if why is not None:
        _why(analysis, why, as_json)
    elif as_json:
        emit(_facts(analysis))
    else:
        click.echo(_page(analysis))


def _facts(analysis: Analysis) -> dict[str, Any]:
    """The analysis as JSON."""
    from onnxprune.report.collect import frozen_rows

    groups = [
        {
            "name": g.name,
            "size": g.size,
            "exact": g.exact,
            "sites": [
                {"tensor": s.tensor, "axis": s.axis, "node": s.node, "role": s.role}
                for s in g.sites
            ],
        }
        for g in analysis.groups
    ]
    return {
        "cost": analysis.cost().as_dict(),
        "prunable_macs": analysis.prunable_macs(),
        "groups": groups,
        "frozen": list(frozen_rows(analysis.frozen)),
    }


def _page(analysis: Analysis) -> str:
    """The analysis for a person."""
    from onnxprune.report.terminal import amount, columns

    cost = analysis.cost()
    ops = Counter(n.op_type for n in analysis.model.proto.graph.node)
    lines = [
        f"{plural(sum(ops.values()), 'node')}: "
        + ", ".join(f"{op} {n}" for op, n in ops.most_common(10))
        + (", ..." if len(ops) > 10 else ""),
        f"{amount(cost.macs)} MACs, {amount(cost.params)} params, {amount(cost.size_bytes, 'B')}, activations {amount(cost.activation_bytes, 'B')}",
        f"{plural(len(analysis.groups), 'group')} of coupled channels, "
        f"{plural(sum(g.size for g in analysis.groups), 'channel')}; "
        f"{analysis.prunable_macs():.0%} of the MACs are in prunable nodes",
    ]
    if analysis.groups:
        largest = sorted(analysis.groups, key=lambda g: (-g.size, g.name))[:_MOST_GROUPS]
        rows = [("group", "channels", "sites", "exact")] + [
            (g.name, str(g.size), str(len(g.sites)), "yes" if g.exact else "no") for g in largest
        ]
        lines += ["", columns(rows)] + (
            [f"... and {len(analysis.groups) - _MOST_GROUPS} more (all: --json)"]
            if len(analysis.groups) > _MOST_GROUPS
            else []
        )
    reasons = Counter((f.op, f.reason) for f in analysis.frozen)
    if reasons:
        reason_rows = [("frozen axes", "by", "reason")] + [
            (str(n), op, reason) for (op, reason), n in reasons.most_common(_MOST_REASONS)
        ]
        lines += [
            "",
            columns(reason_rows, left=3),
            "One tensor: onnxprune inspect MODEL --why TENSOR",
        ]
    return "\n".join(lines)


def _why(analysis: Analysis, name: str, as_json: bool) -> None:
    from onnxprune.report.collect import frozen_rows

    rows = frozen_rows(f for tensor in _tensors(analysis, name) for f in analysis.why(tensor))
    if as_json:
        emit(list(rows))
    elif not rows:
        click.echo(f"{name}: no axis is frozen")
    for row in rows if not as_json else ():
        by = " by " + " ".join(filter(None, (row["op"], row["node"]))) if row["node"] else ""
        click.echo(f"{row['tensor']} axis {row['axis']}: frozen{by}: {row['reason']}")


def _tensors(analysis: Analysis, name: str) -> list[str]:
    """The tensor of that name, or the outputs of the node of that name; UsageError where there is neither."""
    graph = analysis.model.proto.graph
    known = (
        {v.name for v in graph.input}
        | set(analysis.model.weights)
        | {o for n in graph.node for o in n.output if o}
    )
    if name in known:
        return [name]
    nodes = {n.name: [o for o in n.output if o] for n in graph.node if n.name}
    if name in nodes:
        return nodes[name]
    raise unknown("tensor", name, known | nodes.keys())
