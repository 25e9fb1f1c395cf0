"""Examines a source before it is prepared: where its lamp is, how fast it moves, and what is wrong.

Some stretches of consecutive pictures are read, not the whole source.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mlxlava.console import format_duration
from mlxlava.errors import UserError
from mlxlava.footage.crop import Box, PictureSums, Region, find_region
from mlxlava.footage.motion import camera_shift, speed
from mlxlava.footage.pictures import (
    PICTURE_SUFFIXES,
    animation_times,
    list_pictures,
    read_animation,
    read_picture,
    read_picture_header,
    require_common_size,
)
from mlxlava.footage.timing import measure_timing
from mlxlava.footage.video import FPS_IF_UNKNOWN, sample_stretches, survey_video

_STRETCH_COUNT, _STRETCH_PICTURE_COUNT = 12, 60  # for videos and for folders of pictures
_MAX_PICTURE_SIDE = 256  # pixels of the longer side of the pictures that are kept

_MIN_EXPLAINED_CHANGE = 0.5  # a moving camera explains at least this share of the change between two pictures
_MIN_CAMERA_SHIFT_CELLS = 0.5  # cells of the grid of 160; a smaller shift is ignored
_FARTHEST_SHIFT = 0.15  # of the picture; a larger shift has another cause
_MIN_SHIFTED_PAIR_SHARE = 0.15  # share of the pairs of pictures that must be shifted
_PICTURE_PAIR_COUNT = 24

_SWITCH_BRIGHTNESS_RATIO = 1.8  # least ratio of the brightness before and after a lamp is switched
_SWITCH_BRIGHTNESS_RATIO_ACROSS_GAP = 3.0  # the same between two stretches, in which a lamp may warm up
_MIN_SWITCH_GREY_LEVELS = 12.0  # least difference, of 255
_STEADY_PICTURE_COUNT = 5  # pictures that are averaged before and after
_MOST_SWITCHES = 6  # if there are more, they are flashes or cuts
_LIT_BRIGHTNESS_SHARE = 0.6  # of the brightest picture; in a darker picture the lamp is off


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of a source after ``look``.

    Attributes:
        path: the source.
        picture: width and height in pixels.
        fps: true frames a second.
        frames: number of frames.
        region: its lamps; None if nothing moves.
        camera_moves: largest movement of the camera in source pixels; 0 if it stands still.
        switched: the times at which the light is switched, in seconds, and whether it is switched on.
    """

    path: Path
    picture: tuple[int, int]
    fps: float
    frames: int
    region: Region | None
    camera_moves: float
    switched: tuple[tuple[float, bool], ...]
    _stretches: tuple[np.ndarray, ...] = dataclasses.field(repr=False)

    @property
    def seconds(self) -> float:
        """True length in seconds."""
        return self.frames / self.fps

    def speed(self, box: Box, size: tuple[int, int]) -> float:
        """Speed of the fastest edges, in frame pixels a picture, if ``box`` becomes frames of ``size``."""
        scale = max(self._stretches[0].shape[1:]) / max(self.picture)
        x, y, width, height = (scale * side for side in box)
        region = (x, y, x + width, y + height)

        def crop_and_resize(picture: np.ndarray) -> np.ndarray:
            image = Image.fromarray(picture)
            how = Image.Resampling.BOX if width >= size[1] else Image.Resampling.BILINEAR
            return np.asarray(image.resize((size[1], size[0]), how, box=region), dtype=np.float64)

        return speed(
            [np.stack([crop_and_resize(picture) for picture in stretch]) for stretch in self._stretches]
        )

    def warnings(self, *, cropped: bool = False) -> list[str]:
        """Warnings for the user, one line each. ``cropped``: do not warn of several lamps."""
        lines = []
        if self.camera_moves:
            lines.append(
                f"footage: the camera of {self.path} moves, by up to {self.camera_moves:.0f} pixels of "
                f"{self.picture[0]}x{self.picture[1]}; the lamp will learn that too. Use a tripod"
            )
        if self.switched:
            times = [f"{'on' if on else 'off'} at {format_duration(time)}" for time, on in self.switched]
            more = f" and {len(times) - 3} times more" if len(times) > 3 else ""
            lines.append(
                f"footage: in {self.path} the light is switched {', '.join(times[:3])}{more}; "
                "the lamp will learn both. Cut the video there"
            )
        if self.region and len(self.region.lamps) > 1 and not cropped:
            taken, *others = (",".join(map(str, box)) for box in self.region.lamps)
            lines.append(
                f"footage: {len(self.region.lamps)} lamps stand in {self.path}; --crop {taken} takes the one "
                f"that moves most, --crop {' or '.join(others)} the other"
            )
        return lines


def look(path: Path, source_fps: float | None = None) -> Look:
    """Look at a video, an animation or a folder of pictures.

    Args:
        path: the source.
        source_fps: its true frame rate; None for the rate of its time stamps.

    Raises:
        UserError: it cannot be read.
    """
    if path.is_dir():
        pictures = list_pictures(path)
        size, _ = require_common_size(pictures)
        frames, stamped = len(pictures), FPS_IF_UNKNOWN
        stretches: Iterable[Iterable[Image.Image]] = _stretches_of(pictures)
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        size, animated = read_picture_header(path)
        read = itertools.islice(_pictures_of(path, animated), _STRETCH_COUNT * _STRETCH_PICTURE_COUNT)
        times = animation_times(path) if animated else [0.0]
        timing = measure_timing([np.array(times)], 0.001)
        frames, stamped = len(times), timing.fps if timing else FPS_IF_UNKNOWN
        stretches = [read]
    else:
        found = survey_video(path)
        size, frames = found.size, found.frames
        stamped = found.timing.fps if found.timing else FPS_IF_UNKNOWN
        stretches = sample_stretches(path, found, _STRETCH_COUNT, _STRETCH_PICTURE_COUNT, _MAX_PICTURE_SIDE)
    return _look(path, size, source_fps or stamped, frames, stretches)


