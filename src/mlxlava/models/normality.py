"""How far a batch of states is from N(0, I): statistics with gradients, for penalties and to watch training.

The formulas are in ``mlxlava.normality``.
"""

from __future__ import annotations

from mlxlava import normality
from mlxlava.backend import mx


def moments(x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Mean, standard deviation, skewness and kurtosis (3 where normal) of all numbers of ``x``."""
    return normality.moments(x, mx)


def epps_pulley(x: mx.array) -> mx.array:
    """The statistic of Epps and Pulley (1983) of states (N, Z), as a mean over the coordinate axes."""
    mean: mx.array = normality.epps_pulley(x, mx).mean()
    return mean


def epps_pulley_directions(x: mx.array, key: mx.array) -> mx.array:
    """``epps_pulley`` of states (N, Z) along Z random directions."""
    size = x.shape[1]
    directions = mx.random.normal((size, size), key=key)
    return epps_pulley(x @ (directions / mx.linalg.norm(directions, axis=0)))


def covariance_distance(x: mx.array) -> mx.array:
    """‖S − I‖² / Z, where S are the second moments about zero of states (N, Z)."""
    distance: mx.array = normality.covariance_distance(x.T @ x / len(x), mx)
    return distance
