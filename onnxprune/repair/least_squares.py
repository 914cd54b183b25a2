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

from dataclasses import dataclass

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import samples_of
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.repair.attention import lossy_products, refit_query
from onnxprune.repair.blocks import Block, partition
from onnxprune.repair.constants import with_means
from onnxprune.repair.fits import Fit, kept_values, prepare_fits
from onnxprune.repair.joint import refit_block
from onnxprune.repair.problem import LayerProblem
from onnxprune.statistics.segmented_run import Batch, SegmentedRun
from onnxprune.types import Plan

# Computing budgets in multiplications, shared equally: for the second moments of all nodes (more
# positions are used where they are cheap), and for the joint refits of all blocks.
MOMENTS_MULTIPLICATIONS = 3e10
JOINT_MULTIPLICATIONS = 1.5e12
MAX_HELD_OUT = 64  # samples that validate the joint refits
HELD_OUT_SHARE = 8  # one of this many samples is held out
LIVE_BYTES = 1_200_000_000  # of the activations of both networks at one position


def least_squares(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """Return the pruned model with refitted weights and biases.

    Notes
    -----
    Cost: one pass of both networks over the data, some forty gradients per block, and the second
    moments of one node at a time. The data are kept in memory with the activations at one position
    of the graph. Where activations are large, some samples wait until the networks reach smaller
    ones; a sample has many positions there.
    """
    data = context.repair_data("repair 'least-squares'")
    removed = analysis.removed(plan.kept)
    replaced = with_means(analysis, plan, pruned, context)
    model, fits = prepare_fits(analysis, replaced, removed)
    batches, held_out = _split_held_out(
        list(data.batches(context.batch_size)), data.inputs.batch is not None
    )
    # the first blocks start on the held-out batches and one more
    first, waiting = batches[: held_out + 1], batches[held_out + 1 :]
    threads = context.threads
    lockstep = _Lockstep(
        analysis=analysis,
        context=context,
        model=model,
        fits=fits,
        removed=removed,
        original=SegmentedRun(analysis.model, first, threads=threads, shapes=analysis.shapes),
        pruned=SegmentedRun(model, first, threads=threads),
        held_out=held_out,
        waiting=waiting,
        products=lossy_products(analysis, removed, fits),
    )
    blocks = partition(lockstep.pruned, fits)
    for block in blocks:
        lockstep.refit(block, JOINT_MULTIPLICATIONS / len(blocks))
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
        Batches that did not fit into memory yet.
    products
        Products of activations whose query is still to be refitted; see `lossy_products`.
    done
        Number of fits handled so far.
    """

    analysis: Analysis
    context: Context
    model: EditableModel
    fits: list[Fit]
    removed: np.ndarray
    original: SegmentedRun
    pruned: SegmentedRun
    held_out: int
    waiting: list[Batch]
    products: list[tuple[str, list[Fit]]]
    done: int = 0

    def refit(self, block: Block, multiplications: float) -> None:
        """Refit the nodes of a block in turn, then jointly.

        Parameters
        ----------
        multiplications
            Computing budget of the joint refit.
        """
        _admit_waiting(self.waiting, self.original, self.pruned)
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
        for fit in block.fits:
            self.context.progress(
                self.done / len(self.fits), f"{self.done} of {len(self.fits)} layers"
            )
            self.done += 1
            position = self.pruned.place(fit.linear.out)
            self._refit_queries(position)
            self.pruned.advance(position)
            self.original.advance(
                self.original.place(fit.target) + 1, keep=[fit.target, *block.exits]
            )
            node = self.pruned.nodes[position]
            if not self.pruned.has(node.input[0]) or not self.original.has(fit.target):
                continue
            problem = LayerProblem.of(
                fit,
                self.model,
                self.pruned,
                self.original,
                multiplications=MOMENTS_MULTIPLICATIONS / len(self.fits),
                seed=self.context.seed,
                held_out=self.held_out,
            )
            if problem is not None:
                problem.solve(self.model)
                problems.append(problem)
        return problems

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
            e: kept_values(self.analysis, self.removed, e, self.original.values(e))
            for e in block.exits
            if self.original.has(e) and e in self.analysis.tensors
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
        parts = [
            # inputs without a batch axis belong to both parts
            {n: a[part] if a.ndim and len(a) == counts[0] else a for n, a in first.items()}
            for part in (slice(samples), slice(samples, None))
        ]
        return [*parts, *batches[1:]], 1
    held_out = samples // counts[0]
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
