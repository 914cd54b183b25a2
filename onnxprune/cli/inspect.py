"""Command inspect: what can be pruned, what cannot, and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.command import command
from onnxprune.cli.common import emit, model_argument, recipe_from, recipe_options, shared
from onnxprune.errors import MOST_NEAR, plural, printable, unknown

if TYPE_CHECKING:
    from onnxprune.analysis.groups import Analysis
    from onnxprune.ir.model import Model
    from onnxprune.types import Cost

# of the tables, for a terminal; --json lists all
_MOST_OPS = 10
_MOST_GROUPS = 40
_MOST_REASONS = 12
_MOST_DEPTH = 4


@command(
    "onnxprune inspect model.onnx  # what can be pruned, and why the rest cannot",
    "onnxprune inspect model.onnx --why TENSOR  # why this tensor is frozen",
    "onnxprune inspect model.onnx --tree  # costs by the names of nodes",
)
@model_argument()
@click.option(
    "--why",
    metavar="TENSOR",
    help="Explain which axes of this tensor (or of this node's outputs) are frozen, and why.",
)
@click.option("--tree", is_flag=True, help="Show costs as a tree, by the prefixes of names.")
@recipe_options("analyze", also=("shape",))
@shared
def inspect(
    model: str, why: str | None, tree: bool, recipe_file: str | None, as_json: bool, **values: Any
) -> None:
    """Show which channels of MODEL can be pruned, which cannot, and why."""
    from onnxprune.analysis.copies import describe_copies
    from onnxprune.analysis.stored import count_stored
    from onnxprune.ir.io import load
    from onnxprune.run.analysis import analyze_for, count_at_shapes

    recipe = recipe_from(recipe_file, values)
    source = load(model)
    # this command takes no data: dynamic axes have the lengths of --shape, or example lengths
    analysis = count_at_shapes(analyze_for(source, recipe), recipe)
    # what the file stores, copies of a weight and unused ones included, as in a report
    cost = count_stored(source, analysis.cost())
    for warning in (*analysis.defects, *describe_copies(analysis.copies)):
        click.echo(f"warning: {warning}", err=True)
    if why is not None:
        _explain(analysis, why, as_json)
    elif tree:
        _show_tree(analysis, source, as_json)
    elif as_json:
        emit(_to_json(analysis, cost))
    else:
        click.echo(_format(analysis, cost))


def _to_json(analysis: Analysis, cost: Cost) -> dict[str, Any]:
    """Return the analysis as JSON."""
    from onnxprune.report.collect import frozen_rows
    from onnxprune.report.roles import find_roles
    from onnxprune.report.shares import describe_role, frozen_shares, group_shares

    shares, roles, groups = group_shares(analysis), find_roles(analysis), []
    for group in analysis.groups:
        sites = [
            {"tensor": site.tensor, "axis": site.axis, "node": site.node, "role": site.role}
            for site in group.sites
        ]
        row = {"name": group.name, "size": group.size, "exact": group.exact, "sites": sites}
        role = describe_role(analysis, group, roles)
        groups.append({**row, "macs_share": shares[group.name], "role": role})
    return {
        "cost": cost.as_dict(),
        "counted_at": analysis.counted_at.describe(),
        "not_counted": analysis.uncounted,
        "prunable_macs": analysis.prunable_macs(),
        "groups": groups,
        "defects": list(analysis.defects),
        "frozen": [row.to_json() for row in frozen_rows(analysis.frozen)],
        "frozen_shares": [
            {"op": op, "reason": reason, "macs_share": share}
            for (op, reason), share in frozen_shares(analysis).items()
        ],
    }


def _format(analysis: Analysis, cost: Cost) -> str:
    """Return the analysis as tables."""
    parts = [_format_model(analysis, cost)]
    if analysis.groups:
        parts.append(_format_groups(analysis))
    if analysis.frozen:
        parts.append(_format_reasons(analysis))
    return "\n\n".join(parts)


def _format_model(analysis: Analysis, cost: Cost) -> str:
    """Return operators, costs and the number of groups."""
    from onnxprune.report.text import amount

    ops = Counter(node.op_type for node in analysis.model.proto.graph.node)
    shown = [f"{printable(op)} {count}" for op, count in ops.most_common(_MOST_OPS)]
    if len(ops) > _MOST_OPS:
        shown.append("...")
    channels = sum(group.size for group in analysis.groups)
    uncounted = (
        (f"MACs not counted: {printable(analysis.uncounted)}",) if analysis.uncounted else ()
    )
    return "\n".join(
        (
            f"{plural(sum(ops.values()), 'node')}: {', '.join(shown)}",
            f"{amount(cost.macs)} MACs at {analysis.counted_at.describe()}, "
            f"{amount(cost.params)} params, "
            f"{amount(cost.size_bytes, 'B')}, "
            f"activations {amount(cost.activation_bytes, 'B')}",
            *uncounted,
            f"{plural(len(analysis.groups), 'group')} of coupled channels, "
            f"{plural(channels, 'channel')}; "
            f"{analysis.prunable_macs():.0%} of the MACs are in prunable nodes",
        )
    )


def _format_groups(analysis: Analysis) -> str:
    """Return the largest groups."""
    from onnxprune.report.roles import find_roles
    from onnxprune.report.shares import describe_role, group_shares
    from onnxprune.report.text import columns

    shares, roles = group_shares(analysis), find_roles(analysis)
    rows = [("group", "role", "channels", "sites", "exact", "MACs")]
    # by name among equals, so that the output does not depend on their order
    largest = sorted(analysis.groups, key=lambda group: (-group.size, group.name))
    for group in largest[:_MOST_GROUPS]:
        exact = "yes" if group.exact else "no"
        role = describe_role(analysis, group, roles)
        share = f"{shares[group.name]:.0%}"
        rows.append((group.name, role, str(group.size), str(len(group.sites)), exact, share))
    lines = [columns(rows, left=2)]
    more = len(analysis.groups) - _MOST_GROUPS
    if more > 0:
        lines.append(f"... and {more} more (all: --json)")
    lines.append(
        "MACs: share of those of all layers along these channels, which produce or read them; a "
        "layer between two groups counts for both"
    )
    return "\n".join(lines)


def _format_reasons(analysis: Analysis) -> str:
    """Return the most frequent reasons for frozen axes."""
    from onnxprune.report.shares import frozen_shares
    from onnxprune.report.text import columns

    shares = frozen_shares(analysis)
    reasons = Counter((frozen.op, frozen.reason) for frozen in analysis.frozen)
    rows = [("frozen axes", "MACs", "by", "reason")]
    for (op, reason), count in reasons.most_common(_MOST_REASONS):
        rows.append((str(count), f"{shares[op, reason]:.0%}", op or "model", reason))
    lines = (
        columns(rows, left=4),
        "MACs: share of those of layers with these axes, the most that opening them can free",
        "One tensor: onnxprune inspect MODEL --why TENSOR",
    )
    return "\n".join(lines)


def _show_tree(analysis: Analysis, source: Model, as_json: bool) -> None:
    """Print parameters, MACs and their prunable share by the prefixes of the names of nodes."""
    from onnxprune.report.shares import make_tree
    from onnxprune.report.text import amount, columns

    root = make_tree(analysis, source)
    if as_json:
        emit(root.to_json())
        return
    rows = [("node", "params", "MACs", "share", "prunable")]
    pending = [(root, "", 0)]
    while pending:
        branch, name, depth = pending.pop()
        # a chain of single branches is one line
        while len(branch.branches) == 1 and depth:
            (branch,) = branch.branches.values()
            name = f"{name}/{branch.name}"
        share = f"{branch.macs / max(root.macs, 1):.1%}"
        prunable = f"{branch.prunable / max(branch.macs, 1):.0%}"
        title = "  " * depth + printable(name or "model")
        rows.append((title, amount(branch.params), amount(branch.macs), share, prunable))
        if depth < _MOST_DEPTH:
            below = [(b, b.name, depth + 1) for b in branch.branches.values()]
            pending += reversed(below)
    click.echo(columns(rows))


def _explain(analysis: Analysis, name: str, as_json: bool) -> None:
    """Print the frozen axes of a tensor, or of a node's outputs, with the reasons."""
    from onnxprune.report.collect import frozen_rows

    frozen = [f for tensor in _find_tensors(analysis, name) for f in analysis.why(tensor)]
    rows = frozen_rows(frozen)
    if as_json:
        emit([row.to_json() for row in rows])
        return
    if not rows:
        click.echo(f"{name}: no axis is frozen")
    for row in rows:
        by = f" by {' '.join(filter(None, (row.op, row.node)))}" if row.node else ""
        # stdout escapes all but ends of lines, which a name may hold as well
        line = f"{row.tensor} axis {row.axis}: frozen{by}: {row.reason}"
        click.echo(printable(line))


def _find_tensors(analysis: Analysis, name: str) -> list[str]:
    """Return the tensor of that name, or the outputs of the node of that name.

    Raises
    ------
    UsageError
        There is neither.
    """
    graph = analysis.model.proto.graph
    tensors = {info.name for info in graph.input} | set(analysis.model.weights)
    nodes = {}
    for node in graph.node:
        # optional outputs that are not in use have empty names
        outputs = [output for output in node.output if output]
        tensors.update(outputs)
        if node.name:
            nodes[node.name] = outputs
    # a tensor and a node may share a name; only the tensor has axes of its own
    if name in tensors:
        return [name]
    if name in nodes:
        return nodes[name]
    raise unknown("tensor", name, tensors | nodes.keys(), most=MOST_NEAR)
