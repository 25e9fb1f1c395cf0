"""Is a set of states N(0, I)? Statistics that together see what four pooled moments do not. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.products import matmul

Array = npt.NDArray[Any]

_KNOTS = np.linspace(0, 3, 17)  # Epps–Pulley's integral, by the trapezium rule
_DIRECTIONS = 64


def epps_pulley(x: Array) -> Array:
    """N · ∫ |φ̂(t) − e^(−t²/2)|² e^(−t²/2) dt over 0 … 3, for each column (Epps and Pulley 1983).

    Against N(0, 1) itself: mean and deviation are not fitted first, so it sees those as well.

    Args:
        x: (N, K).

    Returns:
        (K,); its law under N(0, 1) hardly depends on N.
    """
    normal = np.exp(-(_KNOTS**2) / 2)
    angles = x[..., None] * _KNOTS  # (N, K, knots)
    square = (np.cos(angles).mean(0) - normal) ** 2 + np.sin(angles).mean(0) ** 2
    weights = np.full(len(_KNOTS), _KNOTS[1])
    weights[[0, -1]] /= 2
    values: Array = len(x) * matmul(square, normal * weights)
    return values


def moments(states: Array) -> tuple[float, float, float, float]:
    """Mean, deviation, skewness and kurtosis (3 for a normal law) of all numbers of ``states`` pooled."""
    x = states.astype(np.float64)
    mean, deviation = x.mean(), x.std()
    normal = (x - mean) / max(float(deviation), 1e-12)
    return float(mean), float(deviation), float((normal**3).mean()), float((normal**4).mean())


def normality(states: Array) -> dict[str, float]:
    """Statistics of states (N, Z).

    ``mean``, ``deviation``, ``skewness`` and ``kurtosis`` of all numbers pooled; ``norm``, the mean length
    of a state; ``epps_pulley_axes`` and ``epps_pulley_directions``, means over the coordinate axes and over
    64 fixed random directions (either alone is blind to some collapses); ``covariance``, ‖cov − I‖² / Z.
    """
    x = states.astype(np.float64)
    size = x.shape[1]
    directions = np.random.default_rng(0).standard_normal((size, _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return {
        **dict(zip(("mean", "deviation", "skewness", "kurtosis"), moments(x), strict=True)),
        "norm": float(np.linalg.norm(x, axis=1).mean()),
        "epps_pulley_axes": float(epps_pulley(x).mean()),
        "epps_pulley_directions": float(epps_pulley(matmul(x, directions)).mean()),
        "covariance": float(((matmul(x.T, x) / len(x) - np.eye(size)) ** 2).sum() / size),
    }


def null(count: int, size: int, repeats: int = 400, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The middle 95 % of each statistic for ``count`` independent states that are N(0, I), by simulation."""
    rng = np.random.default_rng(seed)
    rows = [list(normality(rng.standard_normal((count, size))).values()) for _ in range(repeats)]
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    return dict(
        zip(normality(np.zeros((2, size))), zip(low.tolist(), high.tolist(), strict=True), strict=True)
    )
