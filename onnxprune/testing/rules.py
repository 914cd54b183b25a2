"""Contract of rows of the rule table."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import VerificationError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.testing.contract import ContractError
from onnxprune.types import Plan

SEEN = 1e-4  # relative change of the output below which a plan proves nothing


def check_rule(
    op: str,
    model: Model,
    *,
    allow_mixing: Collection[str] = (),
    plans: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
) -> None:
    """Check the contract of a row: cutting channels that pass the op equals masking them.

    Parameters
    ----------
    op
        Name of the row: "OP" or "domain::OP".
    model
        A small model that onnxruntime runs, with the op between layers that can be cut.
    allow_mixing
        Operators that `analyze` opens for pruning although they mix channels.
    plans
        Number of random plans; each group loses at least one channel in each.
    seed
        Seed of the plans.
    tolerance
        Largest relative difference; None = that of `verify`.

    Raises
    ------
    ContractError
        The model lacks the op, no channel that passes it can be cut, no plan changes the output, or
        a length differs from the row's prediction.
    VerificationError
        The cut model does not run, or differs from the masked original.
    """
    analysis = analyze(model, allow_mixing=allow_mixing)
    _check_reached(analysis, op)
    rng = np.random.default_rng(seed)
    changed = 0.0
    for _ in range(plans):
        plan = _make_plan(analysis, rng)
        pruned = cut(analysis, plan)
        result = verify(analysis, plan, pruned, tolerance=tolerance)
        if result.difference > result.tolerance:
            raise VerificationError(
                "rule-contract",
                f"the row of {op!r} is wrong: the cut model differs from the masked original by "
                f"{result.difference:.2g} (limit {result.tolerance:.2g})",
            )
        _check_lengths(analysis, plan, pruned, op)
        changed = max(changed, result.masked_difference)
    # a plan of channels that do not reach the output passes with any row
    if changed < SEEN:
        raise ContractError(
            "rule-contract",
            f"the model proves nothing about {op!r}: plans change the output by {changed:.2g} at "
            f"most (needed {SEEN:g}); use larger weights",
        )


def _check_reached(analysis: Analysis, op: str) -> None:
    """Raise ContractError if the op is missing or all channels that pass it are frozen."""
    domain, _, name = op.rpartition("::")
    nodes = [n for n in analysis.nodes if n.op_type == name and (n.domain == domain or not domain)]
    if not nodes:
        raise ContractError("rule-contract", f"the model has no node of {op!r}")
    tensors = [tensor for node in nodes for tensor in (*node.input, *node.output)]
    if any(_has_live_axis(analysis, tensor) for tensor in tensors):
        return
    reasons = "; ".join(dict.fromkeys(_list_reasons(analysis, tensors)))
    raise ContractError("rule-contract", f"no channel that passes {op!r} can be cut: {reasons}")


def _has_live_axis(analysis: Analysis, tensor: str) -> bool:
    """Return True if channels of a tensor can be cut."""
    axes = analysis.tensor_axes(tensor) or ()
    return any(ids is not None and analysis.axes.live(ids) for ids in axes)


def _list_reasons(analysis: Analysis, tensors: Collection[str]) -> Iterator[str]:
    """Yield why axes of the tensors are frozen."""
    for tensor in tensors:
        if tensor in analysis.tensors:
            for frozen in analysis.why(tensor):
                yield f"{frozen.tensor} axis {frozen.axis}: {frozen.reason}"


def _make_plan(analysis: Analysis, rng: np.random.Generator) -> Plan:
    """Return a plan that removes a random number of random channels of each group."""
    kept = {}
    for group in analysis.groups:
        if group.size > 1:
            count = int(rng.integers(1, group.size))
            channels = rng.choice(group.size, count, replace=False)
            kept[group.name] = tuple(sorted(channels.tolist()))
    return analysis.plan(kept)


def _check_lengths(analysis: Analysis, plan: Plan, pruned: Model, op: str) -> None:
    """Raise ContractError if an axis of the cut model is not as long as the analysis predicts."""
    removed, shapes = analysis.removed(plan.kept), infer(pruned)
    for name in analysis.tensors:
        axes, shape = analysis.tensor_axes(name) or (), shapes.shape(name)
        if shape is None or len(shape) != len(axes):
            continue
        for axis, (ids, length) in enumerate(zip(axes, shape, strict=True)):
            if ids is None or not isinstance(length, int):
                continue
            predicted = int(analysis.keep(ids, removed).sum())
            if length != predicted:
                raise ContractError(
                    "rule-contract",
                    f"axis {axis} of {name!r} has length {length} after the cut; the row of "
                    f"{op!r} predicts {predicted}",
                )
