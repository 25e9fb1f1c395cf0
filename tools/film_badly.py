"""Writes a video of the built-in lamp as a hurried person with a phone would film it.

The lamp stands on a table in front of a wall. The camera shakes a little and its exposure drifts. A hand
passes through the picture, and there is noise. docs/your-own-lamp.md trains on it.

python tools/film_badly.py badly.mp4 --seconds 90
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlxlava.footage.simulated_lamp import frames as simulated_frames
from mlxlava.playback.writers import open_writer

FPS = 30.0
PICTURE_SIZE = (368, 480)
LAMP_SIZE = (288, 144)
LAMP_CORNER = (40, 190)  # of the upper left pixel of the lamp's frame
TABLE_TOP = 300  # row at which the table begins
SPEED = 3.0  # of the lamp: wax of a real lamp that is warm moves about as fast
SHAKE_PIXELS = 0.7
EXPOSURE_DRIFT = 0.12  # largest change of brightness, as a share
NOISE_LEVELS = 4.0  # standard deviation, of 255
HAND_SECONDS = (31.0, 33.5)


def scene_frames(seconds: float, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of the video, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    room = _room()
    shake = np.zeros(2)
    height, width = LAMP_SIZE
    top, left = LAMP_CORNER
    for index, lamp in zip(
        range(round(seconds * FPS)), simulated_frames(LAMP_SIZE, fps=FPS / SPEED, seed=seed), strict=False
    ):
        time = index / FPS
        picture = room.copy()
        if index == 0:
            inside = _inside_outline(lamp)
        # The lamp's own room is dark. Outside of the lamp its glow is added to the light of this room.
        place = picture[top : top + height, left : left + width]
        place[:] = np.where(inside, lamp, np.maximum(place, lamp))
        _draw_hand(picture, time)
        picture *= 1 + EXPOSURE_DRIFT * math.sin(2 * math.pi * time / 47)
        # A hand that holds a phone is pulled back to its place.
        shake = 0.9 * shake + math.sqrt(1 - 0.9**2) * SHAKE_PIXELS * rng.standard_normal(2)
        picture = _shift(picture, *shake)
        picture += NOISE_LEVELS * rng.standard_normal(picture.shape).astype(np.float32)
        yield np.clip(picture, 0, 255).round().astype(np.uint8)


def _room() -> NDArray[np.float32]:
    """A dim wall above a wooden table, float32 (H, W, 3)."""
    height, width = PICTURE_SIZE
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    light = np.exp(-((columns - width * 0.55) ** 2 + (rows - height * 0.6) ** 2) / (2 * 170**2))
    wall = 34 + 44 * light
    grain = 6 * np.sin(rows / 2.3 + 3 * np.sin(columns / 60))
    brightness = np.where(rows < TABLE_TOP, wall, 44 + 40 * light + grain)
    tint = np.where((rows < TABLE_TOP)[..., None], [1.0, 0.92, 0.95], [1.0, 0.72, 0.5])
    return (brightness[..., None] * tint).astype(np.float32)


def _inside_outline(lamp: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of a lamp's frame are inside of its outline: (H, W, 1)."""
    bright = lamp.max(-1) > 40
    from_left, from_right = (np.maximum.accumulate(side, axis=1) for side in (bright, bright[:, ::-1]))
    inside: NDArray[np.bool_] = (from_left & from_right[:, ::-1])[..., None]
    return inside


def _draw_hand(picture: NDArray[np.float32], time: float) -> None:
    """Draw a dark hand that passes from left to right in front of the lamp."""
    start, end = HAND_SECONDS
    if not start < time < end:
        return
    height, width = PICTURE_SIZE
    centre = -80 + (width + 160) * (time - start) / (end - start)
    rows, columns = np.mgrid[:height, :width]
    arm = (np.abs(columns - centre - 0.15 * (rows - 150)) < 38) & (rows > 120)
    palm = (columns - centre) ** 2 + (rows - 130) ** 2 < 52**2
    picture[arm | palm] = (58, 38, 30)


def _shift(picture: NDArray[np.float32], down: float, right: float) -> NDArray[np.float32]:
    """Shift a picture by a fraction of a pixel or more, by linear interpolation; edges are repeated."""
    for axis, amount in ((0, down), (1, right)):
        at = np.clip(np.arange(picture.shape[axis]) - amount, 0, picture.shape[axis] - 1)
        low = np.minimum(at.astype(int), picture.shape[axis] - 2)
        part = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        picture = (1 - part) * picture.take(low, axis) + part * picture.take(low + 1, axis)
    return picture


def main() -> None:
    """Write the video that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="file to write, for example badly.mp4")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    with open_writer(arguments.target, size=PICTURE_SIZE, fps=FPS) as writer:
        for picture in scene_frames(arguments.seconds, arguments.seed):
            writer.write(picture)


if __name__ == "__main__":
    main()
