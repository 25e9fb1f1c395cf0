"""Which pixels are wax: what a viewer follows. For any footage in which one matter moves in another.

Pixels that change are of two kinds of colour, and the threshold between them is fitted on reference frames
alone: the axis along which their colours vary most, and the point on it that parts them best (Otsu 1979).
Wax is the kind that covers less. NumPy, and SciPy for connected components.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlxlava.evaluation.frames import Array, shrink
from mlxlava.products import covariance, matmul

_FIT_FRAMES = 512
_MOVING = 0.3  # of the largest deviation over time: pixels with less stand still
_BINS = 256  # of Otsu's histogram
_LEAST_BLOB = 1 / 400  # of a frame's pixels; what is smaller is noise
EDGE_QUANTILES = 15  # that describe how steep a clip's edges are


class WaxMask:
    """The pixels of a frame that are wax.

    Args:
        clips: reference clips, each uint8 (L, H, W, 3), in which something moves.
    """

    def __init__(self, clips: Iterable[Array]) -> None:
        clips = list(clips)
        every = -(-sum(map(len, clips)) // _FIT_FRAMES)
        frames = np.concatenate([shrink(clip[::every]) for clip in clips])
        deviation = frames.std(0).sum(-1)
        self._moving = deviation > _MOVING * deviation.max()
        colours = frames[:, self._moving].reshape(-1, 3)
        _, vectors = np.linalg.eigh(covariance(colours))
        self._axis = vectors[:, -1].astype(np.float32)
        along = matmul(colours, self._axis)
        self._threshold, low, high = _otsu(along)
        if (along > self._threshold).mean() > 0.5:
            self._axis, self._threshold, low, high = -self._axis, -self._threshold, -high, -low
        self._contrast = max(high - low, 1e-3)

    def __call__(self, pictures: Array) -> Array:
        """Shrunk pictures (L, h, w, 3) → bool (L, h, w)."""
        wax: Array = (matmul(pictures, self._axis) > self._threshold) & self._moving
        return wax

    def steepness(self, frames: Array) -> Array:
        """How steep edges of wax are, EDGE_QUANTILES quantiles of the pixels on them.

        Args:
            frames: uint8 (L, H, W, 3), not shrunk.

        Returns:
            Change from a pixel to the next across an edge, where 1 is all the way from one matter to the
            other; 0 where there is no edge.
        """
        x = (matmul(frames.astype(np.float32), self._axis) - self._threshold) / self._contrast
        height, width = x.shape[1:]
        rows = np.arange(height) * len(self._moving) // height
        columns = np.arange(width) * self._moving.shape[1] // width
        moving = self._moving[rows][:, columns][1:-1, 1:-1]
        inner, wax = x[:, 1:-1, 1:-1], x > 0
        edge = (wax[:, 1:-1, 1:-1] != wax[:, 1:-1, 2:]) | (wax[:, 1:-1, 1:-1] != wax[:, 2:, 1:-1])
        slope = np.hypot(x[:, 1:-1, 2:] - x[:, 1:-1, :-2], x[:, 2:, 1:-1] - x[:, :-2, 1:-1]) / 2
        on_edge = slope[edge & moving & np.isfinite(inner)]
        if not len(on_edge):
            return np.zeros(EDGE_QUANTILES, np.float32)
        quantiles: Array = np.quantile(on_edge, np.linspace(0.02, 0.98, EDGE_QUANTILES)).astype(np.float32)
        return quantiles


def _otsu(values: Array) -> tuple[float, float, float]:
    """The threshold that parts values into two classes of least variance, and their means (Otsu 1979)."""
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    # Between two classes that are far apart many thresholds are as good: take the middle of them.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    at = int(best[len(best) // 2])
    return float(edges[at + 1]), float(mean_below[at]), float(mean_above[at + 1])


def count_blobs(wax: Array) -> Array:
    """How many connected pieces of wax there are in each frame; wax: bool (L, h, w) → float32 (L,)."""
    from scipy import ndimage

    within_a_frame = np.zeros((3, 3, 3), bool)
    within_a_frame[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(wax, within_a_frame)
    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    large = pixels >= max(2, _LEAST_BLOB * wax[0].size)
    large[0] = False
    blobs: Array = np.array([large[np.unique(frame)].sum() for frame in labels], np.float32)
    return blobs
