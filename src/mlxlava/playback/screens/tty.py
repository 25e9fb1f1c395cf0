"""A terminal as a device: keys as they are pressed, what it answers when asked, the size of a cell."""

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

# A whole control sequence: a function key, or an answer: CSI; DCS, SOS, OSC, PM, APC; SS3; Alt and a key.
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[PX\]^_].*?(?:\x1b\\|\x07)|O[^\x1b]|[^\x1b\[PX\]^_O])", re.DOTALL
)

# All terminals answer the last, device attributes, in order, so nothing is waited for that will not come.
_ATTRIBUTES_QUESTION = b"\x1b[c"
# May a pixel of RGB be sent by Kitty's protocol? Name and version; a cell's size in pixels.
_QUESTIONS = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\" + b"\x1b[>q" + b"\x1b[16t"
_COLOURS_QUESTION = b"\x1b[?1;1;0S"  # of those that have Sixel: kitty logs it as an error
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")

_ANSWER_TIME = 1.0  # seconds: slow lines, and terminals that answer nothing at all
_ESCAPE_TIME = 0.1  # after which an Esc is the key and no longer the beginning of something


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a terminal says of itself.

    Attributes:
        name: name and version, where it tells.
        kitty: whether it has Kitty's graphics protocol.
        sixel: whether it has Sixel.
        colours: colour registers of Sixel.
        cell: height and width of a cell in pixels, where it tells.
    """

    name: str = ""
    kitty: bool = False
    sixel: bool = False
    colours: int = 256
    cell: tuple[int, int] | None = None


def cell_size(descriptor: int) -> tuple[int, int] | None:
    """Height and width of a cell in pixels, as the kernel knows them; None where it does not."""
    try:
        size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return None
    lines, columns, width, height = struct.unpack("HHHH", size)
    if 0 in (lines, columns) or height < lines or width < columns:
        return None
    return height // lines, width // columns


def settle() -> None:
    """After being continued: let a signal that came with it be seen to, whichever thread it went to.

    ``kill %1`` is such a case: it must end the program before that touches the terminal and stops again.
    """
    time.sleep(0.02)


class Keyboard:
    """Keys of a terminal as they are pressed: no Enter, no echo. Ctrl-C, Ctrl-Z and Ctrl-S mean what they do.

    Args:
        descriptor: the terminal, to read from.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = ""  # what was read and is not used yet
        self._read_at = 0.0
        self._before: list[Any] | None = None
        self._asked = False  # and not answered yet

    def open(self) -> None:
        """Take the keys. In the background the kernel stops the process here until ``fg``."""
        found = termios.tcgetattr(self._descriptor)
        if self._before is None:
            self._before = found
        mode = [*found]
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = [*found[6]]
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._set(mode)

    def close(self) -> None:
        """Give them back; what was typed meanwhile, and late answers, are dropped."""
        if self._before is None:
            return
        with contextlib.suppress(termios.error, OSError, PipeClosed):  # it may be gone
            if self._asked:
                self._await_attributes(0.2)
            if not self._in_background():  # from there it would take the terminal from under the shell
                termios.tcflush(self._descriptor, termios.TCIFLUSH)
                self._set(self._before)
        self._before, self._text = None, ""

    def _in_background(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) != os.getpgrp()
        except OSError:  # not the terminal that controls this process
            return False

    def _set(self, mode: list[Any]) -> None:
        while True:
            try:
                return termios.tcsetattr(self._descriptor, termios.TCSANOW, mode)
            except termios.error as error:
                if error.args[0] != errno.EINTR:
                    raise
                settle()

    def wait(self, seconds: float) -> None:
        """Wait until something was typed, or for so many seconds.

        Raises:
            PipeClosed: the terminal is gone.
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

    def pressed(self) -> list[str]:
        """Keys pressed since the last call: characters, ``esc`` and ``backspace``.

        Control sequences (other keys) and the terminal's answers are left out.
        """
        if self._asked and _ATTRIBUTES.search(self._text):
            self._asked = False
        plain, escape, rest = _SEQUENCE.sub("", self._text).partition("\x1b")
        found = ["backspace" if key in "\b\x7f" else key for key in plain]
        self._text = escape + rest
        waited = time.monotonic() - self._read_at
        if escape and waited > (_ANSWER_TIME if rest else _ESCAPE_TIME):
            self._text = ""
            found += [] if rest else ["esc"]
        return found

    def ask(self, write: Callable[[bytes], None]) -> Answers:
        """Ask the terminal what it can do; at most a second.

        Args:
            write: writes to the terminal.
        """
        attributes = self._question(write, _QUESTIONS)
        name = re.search(r"\x1bP>\|([^\x1b]*)\x1b\\", self._text)
        cell = re.search(r"\x1b\[6;(\d+);(\d+)t", self._text)
        kitty, sixel = "\x1b_Gi=31;OK\x1b\\" in self._text, "4" in attributes
        colours = None
        if sixel and not kitty:
            self._question(write, _COLOURS_QUESTION)
            colours = re.search(r"\x1b\[\?1;0;(\d+)S", self._text)
        return Answers(
            name=name[1] if name else "",
            kitty=kitty,
            sixel=sixel,
            colours=int(colours[1]) if colours and int(colours[1]) else 256,
            cell=(int(cell[1]), int(cell[2])) if cell and int(cell[1]) and int(cell[2]) else None,
        )

    def _question(self, write: Callable[[bytes], None], question: bytes) -> list[str]:
        """Ask; returns the device attributes, which come last."""
        self._text = _ATTRIBUTES.sub("", self._text)
        self._asked = True
        write(question + _ATTRIBUTES_QUESTION)
        return self._await_attributes(_ANSWER_TIME)

    def _await_attributes(self, seconds: float) -> list[str]:
        end = time.monotonic() + seconds
        while (found := _ATTRIBUTES.search(self._text)) is None and time.monotonic() < end:
            self.wait(min(0.1, end - time.monotonic()))
        self._asked = found is None
        return found[1].split(";")[1:] if found else []
