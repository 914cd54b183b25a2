"""New values for the weights that are left, so that outputs change least: a least-squares problem a row.

With G the second moments of what the row reads (bias included), w0 its dense values and S what is left, the error (w - w0)' (G + ridge I) (w - w0)
is least at w_S = H_SS^-1 (H w0)_S, H = G + ridge I. The ridge is METHODS.md section 1's 1e-3 of the mean diagonal and pulls towards w0.
"""

from __future__ import annotations

import numpy as np

from onnxprune.calibrate.taps import Moments

RIDGE = 1e-3


def refit(rows: np.ndarray, kept: np.ndarray, moments: Moments, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows, bias) refitted.

    Parameters
    ----------
    rows
        Dense weights of one group, (outputs, columns).
    kept
        True where a weight stays, same shape.
    moments
        Of the columns and a last column of ones.
    bias
        (outputs,), None where there is none: then the last column is left out.
    """
    h = moments.xx / max(moments.count, 1)
    size = rows.shape[1] + (bias is not None)
    h = h[:size, :size] + RIDGE * np.diag(h)[: rows.shape[1]].mean() * np.eye(size)
    dense = rows.astype(np.float64) if bias is None else np.column_stack([rows, bias]).astype(np.float64)
    left = kept if bias is None else np.column_stack([kept, np.ones(len(kept), bool)])
    wanted, out = dense @ h, np.zeros_like(dense)
    for i, mask in enumerate(left):
        if mask.all() or not mask.any() or not h.any():
            out[i] = np.where(mask, dense[i], 0)
        else:
            out[i, mask] = np.linalg.solve(h[np.ix_(mask, mask)], wanted[i, mask])
    return (out, None) if bias is None else (out[:, :-1], out[:, -1])
