"""Robust nonlinear least squares from many starts at once, without scipy.

Levenberg-Marquardt on the weights of Huber's loss: squares up to `delta`, absolute values beyond.
Every start is a row of one batch, so a grid of starts costs little more than one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Parameters [n_starts, k] -> residuals [n_starts, m] and their derivatives [n_starts, m, k].
Residuals = Callable[[Floats], tuple[Floats, Floats]]
SCOUTING_STEPS = 30  # of all starts; then the best few go on
N_FINALISTS = 4


def minimise(
    residuals: Residuals,
    starts: Floats,
    *,
    delta: float = np.inf,
    project: Callable[[Floats], Floats] = lambda x: x,
    n_steps: int = 300,
) -> tuple[Floats, float]:
    """Return the parameters [k] of the least sum of Huber losses found, and that sum.

    starts: [n_starts, k]. `project` brings parameters back into their bounds after a step.
    """
    x = project(np.array(starts, np.float64))
    r, jacobian = residuals(x)
    value = _huber(r, delta)
    damping = np.full(len(x), 1e-3)
    diagonal = np.arange(x.shape[1])
    for step in range(n_steps):
        if step == SCOUTING_STEPS and len(x) > N_FINALISTS:
            kept = np.argsort(value)[:N_FINALISTS]
            x, r, jacobian = x[kept], r[kept], jacobian[kept]
            value, damping = value[kept], damping[kept]
        weight = np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
        weighted = jacobian * weight[:, :, None]
        gradient = np.einsum("smk,sm->sk", weighted, r)
        hessian = np.einsum("smk,sml->skl", weighted, jacobian)
        # The largest entry keeps a parameter that nothing depends on from making this singular.
        scale = hessian[:, diagonal, diagonal]
        scale = scale + 1e-12 * scale.max(axis=1, keepdims=True) + 1e-300
        hessian[:, diagonal, diagonal] += damping[:, None] * scale + 1e-290
        tried = project(x - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0])
        r_tried, jacobian_tried = residuals(tried)
        value_tried = _huber(r_tried, delta)
        better = value_tried < value
        gain = np.where(better, value - value_tried, 0.0)
        is_done = np.all((gain <= 1e-13 * value) & (better | (damping > 1e8)))
        x[better], r[better], jacobian[better] = (
            tried[better], r_tried[better], jacobian_tried[better],
        )  # fmt: skip
        value = np.where(better, value_tried, value)
        damping = np.where(better, damping / 5, damping * 4).clip(1e-15, 1e12)
        if is_done:
            break
    best = int(np.argmin(value))
    return x[best], float(value[best])


def _huber(r: Floats, delta: float) -> Floats:
    """Return the loss of each row; a row that is not finite is never the least."""
    size = np.abs(r)
    if np.isinf(delta):
        losses = r**2 / 2
    else:
        losses = np.where(size <= delta, r**2 / 2, delta * (size - delta / 2))
    total: Floats = losses.sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)
