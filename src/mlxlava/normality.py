"""Statistics of whether a set of states is distributed as N(0, I). They see more than four pooled moments.

Each statistic is written once. It works for NumPy arrays, to measure, and for MLX arrays, as a penalty with a
gradient. ``xp`` is the module of the arrays, ``numpy`` by default or ``mlx.core``. Nothing here imports MLX.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from mlxlava.products import NumpyArray, matmul

_QUADRATURE_KNOT_COUNT = 17  # knots of the trapezoidal rule for Epps–Pulley's integral over 0 … 3
_RANDOM_DIRECTION_COUNT = 64  # random directions of ``epps_pulley_directions``


def moments(x: Any, xp: ModuleType = np) -> tuple[Any, Any, Any, Any]:
    """Mean, standard deviation, skewness and kurtosis (3 if normal) of all numbers of ``x`` pooled."""
    mean = x.mean()
    centred = x - mean
    square = centred * centred
    std = xp.sqrt(square.mean() + 1e-8)
    return mean, std, (square * centred).mean() / std**3, (square * square).mean() / std**4


def epps_pulley(x: Any, xp: ModuleType = np) -> Any:
    """N · ∫ |φ̂(t) − e^(−t²/2)|² e^(−t²/2) dt over 0 … 3, for each column (Epps and Pulley 1983).

    The columns are compared with N(0, 1) itself. Mean and deviation are not fitted first, so they are tested
    as well.

    Args:
        x: points (N, K).
        xp: module of the arrays.

    Returns:
        The statistic of each column (K,). It is about 0.53 for N(0, 1), whatever N. For other distributions
        it grows with N.
    """
    knots = xp.linspace(0, 3, _QUADRATURE_KNOT_COUNT)
    normal = xp.exp(-knots * knots / 2)
    angles = x[..., None] * knots  # (N, K, knots)
    square = (xp.cos(angles).mean(0) - normal) ** 2 + xp.sin(angles).mean(0) ** 2
    inner = (square * normal).sum(-1) - (square[:, 0] * normal[0] + square[:, -1] * normal[-1]) / 2
    return len(x) * (inner * knots[1])


def covariance_distance(products: Any, xp: ModuleType = np) -> Any:
    """‖S − I‖² / Z for second moments S about zero (Z, Z). For states x (N, Z), S is xᵀx / N."""
    size = products.shape[0]
    return ((products - xp.eye(size)) ** 2).sum() / size


def normality_statistics(states: NumpyArray) -> dict[str, float]:
    """Statistics of states (N, Z).

    ``mean``, ``deviation``, ``skewness`` and ``kurtosis`` are those of all numbers pooled. ``norm`` is the
    mean length of a state. ``epps_pulley_axes`` is a mean over the coordinate axes,
    ``epps_pulley_directions`` one over 64 fixed random directions; each alone misses some collapses.
    ``covariance`` is ‖cov − I‖² / Z.
    """
    x = states.astype(np.float64)
    directions = np.random.default_rng(0).standard_normal((x.shape[1], _RANDOM_DIRECTION_COUNT))
    directions /= np.linalg.norm(directions, axis=0)
    return {
        **dict(zip(("mean", "deviation", "skewness", "kurtosis"), pooled_moments(x), strict=True)),
        "norm": float(np.linalg.norm(x, axis=1).mean()),
        "epps_pulley_axes": float(epps_pulley(x).mean()),
        "epps_pulley_directions": float(epps_pulley(matmul(x, directions)).mean()),
        "covariance": float(covariance_distance(matmul(x.T, x) / len(x))),
    }


def pooled_moments(states: NumpyArray) -> tuple[float, float, float, float]:
    """``moments`` of NumPy states, as Python numbers."""
    mean, std, skewness, kurtosis = moments(states.astype(np.float64))
    return float(mean), float(std), float(skewness), float(kurtosis)


def intervals_under_normality(
    count: int, size: int, repeats: int = 400, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The central 95 % interval of each statistic of ``count`` states drawn from N(0, I), by simulation."""
    rng = np.random.default_rng(seed)
    rows = [list(normality_statistics(rng.standard_normal((count, size))).values()) for _ in range(repeats)]
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    return dict(
        zip(
            normality_statistics(np.zeros((2, size))),
            zip(low.tolist(), high.tolist(), strict=True),
            strict=True,
        )
    )
