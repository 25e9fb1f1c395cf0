"""Distances between two sets of points. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.products import covariance, matmul

Array = npt.NDArray[Any]


def frechet(x: Array, y: Array) -> float:
    """Fréchet distance of normal distributions fitted to points (N, d) and (M, d) (Heusel 2017, eq. 6)."""
    first, second = covariance(x), covariance(y)
    values, vectors = np.linalg.eigh(first)
    root = matmul(vectors * np.sqrt(np.maximum(values, 0)), vectors.T)
    between = matmul(matmul(root, second), root)
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(between), 0)).sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * overlap)


def polynomial_mmd(x: Array, y: Array, x_names: Array, y_names: Array) -> float:
    """Squared MMD with the kernel (⟨x, y⟩ + 1)³ (KID, Bińkowski 2018), unbiased.

    Args:
        x: points (N, d).
        y: points (M, d).
        x_names: the clip of each point. All pairs of one clip are left out, not only a point with itself.
        y_names: the same for ``y``.
    """

    def within(points: Array, names: Array) -> float:
        apart = names[:, None] != names[None]
        return float(((matmul(points, points.T) + 1) ** 3).mean(where=apart, dtype=np.float64))

    across = ((matmul(x, y.T) + 1) ** 3).mean(dtype=np.float64)
    return within(x, x_names) + within(y, y_names) - 2 * float(across)


def sliced_wasserstein(x: Array, y: Array) -> float:
    """Wasserstein-1 distance along one axis, mean over columns: (N, K), (M, K)."""
    at = (np.arange(128) + 0.5) / 128
    return float(np.abs(_quantiles(x, at) - _quantiles(y, at)).mean())


def _quantiles(x: Array, at: Array) -> Array:
    ordered: Array = np.sort(x, axis=0)[(at * len(x)).astype(int)]
    return ordered


def squared_distances(x: Array, y: Array) -> Array:
    """Squared distances of points (N, d) to points (M, d): (N, M)."""
    squares: Array = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - matmul(2 * x, y.T), 0)
    return squares


def nearest_distances(x: Array, y: Array) -> Array:
    """Distance of each of (N, d) to the nearest of (M, d); in blocks, which stay in the cache."""
    lengths = (y**2).sum(1)
    parts = [(lengths - matmul(2 * x[at : at + 64], y.T)).min(1) for at in range(0, len(x), 64)]
    nearest: Array = np.sqrt(np.maximum(np.concatenate(parts) + (x**2).sum(1), 0))
    return nearest
