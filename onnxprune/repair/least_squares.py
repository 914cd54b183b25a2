"""Sequential least squares: every linear node is refitted to give, from the cut network's inputs, what the whole network gives.

The whole and the cut network run in lock-step. Where a node's output is added to a shortcut, the target also makes up for what
the shortcut has lost. Solved on taps (C * kh * kw unknowns an output), with a ridge towards the cut weights.
He et al. 2017 (channel pruning) for the idea; sequential inputs with dense targets and the residual term are what carried it.
Where an activation cuts off what lies beyond a bend, anything beyond it will do: the targets there follow the solution, which is
found again a few times (majorisation; the error behind the activation never grows; Zhang et al. 2015, 1505.06798, for the aim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import from_matrix, to_matrix
from onnxprune.calibrate.gradients import samples_of
from onnxprune.calibrate.lockstep import Run
from onnxprune.calibrate.taps import Geometry, Moments, columns, geometry, joined, outputs, positions, tap_order
from onnxprune.model.io import Model
from onnxprune.repair.attention import lossy_products, refit_query
from onnxprune.repair.fits import Fit, own_weights, set_values
from onnxprune.saliency.base import Context
from onnxprune.types import Plan

RIDGE, LAST_RIDGE = 1e-3, 1e-2  # of the mean diagonal of X X^T; logits of a few hundred inputs are easily overfitted
OVERSAMPLE = 48  # positions an unknown, at least
MULTIPLICATIONS = 4e11  # for the moments of all nodes, each an equal share; as many positions as that allows are used
HELD_BYTES = 400_000_000  # of the columns of one node that are kept between its solutions
LIVE_BYTES = 1_500_000_000  # of the activations of both networks at one place
BENDS = 2  # solutions with targets that respect the activation behind a node; each makes the error behind it smaller
LIFT_FACTOR = 100.0  # from one ridge to the next where sums are not definite
LEAST_SCALE = 1e-6  # of a BatchNormalization; below it an output is constant and its weights say nothing

Sample = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


def least_squares(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """The cut model with refitted weights and biases.

    Costs one pass of both networks over the data, which are kept in memory with the activations at one place of the graph, and
    the second moments of one node at a time. Where activations are large, some of the samples wait until they are smaller: there, a sample has many positions.
    """
    data = context.repair_data("repair 'least-squares'")
    removed = analysis.removed(plan.kept)
    model, fits = own_weights(analysis, pruned, removed)
    lossy = lossy_products(analysis, removed, fits)
    waiting = list(data.batches(context.batch_size))
    whole = Run(analysis.model, waiting[:1], threads=context.threads, shapes=analysis.shapes)
    cut = Run(model, [waiting.pop(0)], threads=context.threads)
    for i, fit in enumerate(fits):
        context.progress(i / len(fits), f"{i} of {len(fits)} layers")
        place = cut.place(fit.linear.out)
        _let_in(waiting, whole, cut)
        while lossy and cut.place(lossy[0][0]) < place:
            out, makers = lossy.pop(0)
            refit_query(analysis, removed, model, makers, out, cut, whole)
        cut.advance(place)
        node = cut.nodes[place]
        whole.advance(whole.place(fit.target) + 1, keep=[fit.target])
        if not cut.has(node.input[0]) or not whole.has(fit.target):
            continue
        problem = _Problem.of(fit, model, node, cut, whole, MULTIPLICATIONS / len(fits), context.seed)
        if problem is not None:
            problem.solve(model, node)
    return model


def _let_in(waiting: list[dict[str, np.ndarray]], whole: Run, cut: Run) -> None:
    """As many of the waiting batches as there is memory for; not a few at a time, because each time both networks are set up from their beginnings."""
    held = len(cut.state)
    room = int(LIVE_BYTES / max(samples_of(cut.feeds) * (whole.bytes_from_here() + cut.bytes_from_here()), 1)) - held
    if waiting and room >= min(held, len(waiting)):
        fresh = waiting[:room]
        del waiting[:room]
        whole.join(fresh)
        cut.join(fresh)


@dataclass
class _Problem:
    """One node, its samples in both networks, and how its weight lies in them. added: whether the cut network's shortcut counts; most: positions an input, at
    most; seed: of their choice."""

    fit: Fit
    how: Geometry
    shape: tuple[int, int, int]
    cut: Run
    whole: Run
    added: bool
    most: int
    seed: tuple[int, int]

    @staticmethod
    def of(fit: Fit, model: Model, node: NodeProto, cut: Run, whole: Run, multiplications: float, seed: int) -> _Problem | None:
        """None where there is nothing to refit across channels."""
        weight = model.weights[fit.weight]
        g, o, c, t = to_matrix(fit.linear, node, weight.array()).shape
        if c == 1 and o == 1 and g > 1:
            return None
        how = geometry(node, weight.shape, cut.values(node.input[0])[0].shape)  # type: ignore[arg-type]
        samples = max(sum(len(x) for x in cut.values(node.input[0])), 1)
        most = max(-(-OVERSAMPLE * c * t // samples), int(multiplications / (c * t) ** 2 / samples), 4)
        added = bool(fit.shortcut) and cut.has(fit.shortcut) and whole.has(fit.shortcut)
        if added:
            shapes = {_kept(whole.values(n)[0], fit).shape for n in (fit.shortcut, fit.target)} | {cut.values(fit.shortcut)[0].shape}
            added = len(shapes) == 1
        return _Problem(fit, how, (g, c * t, o), cut, whole, added, most, (seed, cut.at))

    @property
    def bent(self) -> bool:
        """Whether targets may respect the activation behind the node."""
        return self.fit.bent and (self.added or not self.fit.shortcut)

    def samples(self, source: str) -> Iterator[Sample]:
        """By batch, the same in every pass: columns (K, P), targets (O, P), and what the cut network adds to the node's output, None for nothing."""
        fit, rng = self.fit, np.random.default_rng(self.seed)
        for i, (x, y) in enumerate(zip(self.cut.values(source), self.whole.values(fit.target))):
            y = _kept(y, fit)
            at = positions(y.shape, self.how.spatial, self.most, rng)
            parts = [outputs(y, self.how, at)]
            if self.added:
                parts += [outputs(s, self.how, at) for s in (_kept(self.whole.values(fit.shortcut)[i], fit), self.cut.values(fit.shortcut)[i])]
            xs = columns(x, self.how, at)
            if not self.how.spatial and xs.shape[1] > self.most * len(x):
                pick = np.sort(rng.choice(xs.shape[1], self.most * len(x), replace=False))
                xs, parts = xs[:, pick], [p[:, pick] for p in parts]
            if len(parts) == 1:
                yield xs, parts[0], None
            else:
                yield xs, parts[0] + parts[1] - parts[2], parts[2]

    def batches(self, source: str) -> Callable[[], Iterable[Sample]]:
        """`samples` for several passes, as many together as pay for their sums: laid out once where they are small."""
        inputs, least = self.cut.values(source), self.shape[1]
        if self.bent and self.shape[0] * self.shape[1] * self.most * sum(map(len, inputs)) * 4 <= HELD_BYTES:
            held = list(joined(self.samples(source), least))
            return lambda: held
        return lambda: joined(self.samples(source), least)

    def solve(self, model: Model, node: NodeProto) -> None:
        """Write the refitted weight and bias into the model."""
        fit, (g, k, o) = self.fit, self.shape
        weight = model.weights[fit.weight]
        order = tap_order(self.how)
        matrix = to_matrix(fit.linear, node, weight.array()).astype(np.float64)[..., order]
        scale = np.broadcast_to(fit.scale, g * o).reshape(g, o)
        start = matrix.reshape(g, o, k) * scale[:, :, None]
        systems = [_System(Moments.zeros(k, o), w, LAST_RIDGE if fit.last else RIDGE, bool(fit.bias)) for w in start]
        batches = self.batches(node.input[0])
        for xs, ys, _ in batches():
            for system, x, y in zip(systems, np.split(xs, g), np.split(ys, g)):
                system.moments.add(x, y)
        for system in systems:
            system.solve()
        for _ in range(BENDS if self.bent else 0):
            for system in systems:
                system.forget_targets()
            for xs, ys, shortcut in batches():
                added = [None] * g if shortcut is None else np.split(shortcut, g)
                for system, x, y, extra in zip(systems, np.split(xs, g), np.split(ys, g), added):
                    system.add_bent(x, y, extra, fit)
            for system in systems:
                system.solve()
        solved = np.stack([s.weight for s in systems])
        if not np.isfinite(solved).all():
            return
        live = np.abs(scale) > LEAST_SCALE
        flat = matrix.reshape(g, o, k)
        flat[live] = solved[live] / scale[live][:, None]
        back = np.empty_like(matrix)
        back[..., order] = flat.reshape(matrix.shape)
        set_values(model, fit.weight, from_matrix(fit.linear, node, back, weight.shape))  # type: ignore[arg-type]
        if fit.bias:
            self.set_bias(model, np.concatenate([s.shift for s in systems]), node)

    def set_bias(self, model: Model, shift: np.ndarray, node: NodeProto) -> None:
        """The constant part: for a normalised output, what is left of it after the running mean and the node's own bias."""
        behind = self.fit.target != self.fit.linear.out and self.fit.scale.ndim
        if behind:
            bn = next(n for n in model.proto.graph.node if self.fit.target in n.output)
            mean = model.weights[bn.input[3]].array().astype(np.float64)
            own = model.weights[node.input[2]].array().astype(np.float64) if len(node.input) > 2 and node.input[2] else 0.0
            shift = shift + self.fit.scale * (mean - own)
        set_values(model, self.fit.bias, shift)


