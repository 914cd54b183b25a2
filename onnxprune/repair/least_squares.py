"""Sequential least squares: refit every linear node to reproduce the original network's outputs.

The original and the pruned network run in lockstep, and each node is fitted to map the pruned
network's inputs to the original's outputs (channel pruning, He et al. 2017, arXiv 1707.06168,
section 3.2; sequential inputs with dense targets). Where a node's output is added to a shortcut,
the target also compensates for what the shortcut has lost. The unknowns are all taps (C * kh * kw
per output), with a ridge that pulls to the cut weights.

Where an activation such as Relu saturates, any saturated value is as good as the target: targets
there follow the present solution, which is then solved for again. This is majorization, so that the
error after the activation never grows (the aim of Zhang et al. 2015, arXiv 1505.06798).

Once all nodes of a block are solved, they are refitted jointly (see `joint`), if some samples can
be held out to validate the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import samples_of
from onnxprune.data.inputs import rows_of
from onnxprune.ir.compared import rows_from_data
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.repair.attention import lossy_products, refit_query
from onnxprune.repair.blocks import Block, partition
from onnxprune.repair.constants import with_means
from onnxprune.repair.fits import Fit, prepare_fits
from onnxprune.repair.joint import refit_block
from onnxprune.repair.problem import LayerProblem
from onnxprune.repair.tied import adjacent_order, reorder, solve_tied, tied_outputs
from onnxprune.repair.waiting import Waiting, arrange_views
from onnxprune.statistics.segmented_run import Batch, SegmentedRun
from onnxprune.types import Plan

# Computing budgets in multiplications, shared equally: for the second moments of all nodes (more
# positions are used where they are cheap), and for the joint refits of all blocks.
MOMENTS_MULTIPLICATIONS = 3e10
JOINT_MULTIPLICATIONS = 1.5e12
MAX_HELD_OUT = 64  # samples that validate the joint refits
HELD_OUT_SHARE = 8  # one of this many samples is held out
# For the progress: share of the work on a block before its joint refit, and multiplications that
# take as long as one value of an activation
SOLVE_SHARE, VALUE_COST = 0.25, 30.0
LIVE_BYTES = 1_200_000_000  # of the activations of both networks at one position


def least_squares(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Return the pruned model with refitted weights and biases.

    Notes
    -----
    Cost: one pass of both networks over the data, some forty gradients per block, and the second
    moments of one node at a time. The data are kept in memory with the activations at one position
    of the graph. Where activations are large, some samples wait until the networks reach smaller
    ones; until then each node is fitted on them as well, by runs from the inputs.
    """
    mirrored = context.repair_data("repair 'least-squares'")
    data = replace(mirrored, flipped=False)
    removed = analysis.removed(plan.kept)
    replaced = with_means(analysis, plan, pruned, context)
    model, fits = prepare_fits(analysis, replaced, removed)
    ties = tied_outputs(fits)
    dense, order = _bring_together(analysis.model, model, ties)
    # rows that each network chooses by its own values do not correspond
    unrelated = rows_from_data(analysis.model, analysis.shapes)
    fits = [fit for fit in _sort_fits(fits, model, ties) if fit.target not in unrelated]
    batches, held_out = _split_held_out(
        list[Batch](data.batches(context.batch_size)), not data.inputs.divisible
    )
    if mirrored.flipped:
        # after all images: where few samples fit into memory, these are distinct ones
        batches += arrange_views(data, batches[held_out:])
    # the first blocks start on the held-out batches and one more
    first, waiting = batches[: held_out + 1], batches[held_out + 1 :]
    threads = context.threads
    lockstep = _Lockstep(
        analysis=analysis,
        context=context,
        model=model,
        fits=fits,
        removed=removed,
        original=SegmentedRun(dense, first, threads=threads, shapes=analysis.shapes),
        pruned=SegmentedRun(model, first, threads=threads),
        held_out=held_out,
        waiting=Waiting(waiting),
        products=[
            product
            for product in lossy_products(analysis, removed, _select_untied(fits))
            if product[0] not in unrelated
        ],
        unrelated=unrelated,
        work=[_estimate_work(analysis, model, fit) for fit in fits],
    )
    blocks = partition(lockstep.pruned, fits)
    for block in blocks:
        lockstep.refit(block, JOINT_MULTIPLICATIONS / len(blocks))
    if ties:
        # back to the order of the given graph
        reorder(model, np.argsort(order).tolist())
    return model.freeze()


