"""Distances between two sets of points. NumPy only."""

from __future__ import annotations

import numpy as np

from mlxlava.products import NumpyArray, covariance, matmul


def frechet_distance(x: NumpyArray, y: NumpyArray) -> float:
    """Fréchet distance of normal distributions fitted to points (N, d) and (M, d) (Heusel 2017, eq. 6)."""
    first, second = covariance(x), covariance(y)
    values, vectors = np.linalg.eigh(first)
    root = matmul(vectors * np.sqrt(np.maximum(values, 0)), vectors.T)
    between = matmul(matmul(root, second), root)
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(between), 0)).sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * overlap)


def polynomial_mmd(x: NumpyArray, y: NumpyArray, x_clips: NumpyArray, y_clips: NumpyArray) -> float:
    """Squared MMD with the kernel (⟨x, y⟩ + 1)³ (KID, Bińkowski 2018), unbiased.

    Args:
        x: points (N, d).
        y: points (M, d).
        x_clips: number of the clip that each point of ``x`` belongs to. Pairs of points of one clip are left
            out.
        y_clips: number of the clip that each point of ``y`` belongs to.
    """

    def within(points: NumpyArray, clips: NumpyArray) -> float:
        apart = clips[:, None] != clips[None]
        return float(((matmul(points, points.T) + 1) ** 3).mean(where=apart, dtype=np.float64))

    across = ((matmul(x, y.T) + 1) ** 3).mean(dtype=np.float64)
    return within(x, x_clips) + within(y, y_clips) - 2 * float(across)


def mean_wasserstein_of_columns(x: NumpyArray, y: NumpyArray) -> float:
    """Wasserstein-1 distance between columns of points (N, K) and (M, K), as a mean over the columns."""
    at = (np.arange(128) + 0.5) / 128
    return float(np.abs(_quantiles(x, at) - _quantiles(y, at)).mean())


def _quantiles(x: NumpyArray, levels: NumpyArray) -> NumpyArray:
    ordered: NumpyArray = np.sort(x, axis=0)[(levels * len(x)).astype(int)]
    return ordered


def squared_distances(x: NumpyArray, y: NumpyArray) -> NumpyArray:
    """Squared distances of points (N, d) to points (M, d): (N, M)."""
    squares: NumpyArray = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - matmul(2 * x, y.T), 0)
    return squares


def nearest_distances(x: NumpyArray, y: NumpyArray) -> NumpyArray:
    """Distance of each point of ``x`` (N, d) to the nearest of ``y`` (M, d).

    Blocks of x fit into the cache.
    """
    lengths = (y**2).sum(1)
    parts = [(lengths - matmul(2 * x[at : at + 64], y.T)).min(1) for at in range(0, len(x), 64)]
    nearest: NumpyArray = np.sqrt(np.maximum(np.concatenate(parts) + (x**2).sum(1), 0))
    return nearest
