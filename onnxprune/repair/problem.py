"""Least-squares problem of one node: reproduce the original's output from the pruned inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto

from onnxprune.data.dataset import samples_of
from onnxprune.ir.linear import WeightLayout
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.parallel import ordered_map
from onnxprune.repair.fits import Fit, depthwise, set_values
from onnxprune.repair.normal_equations import NormalEquations
from onnxprune.repair.waiting import Values, values_of
from onnxprune.statistics.im2col import (
    Block,
    Geometry,
    Moments,
    columns,
    geometry,
    joined,
    outputs,
    positions,
    sum_products,
    tap_order,
)
from onnxprune.statistics.segmented_run import Batch, SegmentedRun

# Relative to the mean diagonal of X X^T, at least. Logits, of which there are as many rows as
# samples, are easily overfitted.
RIDGE, LAST_RIDGE = 1e-3, 1e-2
# Factors on the ridge that are tried on held-out samples, for nodes of less than so many rows per
# unknown of an output. On positions of the same image, which are alike, a solution overfits with
# many times as many rows as unknowns.
RAISES, FEW_ROWS = (30.0, 1e3, 3e4), 200
LEAST_FALL = 0.99  # of the error; a smaller fall may be chance
OVERSAMPLE = 48  # positions per unknown, at least
MIN_POSITIONS = 4  # per sample
CACHE_BYTES = 400_000_000  # of the columns of one node that are kept between its solutions
# Further solutions with targets that respect a saturating activation. Each reduces the error after
# the activation; the first gains most.
SATURATION_PASSES = 1
MIN_SCALE = 1e-6  # of a BatchNormalization; below it an output is constant whatever its weights

_Targets = tuple[NormalEquations, tuple[np.ndarray, np.ndarray]]  # equations, sums to add
# columns (K, P), targets (O, P), values (O, P) that the pruned network adds to the node's output
Sample = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


class _Drawn(NamedTuple):
    """A batch of a node, with its part that is used.

    Attributes
    ----------
    x
        Input.
    present, dense
        Values of the pruned network and of the original.
    at
        Output positions per spatial axis.
    pick
        Rows of a node without spatial axes; None for all.
    """

    x: np.ndarray
    present: Values
    dense: Values
    at: tuple[np.ndarray, ...]
    pick: np.ndarray | None


@dataclass
class LayerProblem:
    """One node with its samples in both networks.

    Attributes
    ----------
    fit
        Weights and target.
    node
        The node in the pruned model.
    window
        Window of the node.
    shape
        (groups, K, outputs per group).
    pruned, original
        Runs of both networks at the node.
    added
        True if the target includes the error of the pruned network's shortcut.
    most
        Positions per sample, at most.
    seed
        Of the choice of positions.
    outputs
        Positions of the output per sample.
    held_out
        Number of leading batches that are not fitted.
    streamed
        Further batches, whose activations the runs do not hold.
    systems
        Normal equations per group, once they are solved.
    """

    fit: Fit
    node: NodeProto
    window: Geometry
    shape: tuple[int, int, int]
    pruned: SegmentedRun
    original: SegmentedRun
    added: bool
    most: int
    seed: tuple[int, int]
    outputs: float
    held_out: int
    streamed: Sequence[Batch] = ()
    systems: list[NormalEquations] = field(default_factory=list)

    @staticmethod
    def of(
        fit: Fit,
        model: ModelView,
        pruned: SegmentedRun,
        original: SegmentedRun,
        *,
        multiplications: float,
        seed: int,
        held_out: int,
        streamed: Sequence[Batch] = (),
    ) -> LayerProblem | None:
        """Return the problem of a node; None for a depthwise node.

        Parameters
        ----------
        model
            Pruned model.
        pruned, original
            Runs at the node, with its input and its target available.
        multiplications
            Computing budget of its moments.
        """
        node, weight = pruned.nodes[pruned.place(fit.linear.out)], model.weights[fit.weight]
        if depthwise(node, weight.shape):
            return None
        g, o, c, t = WeightLayout.of(node).to_matrix(weight.array()).shape
        inputs = pruned.values(node.input[0])
        samples = max(sum(len(x) for x in inputs), 1)
        # as many rows per sample as the runs hold
        samples += sum(map(samples_of, streamed)) * samples // max(sum(pruned.counts), 1)
        affordable = int(multiplications / (c * t) ** 2 / samples)
        y = original.values(fit.target)[0]
        return LayerProblem(
            fit=fit,
            node=node,
            window=geometry(node, weight.shape, inputs[0].shape),
            shape=(g, c * t, o),
            pruned=pruned,
            original=original,
            added=_has_comparable_shortcut(fit, pruned, original),
            most=max(-(-OVERSAMPLE * c * t // samples), affordable, MIN_POSITIONS),
            seed=(seed, pruned.at),
            outputs=y.size / (y.shape[fit.linear.out_axis] * max(pruned.counts[0], 1)),
            held_out=held_out,
            streamed=streamed,
        )

    @property
    def saturating(self) -> bool:
        """True if targets can respect the activation after the node."""
        return self.fit.saturating and (self.added or not self.fit.shortcut)

    @property
    def scale(self) -> np.ndarray:
        """(groups, outputs) factor between the node and its target."""
        g, _, o = self.shape
        return np.broadcast_to(self.fit.scale, g * o).reshape(g, o)

    def samples(self, source: str, held_out: bool = False) -> Iterator[Sample]:
        """Yield samples per batch, the same in every pass.

        Parameters
        ----------
        source
            Input activation of the node.
        held_out
            Those of the batches that are not fitted.
        """
        return ordered_map(self._gather, self._draw(source, held_out), self.pruned.threads)

    def _draw(self, source: str, held_out: bool) -> Iterator[_Drawn]:
        """Yield the activations of each batch with the positions that are used."""
        rng = np.random.default_rng(self.seed)
        held = zip(
            self.pruned.state[: self.held_out], self.original.state[: self.held_out], strict=True
        )
        for present, dense in held if held_out else self._values(source):
            x, kept_rows = present[source], replace(self.fit, kept=None)
            shape = _take_kept(dense[self.fit.target], kept_rows).shape
            at = positions(shape, self.window.spatial, self.most, rng)
            pick = None
            rows = x.size // x.shape[-1]
            # without spatial axes, `positions` selects nothing
            if not self.window.spatial and rows > self.most * len(x):
                pick = np.sort(rng.choice(rows, self.most * len(x), replace=False))
            yield _Drawn(x, present, dense, at, pick)

    def _gather(self, drawn: _Drawn) -> Sample:
        """Return the samples of a batch."""
        fit, at = self.fit, drawn.at
        parts = [self._take_outputs(drawn.dense[fit.target], at)]
        if self.added:
            parts.append(self._take_outputs(drawn.dense[fit.shortcut], at))
            parts.append(outputs(drawn.present[fit.shortcut], self.window, at))
        xs = columns(drawn.x, self.window, at)
        if drawn.pick is not None:
            xs, parts = xs[:, drawn.pick], [p[:, drawn.pick] for p in parts]
        if not self.added:
            return xs, parts[0], None
        target, expected, actual = parts
        # the node also compensates for what the shortcut has lost
        return xs, target + expected - actual, actual

    def _take_outputs(self, y: np.ndarray, at: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return an activation of the original at some positions and the kept channels."""
        kept = self.fit.kept
        if not self.window.spatial or kept is None:
            return outputs(_take_kept(y, self.fit), self.window, at)
        # positions first: they are fewer
        y = _take_kept(y, replace(self.fit, kept=None))
        return np.take(outputs(y, self.window, at), kept, 0)

    def _values(self, source: str) -> Iterator[tuple[Values, Values]]:
        """Yield the tensors of both networks per fitted batch: those held, then those streamed."""
        shortcut = [self.fit.shortcut] if self.added else []
        names, targets = [source, *shortcut], [self.fit.target, *shortcut]
        yield from zip(
            self.pruned.state[self.held_out :], self.original.state[self.held_out :], strict=True
        )
        yield from zip(
            values_of(self.pruned, self.streamed, names),
            values_of(self.original, self.streamed, targets),
            strict=True,
        )

    def batches(self, source: str) -> Callable[[], Iterable[Sample]]:
        """Return a function that iterates over the samples, in batches of at least K positions.

        Columns are laid out once if they are needed twice and fit into CACHE_BYTES.
        """
        groups, k, _ = self.shape
        rows = sum(map(len, self.pruned.values(source))) + sum(map(samples_of, self.streamed))
        size = groups * k * self.most * rows * 4
        if self.saturating and size <= CACHE_BYTES:
            cached = list(joined(self.samples(source), k))
            return lambda: cached
        return lambda: joined(self.samples(source), k)

    def rows(self, model: ModelView) -> np.ndarray:
        """Return the weight as (groups, outputs, K) float64, in the order of the columns."""
        values = model.weights[self.fit.weight].array()
        matrix = WeightLayout.of(self.node).to_matrix(values).astype(np.float64)
        groups, k, outs = self.shape
        return matrix[..., tap_order(self.window)].reshape(groups, outs, k)

    def stored(self, model: ModelView, rows: np.ndarray) -> np.ndarray:
        """Return rows in the layout and type of the node's weight, the inverse of `rows`."""
        groups, k, outs = self.shape
        old, order = model.weights[self.fit.weight], tap_order(self.window)
        matrix = np.empty((groups, outs, k // len(order), len(order)))
        matrix[..., order] = rows.reshape(matrix.shape)
        values = WeightLayout.of(self.node).from_matrix(matrix, old.shape)
        return values.astype(old.array().dtype)

    def solve(self, model: EditableModel, tied: Sequence[LayerProblem] = ()) -> None:
        """Write the refitted weight and bias into the model.

        Parameters
        ----------
        tied
            Problems of further uses of the same weight, whose sums are added.
        """
        fit, (_, k, o) = self.fit, self.shape
        weight, scale = self.rows(model), self.scale
        ridge = LAST_RIDGE if fit.last else RIDGE
        self.systems = [
            NormalEquations(Moments.zeros(k, o), prior, ridge, bool(fit.bias))
            for prior in weight * scale[:, :, None]
        ]
        uses = [(p, p.batches(p.node.input[0])) for p in (self, *tied)]
        blocks = self._list_blocks([batches for _, batches in uses])
        for system, sums in ordered_map(_sum_block, blocks, self.pruned.threads):
            system.moments.include(sums)
        for system in self.systems:
            system.solve()
        self._raise_ridge((self, *tied))
        for _ in range(SATURATION_PASSES if self.saturating else 0):
            self._solve_saturating(uses)
        solved = np.stack([s.weight for s in self.systems])
        # the cut weight remains, and joint refits leave the node out
        if not np.isfinite(solved).all():
            self.systems = []
            return
        # an output that is scaled by 0 keeps its weights
        live = np.abs(scale) > MIN_SCALE
        weight[live] = solved[live] / scale[live][:, None]
        set_values(model, fit.weight, self.stored(model, weight))
        if fit.bias:
            self.set_bias(model, np.concatenate([s.shift for s in self.systems]))

    def _raise_ridge(self, uses: Sequence[LayerProblem]) -> None:
        """Raise the ridge if the error on held-out samples falls.

        With hardly more rows than unknowns a solution reproduces the rows and little else. The
        error on other samples is largest where both numbers are equal, so that more images, or
        mirror images, could fit worse than few.
        """
        rows = min(system.moments.count for system in self.systems)
        if not self.held_out or rows >= FEW_ROWS * self.shape[1]:
            return
        solved = self.systems
        least = LEAST_FALL * self._measure_error(solved, uses)
        for factor in RAISES:
            raised = [system.with_ridge(system.ridge * factor) for system in solved]
            error = self._measure_error(raised, uses)
            if error < least:
                self.systems, least = raised, error

    def _measure_error(
        self, systems: Sequence[NormalEquations], uses: Sequence[LayerProblem]
    ) -> float:
        """Return the squared error of solutions on held-out samples."""
        error = 0.0
        for problem in uses:
            for xs, ys, _ in problem.samples(problem.node.input[0], held_out=True):
                parts = (np.split(array, len(systems)) for array in (xs, ys))
                for system, x, y in zip(systems, *parts, strict=True):
                    fitted = system.weight.astype(np.float32) @ x
                    fitted += system.shift.astype(np.float32)[:, None]
                    error += float(np.square(fitted - y).sum(dtype=np.float64))
        return error

    def _solve_saturating(self, uses: Sequence[_Use]) -> None:
        """Solve again with targets that respect the activation after the node."""
        for system in self.systems:
            system.clear_targets()
        calls = self._list_saturating(uses)
        # in the order of the calls, whatever their number at a time
        for system, sums in ordered_map(lambda call: call(), calls, self.pruned.threads):
            system.add_targets(*sums)
        for system in self.systems:
            system.solve()

    def _list_saturating(self, uses: Sequence[_Use]) -> Iterator[Callable[[], _Targets]]:
        """Yield a call per batch and group, which sums its targets."""
        groups = self.shape[0]

        def sum_targets(system: NormalEquations, *given: Any) -> _Targets:
            return system, system.sum_saturating_targets(*given)

        for problem, batches in uses:
            for xs, ys, shortcut in batches():
                added = [None] * groups if shortcut is None else np.split(shortcut, groups)
                parts = zip(
                    self.systems, np.split(xs, groups), np.split(ys, groups), added, strict=True
                )
                for system, x, y, extra in parts:
                    yield partial(sum_targets, system, x, y, extra, problem.fit)

    def _list_blocks(
        self, passes: Sequence[Callable[[], Iterable[Sample]]]
    ) -> Iterator[tuple[NormalEquations, Block]]:
        """Yield blocks of columns and targets with the equations that they belong to."""
        groups = self.shape[0]
        for batches in passes:
            for xs, ys, _ in batches():
                parts = zip(self.systems, np.split(xs, groups), np.split(ys, groups), strict=True)
                for system, x, y in parts:
                    if block := system.moments.buffer(x, y):
                        yield system, block

    def set_bias(self, model: EditableModel, shift: np.ndarray) -> None:
        """Write the constant part of the target into the bias.

        A BatchNormalization subtracts its running mean, and the node adds its own bias before it;
        both are taken out of the shift.
        """
        if self.fit.target != self.fit.linear.out and self.fit.scale.ndim:
            bn = next(n for n in model.proto.graph.node if self.fit.target in n.output)
            mean = model.weights[bn.input[3]].array().astype(np.float64)
            has_bias = len(self.node.input) > 2 and self.node.input[2]
            own = model.weights[self.node.input[2]].array().astype(np.float64) if has_bias else 0.0
            shift = shift + self.fit.scale * (mean - own)
        set_values(model, self.fit.bias, shift)


# a use of a weight, with its samples
_Use = tuple[LayerProblem, Callable[[], Iterable[Sample]]]


def _sum_block(item: tuple[NormalEquations, Block]) -> tuple[NormalEquations, Moments]:
    """Return the equations with the sums of a block."""
    system, block = item
    return system, sum_products(*block)


def _has_comparable_shortcut(fit: Fit, pruned: SegmentedRun, original: SegmentedRun) -> bool:
    """Return True if both networks add a shortcut of the target's shape."""
    shortcut = fit.shortcut
    if not shortcut or not pruned.has(shortcut) or not original.has(shortcut):
        return False
    shape = _take_kept(original.values(fit.target)[0], fit).shape
    return (
        shape == _take_kept(original.values(shortcut)[0], fit).shape
        and shape == pruned.values(shortcut)[0].shape
    )


def _take_kept(y: np.ndarray, fit: Fit) -> np.ndarray:
    """Return the part of the original's activation that the pruned network keeps."""
    for axis, rows in fit.kept_rows.items():
        y = np.take(y, rows.positions(y.shape[axis]), axis)
    return y if fit.kept is None else np.take(y, fit.kept, fit.linear.out_axis)
