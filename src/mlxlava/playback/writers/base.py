"""Code that all formats share: protocols, writing to a pipe, files that appear only when they are finished.

Frames are uint8 (H, W, 3).
"""

from __future__ import annotations

import errno
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from mlxlava.errors import UserError
from mlxlava.paths import Draft
from mlxlava.resize import enlarge

Frame = npt.NDArray[np.uint8]

# The qualities (0 to 100) at which a lossy format names the settings of its encoder. A quality stands for the
# same peak signal-to-noise ratio in every format, measured on a lamp at 256×256 (docs/playing.md, "Quality").
QUALITY_LEVELS = (0, 25, 50, 75, 100)
DEFAULT_QUALITY = 75  # quality if none is given

# An encoder's settings at QUALITY_LEVELS; None for a lossless format.
EncoderSettings = tuple[int, ...] | None


class PipeClosed(Exception):
    """Nobody reads or watches any more. This ends playing, and is not a failure."""


class Writer(Protocol):
    """Takes frames, one after the other."""

    def write(self, frame: Frame) -> None:
        """Add a frame, uint8 (H, W, 3)."""

    def close(self) -> None:
        """Finish the file, so that it can be played. A second call does nothing."""

    def abort(self) -> None:
        """Give up and leave no partial file. After ``close`` this does nothing."""


class FormatWriter(Writer, Protocol):
    """A writer of one file format, as ``WRITER_OF_FORMAT`` lists it.

    Args:
        path: file to write, or ``-`` for stdout.
        size: height and width of the frames.
        rate: frames per second.
        quality: 0 to 100; a lossless format ignores it.

    Attributes:
        endings: file endings that name this format, without the dot.
        can_be_piped: whether it can be written to stdout.
        bytes_per_pixel: bytes of a pixel in the file; None for a compressed format, where they depend on the
            pictures.
        encoder_settings: settings of the encoder at ``QUALITY_LEVELS``; None for a lossless format.
    """

    endings: ClassVar[tuple[str, ...]]
    can_be_piped: ClassVar[bool]
    bytes_per_pixel: ClassVar[int | None]
    encoder_settings: ClassVar[EncoderSettings]

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None: ...


def write_all(stream: Any, data: bytes | memoryview) -> None:
    """Write all of ``data`` to a binary stream. The stream may be unbuffered and take only a piece at a time.

    Raises:
        PipeClosed: the other end is closed.
    """
    rest = memoryview(data).cast("B")
    try:
        while rest:
            written = stream.write(rest)
            if written is None:  # another process has made our stdout non-blocking
                time.sleep(0.001)
            else:
                rest = rest[written:]
    except BrokenPipeError:
        raise PipeClosed from None


def unbuffered_stdout() -> Any:
    """Stdout without its buffer: frames leave at once, and a closed pipe leaves nothing to flush at exit."""
    sys.stdout.flush()
    stream = sys.stdout.buffer
    return getattr(stream, "raw", stream)


class OutputFile:
    """A writer that wraps the writer of a format, for files and for stdout.

    It enlarges the frames, gives the file its name only when it is finished, and turns errors of the system
    into one plain line.

    Args:
        target: file to write, or ``-`` for stdout.
        format: the class of the format.
        size: height and width of the frames that will be written.
        rate: frames per second.
        scale: whole factor by which the frames are enlarged.
        quality: 0 to 100.

    Attributes:
        frames: how many frames were written.

    Raises:
        UserError: the file cannot be made, or the encoder cannot be started.
    """

    def __init__(
        self,
        target: str,
        format: type[FormatWriter],
        size: tuple[int, int],
        rate: Fraction,
        scale: int,
        quality: int,
    ) -> None:
        self._target, self._size, self._scale = target, size, scale
        self._final = None if target == "-" else Path(target).resolve()
        self._draft: Draft | None = None
        self.frames, self._open = 0, True
        try:
            # A device or a named pipe is written to directly.
            if self._final is not None and (self._final.is_file() or not self._final.exists()):
                # The draft is made here. So a place that cannot be written fails now, and not when the
                # encoder runs.
                self._draft = Draft(self._final)
            elif self._final is not None and self._final.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it")
            path = self._final if self._draft is None else self._draft.path
            enlarged = (size[0] * scale, size[1] * scale)
            self._writer = format("-" if path is None else str(path), enlarged, rate, quality)
        except BaseException as error:
            self._discard_draft()
            raise self._as_user_error(error) from None

    def _discard_draft(self) -> None:
        if self._draft is not None:
            self._draft.discard()

    def _as_user_error(self, error: BaseException) -> BaseException:
        """Turn an error of the system into a ``UserError``. Any other error is returned unchanged."""
        if not isinstance(error, OSError):
            return error
        if self._final is not None and not self._final.parent.exists():
            return UserError(
                f"output: the folder {self._final.parent} does not exist; make it, or name another"
            )
        return UserError(f"output: cannot write {self._target}: {error.strerror or error}")

    def write(self, frame: Frame) -> None:
        """Add a frame, uint8 (H, W, 3) of the announced size."""
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 {(*self._size, 3)}, not {frame.dtype} {frame.shape}")
        if not self._open:
            raise ValueError("the writer is closed")
        try:
            self._writer.write(enlarge(frame, self._scale))
        except Exception as error:
            self.abort()
            raise self._as_user_error(error) from None
        self.frames += 1

    def close(self) -> None:
        """Finish the file under its own name. A second call does nothing."""
        if not self._open:
            return
        if self.frames == 0:  # no format has a file without frames
            self.abort()
            return
        try:
            self._writer.close()
            if self._draft is not None:
                self._draft.finish()
        except Exception as error:
            self.abort()
            raise self._as_user_error(error) from None
        self._open = False

    def abort(self) -> None:
        """Give up and leave no file. After ``close`` this does nothing."""
        if self._open:
            self._open = False
            self._writer.abort()
            self._discard_draft()
