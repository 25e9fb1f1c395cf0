"""How far a batch of states is from N(0, I): differentiable statistics, for penalties and to watch.

normality.py in the package's root has the same for measuring, in NumPy.
"""

from __future__ import annotations

from mlxlava.backend import mx

_KNOTS = 17  # of Epps–Pulley's integral, by the trapezium rule


def moments(x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Mean, standard deviation, skewness and kurtosis (3 for a normal law) of all numbers of ``x``."""
    mean = x.mean()
    centred = x - mean
    square = centred * centred
    std = mx.sqrt(square.mean() + 1e-8)
    return mean, std, (square * centred).mean() / std**3, (square * square).mean() / std**4


def epps_pulley(x: mx.array) -> mx.array:
    """N · ∫ |φ̂(t) − e^(−t²/2)|² e^(−t²/2) dt over 0 … 3, mean over columns (Epps and Pulley 1983).

    Differentiable; normality.py has it for measuring. About 0.53 for N states that are N(0, I), and grows
    with N for others.

    Args:
        x: (N, K).
    """
    knots = mx.linspace(0, 3, _KNOTS)
    normal = mx.exp(-knots * knots / 2)
    angles = x[..., None] * knots  # (N, K, knots)
    square = (mx.cos(angles).mean(0) - normal) ** 2 + mx.sin(angles).mean(0) ** 2
    inner = (square * normal).sum(-1) - (square[:, 0] * normal[0] + square[:, -1] * normal[-1]) / 2
    return len(x) * (inner * knots[1]).mean()


def epps_pulley_directions(x: mx.array, key: mx.array) -> mx.array:
    """``epps_pulley`` of states (N, Z) along Z random directions."""
    size = x.shape[1]
    directions = mx.random.normal((size, size), key=key)
    return epps_pulley(x @ (directions / mx.linalg.norm(directions, axis=0)))


def covariance_distance(x: mx.array) -> mx.array:
    """‖cov − I‖² / Z of states (N, Z) about zero."""
    count, size = x.shape
    return ((x.T @ x / count - mx.eye(size)) ** 2).sum() / size
