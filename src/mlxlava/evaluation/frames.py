"""Chooses frames of a clip, and shrinks them. A clip is uint8 (L, H, W, 3), one frame a learned step."""

from __future__ import annotations

import numpy as np

from mlxlava.products import NumpyArray

_MAX_SIDE_PIXELS = 64  # longest side of shrunk pictures


def evenly_spaced_indices(length: int, count: int) -> NumpyArray:
    """``count`` indices from 0 to ``length`` − 1, evenly spaced."""
    return np.linspace(0, length - 1, count).round().astype(int)


def shrink(frames: NumpyArray) -> NumpyArray:
    """Shrink frames (L, H, W, 3) to about 64 pixels on the longer side by averaging: float32 (L, h, w, 3)."""
    _, height, width, channels = frames.shape
    factor = max(1, max(height, width) // _MAX_SIDE_PIXELS)
    small = frames[:, : height // factor * factor, : width // factor * factor].astype(np.float32)
    if factor > 1:
        shape = (len(frames), height // factor, factor, width // factor, factor, channels)
        small = small.reshape(shape).mean((2, 4))
    return small