def _pictures_of(path: Path, animated: bool) -> Iterator[Image.Image]:
    if animated:
        return (image for _, image in read_animation(path))
    return iter([read_picture(path)])


def _stretches_of(pictures: list[Path]) -> Iterator[Iterator[Image.Image]]:
    if len(pictures) <= _STRETCH_COUNT * _STRETCH_PICTURE_COUNT:
        yield map(read_picture, pictures)
        return
    for start in np.linspace(0, len(pictures) - _STRETCH_PICTURE_COUNT, _STRETCH_COUNT).astype(int):
        yield map(read_picture, pictures[start : start + _STRETCH_PICTURE_COUNT])


def _look(
    path: Path,
    size: tuple[int, int],
    fps: float,
    frames: int,
    stretches: Iterable[Iterable[Image.Image]],
) -> Look:
    sums = PictureSums(size)
    scale = min(1.0, _MAX_PICTURE_SIDE / max(size))
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    cells: list[list[Image.Image]] = []
    kept: list[np.ndarray] = []
    for stretch in stretches:
        coarse, pictures = [], []
        for image in stretch:
            coarse.append(sums.cells(image))
            pictures.append(np.asarray(image.convert("L").resize(small, Image.Resampling.BOX)))
        if pictures:
            cells.append(coarse)
            kept.append(np.stack(pictures))
    if not kept:
        raise UserError(f"footage: no frame of {path} decodes; give another file")
    grids = [[np.asarray(each.convert("L"), dtype=np.float64) for each in coarse] for coarse in cells]
    switched = _find_light_switches(grids, frames / fps, fps)
    levels = [[float(grid.mean()) for grid in coarse] for coarse in grids]
    least = _LIT_BRIGHTNESS_SHARE * max(map(max, levels)) if switched else 0.0
    for coarse, level in zip(cells, levels, strict=True):
        for each, bright in zip(coarse, level, strict=True):
            if bright >= least:  # a picture with the lamp off would make everything seem to move
                sums.add(each)
    moves = _camera_shift(grids) * max(size) / max(sums.grid)
    return Look(path, size, fps, frames, find_region(sums), moves, switched, tuple(kept))


def _camera_shift(stretches: list[list[np.ndarray]]) -> float:
    """The largest movement of the camera, in cells; 0 if it stands still."""
    # Shaking is seen in pictures that are close in time, slow drift in the means of stretches.
    chains = [[np.mean(stretch, axis=0) for stretch in stretches]]
    farthest = _camera_shift_in(chains)
    for gap in (1, 4, 15, 30):
        length = max(2, _PICTURE_PAIR_COUNT // len(stretches))
        # Long stretches are cut into pieces. In a piece the pictures follow each other.
        chains = [
            stretch[start::gap][: length // 2 + 1]
            for stretch in stretches
            for start in {0, max(0, len(stretch) // 2 - gap * length // 4)}
        ]
        farthest = max(farthest, _camera_shift_in(chains))
    return farthest


def _camera_shift_in(chains: list[list[np.ndarray]]) -> float:
    """Like ``_camera_shift``, for chains of pictures that follow each other."""
    ways, pairs, extent = 0, 0, 0.0
    for chain in chains:
        path = [np.zeros(2)]
        for before, after in itertools.pairwise(chain):
            across, down, explained = camera_shift(before, after)
            way = float(np.hypot(across, down))
            shifts = (
                explained >= _MIN_EXPLAINED_CHANGE
                and _MIN_CAMERA_SHIFT_CELLS <= way <= _FARTHEST_SHIFT * max(before.shape)
            )
            path.append(path[-1] + (np.array([across, down]) if shifts else 0))
            ways, pairs = ways + shifts, pairs + 1
        extent = max(extent, float(np.hypot(*np.ptp(path, axis=0))))
    return extent if ways > _MIN_SHIFTED_PAIR_SHARE * pairs else 0.0


def _find_light_switches(
    stretches: list[list[np.ndarray]], seconds: float, fps: float
) -> tuple[tuple[float, bool], ...]:
    """The times at which the light is switched, and whether it is switched on."""
    levels = np.array([float(grid.mean()) for stretch in stretches for grid in stretch])
    lengths = [len(stretch) for stretch in stretches]
    begins = np.linspace(0, max(0.0, seconds - lengths[-1] / fps), len(stretches))
    times = np.concatenate(
        [start + np.arange(length) / fps for start, length in zip(begins, lengths, strict=True)]
    )
    joints = set(np.cumsum(lengths).tolist())
    found: list[tuple[float, bool]] = []
    at = _STEADY_PICTURE_COUNT
    while at <= len(levels) - _STEADY_PICTURE_COUNT:
        first, end = at - _STEADY_PICTURE_COUNT, at + _STEADY_PICTURE_COUNT
        before, after = levels[first:at].mean(), levels[at:end].mean()
        low, high = min(before, after), max(before, after)
        across_gap = any(first < joint < end for joint in joints)
        ratio = _SWITCH_BRIGHTNESS_RATIO_ACROSS_GAP if across_gap else _SWITCH_BRIGHTNESS_RATIO
        if high > ratio * low and high - low > _MIN_SWITCH_GREY_LEVELS:
            # The light was switched at the largest change of brightness nearby.
            place = first + 1 + int(np.abs(np.diff(levels[first:end])).argmax())
            found.append((float(times[place]), bool(after > before)))
            at = place + 2 * _STEADY_PICTURE_COUNT
        else:
            at += 1
    return tuple(found) if len(found) <= _MOST_SWITCHES else ()
