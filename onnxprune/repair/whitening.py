"""Coordinates of a layer's weight in which the joint problem is nearly isotropic.

Inputs are decorrelated by their second moments, outputs scaled by how much the block's exits depend
on them. These are the two Kronecker factors of K-FAC (Martens and Grosse 2015, arXiv 1503.05671).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.ir.model import ModelView
from onnxprune.repair.problem import LayerProblem
from onnxprune.statistics.im2col import columns, outputs, positions

# Relative to the mean variance of a node's inputs. Without it, steps would be long in directions in
# which inputs hardly vary.
DAMPING = 1.0


@dataclass(frozen=True)
class WhitenedLayer:
    """One node's weight W and bias b in coordinates z = D' W L and D' b.

    Attributes
    ----------
    problem
        The node.
    rows
        (groups, outputs, K) W before the joint refit.
    bias
        Values of the bias before the joint refit; None if none can be set.
    cholesky
        (groups, K, K) lower triangular L: inputs are mean + L e with uncorrelated e.
    mean
        (groups, K) mean inputs.
    dependence
        (groups, outputs, outputs) lower triangular D, such that D D' is the second moment of the
        exits' gradient by the outputs. Written in place by the joint refit.
    """

    problem: LayerProblem
    rows: np.ndarray
    bias: np.ndarray | None
    cholesky: np.ndarray
    mean: np.ndarray
    dependence: np.ndarray

    @staticmethod
    def of(problem: LayerProblem, model: ModelView) -> WhitenedLayer:
        """Return the layer at the model's weights; `dependence` is zero and must be set."""
        rows = problem.rows(model)
        whitened = [system.whiten(DAMPING) for system in problem.systems]
        cholesky = np.stack([factor for factor, _ in whitened])
        mean = np.stack([m for _, m in whitened])
        bias = model.weights[problem.fit.bias].array() if problem.fit.bias else None
        groups, outs, _ = rows.shape
        return WhitenedLayer(problem, rows, bias, cholesky, mean, np.zeros((groups, outs, outs)))

    @property
    def size(self) -> int:
        """Number of coordinates: of the rows, and of the shift if it is free."""
        shift = 0 if self.bias is None else self.dependence[..., 0].size
        return self.rows.size + shift

    def coordinates(self) -> np.ndarray:
        """Return the (size,) coordinates of the weight before the joint refit."""
        # the shift is relative to the bias and starts at 0
        z = np.zeros(self.size)
        z[: self.rows.size] = (self.dependence.swapaxes(1, 2) @ self.rows @ self.cholesky).ravel()
        return z

    def parameters(self, model: ModelView, z: np.ndarray) -> dict[str, np.ndarray]:
        """Return the initializers at coordinates z, by name.

        The shift compensates for the change of the mean output, so that rows do not affect it.
        """
        by_input = _solve(
            self.dependence, z[: self.rows.size].reshape(self.rows.shape), transposed=True
        )
        rows = _solve(self.cholesky, by_input.swapaxes(1, 2), transposed=True).swapaxes(1, 2)
        values = {self.problem.fit.weight: self.problem.stored(model, rows)}
        if self.bias is not None:
            free = z[self.rows.size :].reshape(*self.rows.shape[:2], 1)
            shift = _solve(self.dependence, free, transposed=True)[..., 0]
            shift = shift + np.einsum("gok,gk->go", self.rows - rows, self.mean)
            change = (self.problem.scale * shift).reshape(self.bias.shape)
            values[self.problem.fit.bias] = (self.bias + change).astype(self.bias.dtype)
        return values

    def add_gradient(
        self,
        values: Mapping[str, np.ndarray],
        gradient: np.ndarray,
        at: tuple[np.ndarray, ...],
        by_rows: np.ndarray,
        by_shift: np.ndarray,
    ) -> None:
        """Add a chunk's gradient by the rows and by the shift.

        Parameters
        ----------
        values
            Activations of the chunk, with the node's input.
        gradient
            Gradient by the node's output.
        at
            Positions per spatial axis; the sum is extrapolated to all.
        by_rows
            (groups, outputs, K), updated.
        by_shift
            (groups, outputs), updated.
        """
        window = self.problem.window
        x = columns(values[self.problem.node.input[0]], window, at)
        g = self.outputs(gradient, at)
        factor = gradient.size / g.size
        for group, (g_out, x_in) in enumerate(zip(g, np.split(x, len(g)), strict=True)):
            # a third faster than g_out @ x_in.T if there are few outputs
            by_rows[group] += factor * (x_in @ g_out.T).T
        by_shift += factor * g.sum(2, dtype=np.float64)

    def draw(
        self, gradient: np.ndarray, most: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Draw positions of the node's output per spatial axis.

        Parameters
        ----------
        most
            Positions per sample, at most.
        """
        return positions(gradient.shape, self.problem.window.spatial, most, rng)

    def to_coordinates(self, by_rows: np.ndarray, by_shift: np.ndarray) -> np.ndarray:
        """Return the (size,) gradient by the coordinates from that by rows and by the shift."""
        if self.bias is not None:
            # chain rule: rows also move the shift, by the mean inputs
            by_rows = by_rows - by_shift[..., None] * self.mean[:, None]
        by_input = _solve(self.cholesky, by_rows.swapaxes(1, 2)).swapaxes(1, 2)
        rows = _solve(self.dependence, by_input).ravel()
        if self.bias is None:
            return rows
        shift = _solve(self.dependence, by_shift[..., None]).ravel()
        return np.concatenate([rows, shift])

    def outputs(self, values: np.ndarray, at: tuple[np.ndarray, ...] | None = None) -> np.ndarray:
        """Return an activation of the node's output as (groups, outputs, positions).

        Parameters
        ----------
        at
            Indices of positions per spatial axis; None for all.
        """
        window = self.problem.window
        if at is None:
            at = tuple(np.arange(n) for n in values.shape[2 : 2 + window.spatial])
        return outputs(values, window, at).reshape(*self.rows.shape[:2], -1)


def _solve(triangles: np.ndarray, values: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """Return X with L X = values, or L' X = values, per group.

    Parameters
    ----------
    triangles
        (groups, n, n) lower triangular L.
    """
    from scipy.linalg import solve_triangular

    return np.stack(
        [
            solve_triangular(t, v, lower=True, trans=int(transposed), check_finite=False)
            for t, v in zip(triangles, values, strict=True)
        ]
    )