@dataclass
class _Lockstep:
    """Runs of both networks, advanced node by node.

    Attributes
    ----------
    model
        Pruned model; weights change as the run advances.
    fits
        All fits in graph order.
    removed
        (causes + 1,) bool.
    held_out
        Number of leading batches that are not fitted.
    waiting
        Batches that did not fit into memory yet; each node sees them one by one.
    products
        Products of activations whose query is still to be refitted; see `lossy_products`.
    done
        Number of fits handled so far.
    unrelated
        Tensors whose rows do not correspond in the two networks.
    work
        Expected work per fit.
    solved
        Nodes of shared weights that were solved with the first use.
    """

    analysis: Analysis
    context: Context
    model: EditableModel
    fits: list[Fit]
    removed: np.ndarray
    original: SegmentedRun
    pruned: SegmentedRun
    held_out: int
    waiting: Waiting
    products: list[tuple[str, list[Fit]]]
    unrelated: frozenset[str]
    work: Sequence[float]
    done: int = 0
    solved: set[str] = field(default_factory=set)

    def refit(self, block: Block, multiplications: float) -> None:
        """Refit the nodes of a block in turn, then jointly.

        Parameters
        ----------
        multiplications
            Computing budget of the joint refit.
        """
        _admit_waiting(self.waiting.batches, self.original, self.pruned)
        begin = self.pruned.mark()
        problems = self._solve_layers(block)
        targets = self._finish(block)
        if refit_block(
            block,
            problems,
            self.model,
            begin,
            self.pruned,
            targets,
            self.held_out,
            multiplications,
            self.context,
        ):
            # run the block again with its new weights
            self.pruned.rewind(begin)
            self.pruned.advance(block.end)

    def _solve_layers(self, block: Block) -> list[LayerProblem]:
        """Refit each node of a block on the outputs of the nodes before it."""
        problems = []
        before, total = sum(self.work[: self.done]), max(sum(self.work), 1.0)
        solved = 0.0
        for fit in block.fits:
            # the joint refit of the block follows its last fit
            share = (before + SOLVE_SHARE * solved) / total
            self.context.progress(share, f"{self.done} of {len(self.fits)} layers")
            solved += self.work[self.done]
            self.done += 1
            # all uses of a shared weight are solved with the first
            if fit.node in self.solved:
                continue
            uses = [other for other in self.fits if other.weight == fit.weight]
            self._advance_to(uses, block)
            usable = [use for use in uses if self._has_samples(use)]
            of_uses = [p for use in usable if (p := self._build_problem(use)) is not None]
            if len(uses) == 1:
                for problem in of_uses:
                    problem.solve(self.model)
            elif of_uses:
                solve_tied(of_uses, self.model)
                self.solved.update(use.node for use in uses)
            problems += of_uses
        return problems

    def _advance_to(self, uses: Sequence[Fit], block: Block) -> None:
        """Advance the pruned network to the nodes of a weight, the original past their targets."""
        position = min(self.pruned.place(use.node) for use in uses)
        self._refit_queries(position)
        self.pruned.advance(position)
        keep = [*(use.target for use in uses), *block.exits]
        if len(uses) > 1:
            # the run may pass tensors that fits before the last use still need
            waiting = self.fits[self.done :]
            keep += [name for fit in waiting for name in (fit.target, fit.shortcut) if name]
        end = max(self.original.place(use.target) for use in uses) + 1
        self.original.advance(end, keep=keep)

    def _has_samples(self, fit: Fit) -> bool:
        """Return True if a node's input and target are available at this position."""
        node = self.pruned.nodes[self.pruned.place(fit.node)]
        return self.pruned.has(node.input[0]) and self.original.has(fit.target)

    def _build_problem(self, fit: Fit) -> LayerProblem | None:
        """Return the least-squares problem of a node."""
        # both networks run from the inputs to the node
        work = 2 * sum(self.work[: self.done])
        return LayerProblem.of(
            fit,
            self.model,
            self.pruned,
            self.original,
            multiplications=MOMENTS_MULTIPLICATIONS / len(self.fits),
            seed=self.context.seed,
            held_out=self.held_out,
            streamed=self.waiting.choose(work),
        )

    def _finish(self, block: Block) -> dict[str, list[np.ndarray]]:
        """Advance both networks past a block.

        Returns
        -------
        dict
            Exit -> its values in the original at the positions that the pruned network keeps, per
            batch.
        """
        self._refit_queries(block.end)
        self.pruned.advance(block.end)
        end = max((self.original.place(e) for e in block.exits), default=-1) + 1
        self.original.advance(end, keep=block.exits)
        return {
            e: [self.analysis.keep_values(e, v, self.removed) for v in self.original.values(e)]
            for e in block.exits
            if self.original.has(e) and e in self.analysis.tensors and e not in self.unrelated
        }

    def _refit_queries(self, before: int) -> None:
        """Refit the queries of all products before a position."""
        while self.products and self.pruned.place(self.products[0][0]) < before:
            out, producers = self.products.pop(0)
            refit_query(
                self.analysis,
                self.removed,
                self.model,
                producers,
                out,
                self.pruned,
                self.original,
            )


