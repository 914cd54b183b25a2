"""Sequential least squares: every linear node is refitted to give, from the cut network's inputs, what the whole network gives.

The whole and the cut network run in lock-step. Where a node's output is added to a shortcut, the target also makes up for what
the shortcut has lost. Solved on taps (C * kh * kw unknowns an output), with a ridge towards the cut weights.
He et al. 2017 (channel pruning) for the idea; sequential inputs with dense targets and the residual term are what carried it.
Where an activation cuts off what lies beyond a bend, anything beyond it will do: the targets there follow the solution, which is
found again a few times (majorization; the error behind the activation never grows; Zhang et al. 2015, 1505.06798, for the aim).
Once all nodes of a part of the network are solved, they are refitted together (`joint`), where some samples can be left to judge it.
"""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import samples_of
from onnxprune.ir.io import Model
from onnxprune.repair.attention import lossy_products, refit_query
from onnxprune.repair.constants import with_means
from onnxprune.repair.fits import kept_values, own_weights
from onnxprune.repair.joint import refine
from onnxprune.repair.parts import parts
from onnxprune.repair.problem import Problem
from onnxprune.statistics.segmented_run import SegmentedRun
from onnxprune.types import Plan

MULTIPLICATIONS = 3e10  # for the moments of all nodes, each an equal share; as many positions as that allows are used
HELD = 64  # samples that judge a joint refit, at most
EFFORT = 1.5e12  # multiplications for the joint refits of all parts, each an equal share
LIVE_BYTES = 1_200_000_000  # of the activations of both networks at one place


def least_squares(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """The cut model with refitted weights and biases.

    Costs one pass of both networks over the data, which are kept in memory with the activations at one place of the graph, and
    the second moments of one node at a time, and some forty gradients a part. Where activations are large, some of the samples wait until they are smaller: there, a sample has many positions.
    """
    data = context.repair_data("repair 'least-squares'")
    removed = analysis.removed(plan.kept)
    model, fits = own_weights(analysis, with_means(analysis, plan, pruned, context), removed)
    lossy = lossy_products(analysis, removed, fits)
    waiting, held = _held_apart(
        list(data.batches(context.batch_size)), data.inputs.batch is not None
    )
    first, waiting = waiting[: held + 1], waiting[held + 1 :]
    whole = SegmentedRun(analysis.model, first, threads=context.threads, shapes=analysis.shapes)
    cut = SegmentedRun(model, first, threads=context.threads)

    def mix_queries(before: int) -> None:
        while lossy and cut.place(lossy[0][0]) < before:
            out, makers = lossy.pop(0)
            refit_query(analysis, removed, model, makers, out, cut, whole)

    done = 0
    divided = parts(cut, fits)
    for part in divided:
        _let_in(waiting, whole, cut)
        begin = cut.mark()
        problems = []
        for fit in part.fits:
            context.progress(done / len(fits), f"{done} of {len(fits)} layers")
            done += 1
            place = cut.place(fit.linear.out)
            mix_queries(place)
            cut.advance(place)
            whole.advance(whole.place(fit.target) + 1, keep=[fit.target, *part.exits])
            if not cut.has(cut.nodes[place].input[0]) or not whole.has(fit.target):
                continue
            problem = Problem.of(
                fit,
                model,
                cut.nodes[place],
                cut,
                whole,
                MULTIPLICATIONS / len(fits),
                context.seed,
                held,
            )
            if problem is not None:
                problem.solve(model)
                problems.append(problem)
        mix_queries(part.end)
        cut.advance(part.end)
        whole.advance(max((whole.place(e) for e in part.exits), default=-1) + 1, keep=part.exits)
        wanted = {
            e: kept_values(analysis, removed, e, whole.values(e))
            for e in part.exits
            if whole.has(e) and e in analysis.record.tensors
        }
        if refine(part, problems, model, begin, cut, wanted, held, EFFORT / len(divided), context):
            cut.rewind(begin)
            cut.advance(part.end)
    return model.freeze()


def _held_apart(
    batches: list[dict[str, np.ndarray]], fixed: bool
) -> tuple[list[dict[str, np.ndarray]], int]:
    """The batches, and how many of the first are not fitted but judge: an eighth of the samples, an even number for their mirror images, or at most `HELD`."""
    counts = [samples_of(b) for b in batches]
    wanted = min(HELD, sum(counts) // 8) // 2 * 2
    if not fixed and 0 < wanted < counts[0]:
        parts = [
            {n: a[s] if a.ndim and len(a) == counts[0] else a for n, a in batches[0].items()}
            for s in (slice(wanted), slice(wanted, None))
        ]
        return [*parts, *batches[1:]], 1
    held = wanted // counts[0]
    return batches, held if held < len(batches) else 0


def _let_in(waiting: list[dict[str, np.ndarray]], whole: SegmentedRun, cut: SegmentedRun) -> None:
    """As many of the waiting batches as there is memory for; not a few at a time, because each time both networks are set up from their beginnings."""
    held = len(cut.state)
    room = (
        int(
            LIVE_BYTES / max(max(cut.counts) * (whole.bytes_from_here() + cut.bytes_from_here()), 1)
        )
        - held
    )
    if waiting and room >= min(held, len(waiting)):
        fresh = waiting[:room]
        del waiting[:room]
        whole.join(fresh)
        cut.join(fresh)
