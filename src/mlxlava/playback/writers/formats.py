"""The formats that can be written, and opening a writer of one.

To add a format, write its class in raw.py or ffmpeg.py and list it in ``WRITER_OF_FORMAT``.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mlxlava.config import did_you_mean, format_size
from mlxlava.errors import UserError
from mlxlava.paths import require_space
from mlxlava.playback.writers.base import (
    DEFAULT_QUALITY,
    FormatWriter,
    OutputFile,
    PipeClosed,
)
from mlxlava.playback.writers.ffmpeg import ApngWriter, GifWriter, Mp4Writer, WebmWriter, WebpWriter
from mlxlava.playback.writers.raw import RawWriter, Y4mWriter

_MAX_FRAME_PIXELS = 2**26  # of an enlarged frame, 200 MB

WRITER_OF_FORMAT: dict[str, type[FormatWriter]] = {
    "mp4": Mp4Writer,
    "webm": WebmWriter,
    "gif": GifWriter,
    "apng": ApngWriter,
    "webp": WebpWriter,
    "y4m": Y4mWriter,
    "raw": RawWriter,
}


def choose_format(target: str, name: str | None = None) -> str:
    """The format to write: ``name`` (``--format``) if it is given, or else by the ending of ``target``.

    Raises:
        UserError: the format is unknown, or ``target`` is ``-`` (stdout) and the format cannot be piped.
    """
    pipes = " or ".join(key for key, kind in WRITER_OF_FORMAT.items() if kind.can_be_piped)
    endings = {ending: key for key, kind in WRITER_OF_FORMAT.items() for ending in kind.endings}
    if name is None and target == "-":
        raise UserError(f"output: - (stdout) needs a format that can be piped; give --format {pipes}")
    word = name if name is not None else Path(target).suffix
    found = endings.get(word.lower().lstrip("."))
    if found is None:
        hint = did_you_mean(word.lower().lstrip("."), list(endings))
        known = f"known: {', '.join(WRITER_OF_FORMAT)}"
        advice = f"{hint} ({known})" if hint.startswith("did you") else known
        if name is not None:
            raise UserError(f"--format: unknown format {name!r}; {advice}")
        raise UserError(f"output: no format has the file ending of {target}; {advice}; or give --format")
    if target == "-" and not WRITER_OF_FORMAT[found].can_be_piped:
        raise UserError(f"output: {found} cannot go to stdout; give --format {pipes}, or a file with -o")
    return found


def check_quality(name: str, quality: int | None) -> None:
    """Refuse a quality that is out of range, or any quality for a lossless format (UserError)."""
    if quality is None:
        return
    if WRITER_OF_FORMAT[name].encoder_settings is None:
        raise UserError(f"--quality: {name} is lossless; leave --quality out, or write another format")
    if not 0 <= quality <= 100:
        raise UserError(f"--quality: must be from 0 to 100, not {quality}")


def require_room(target: str, name: str, size: tuple[int, int], scale: int, frames: int | None) -> None:
    """Refuse frames that are too large, and an uncompressed file for which its disk has no room.

    Args:
        target: a file's name, or ``-`` for stdout.
        name: a key of ``WRITER_OF_FORMAT``.
        size: height and width of the frames before they are enlarged.
        scale: whole factor by which the frames are enlarged.
        frames: how many frames will be written; None if that is not known.

    Raises:
        UserError: they are too large, or there are too many of them.
    """
    enlarged = (size[0] * scale, size[1] * scale)
    if math.prod(enlarged) > _MAX_FRAME_PIXELS:
        raise UserError(
            f"play: frames of {format_size(enlarged, 'x')} (HxW) are larger than {_MAX_FRAME_PIXELS} pixels, "
            "the most that is written; give a smaller --scale"
        )
    bytes_per_pixel = WRITER_OF_FORMAT[name].bytes_per_pixel
    if frames is None or bytes_per_pixel is None:
        return
    with contextlib.suppress(OSError):  # there is no such folder: the writer says so
        place = _disk_of(target)
        if place is not None:
            require_space(
                place,
                frames * math.prod(enlarged) * bytes_per_pixel,
                f"play: {frames} frames of {format_size(enlarged)}, uncompressed,",
                "play for a shorter time, or write another format, for example mp4",
            )


def _disk_of(target: str) -> Path | int | None:
    """A place on the disk that a target fills: a folder or a descriptor. None for a pipe or a device."""
    if target == "-":
        stdout = sys.stdout.fileno()
        return stdout if stat.S_ISREG(os.fstat(stdout).st_mode) else None
    path = Path(target).resolve()
    return path.parent if path.is_file() or not path.exists() else None


@contextlib.contextmanager
def open_writer(
    target: str,
    *,
    size: tuple[int, int],
    fps: float,
    format: str | None = None,
    scale: int = 1,
    quality: int | None = None,
    frames: int | None = None,
) -> Iterator[OutputFile]:
    """Open a file, or stdout for ``-``, to write frames to. Leaving the block finishes the file.

    The file has a temporary name until it is finished (``paths.Draft``). A user may end a lamp at any time.
    So ``PipeClosed``, Ctrl-C and ``SystemExit`` finish the file too. Any other exception removes it. If no
    frame was written, no file is left.

    Args:
        target: a file's name, or ``-`` for stdout.
        size: height and width of the frames that will be written.
        fps: frames per second.
        format: a key of ``WRITER_OF_FORMAT``; the ending of ``target`` decides if None.
        scale: whole factor by which the frames are enlarged.
        quality: 0 to 100, for lossy formats; ``DEFAULT_QUALITY`` if None.
        frames: how many frames will be written; None if that is not known.

    Raises:
        UserError: the format is unknown or has no quality to choose, the frames are too large, the place
            cannot be written, the disk is full or has no room for so many frames, or the encoder failed.
        PipeClosed: the reader of stdout has closed the pipe.
    """
    name = choose_format(target, format)
    if scale < 1 or not fps > 0:
        raise UserError(f"output: fps and scale must be positive, not {fps:g} and {scale}")
    check_quality(name, quality)
    if target == "-" and sys.stdout.isatty():
        raise UserError("output: - is the terminal; pipe it into a player, for example … | ffplay -")
    require_room(target, name, size, scale, frames)
    # 29.97002997 → 30000/1001; 29.97 → 2997/100.
    rate = Fraction(fps).limit_denominator(1001)
    writer = OutputFile(
        target, WRITER_OF_FORMAT[name], size, rate, scale, DEFAULT_QUALITY if quality is None else quality
    )
    try:
        yield writer
    except PipeClosed:
        writer.close()
        raise
    except Exception:
        writer.abort()
        raise
    except BaseException:
        writer.close()
        raise
    writer.close()