@dataclass
class _System:
    """Normal equations of one group of outputs. weight: (O, K), at first what the ridge pulls towards; constant: whether a shift is free."""

    moments: Moments
    weight: np.ndarray
    ridge: float
    constant: bool

    def __post_init__(self) -> None:
        self.shift = np.zeros(len(self.weight))
        self._prior = self.weight
        self._factor: tuple[np.ndarray, bool] | None = None
        self._lift = 0.0

    def solve(self) -> None:
        """Weight and shift for the targets summed so far."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        moments = self.moments
        moments.flush()
        xx, yx = moments.centred() if self.constant else (moments.xx, moments.yx)
        if not (np.isfinite(xx).all() and np.isfinite(yx).all()):
            self.weight = np.full_like(self.weight, np.nan)
            return
        if self._factor is None:
            self._lift = max(self.ridge * float(np.trace(xx)) / len(xx), 1e-12)
        while self._factor is None:
            try:
                self._factor = cho_factor(xx + self._lift * np.eye(len(xx)), lower=True)
            except LinAlgError:  # sums of values far from zero lose their small differences
                self._lift *= LIFT_FACTOR
        self.weight = cho_solve(self._factor, (yx + self._lift * self._prior).T).T
        count = max(moments.count, 1)
        if self.constant:
            self.shift = moments.y / count - self.weight @ (moments.x / count)  # type: ignore[operator]

    def forget_targets(self) -> None:
        """Begin new sums of targets over the same inputs."""
        self.moments.yx, self.moments.y = np.zeros_like(self.weight), np.zeros(len(self.weight))

    def add_bent(self, x: np.ndarray, y: np.ndarray, shortcut: np.ndarray | None, fit: Fit) -> None:
        """Targets for inputs that were summed before: what is wanted; where it lies beyond a bend, anything beyond that bend, so what is there now.

        shortcut: (O, P), added between here and the bend; None for nothing.
        """
        now = self.weight.astype(np.float32) @ x
        now += self.shift.astype(np.float32)[:, None]
        for limit, beyond, nearer in ((fit.low, np.less_equal, np.minimum), (fit.high, np.greater_equal, np.maximum)):
            if np.isfinite(limit):
                here = np.float32(limit) - (0 if shortcut is None else shortcut)
                y = np.where(beyond(y, here), nearer(now, here), y)
        self.moments.yx += y @ x.T
        self.moments.y += y.sum(1, dtype=np.float64)


def _kept(y: np.ndarray, fit: Fit) -> np.ndarray:
    """Channels of a whole activation that the cut network still has."""
    return y if fit.kept is None else np.take(y, fit.kept, fit.linear.out_axis)
