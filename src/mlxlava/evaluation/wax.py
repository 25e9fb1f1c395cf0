"""Finds the pixels that are wax, in any footage in which one material moves in another.

The pixels that change have two kinds of colour. Both kinds are separated by an axis in colour space and a
threshold on it, fitted to reference frames alone: the axis along which colours vary most, and the threshold
that separates them best (Otsu 1979). Wax is the kind that covers fewer pixels. It uses NumPy, and SciPy for
connected components.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlxlava.evaluation.frames import shrink
from mlxlava.products import NumpyArray, covariance, matmul

_MAX_FRAMES_TO_FIT = 512
_MIN_MOVING_SHARE = 0.3  # pixels whose deviation over time is a smaller share of the largest one stand still
_HISTOGRAM_BINS = 256  # bins of the histogram for Otsu's threshold
_MIN_BLOB_SHARE = 1 / 400  # smallest blob, as a share of a frame's pixels; smaller ones are noise
EDGE_QUANTILE_COUNT = 15  # number of quantiles that describe the steepness of edges in a clip


class WaxMask:
    """Tells which pixels of a frame are wax.

    Args:
        clips: reference clips, each uint8 (L, H, W, 3), in which something moves.
    """

    def __init__(self, clips: Iterable[NumpyArray]) -> None:
        clips = list(clips)
        every = -(-sum(map(len, clips)) // _MAX_FRAMES_TO_FIT)
        frames = np.concatenate([shrink(clip[::every]) for clip in clips])
        deviation = frames.std(0).sum(-1)
        self._moving = deviation > _MIN_MOVING_SHARE * deviation.max()
        colours = frames[:, self._moving].reshape(-1, 3)
        _, vectors = np.linalg.eigh(covariance(colours))
        self._axis = vectors[:, -1].astype(np.float32)
        along = matmul(colours, self._axis)
        self._threshold, low, high = _otsu_threshold(along)
        if (along > self._threshold).mean() > 0.5:
            self._axis, self._threshold, low, high = -self._axis, -self._threshold, -high, -low
        self._contrast = max(high - low, 1e-3)

    def __call__(self, pictures: NumpyArray) -> NumpyArray:
        """Shrunk pictures (L, h, w, 3) → whether each pixel is wax, bool (L, h, w)."""
        wax: NumpyArray = (matmul(pictures, self._axis) > self._threshold) & self._moving
        return wax

    def edge_steepness(self, frames: NumpyArray) -> NumpyArray:
        """How steep the edges of wax are: quantiles over the pixels on edges.

        Args:
            frames: frames, uint8 (L, H, W, 3), not shrunk.

        Returns:
            Quantiles (EDGE_QUANTILE_COUNT,) of the change from a pixel to the next across an edge. 1 is the
            whole difference between both materials. All are 0 if there is no edge.
        """
        x = (matmul(frames.astype(np.float32), self._axis) - self._threshold) / self._contrast
        height, width = x.shape[1:]
        rows = np.arange(height) * len(self._moving) // height
        columns = np.arange(width) * self._moving.shape[1] // width
        moving = self._moving[rows][:, columns][1:-1, 1:-1]
        wax = x > 0
        inner, right, below = wax[:, 1:-1, 1:-1], wax[:, 1:-1, 2:], wax[:, 2:, 1:-1]
        edge = (inner != right) | (inner != below)
        slope = np.hypot(x[:, 1:-1, 2:] - x[:, 1:-1, :-2], x[:, 2:, 1:-1] - x[:, :-2, 1:-1]) / 2
        on_edge = slope[edge & moving]
        if not len(on_edge):
            return np.zeros(EDGE_QUANTILE_COUNT, np.float32)
        quantiles: NumpyArray = np.quantile(on_edge, np.linspace(0.02, 0.98, EDGE_QUANTILE_COUNT)).astype(
            np.float32
        )
        return quantiles


def _otsu_threshold(values: NumpyArray) -> tuple[float, float, float]:
    """The threshold that separates values into two classes of least variance, and both means."""
    counts, edges = np.histogram(values, _HISTOGRAM_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    # If the classes are far apart, many thresholds between them are equally good. The middle one is used.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    at = int(best[len(best) // 2])
    return float(edges[at + 1]), float(mean_below[at]), float(mean_above[at + 1])


def count_blobs(wax: NumpyArray) -> NumpyArray:
    """Count the connected pieces of wax in each frame: bool (L, h, w) → float32 (L,)."""
    from scipy import ndimage

    within_a_frame = np.zeros((3, 3, 3), bool)
    within_a_frame[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(wax, within_a_frame)
    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    large = pixels >= max(2, _MIN_BLOB_SHARE * wax[0].size)
    large[0] = False
    blobs: NumpyArray = np.array([large[np.unique(frame)].sum() for frame in labels], np.float32)
    return blobs
