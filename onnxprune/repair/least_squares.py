"""Sequential least squares: every linear node is refitted to give, from the cut network's inputs, what the whole network gives.

The whole and the cut network run in lock-step. Where a node's output is added to a shortcut, the target also makes up for what
the shortcut has lost. Solved on taps (C * kh * kw unknowns an output), with a ridge towards the cut weights.
He et al. 2017 (channel pruning) for the idea; sequential inputs with dense targets and the residual term are what carried it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import from_matrix, to_matrix
from onnxprune.calibrate.lockstep import Run
from onnxprune.calibrate.taps import Geometry, Moments, columns, geometry, outputs, positions, tap_order
from onnxprune.model.io import Model
from onnxprune.repair.attention import lossy_products, refit_query
from onnxprune.repair.fits import Fit, own_weights, set_values
from onnxprune.saliency.base import Context
from onnxprune.types import Plan

RIDGE, LAST_RIDGE = 1e-3, 1e-2  # of the mean diagonal of X X^T; logits of a few hundred inputs are easily overfitted
OVERSAMPLE = 48  # positions an unknown, at least
CHEAP_MULTIPLICATIONS = 2e10  # for the moments of one node; as many positions as that allows are used
LEAST_SCALE = 1e-6  # of a BatchNormalization; below it an output is constant and its weights say nothing


def least_squares(analysis: Analysis, plan: Plan, pruned: Model, context: Context) -> Model:
    """The cut model with refitted weights and biases.

    Costs one pass of both networks over the data, which are kept in memory with the activations at one place of the graph, and
    the second moments of one node at a time.
    """
    data = context.repair_data("repair 'least-squares'")
    removed = analysis.removed(plan.kept)
    model, fits = own_weights(analysis, pruned, removed)
    lossy = lossy_products(analysis, removed, fits)
    batches = list(data.batches(context.batch_size))
    whole, cut = Run(analysis.model, batches, threads=context.threads, shapes=analysis.shapes), Run(model, batches, threads=context.threads)
    rng = np.random.default_rng(context.seed)
    for fit in fits:
        place = cut.place(fit.linear.out)
        while lossy and cut.place(lossy[0][0]) < place:
            out, makers = lossy.pop(0)
            refit_query(analysis, removed, model, makers, out, cut, whole)
        cut.advance(place)
        node = cut.nodes[place]
        whole.advance(whole.place(fit.target) + 1, keep=[fit.target])
        if not cut.has(node.input[0]) or not whole.has(fit.target):
            continue
        problem = _Problem.of(fit, model, node, cut, whole, data.samples, rng)
        if problem is not None:
            problem.solve(model, node)
    return model


@dataclass
class _Problem:
    """Moments of one node, and how its weight lies in them."""

    fit: Fit
    how: Geometry
    groups: list[Moments]

    @staticmethod
    def of(fit: Fit, model: Model, node: object, cut: Run, whole: Run, samples: int, rng: np.random.Generator) -> _Problem | None:
        """Sum over all batches; None where there is nothing to refit across channels."""
        weight = model.weights[fit.weight]
        matrix = to_matrix(fit.linear, node, weight.array())  # type: ignore[arg-type]
        g, o, c, t = matrix.shape
        if c == 1 and g > 1:
            return None
        inputs, targets = cut.values(node.input[0]), whole.values(fit.target)  # type: ignore[attr-defined]
        lost = fit.shortcut and cut.has(fit.shortcut) and whole.has(fit.shortcut)
        how = geometry(node, weight.shape, inputs[0].shape)  # type: ignore[arg-type]
        most = max(-(-OVERSAMPLE * c * t // max(samples, 1)), int(CHEAP_MULTIPLICATIONS / (c * t) ** 2 / max(samples, 1)), 4)
        found = [Moments.zeros(c * t, o) for _ in range(g)]
        for i, (x, y) in enumerate(zip(inputs, targets)):
            y = _kept(y, fit)
            if lost:
                shortcut = cut.values(fit.shortcut)[i]
                dense = _kept(whole.values(fit.shortcut)[i], fit)
                if dense.shape == shortcut.shape == y.shape:
                    y = y + dense - shortcut
            at = positions(y.shape, how.spatial, most, rng)
            xs, ys = columns(x, how, at), outputs(y, how, at)
            if not how.spatial and xs.shape[1] > most * len(x):
                pick = np.sort(rng.choice(xs.shape[1], most * len(x), replace=False))
                xs, ys = xs[:, pick], ys[:, pick]
            for moments, xb, yb in zip(found, np.split(xs, g), np.split(ys, g)):
                moments.add(xb, yb)
        return _Problem(fit, how, found)

    def solve(self, model: Model, node: object) -> None:
        """Write the refitted weight and bias into the model."""
        from scipy.linalg import cho_factor, cho_solve

        fit = self.fit
        weight = model.weights[fit.weight]
        order = tap_order(self.how)
        matrix = to_matrix(fit.linear, node, weight.array()).astype(np.float64)[..., order]  # type: ignore[arg-type]
        scale = np.broadcast_to(fit.scale, matrix.shape[0] * matrix.shape[1]).reshape(matrix.shape[:2])
        ridge = LAST_RIDGE if fit.last else RIDGE
        shifts = []
        for g, moments in enumerate(self.groups):
            flat = matrix[g].reshape(matrix.shape[1], -1)
            effective = flat * scale[g][:, None]
            xx, yx = moments.centred() if fit.bias else (moments.xx, moments.yx)
            lift = max(ridge * float(np.trace(xx)) / len(xx), 1e-12)
            factor = cho_factor(xx + lift * np.eye(len(xx)), lower=True)
            solved = cho_solve(factor, (yx + lift * effective).T).T  # type: ignore[operator]
            live = np.abs(scale[g]) > LEAST_SCALE
            flat[live] = solved[live] / scale[g][live, None]
            count = max(moments.count, 1)
            shifts.append(moments.y / count - solved @ (moments.x / count))  # type: ignore[operator]
            matrix[g] = flat.reshape(matrix.shape[1:])
        if not np.isfinite(matrix).all():
            return
        back = np.empty_like(matrix)
        back[..., order] = matrix
        set_values(model, fit.weight, from_matrix(fit.linear, node, back, weight.shape))  # type: ignore[arg-type]
        if fit.bias:
            self.set_bias(model, np.concatenate(shifts), node)

    def set_bias(self, model: Model, shift: np.ndarray, node: object) -> None:
        """The constant part: for a normalised output, what is left of it after the running mean and the node's own bias."""
        behind = self.fit.target != self.fit.linear.out and self.fit.scale.ndim
        if behind:
            bn = next(n for n in model.proto.graph.node if self.fit.target in n.output)
            mean = model.weights[bn.input[3]].array().astype(np.float64)
            own = model.weights[node.input[2]].array().astype(np.float64) if len(node.input) > 2 and node.input[2] else 0.0  # type: ignore[attr-defined]
            shift = shift + self.fit.scale * (mean - own)
        set_values(model, self.fit.bias, shift)


def _kept(y: np.ndarray, fit: Fit) -> np.ndarray:
    """Channels of a whole activation that the cut network still has."""
    return y if fit.kept is None else np.take(y, fit.kept, fit.linear.out_axis)
