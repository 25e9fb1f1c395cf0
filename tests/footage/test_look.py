"""A look at footage finds the lamp with what stands still around it, its pace, and what is amiss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlxlava.footage import simulated_lamp
from mlxlava.footage.look import Look, look
from mlxlava.footage.prepare import prepare
from mlxlava.playback.writers import open_writer

ROOM = (128, 192)  # height and width of the videos
GLASS = (96, 48)  # of the lamps in them
TOP, LEFT = 16, 70
FPS = 10.0
COUNT = 80


def wall() -> np.ndarray:
    """A wall with a soft pattern."""
    y, x = np.mgrid[: ROOM[0], : ROOM[1]]
    grey = 40 + 20 * np.sin(x / 9) * np.cos(y / 13) + 0.1 * x
    return np.stack([grey, 0.9 * grey, 0.8 * grey], -1)


def scene(*lamps: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of a room with lamps, whose left edges are given."""
    streams = [simulated_lamp.frames(GLASS, fps=FPS, seed=seed + number) for number in range(len(lamps))]
    frames = []
    for _ in range(COUNT):
        frame = wall()
        for left, stream in zip(lamps, streams, strict=True):
            frame[TOP : TOP + GLASS[0], left : left + GLASS[1]] = next(stream)
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def one() -> list[np.ndarray]:
    return scene(LEFT)


@pytest.fixture
def film(tmp_path: Path) -> Callable[[list[np.ndarray]], Look]:
    """Writes frames to a video and looks at it."""

    def make(frames: list[np.ndarray]) -> Look:
        path = tmp_path / "film.mp4"
        with open_writer(str(path), size=ROOM, fps=FPS) as writer:
            for frame in frames:
                writer.write(frame.clip(0, 255).astype(np.uint8))
        return look(path)

    return make


def moved(frames: list[np.ndarray], ways: list[tuple[int, int]]) -> list[np.ndarray]:
    """The same frames as a camera sees them that moves by so many pixels down and across."""
    return [np.roll(frame, way, (0, 1)) for frame, way in zip(frames, ways, strict=True)]


def test_the_lamp_is_found_with_what_stands_still_around_it(
    one: list[np.ndarray], film: Callable[[list[np.ndarray]], Look]
) -> None:
    # A cap of the lamp that never moves, as wide as the glass.
    frames = [frame.copy() for frame in one]
    for frame in frames:
        frame[4 : TOP + 20, LEFT : LEFT + GLASS[1]] = (200, 190, 180)
    found = film(frames)
    assert (found.frames, found.fps, found.picture) == (COUNT, FPS, ROOM[::-1])
    assert found.region is not None and len(found.region.lamps) == 1 and found.region.stands_out
    x, y, width, height = found.region.lamps[0]
    assert y <= 5 and y + height >= TOP + GLASS[0] - 16  # its cap too; what is dark below is like the wall
    assert x >= LEFT - 8 and x + width <= LEFT + GLASS[1] + 8  # and hardly any wall
    assert not found.warnings()


def test_the_same_lamp_is_found_in_a_few_seconds(
    one: list[np.ndarray], film: Callable[[list[np.ndarray]], Look]
) -> None:
    boxes = [look_region(film(frames)) for frames in (one, one[:30])]
    assert np.abs(np.subtract(boxes[0], boxes[1])).max() <= 6


def look_region(found: Look) -> tuple[int, int, int, int]:
    assert found.region is not None
    return found.region.lamps[0]


def test_speed_is_that_of_what_moves_fastest(film: Callable[[list[np.ndarray]], Look]) -> None:
    y, x = np.mgrid[: ROOM[0], : ROOM[1]]
    for pixels in (0.3, 1.2):
        frames = []
        for number in range(40):
            disc = np.clip(17 - np.hypot(x - 60 - pixels * number, y - 64), 0, 1)
            frames.append(np.stack([40 + 180 * disc] * 3, -1).astype(float))
        found = film(frames).speed((0, 0, *ROOM[::-1]), ROOM)
        assert found == pytest.approx(pixels, rel=0.3)


def test_nothing_moves(one: list[np.ndarray], film: Callable[[list[np.ndarray]], Look]) -> None:
    assert film([one[0]] * 40).region is None


@pytest.mark.parametrize("kind", ["shake", "pan"])
def test_a_camera_that_moves_is_said_with_its_way(
    kind: str, one: list[np.ndarray], film: Callable[[list[np.ndarray]], Look]
) -> None:
    rng = np.random.default_rng(0)
    if kind == "shake":
        ways = [(int(down), int(across)) for down, across in rng.integers(-3, 4, (COUNT, 2))]
    else:
        ways = [(0, number * 12 // COUNT) for number in range(COUNT)]
    found = film(moved(one, ways))
    assert 4 < found.camera_moves < 14
    assert "the camera of" in found.warnings()[0]


@pytest.mark.parametrize("on", [True, False])
def test_a_light_that_is_switched_is_said_with_its_time(
    on: bool, one: list[np.ndarray], film: Callable[[list[np.ndarray]], Look]
) -> None:
    dark = range(40) if on else range(40, COUNT)
    found = film([0.15 * frame if number in dark else frame for number, frame in enumerate(one)])
    time, now_on = found.switched[0]
    assert len(found.switched) == 1 and abs(time - 4.0) < 0.2 and now_on == on
    assert f"switched {'on' if on else 'off'} at 0:04" in found.warnings()[0]
    x, _, width, _ = look_region(found)  # of the time in which it is lit
    assert x >= LEFT - 8 and x + width <= LEFT + GLASS[1] + 8


def test_two_lamps_are_said_with_a_crop_for_either(film: Callable[[list[np.ndarray]], Look]) -> None:
    found = film(scene(20, 120))
    assert found.region is not None and len(found.region.lamps) == 2
    (line,) = found.warnings()
    for x, y, width, height in found.region.lamps:
        assert f"{x},{y},{width},{height}" in line
        left = 20 if x < 90 else 120
        assert left - 8 <= x and x + width <= left + GLASS[1] + 8


def test_a_crop_of_another_size_of_picture_is_scaled(tmp_path: Path) -> None:
    for scale, name in ((1, "small"), (2, "large")):
        (tmp_path / name).mkdir()
        frames = itertools.islice(simulated_lamp.frames((64 * scale, 32 * scale), fps=5), 2)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{number}.png")
    small, large = (
        prepare([tmp_path / name], None, size=(32, 16), crop="8,16,16,32@32x64").frames[0].astype(float)
        for name in ("small", "large")
    )
    assert np.abs(small - large).mean() < 6
