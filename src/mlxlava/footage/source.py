"""Reads a video, an animation or a folder of pictures: frames one by one, their times, and irregularities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.errors import UserError
from mlxlava.footage.crop import Box, centre_box, choose_box
from mlxlava.footage.pictures import (
    PICTURE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    animation_times,
    describe_files_not_read,
    list_pictures,
    read_animation,
    read_picture,
    read_picture_header,
    require_common_size,
)
from mlxlava.footage.timing import Timing, measure_timing
from mlxlava.footage.video import FPS_IF_UNKNOWN, Video, sample_pictures, survey_video
from mlxlava.resize import resize

Frame = npt.NDArray[np.uint8]

# A frame as it is read: its stamp, its width and height, and the function that crops and resizes it.
_RawFrame = tuple[float | None, tuple[int, int], Callable[[tuple[int, int], Box], Frame]]
_FrameReader = Callable[["OddityCounts", list[str]], Iterator[_RawFrame]]

_MIN_INTERVALS_BACK_TO_RESTART = 4  # a stamp that is more intervals earlier begins a new count of time
_MAX_FPS = 1e6
# Frames that keeping time may make: so many times as there are, and so many more.
_MAX_REPEATS, _FRAMES_THAT_MAY_BE_REPEATED = 16, 1000
_MAX_PICTURES_FOR_AUTO_CROP = 64  # so many pictures of a folder are examined for motion


@dataclasses.dataclass(frozen=True)
class SourceFrame:
    """A frame of a source.

    Attributes:
        frame: cropped and resized, uint8 (H, W, 3).
        stamp: time at which it is shown, in seconds.
        begins: whether it begins a new segment: there is a hole before it, or the size has changed.
    """

    frame: Frame
    stamp: float
    begins: bool


@dataclasses.dataclass
class OddityCounts:
    """Counts of irregularities that were found while a source was read.

    Attributes:
        decoded: frames that were read.
        repeated: frames that were taken twice, where the source has fewer frames than its rate.
        left_out: frames that were left out, where the source has more frames than its rate.
        out_of_order: frames that are not later than the frame before; they were left out too.
        holes: gaps in time.
        sizes: changes of size.
        damaged: frames that could not be decoded, or that need such a frame.
    """

    decoded: int = 0
    repeated: int = 0
    left_out: int = 0
    out_of_order: int = 0
    holes: int = 0
    sizes: int = 0
    damaged: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """A source that can be read, and what is known before it is read.

    Attributes:
        path: the file or folder.
        size: height and width of the prepared frames.
        box: the region of each picture that becomes a frame.
        fps: true frames per second.
        stamped_fps: frames per second by the stamps. It differs from ``fps`` if the user gave the true rate.
        rate: where the rate is from: ``stamps``, ``given`` or ``assumed``.
        expected: number of frames, if it is known.
        timing: timing of the stamps; None if there are none.
        notes: irregularities, one line each.
    """

    path: Path
    size: tuple[int, int]
    box: Box
    fps: float
    stamped_fps: float
    rate: str
    expected: int | None
    timing: Timing | None
    notes: tuple[str, ...]
    _frames: _FrameReader

    def timed_frames(self, counts: OddityCounts, problems: list[str]) -> Iterator[SourceFrame]:
        """Yield all frames in order, with true times.

        Args:
            counts: irregularities are counted here.
            problems: if reading ends early, the reason is added here.
        """
        slower = self.stamped_fps / self.fps  # true seconds in one second of the stamps
        last: float | None = None
        kept: tuple[int, int] | None = None
        box = self.box
        for stamp, size, picture in self._frames(counts, problems):
            if stamp is None:  # a frame without a stamp, while others have stamps
                stamp = counts.decoded / self.stamped_fps if last is None else last + 1 / self.stamped_fps
            begins = False
            if last is not None:
                again = last - _MIN_INTERVALS_BACK_TO_RESTART / self.stamped_fps
                if again < stamp <= last:
                    counts.out_of_order += 1
                    continue
                begins = stamp <= again or (self.timing is not None and self.timing.is_hole(last, stamp))
                counts.holes += begins
            if kept is not None and size != kept:
                counts.sizes += 1
                begins = True
                box = centre_box(size, self.size)
            kept, last = size, stamp
            counts.decoded += 1
            yield SourceFrame(picture(self.size, box), stamp * slower, begins)


def open_source(path: Path, size: tuple[int, int], crop: str, source_fps: float | None) -> Source:
    """Examine a source, and choose the region of each picture that becomes a frame.

    Args:
        path: a video, an animated picture, a picture or a folder of pictures.
        size: height and width of the prepared frames.
        crop: see ``prepare``.
        source_fps: the true rate; None if it is to be read from the stamps.

    Raises:
        UserError: it cannot be read.
    """
    if path.is_dir():
        return _open_folder(path, size, crop, source_fps)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return _open_picture(path, size, crop, source_fps)
    if path.suffix.lower() in UNREADABLE_SUFFIXES and path.suffix.lower() != ".gif":
        raise UserError(
            f"footage: {path} is a picture in a format that is not supported; convert it to PNG or JPEG"
        )
    return _open_video(path, size, crop, source_fps)


def _open_video(path: Path, size: tuple[int, int], crop: str, source_fps: float | None) -> Source:
    found = survey_video(path)
    box, moving = choose_box(crop, found.size, size, sample_pictures(path, found.size), path)
    notes = []
    if found.streams > 1:
        width, height = found.size
        notes.append(f"footage: {path} has {found.streams} video streams; that of {width}x{height} is taken")

    def frames(counts: OddityCounts, problems: list[str]) -> Iterator[_RawFrame]:
        number = 0
        with Video(path, errors_mean_damage=found.errors_mean_damage) as video:
            for frame in video:
                # If all frames have the same stamp, or none, they are counted.
                stamp = frame.stamp if found.timing else number / FPS_IF_UNKNOWN
                number += 1
                yield stamp, frame.size, frame.to_picture
            counts.damaged = video.damaged
            problems += [text for text in (video.problem, found.problem) if text]

    notes += _note_that_nothing_moves(moving, path)
    return _make_source(path, size, box, found.timing, source_fps, found.frames, notes, frames)


def _open_folder(path: Path, size: tuple[int, int], crop: str, source_fps: float | None) -> Source:
    pictures = list_pictures(path)
    shape, animations = require_common_size(pictures)
    notes = []
    if left := describe_files_not_read(path):
        notes.append(f"footage: {path} also has {left}, which is not read")
    if animations:
        names = ", ".join(picture.name for picture in animations[:3]) + " …" * (len(animations) > 3)
        notes.append(
            f"footage: {path} has animations ({names}); the first picture of each is taken. "
            "To take all, give such a file itself"
        )
    some = pictures[:: max(1, len(pictures) // _MAX_PICTURES_FOR_AUTO_CROP)]
    return _source_of_pictures(path, pictures, shape, some, size, crop, source_fps, notes)


def _open_picture(path: Path, size: tuple[int, int], crop: str, source_fps: float | None) -> Source:
    shape, animated = read_picture_header(path)
    if not animated:
        return _source_of_pictures(path, [path], shape, [path], size, crop, source_fps, [])
    times = animation_times(path)
    timing = measure_timing([np.array(times)], 0.001)
    run = (image for _, image in read_animation(path))
    box, moving = choose_box(crop, shape, size, [run], path)

    def frames(counts: OddityCounts, problems: list[str]) -> Iterator[_RawFrame]:
        for number, (time, image) in enumerate(read_animation(path)):
            yield (time if timing else number / FPS_IF_UNKNOWN), image.size, _crop_and_resize_function(image)

    return _make_source(
        path, size, box, timing, source_fps, len(times), _note_that_nothing_moves(moving, path), frames
    )


def _source_of_pictures(
    path: Path,
    pictures: list[Path],
    shape: tuple[int, int],
    some: list[Path],
    size: tuple[int, int],
    crop: str,
    source_fps: float | None,
    notes: list[str],
) -> Source:
    box, moving = choose_box(crop, shape, size, [map(read_picture, some)], path)
    notes = [*notes, *_note_that_nothing_moves(moving, path)]

    def frames(counts: OddityCounts, problems: list[str]) -> Iterator[_RawFrame]:
        for number, picture in enumerate(pictures):
            image = read_picture(picture)
            yield number / FPS_IF_UNKNOWN, image.size, _crop_and_resize_function(image)

    return _make_source(path, size, box, None, source_fps, len(pictures), notes, frames)


def _require_few_repeats(path: Path, timing: Timing) -> None:
    """Raise UserError where keeping time would repeat frames so often that a small file grows large."""
    frames, most = timing.evenly_spaced_frames(), _MAX_REPEATS * timing.frames + _FRAMES_THAT_MAY_BE_REPEATED
    if frames > most:
        raise UserError(
            f"footage: {path} has {timing.frames} frames, so unevenly spaced in time that keeping it would "
            f"make {frames:.0f} of them, more than {most}; convert it to a constant rate first"
        )


def _crop_and_resize_function(image: Image.Image) -> Callable[[tuple[int, int], Box], Frame]:
    return lambda size, box: resize(image, size, box)


def _make_source(
    path: Path,
    size: tuple[int, int],
    box: Box,
    timing: Timing | None,
    source_fps: float | None,
    expected: int | None,
    notes: list[str],
    frames: _FrameReader,
) -> Source:
    stamped = timing.fps if timing else FPS_IF_UNKNOWN
    rate = "given" if source_fps else "stamps" if timing else "assumed"
    fps = source_fps or stamped
    if not 0 < fps <= _MAX_FPS:
        raise UserError(f"footage: {path} has no usable rate; give --source-fps")
    if timing is not None:
        _require_few_repeats(path, timing)
    return Source(path, size, box, fps, stamped, rate, expected, timing, tuple(notes), frames)


def describe_oddities(source: Source, counts: OddityCounts, problems: list[str]) -> list[str]:
    """Describe the irregularities of a source that has been read, one line each."""
    lines = list(source.notes)
    if problems or counts.damaged:
        why = problems[0] if problems else "some frames do not decode"
        lost = f"; {counts.damaged} are left out" if counts.damaged else ""
        lines.append(
            f"footage: {source.path} is damaged or cut short ({why}); "
            f"used the {counts.decoded} frames that decode{lost}"
        )
    found = []
    if source.timing is not None and (source.timing.uneven or counts.repeated or counts.left_out):
        found.append(
            f"frames that come unevenly, {source.fps:.4g} a second for most of the time: to keep time, "
            f"{counts.repeated} are repeated and {counts.left_out} left out"
        )
    if counts.out_of_order:
        found.append(f"{_format_count(counts.out_of_order, 'frame')} out of order, left out")
    if counts.holes:
        found.append(f"{_format_count(counts.holes, 'hole')} in time, taken as a cut")
    if counts.sizes:
        found.append(
            f"{_format_count(counts.sizes, 'change')} of size, taken as a cut; after it the centre is taken"
        )
    if found:
        lines.append(f"footage: {source.path} has {'; '.join(found)}")
    return lines


def _note_that_nothing_moves(moving: bool, path: Path) -> list[str]:
    return [] if moving else [f"footage: nothing moves in {path}, so --crop auto took the centre"]


def _format_count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
