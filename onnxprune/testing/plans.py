"""Contract tests that a plug-in can run: of a row of the rule table, and of what an allocator or a search gives."""

from __future__ import annotations

import json
from collections.abc import Collection

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import OnnxpruneError, VerificationError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import Model
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
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
    """Contract of a row: on `model`, channels that pass the op can be cut, and the cut is the masked original.

    Parameters
    ----------
    op
        As the row is named: "OP", or "domain::OP".
    model
        A small model that onnxruntime runs, the op between layers that can be cut.
    plans
        Random plans to try, each group losing at least one channel in each.

    Raises
    ------
    OnnxpruneError
        The op is not in the model, nothing that passes it can be cut, no plan changes the output, or a length is not as the row says.
    VerificationError
        The cut model does not run, or differs from the masked original.
    """
    analysis = analyze(model, allow_mixing=allow_mixing)
    _passes(analysis, op)
    rng = np.random.default_rng(seed)
    changed = 0.0
    for _ in range(plans):
        plan = _random_plan(analysis, rng)
        pruned = cut(analysis, plan)
        found = verify(analysis, plan, pruned, tolerance=tolerance)
        if found.difference > found.tolerance:
            raise VerificationError(
                "rule-contract",
                f"the row of {op!r} is wrong: cut and masked differ by {found.difference:.2g}, more than {found.tolerance:.2g}",
            )
        _lengths(analysis, plan, pruned, op)
        changed = max(changed, found.masked_difference)
    if changed < SEEN:
        raise OnnxpruneError(
            "rule-contract",
            f"no plan changes the output by more than {SEEN}: the model proves nothing about {op!r}",
        )


def check_plan(analysis: Analysis, plan: Plan) -> None:
    """Contract of a plan: of this model, the same after JSON, and its cut is the masked original.

    Raises
    ------
    UsageError
        The plan is for another model, or names what is not there.
    OnnxpruneError
        Sizes and kept channels do not belong together, or the plan is not plain data.
    VerificationError
        The cut model does not run, or differs from the masked original.
    """
    analysis.check(plan)
    if set(plan.kept) != set(plan.sizes) or dict(plan.options) != dict(analysis.options):
        raise OnnxpruneError(
            "plan-contract",
            "a plan names the same groups in kept and sizes, and carries the options of its analysis",
        )
    if Plan.from_json(json.loads(json.dumps(plan.to_json()))) != plan:
        raise OnnxpruneError(
            "plan-contract", "the plan is not the same after it was written and read"
        )
    pruned = cut(analysis, plan)
    found = verify(analysis, plan, pruned)
    if not found.ok:
        raise VerificationError(
            "plan-contract",
            f"cut and masked differ by {found.difference:.2g}, more than {found.tolerance:.2g}",
        )


def _passes(analysis: Analysis, op: str) -> None:
    """OnnxpruneError where the op is not there or all its axes are frozen."""
    domain, _, name = op.rpartition("::")
    nodes = [n for n in analysis.nodes if n.op_type == name and (n.domain == domain or not domain)]
    if not nodes:
        raise OnnxpruneError("rule-contract", f"the model has no node of {op!r}")
    reasons = []
    for node in nodes:
        for tensor in (*node.input, *node.output):
            axes = analysis.tensor_axes(tensor)
            if axes is None:
                continue
            if any(ids is not None and analysis.axes.live(ids) for ids in axes):
                return
            reasons += [f"{f.tensor} axis {f.axis}: {f.reason}" for f in analysis.why(tensor)]
    raise OnnxpruneError(
        "rule-contract",
        f"no channel that passes {op!r} can be cut: {'; '.join(dict.fromkeys(reasons))}",
    )


def _random_plan(analysis: Analysis, rng: np.random.Generator) -> Plan:
    kept = {}
    for group in analysis.groups:
        if group.size > 1:
            kept[group.name] = tuple(
                sorted(
                    rng.choice(group.size, int(rng.integers(1, group.size)), replace=False).tolist()
                )
            )
    return analysis.plan(kept)


def _lengths(analysis: Analysis, plan: Plan, pruned: Model, op: str) -> None:
    """The lengths that the analysis foretells are those of the cut model."""
    removed, shapes = analysis.removed(plan.kept), infer(pruned)
    for name in analysis.tensors:
        axes, shape = analysis.tensor_axes(name) or (), shapes.shape(name)
        if shape is None or len(shape) != len(axes):
            continue
        for i, (ids, size) in enumerate(zip(axes, shape, strict=True)):
            if ids is None or not isinstance(size, int):
                continue
            predicted = int(analysis.keep(ids, removed).sum())
            if size != predicted:
                raise OnnxpruneError(
                    "rule-contract",
                    f"axis {i} of {name!r} has length {size} after the cut; the rule of {op!r} "
                    f"predicts {predicted}",
                )
