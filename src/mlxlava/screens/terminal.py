"""A terminal as a screen: half blocks, two pixels a cell."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.sinks import Frame, PipeClosed, unbuffered_stdout, write_all

# Alternate screen, no cursor, no wrapping at the last column; and back, from whatever state.
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = b"\x1b[?2026l\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"

# The six levels of xterm's 6×6×6 colours, which are numbers 16 to 231 of its 256.
_CUBE = (0, 95, 135, 175, 215, 255)

# 4×4 ordered dither, in (-0.5, 0.5), for terminals of 256 colours.
_BAYER = (
    np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.float32) + 0.5
) / 16 - 0.5


def has_terminal(stream: Any = None) -> bool:
    """Whether ``stream`` (stdout if None) is a terminal that understands escape sequences."""
    stream = sys.stdout if stream is None else stream
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_true_colour() -> bool:
    """Whether 24-bit colour can be expected; Apple's Terminal before macOS 26 turns it into blinking text."""
    said = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    return said or os.environ.get("TERM_PROGRAM") != "Apple_Terminal"


def fit(size: tuple[int, int], columns: int, lines: int) -> tuple[int, int]:
    """The largest (rows, columns) of cells that keep the aspect of ``size`` = (H, W).

    A cell is two square pixels, one on the other.
    """
    height, width = size
    factor = min(columns / width, 2 * lines / height)
    rows = max(1, min(lines, round(height * factor / 2)))
    return rows, max(1, min(columns, round(width * factor)))


class Terminal:
    """Frames in a terminal: half blocks, two pixels a cell, centred and as large as fits.

    A context manager: the alternate screen is entered and, whatever happens, left. Each frame is one
    write of the cells that changed. Ctrl-Z gives the shell its screen back until ``fg``.

    Args:
        stream: binary stream to draw on; stdout if None.
        size_of: returns (columns, lines), asked before each frame; by default the stream's terminal.
        true_colour: 24-bit colours, or the 256 of older terminals; by default what the terminal can.
    """

    def __init__(
        self,
        stream: Any = None,
        size_of: Callable[[], tuple[int, int]] | None = None,
        true_colour: bool | None = None,
    ) -> None:
        self.hidden = False
        self.fps: float | None = None
        self._stream = unbuffered_stdout() if stream is None else stream
        self._size_of = self._terminal_size if size_of is None else size_of
        self._true_colour = has_true_colour() if true_colour is None else true_colour
        self._place: tuple[int, ...] = ()  # columns, lines, rows and columns of the picture
        self._shown: npt.NDArray[np.uint8] | None = None  # cells on the screen, (rows, columns, 2, 3)
        self._stop = False
        self._old_handler: Any = None

    def _terminal_size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError):
            size = os.get_terminal_size(self._stream.fileno())
            if min(size) > 0:  # some pseudo-terminals say 0 × 0
                return size
        return shutil.get_terminal_size()

    def __enter__(self) -> Terminal:
        try:
            self._write(_ENTER)
            if threading.current_thread() is threading.main_thread():
                self._old_handler = signal.signal(signal.SIGTSTP, self._on_stop)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGTSTP, self._old_handler)
            self._old_handler = None
        try:
            self._write(_LEAVE)
        except PipeClosed:
            if error is None:
                raise

    def _on_stop(self, signum: int, stack: Any) -> None:
        self._stop = True  # show() stops between two frames, when nothing is half written

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._stream, data)
            self._stream.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO, errno.ENXIO):  # the terminal's window was closed
                raise PipeClosed from None
            raise

    def show(self, frame: Frame) -> None:
        """Draw a frame, uint8 (H, W, 3).

        Raises:
            PipeClosed: the terminal is gone.
        """
        if self._stop:
            self._stop = False
            self._write(_LEAVE)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._write(_ENTER)
            self._shown = None
        columns, lines = self._size_of()
        rows, width = fit((frame.shape[0], frame.shape[1]), columns, lines)
        clear = b""
        if (place := (columns, lines, rows, width)) != self._place:
            self._place, self._shown, clear = place, None, b"\x1b[0m\x1b[2J"
        cells = self._cells(frame, rows, width)
        body = self._draw(cells, (lines - rows) // 2 + 1, (columns - width) // 2 + 1)
        if body:
            # Synchronised output: the terminal shows the whole frame at once, or ignores it.
            self._write(b"\x1b[?2026h" + clear + body.encode() + b"\x1b[0m\x1b[?2026l")
        self._shown = cells

    def idle(self, seconds: float) -> None:
        """Wait for so many seconds at most."""
        time.sleep(seconds)

    def _cells(self, frame: Frame, rows: int, columns: int) -> npt.NDArray[np.uint8]:
        """(H, W, 3) → (rows, columns, upper and lower, 3): RGB, or a number among 256 colours, thrice."""
        smaller = columns < frame.shape[1]
        how = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
        pixels = np.asarray(Image.fromarray(frame).resize((columns, 2 * rows), how))
        if not self._true_colour:
            threshold = np.tile(_BAYER, (rows // 2 + 1, columns // 4 + 1))[: 2 * rows, :columns, None]
            place = np.interp(pixels, _CUBE, range(6))
            cube = np.rint(place + threshold).clip(0, 5) @ np.array([36, 6, 1]) + 16
            pixels = np.repeat(cube[..., None], 3, axis=-1).astype(np.uint8)
        return pixels.reshape(rows, 2, columns, 3).swapaxes(1, 2)

    def _draw(self, cells: npt.NDArray[np.uint8], top: int, left: int) -> str:
        """The escape sequences that draw the cells that differ from those shown."""
        changed = (
            np.ones(cells.shape[:2], bool) if self._shown is None else (cells != self._shown).any((2, 3))
        )
        kind = "2;{};{};{}" if self._true_colour else "5;{}"
        out: list[str] = []
        colours: list[list[int] | None] = [None, None]
        after = (-1, -1)  # where the terminal's cursor is
        where = np.argwhere(changed).tolist()
        for (row, column), pair in zip(where, cells[changed].tolist(), strict=True):
            if (row, column) != after:
                out.append(f"\x1b[{top + row};{left + column}H")
            for ground, colour in enumerate(pair):
                if colour != colours[ground]:
                    out.append(f"\x1b[{38 + 10 * ground};{kind.format(*colour)}m")
            colours, after = pair, (row, column + 1)
            out.append("▀")
        return "".join(out)