def _estimate_work(analysis: Analysis, model: EditableModel, fit: Fit) -> float:
    """Return the multiplications of a node per sample, with those that its values cost."""
    shape = analysis.shapes.shape(fit.linear.out) or ()
    sizes = [size if isinstance(size, int) else 1 for size in shape] or [1]
    values = float(np.prod(sizes, dtype=np.float64))
    axis = fit.linear.out_axis
    outputs = sizes[axis] if -len(sizes) <= axis < len(sizes) else 1
    weights = float(np.prod(model.weights[fit.weight].shape, dtype=np.float64))
    return weights * values / max(outputs, 1) + VALUE_COST * values


def _bring_together(
    dense: Model, pruned: EditableModel, ties: Sequence[Sequence[str]]
) -> tuple[Model, list[int]]:
    """Order the nodes of both networks so that the uses of a shared weight are consecutive.

    Returns
    -------
    dense
        The original, in that order.
    order
        Order that `pruned`, which is changed, has now; [] if nothing is shared.
    """
    if not ties:
        return dense, []
    copy = dense.edit()
    reorder(copy, adjacent_order(copy.proto.graph.node, ties))
    order = adjacent_order(pruned.proto.graph.node, ties)
    reorder(pruned, order)
    return copy.freeze(), order


def _sort_fits(
    fits: Sequence[Fit], model: EditableModel, ties: Sequence[Sequence[str]]
) -> list[Fit]:
    """Return the fits in the order of the nodes.

    Fits of a weight whose uses depend on each other are dropped: no order brings them together.
    """
    if not ties:
        return list(fits)
    places = {o: i for i, node in enumerate(model.proto.graph.node) for o in node.output}
    apart: set[str] = set()
    for outs in ties:
        positions = sorted(places[o] for o in outs)
        if positions[-1] - positions[0] != len(positions) - 1:
            apart.update(outs)
    together = [fit for fit in fits if fit.node not in apart]
    return sorted(together, key=lambda fit: places[fit.node])


def _select_untied(fits: Sequence[Fit]) -> list[Fit]:
    """Return the fits of weights that one node alone uses."""
    uses = Counter(fit.weight for fit in fits)
    return [fit for fit in fits if uses[fit.weight] == 1]


def _split_held_out(batches: list[Batch], fixed: bool) -> tuple[list[Batch], int]:
    """Return the batches and how many of the first are held out.

    An eighth of the samples, at most MAX_HELD_OUT; an even number, so that an image and its mirror
    image stay together.

    Parameters
    ----------
    fixed
        True if the model has a fixed batch size, so that batches cannot be divided.
    """
    counts = [samples_of(b) for b in batches]
    samples = min(MAX_HELD_OUT, sum(counts) // HELD_OUT_SHARE) // 2 * 2
    if not fixed and 0 < samples < counts[0]:
        first = batches[0]
        parts = [rows_of(first, part) for part in (slice(samples), slice(samples, None))]
        return [*parts, *batches[1:]], 1
    held_out = samples // counts[0]
    # at least one batch must remain to fit on
    return batches, held_out if held_out < len(batches) else 0


def _admit_waiting(waiting: list[Batch], original: SegmentedRun, pruned: SegmentedRun) -> None:
    """Bring as many of the waiting batches to the runs' position as memory allows.

    Not a few at a time, because each call runs both networks from their beginning.

    Parameters
    ----------
    waiting
        Admitted batches are removed from it.
    """
    present = len(pruned.state)
    per_sample = original.bytes_from_here() + pruned.bytes_from_here()
    room = int(LIVE_BYTES / max(max(pruned.counts) * per_sample, 1)) - present
    if waiting and room >= min(present, len(waiting)):
        fresh = waiting[:room]
        del waiting[:room]
        original.join(fresh)
        pruned.join(fresh)
