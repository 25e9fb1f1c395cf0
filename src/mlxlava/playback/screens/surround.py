"""The colours around a frame on a screen of another shape. They continue the frame's edge, so no box is seen.

A single colour would not do: along one side of the built-in lamp the edge grows three times brighter and dark
again. So each side has a line of colours, which a screen stretches to its own border. Frames are uint8
(H, W, 3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from mlxlava.playback.writers import Frame
from mlxlava.resize import resize_smoothly

_COLOURS_PER_SIDE = 16  # along a side. Each is a mean of several pixels; single ones would become stripes

# Levels of 255 by which a colour may differ from the frame's edge. Without this, noise at the edge would make
# a terminal draw its surround anew with each frame.
_IGNORED_DIFFERENCE_GREY_LEVELS = 2


class EdgeColours(NamedTuple):
    """Colours along the four sides of a frame, each uint8 (16, 3), from the top or from the left on."""

    left: Frame
    right: Frame
    top: Frame
    bottom: Frame


class Surround:
    """Follows the edge of what is shown.

    Attributes:
        sides: the colours beside the frame. Before the first frame they are black.
    """

    def __init__(self) -> None:
        self.sides = EdgeColours(*np.zeros((4, _COLOURS_PER_SIDE, 3), np.uint8))

    def update_from_frame(self, frame: Frame) -> bool:
        """Look at a frame. Returns whether the colours have changed, for example for another lamp."""
        lines = (frame[:, 0], frame[:, -1], frame[0], frame[-1])
        sides = EdgeColours(*(stretch_line(line, _COLOURS_PER_SIDE) for line in lines))
        if np.abs(np.subtract(sides, self.sides, dtype=np.int16)).max() <= _IGNORED_DIFFERENCE_GREY_LEVELS:
            return False
        self.sides = sides
        return True


def stretch_line(line: Frame, length: int) -> Frame:
    """Stretch or shrink a line of colours, uint8: (N, 3) → (length, 3)."""
    return np.asarray(resize_smoothly(Image.fromarray(line[:, None]), (length, 1)))[:, 0]
