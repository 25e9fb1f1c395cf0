"""A terminal as a device: reading keys as they are pressed, asking what it can do, the size of a cell."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

from mlxlava.playback.writers import PipeClosed

# A whole control sequence, which is a function key or an answer. In order of the alternatives: CSI; DCS, SOS,
# OSC, PM or APC; SS3; Alt with a key.
_CONTROL_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[PX\]^_].*?(?:\x1b\\|\x07)|O[^\x1b]|[^\x1b\[PX\]^_O])", re.DOTALL
)

# Every terminal answers this question (device attributes), and answers come in order. It is asked last, so
# its answer says that no other will come.
_ATTRIBUTES_QUESTION = b"\x1b[c"
# Does it accept an RGB pixel by Kitty's protocol? Its name and version? The size of a cell in pixels?
_CAPABILITY_QUESTIONS = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\" + b"\x1b[>q" + b"\x1b[16t"
_SIXEL_COLOURS_QUESTION = b"\x1b[?1;1;0S"  # only to terminals that have Sixel: kitty logs an error
_ATTRIBUTES_ANSWER = re.compile(r"\x1b\[\?([\d;]*)c")

_MAX_ANSWER_SECONDS = 1.0  # seconds to wait for an answer: lines may be slow, and some terminals never answer
_ESCAPE_KEY_SECONDS = 0.1  # seconds after which an Esc is the key, and not the beginning of a sequence


@dataclasses.dataclass(frozen=True)
class TerminalAnswers:
    """What a terminal says about itself.

    Attributes:
        name: name and version; empty where it does not tell.
        kitty: whether it has Kitty's graphics protocol.
        sixel: whether it has Sixel.
        colours: number of Sixel's colour registers.
        cell: height and width of a cell in pixels; None where it does not tell.
    """

    name: str = ""
    kitty: bool = False
    sixel: bool = False
    colours: int = 256
    cell: tuple[int, int] | None = None


def cell_size(descriptor: int) -> tuple[int, int] | None:
    """Height and width of a cell in pixels, from the kernel; None where it does not know them."""
    try:
        size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return None
    lines, columns, width, height = struct.unpack("HHHH", size)
    if 0 in (lines, columns) or height < lines or width < columns:
        return None
    return height // lines, width // columns


def wait_for_pending_signals() -> None:
    """Wait a moment after being continued, so that a signal that came with it is handled first.

    The signal may have gone to any thread. An example is ``kill %1`` of a stopped job: it must end the
    program before the program touches the terminal, which would stop it again.
    """
    time.sleep(0.02)


class Keyboard:
    """Reads a terminal's keys as they are pressed, without Enter and without echo.

    Ctrl-C, Ctrl-Z and Ctrl-S keep their meaning.

    Args:
        descriptor: file descriptor of the terminal, to read from.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = ""  # what was read and is not used yet
        self._read_at = 0.0
        self._before: list[Any] | None = None
        self._asked = False  # whether an answer is still to come

    def open(self) -> None:
        """Begin to read keys. In the background the kernel stops the process here until ``fg``."""
        found = termios.tcgetattr(self._descriptor)
        if self._before is None:
            self._before = found
        mode = [*found]
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = [*found[6]]
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._set_mode(mode)

    def close(self) -> None:
        """Restore the terminal's mode. Keys that were not read, and late answers, are dropped."""
        if self._before is None:
            return
        with contextlib.suppress(termios.error, OSError, PipeClosed):  # it may be gone
            if self._asked:
                self._await_attributes(0.2)
            if not self._in_background():  # there, the shell is using the terminal
                termios.tcflush(self._descriptor, termios.TCIFLUSH)
                self._set_mode(self._before)
        self._before, self._text = None, ""

    def _in_background(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) != os.getpgrp()
        except OSError:  # not the terminal that controls this process
            return False

    def _set_mode(self, mode: list[Any]) -> None:
        while True:
            try:
                return termios.tcsetattr(self._descriptor, termios.TCSANOW, mode)
            except termios.error as error:
                if error.args[0] != errno.EINTR:
                    raise
                wait_for_pending_signals()

    def wait_for_input(self, seconds: float) -> None:
        """Wait until something is typed, or for this many seconds.

        Raises:
            PipeClosed: the terminal was closed.
        """
        if select.select([self._descriptor], [], [], max(0.0, seconds))[0]:
            try:
                data = os.read(self._descriptor, 4096)
            except OSError as error:
                if error.errno == errno.EIO:
                    raise PipeClosed from None
                raise
            if not data:
                raise PipeClosed
            self._text += data.decode("utf-8", "replace")
            self._read_at = time.monotonic()

    def take_pressed_keys(self) -> list[str]:
        """Keys pressed since the last call: characters, ``esc`` and ``backspace``.

        Control sequences (other keys) and the terminal's answers are left out.
        """
        if self._asked and _ATTRIBUTES_ANSWER.search(self._text):
            self._asked = False
        plain, escape, rest = _CONTROL_SEQUENCE.sub("", self._text).partition("\x1b")
        found = ["backspace" if key in "\b\x7f" else key for key in plain]
        self._text = escape + rest
        waited = time.monotonic() - self._read_at
        if escape and waited > (_MAX_ANSWER_SECONDS if rest else _ESCAPE_KEY_SECONDS):
            self._text = ""
            found += [] if rest else ["esc"]
        return found

    def ask_capabilities(self, write: Callable[[bytes], None]) -> TerminalAnswers:
        """Ask the terminal what it can do. This takes at most two seconds.

        Args:
            write: writes to the terminal.
        """
        attributes = self._ask_with_attributes(write, _CAPABILITY_QUESTIONS)
        name = re.search(r"\x1bP>\|([^\x1b]*)\x1b\\", self._text)
        cell = re.search(r"\x1b\[6;(\d+);(\d+)t", self._text)
        kitty, sixel = "\x1b_Gi=31;OK\x1b\\" in self._text, "4" in attributes
        colours = None
        if sixel and not kitty:
            self._ask_with_attributes(write, _SIXEL_COLOURS_QUESTION)
            colours = re.search(r"\x1b\[\?1;0;(\d+)S", self._text)
        return TerminalAnswers(
            name=name[1] if name else "",
            kitty=kitty,
            sixel=sixel,
            colours=int(colours[1]) if colours and int(colours[1]) else 256,
            cell=(int(cell[1]), int(cell[2])) if cell and int(cell[1]) and int(cell[2]) else None,
        )

    def _ask_with_attributes(self, write: Callable[[bytes], None], question: bytes) -> list[str]:
        """Ask a question, then for the device attributes. Returns these, which come last."""
        self._text = _ATTRIBUTES_ANSWER.sub("", self._text)
        self._asked = True
        write(question + _ATTRIBUTES_QUESTION)
        return self._await_attributes(_MAX_ANSWER_SECONDS)

    def _await_attributes(self, seconds: float) -> list[str]:
        end = time.monotonic() + seconds
        while (found := _ATTRIBUTES_ANSWER.search(self._text)) is None and time.monotonic() < end:
            self.wait_for_input(min(0.1, end - time.monotonic()))
        self._asked = found is None
        return found[1].split(";")[1:] if found else []
