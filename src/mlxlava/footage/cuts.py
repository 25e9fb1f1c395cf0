"""Finds hard cuts: frames that begin a new scene."""

from __future__ import annotations

import math
from array import array

import numpy as np

from mlxlava.resize import resize

# At a hard cut, the thumbnails of two neighbouring frames differ by more than this (of 255) …
MIN_CUT_CHANGE = 4.0
# … and by more than this many times the usual difference of neighbours within half a second. In a real lamp
# at 30 fps, neighbours differed by 0.2 and at most by 0.8, and frames 8 s apart by at least 6.5. In a
# time-lapse all neighbours differ much, so the ratio finds no cuts there.
MIN_RATIO_TO_USUAL_CHANGE = 5.0
FRAMES_ON_EITHER_SIDE = 15  # frames looked at on either side

_THUMBNAIL_SIZE = (16, 16)


def find_cuts(changes: np.ndarray) -> list[int]:
    """Find hard cuts. Motion, flicker, time-lapse and single flashes do not count as cuts.

    Args:
        changes: (N, 3), three mean absolute differences (0 … 255) of each frame's thumbnail: to the frame
            before it; to that frame, scaled to the same brightness; to the frame before that, scaled as well.
            0 if there is no such frame.

    Returns:
        Rising indices of the frames that begin a new scene.
    """
    plain, change, skip = np.asarray(changes, dtype=np.float64).reshape(-1, 3).T
    cuts = []
    for at in np.flatnonzero(change > MIN_CUT_CHANGE).tolist():
        nearby = np.concatenate(
            [plain[max(1, at - FRAMES_ON_EITHER_SIDE) : at], plain[at + 1 : at + 1 + FRAMES_ON_EITHER_SIDE]]
        )
        # The median would be zero for a slow source in a faster container, which repeats most of its frames.
        typical = float(np.percentile(nearby, 85)) if len(nearby) else math.inf
        # At a single flash, the frames before and after it are alike.
        before = at < 2 or skip[at] > 0.5 * change[at]
        after = at + 1 >= len(change) or skip[at + 1] > 0.5 * change[at]
        if change[at] > MIN_RATIO_TO_USUAL_CHANGE * typical and before and after:
            cuts.append(at)
    return cuts


class CutFinder:
    """Finds the cuts in frames that come one by one. It needs 12 bytes a frame."""

    def __init__(self) -> None:
        self._rows = array("f")
        self._last: list[np.ndarray] = []

    def add_frame(self, frame: np.ndarray) -> None:
        """Look at the next frame, uint8 (H, W, 3)."""
        now = resize(frame, _THUMBNAIL_SIZE).astype(np.float32)
        before = [*([now] * (2 - len(self._last))), *self._last]
        self._rows.append(float(np.abs(now - before[1]).mean()))
        for then in before[::-1]:
            gain = float((now * then).sum() / max(float((then * then).sum()), 1.0))
            self._rows.append(float(np.abs(now - min(max(gain, 0.7), 1.4) * then).mean()))
        self._last = [before[1], now]

    def cuts(self) -> list[int]:
        """Rising indices of the frames seen so far that begin a new scene."""
        return find_cuts(np.asarray(self._rows))
