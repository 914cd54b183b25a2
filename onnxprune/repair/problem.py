"""One node's least squares: what it should give, from what the cut network gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from onnxprune.analysis.linear import from_matrix, to_matrix
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.repair.fits import Fit, depthwise, set_values
from onnxprune.statistics.im2col import (
    Geometry,
    Moments,
    columns,
    geometry,
    joined,
    outputs,
    positions,
    tap_order,
)
from onnxprune.statistics.segmented_run import SegmentedRun

RIDGE, LAST_RIDGE = (
    1e-3,
    1e-2,
)  # of the mean diagonal of X X^T; logits of a few hundred inputs are easily overfitted
OVERSAMPLE = 48  # positions an unknown, at least
HELD_BYTES = 400_000_000  # of the columns of one node that are kept between its solutions
BENDS = 1  # solutions with targets that respect the activation behind a node; each makes the error behind it smaller
LIFT_FACTOR = 100.0  # from one ridge to the next where sums are not definite
LEAST_SCALE = (
    1e-6  # of a BatchNormalization; below it an output is constant and its weights say nothing
)

Sample = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


@dataclass
class Problem:
    """One node, its samples in both networks, and how its weight lies in them. added: whether the cut network's shortcut counts; most: positions an input, at
    most; seed: of their choice; outputs: positions that a sample has behind the node; held: batches
    at the beginning that are not fitted; systems: a group of outputs each, once they are solved.
    """

    fit: Fit
    node: NodeProto
    how: Geometry
    shape: tuple[int, int, int]
    cut: SegmentedRun
    whole: SegmentedRun
    added: bool
    most: int
    seed: tuple[int, int]
    outputs: float
    held: int
    systems: list[System] = field(default_factory=list)

    @staticmethod
    def of(
        fit: Fit,
        model: ModelView,
        node: NodeProto,
        cut: SegmentedRun,
        whole: SegmentedRun,
        multiplications: float,
        seed: int,
        held: int,
    ) -> Problem | None:
        """None where there is nothing to refit across channels."""
        weight = model.weights[fit.weight]
        if depthwise(node, weight.shape):
            return None
        g, o, c, t = to_matrix(fit.linear, node, weight.array()).shape
        how = geometry(node, weight.shape, cut.values(node.input[0])[0].shape)  # type: ignore[arg-type]
        samples = max(sum(len(x) for x in cut.values(node.input[0])), 1)
        most = max(
            -(-OVERSAMPLE * c * t // samples), int(multiplications / (c * t) ** 2 / samples), 4
        )
        added = bool(fit.shortcut) and cut.has(fit.shortcut) and whole.has(fit.shortcut)
        if added:
            shapes = {_kept(whole.values(n)[0], fit).shape for n in (fit.shortcut, fit.target)} | {
                cut.values(fit.shortcut)[0].shape
            }
            added = len(shapes) == 1
        y = whole.values(fit.target)[0]
        places = y.size / (y.shape[fit.linear.out_axis] * max(cut.counts[0], 1))
        return Problem(
            fit, node, how, (g, c * t, o), cut, whole, added, most, (seed, cut.at), places, held
        )

    @property
    def bent(self) -> bool:
        """Whether targets may respect the activation behind the node."""
        return self.fit.bent and (self.added or not self.fit.shortcut)

    def samples(self, source: str) -> Iterator[Sample]:
        """By batch, the same in every pass: columns (K, P), targets (O, P), and what the cut network adds to the node's output, None for nothing."""
        fit, rng = self.fit, np.random.default_rng(self.seed)
        for i, (x, y) in enumerate(
            zip(self.cut.values(source), self.whole.values(fit.target), strict=False)
        ):
            if i < self.held:
                continue
            y = _kept(y, fit)
            at = positions(y.shape, self.how.spatial, self.most, rng)
            parts = [outputs(y, self.how, at)]
            if self.added:
                parts += [
                    outputs(s, self.how, at)
                    for s in (
                        _kept(self.whole.values(fit.shortcut)[i], fit),
                        self.cut.values(fit.shortcut)[i],
                    )
                ]
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
        if (
            self.bent
            and self.shape[0] * self.shape[1] * self.most * sum(map(len, inputs)) * 4 <= HELD_BYTES
        ):
            held = list(joined(self.samples(source), least))
            return lambda: held
        return lambda: joined(self.samples(source), least)

    def rows(self, model: ModelView) -> np.ndarray:
        """The weight as (groups, outputs, K), in the order of the columns."""
        matrix = to_matrix(
            self.fit.linear, self.node, model.weights[self.fit.weight].array()
        ).astype(np.float64)
        return matrix[..., tap_order(self.how)].reshape(*self.shape[::2], self.shape[1])

    def stored(self, model: ModelView, rows: np.ndarray) -> np.ndarray:
        """The inverse of `rows`: as the node reads it."""
        old, order = model.weights[self.fit.weight], tap_order(self.how)
        back = np.empty((*self.shape[::2], self.shape[1] // len(order), len(order)))
        back[..., order] = rows.reshape(back.shape)
        return from_matrix(self.fit.linear, self.node, back, old.shape).astype(old.array().dtype)  # type: ignore[arg-type]

    @property
    def scale(self) -> np.ndarray:
        """(groups, outputs) factor between the node and its target."""
        g, _, o = self.shape
        return np.broadcast_to(self.fit.scale, g * o).reshape(g, o)

    def solve(self, model: EditableModel) -> None:
        """Write the refitted weight and bias into the model."""
        fit, (g, k, o) = self.fit, self.shape
        flat, scale = self.rows(model), self.scale
        start = flat * scale[:, :, None]
        self.systems = systems = [
            System(Moments.zeros(k, o), w, LAST_RIDGE if fit.last else RIDGE, bool(fit.bias))
            for w in start
        ]
        batches = self.batches(self.node.input[0])
        for xs, ys, _ in batches():
            for system, x, y in zip(systems, np.split(xs, g), np.split(ys, g), strict=False):
                system.moments.add(x, y)
        for system in systems:
            system.solve()
        for _ in range(BENDS if self.bent else 0):
            for system in systems:
                system.forget_targets()
            for xs, ys, shortcut in batches():
                added = [None] * g if shortcut is None else np.split(shortcut, g)
                for system, x, y, extra in zip(
                    systems, np.split(xs, g), np.split(ys, g), added, strict=False
                ):
                    system.add_bent(x, y, extra, fit)
            for system in systems:
                system.solve()
        solved = np.stack([s.weight for s in systems])
        if not np.isfinite(solved).all():
            self.systems = []
            return
        live = np.abs(scale) > LEAST_SCALE
        flat[live] = solved[live] / scale[live][:, None]
        set_values(model, fit.weight, self.stored(model, flat))
        if fit.bias:
            self.set_bias(model, np.concatenate([s.shift for s in systems]))

    def set_bias(self, model: EditableModel, shift: np.ndarray) -> None:
        """The constant part: for a normalized output, what is left of it after the running mean and the node's own bias."""
        behind = self.fit.target != self.fit.linear.out and self.fit.scale.ndim
        if behind:
            bn = next(n for n in model.proto.graph.node if self.fit.target in n.output)
            mean = model.weights[bn.input[3]].array().astype(np.float64)
            own = (
                model.weights[self.node.input[2]].array().astype(np.float64)
                if len(self.node.input) > 2 and self.node.input[2]
                else 0.0
            )
            shift = shift + self.fit.scale * (mean - own)
        set_values(model, self.fit.bias, shift)


@dataclass
class System:
    """Normal equations of one group of outputs. weight: (O, K), at first what the ridge pulls towards; constant: whether a shift is free."""

    moments: Moments
    weight: np.ndarray
    ridge: float
    constant: bool

    def __post_init__(self) -> None:
        self.shift: np.ndarray = np.zeros(len(self.weight))
        self._prior = self.weight
        self._factor: tuple[np.ndarray, bool] | None = None
        self._lift = 0.0

    def solve(self) -> None:
        """Weight and shift for the targets summed so far."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        moments = self.moments
        moments.flush()
        xx, yx = moments.centered() if self.constant else (moments.xx, moments.yx)
        if yx is None or moments.y is None:
            raise ValueError("moments without outputs, nothing to solve for")
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
            self.shift = moments.y / count - self.weight @ (moments.x / count)

    def spread(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """(lower triangle L, mean): inputs are like mean + L e with uncorrelated e; without a shift the mean is 0. damping: of the mean variance, added to each."""
        from scipy.linalg import cholesky

        xx = self.moments.centered()[0] if self.constant else self.moments.xx
        count = max(self.moments.count, 1)
        lift = max(damping * float(np.trace(xx)) / len(xx), self._lift)
        mean = self.moments.x / count if self.constant else np.zeros_like(self.moments.x)
        return cholesky(xx + lift * np.eye(len(xx)), lower=True) / np.sqrt(count), mean

    def forget_targets(self) -> None:
        """Begin new sums of targets over the same inputs."""
        self.moments.yx, self.moments.y = np.zeros_like(self.weight), np.zeros(len(self.weight))

    def add_bent(self, x: np.ndarray, y: np.ndarray, shortcut: np.ndarray | None, fit: Fit) -> None:
        """Targets for inputs that were summed before: what is wanted; where it lies beyond a bend, anything beyond that bend, so what is there now.

        shortcut: (O, P), added between here and the bend; None for nothing.
        """
        now = self.weight.astype(np.float32) @ x
        now += self.shift.astype(np.float32)[:, None]
        for limit, beyond, nearer in (
            (fit.low, np.less_equal, np.minimum),
            (fit.high, np.greater_equal, np.maximum),
        ):
            if np.isfinite(limit):
                here = np.float32(limit) - (0 if shortcut is None else shortcut)
                y = np.where(beyond(y, here), nearer(now, here), y)
        self.moments.yx += y @ x.T
        self.moments.y += y.sum(1, dtype=np.float64)


def _kept(y: np.ndarray, fit: Fit) -> np.ndarray:
    """Channels of a whole activation that the cut network still has."""
    return y if fit.kept is None else np.take(y, fit.kept, fit.linear.out_axis)
