"""Ridge regression of one group of outputs on streamed second moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.repair.fits import Fit
from onnxprune.statistics.im2col import Moments

LIFT_FACTOR = 100.0  # from one ridge to the next if the sums are not positive definite
_TINY = 1e-12


@dataclass
class NormalEquations:
    """Normal equations of a linear map from K inputs to O outputs.

    Attributes
    ----------
    moments
        Sums over inputs x and targets y.
    weight
        (O, K) solution; initially the prior that the ridge pulls to.
    ridge
        Relative to the mean diagonal of the second moments.
    constant
        True if a constant shift of the outputs is free.
    shift
        (O,) solution.
    """

    moments: Moments
    weight: np.ndarray
    ridge: float
    constant: bool

    def __post_init__(self) -> None:
        """Start from the prior, without a shift."""
        self.shift: np.ndarray = np.zeros(len(self.weight))
        self._prior = self.weight
        self._factor: tuple[np.ndarray, bool] | None = None
        self._lift = 0.0

    def solve(self) -> None:
        """Compute weight and shift for the targets summed so far.

        Minimizes sum of |W x + b - y|^2 + lift |W - prior|^2. The Cholesky factor of the inputs is
        kept for further targets. The weight is NaN if a sum is not finite.
        """
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        moments = self.moments
        moments.flush()
        xx, yx = moments.centered() if self.constant else (moments.xx, moments.yx)
        if yx is None or moments.y is None:
            raise ValueError("moments without outputs, nothing to solve for")
        if not (np.isfinite(xx).all() and np.isfinite(yx).all()):
            self.weight = np.full_like(self.weight, np.nan)
            return
        # inputs do not change between solutions, so the factor is computed once
        if self._factor is None:
            self._lift = max(self.ridge * float(np.trace(xx)) / len(xx), _TINY)
        while self._factor is None:
            try:
                self._factor = cho_factor(xx + self._lift * np.eye(len(xx)), lower=True)
            except LinAlgError:  # centering cancels digits of values far from zero
                self._lift *= LIFT_FACTOR
        self.weight = cho_solve(self._factor, (yx + self._lift * self._prior).T).T
        count = max(moments.count, 1)
        if self.constant:
            self.shift = moments.y / count - self.weight @ (moments.x / count)

    def with_ridge(self, ridge: float) -> NormalEquations:
        """Return the solution of the same sums with another ridge."""
        other = NormalEquations(self.moments, self._prior, ridge, self.constant)
        other.solve()
        return other

    def whiten(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the distribution of the inputs as mean + L e with uncorrelated e.

        Parameters
        ----------
        damping
            Relative to the mean variance; added to every variance.

        Returns
        -------
        cholesky
            (K, K) lower triangular L.
        mean
            (K,); zero without a free shift.
        """
        from scipy.linalg import cholesky

        xx = self.moments.centered()[0] if self.constant else self.moments.xx
        count = max(self.moments.count, 1)
        lift = max(damping * float(np.trace(xx)) / len(xx), self._lift)
        mean = self.moments.x / count if self.constant else np.zeros_like(self.moments.x)
        return cholesky(xx + lift * np.eye(len(xx)), lower=True) / np.sqrt(count), mean

    def clear_targets(self) -> None:
        """Start new sums of targets over the same inputs."""
        self.moments.yx, self.moments.y = np.zeros_like(self.weight), np.zeros(len(self.weight))

    def sum_saturating_targets(
        self, x: np.ndarray, y: np.ndarray, shortcut: np.ndarray | None, fit: Fit
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sum targets that respect the saturated range of the activation after the node.

        The target is y. Where y and the present output are both saturated on the same side, it is
        the present output, since any saturated value is as good; where only y is, it is the limit.

        Parameters
        ----------
        x
            (K, P) inputs, which were summed before.
        y
            (O, P) targets.
        shortcut
            (O, P) values added between the node and the activation; None for none.
        fit
            Limits of the activation.

        Returns
        -------
        yx
            (O, K) sum of targets times inputs.
        y
            (O,) sum of targets.
        """
        # float32, as the inputs are: limits are compared at the activation's own precision
        present = self.weight.astype(np.float32) @ x
        present += self.shift.astype(np.float32)[:, None]
        sides = ((fit.low, np.less_equal, np.minimum), (fit.high, np.greater_equal, np.maximum))
        for limit, is_beyond, outer in sides:
            if np.isfinite(limit):
                bound = np.float32(limit) - (0 if shortcut is None else shortcut)
                y = np.where(is_beyond(y, bound), outer(present, bound), y)
        return y @ x.T, y.sum(1, dtype=np.float64)

    def add_targets(self, yx: np.ndarray, y: np.ndarray) -> None:
        """Add sums of targets over inputs that were summed before."""
        self.moments.yx += yx
        self.moments.y += y
