"""Measures how fast things move in pictures, and how the camera moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MEASURED_SHIFT = 0.8  # pixels; the speed is measured over the time in which the fastest edges move so far
_MIN_EDGE_STEEPNESS = 4.0  # grey levels a pixel; flatter places say nothing about motion
_SPEED_QUANTILE = 0.95  # this share of all edges, weighted by their steepness, is slower
_PICTURE_PAIR_COUNT = 48  # pairs of pictures that are compared for each distance in time


def speed(stretches: Sequence[np.ndarray]) -> float:
    """Speed of the fastest edges, in pixels a picture; 0 if nothing moves.

    A moving edge changes a pixel by its gradient times its shift (Lucas and Kanade 1981). Most edges stand
    still, so the shift is taken that 5 % of the edges exceed. The compared pictures are so far apart in time
    that this shift is about a pixel. If they were closer, noise would matter more. If they were farther
    apart, the gradient at a pixel would be another one.

    Args:
        stretches: stretches of consecutive pictures; each is an array of grey levels (pictures, rows,
            columns).
    """
    found, gap = 0.0, 1
    longest = max(map(len, stretches))
    while gap < longest:
        ways, weights = [], []
        for stretch in stretches:
            if len(stretch) <= gap:
                continue
            count = min(max(1, _PICTURE_PAIR_COUNT // len(stretches)), len(stretch) - gap)
            for first in np.unique(np.linspace(0, len(stretch) - 1 - gap, count).astype(int)):
                before, after = _smooth_3x3(stretch[first]), _smooth_3x3(stretch[first + gap])
                slope = np.hypot(*np.gradient((before + after) / 2))
                steep = slope > _MIN_EDGE_STEEPNESS
                ways.append(np.abs(after - before)[steep] / slope[steep])
                weights.append(slope[steep])
        way, weight = np.concatenate(ways), np.concatenate(weights)
        if not len(way):
            return 0.0
        order = np.argsort(way)
        total = np.cumsum(weight[order])
        fastest = float(way[order][np.searchsorted(total, _SPEED_QUANTILE * total[-1])])
        found = fastest / gap
        if fastest >= _MEASURED_SHIFT:
            break
        gap = gap + max(1, gap // 2)
    return found


def camera_shift(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """How far the camera has moved between two pictures.

    Args:
        before, after: grey levels (rows, columns).

    Returns:
        The shift to the right and down, in cells; and the share of the change between the pictures that this
        shift explains.
    """
    one, other = _smooth_3x3(before), _smooth_3x3(after)
    change = float(((other - one) ** 2).sum())
    if change < 1e-6 * one.size:
        return 0.0, 0.0, 0.0
    across, down = _whole_shift(one, other)
    moved = _shift_image(one, across, down)
    for _ in range(3):
        down_slope, across_slope = np.gradient(moved)
        error = other - moved
        # Small steps along the gradients (Lucas and Kanade 1981).
        matrix = np.array(
            [
                [(across_slope**2).sum(), (across_slope * down_slope).sum()],
                [(across_slope * down_slope).sum(), (down_slope**2).sum()],
            ]
        )
        right = np.array([(across_slope * error).sum(), (down_slope * error).sum()])
        step = np.linalg.lstsq(matrix + 1e-6 * np.eye(2), -right, rcond=None)[0]
        across, down = across + float(step[0]), down + float(step[1])
        moved = _shift_image(one, across, down)
    edge = 1 + int(max(abs(across), abs(down)))
    inside = (slice(edge, -edge), slice(edge, -edge))
    if min(one.shape) <= 2 * edge + 2:
        return 0.0, 0.0, 0.0
    total = float(((other - one)[inside] ** 2).sum())
    left = float(((other - moved)[inside] ** 2).sum())
    return across, down, max(0.0, 1 - left / max(total, 1e-9))


def _whole_shift(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The shift in whole cells, by phase correlation (Kuglin and Hines 1975)."""
    window = np.outer(np.hanning(one.shape[0]), np.hanning(one.shape[1]))
    first, second = (np.fft.rfft2((image - image.mean()) * window) for image in (one, other))
    cross = second * np.conj(first)
    peak = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=one.shape)
    row, column = np.unravel_index(int(peak.argmax()), peak.shape)
    rows, columns = one.shape
    down = int(row) - rows * (int(row) > rows // 2)
    across = int(column) - columns * (int(column) > columns // 2)
    return float(across), float(down)


def _shift_image(image: np.ndarray, across: float, down: float) -> np.ndarray:
    """Shift a picture by a fraction of cells, with linear interpolation. Its edges are repeated."""
    for axis, way in ((0, down), (1, across)):
        at = np.clip(np.arange(image.shape[axis]) - way, 0, image.shape[axis] - 1)
        low = np.minimum(np.floor(at).astype(int), image.shape[axis] - 2)
        share = np.expand_dims(at - low, 1 - axis)
        image = (1 - share) * image.take(low, axis) + share * image.take(low + 1, axis)
    return image


def _smooth_3x3(image: np.ndarray) -> np.ndarray:
    """Means of three by three cells. Their noise is a third of that of cells."""
    padded = np.pad(image.astype(np.float64), 1, mode="edge")
    rows, columns = image.shape
    total = sum(padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    found: np.ndarray = np.asarray(total) / 9
    return found
