"""A terminal as a screen. It shows pictures where the terminal can, and half blocks elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

from mlxlava.errors import UserError
from mlxlava.playback.keys import TERMINAL, actions_by_key, help_line, perform_action
from mlxlava.playback.screens.pictures import (
    CellArea,
    HalfBlockPainter,
    ITerm2Painter,
    KittyPainter,
    Painter,
    SixelPainter,
    background_sequence,
    fit_cells,
    surround_colours,
    surround_sequences,
)
from mlxlava.playback.screens.surround import Surround
from mlxlava.playback.screens.tty import Keyboard, TerminalAnswers, cell_size, wait_for_pending_signals
from mlxlava.playback.session import Session
from mlxlava.playback.writers import Frame, PipeClosed, unbuffered_stdout, write_all

# On entering: the alternate screen, no cursor, no wrapping at the last column.
# On leaving, the terminal may be in any state: Ctrl-C and Ctrl-Z cut the output at any byte, perhaps within
# a picture. So the end of a string is sent first. The screen is cleared, because tmux 3.3 copies its content
# into the main screen if the terminal was resized meanwhile.
_ENTER_SEQUENCE = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE_SEQUENCE = b"\x1b[?2026l\x1b[0m\x1b[H\x1b[2J\x1b[?7h\x1b[?25h\x1b[?1049l"
_END_OF_STRING = b"\x1b\\"

# Height and width of a cell in pixels where they are unknown; those of the VT340.
_DEFAULT_CELL_PIXELS = (20, 10)

_ACTION_OF_KEY, _HELP_LINE = actions_by_key(TERMINAL), help_line(TERMINAL)

_MAX_WAIT_SECONDS = 0.1  # seconds after which keys, a new size and Ctrl-Z are noticed, also in a pause

# Terminals (by TERM) that are not asked what they can do. Some print the question. Multiplexers do not pass
# pictures on by default, so that the answer would be of no use.
_TERMS_NEVER_ASKED = ("screen", "tmux", "linux", "dumb")

# Terminals (by TERM) of 8 or 16 colours. None of these is near the edge of a frame.
_TERMS_OF_FEW_COLOURS = re.compile(r"linux|ansi|vt\d+|.*-(8|16)color")

TERMINAL_MODES = ("auto", "kitty", "iterm2", "sixel", "blocks", "256")


def understands_escape_sequences(stream: Any = None) -> bool:
    """Whether ``stream`` (stdout if None) is a terminal that understands escape sequences."""
    stream = sys.stdout if stream is None else stream
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_true_colour() -> bool:
    """Whether the terminal is expected to show 24-bit colour.

    Apple's Terminal before macOS 26 does not: it shows blinking text instead.
    """
    said = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    return said or os.environ.get("TERM_PROGRAM") != "Apple_Terminal"


def may_colour_surround() -> bool:
    """Whether the cells around the picture may be coloured: more than 16 colours, and no NO_COLOR."""
    few = _TERMS_OF_FEW_COLOURS.fullmatch(os.environ.get("TERM", ""))
    return few is None and not os.environ.get("NO_COLOR")


def mode_from_environment() -> str:
    """The mode that MLXLAVA_TERMINAL names, one of ``TERMINAL_MODES``.

    Raises:
        UserError: it names something else.
    """
    mode = os.environ.get("MLXLAVA_TERMINAL", "") or "auto"
    if mode not in TERMINAL_MODES:
        raise UserError(f"play: MLXLAVA_TERMINAL must be one of {', '.join(TERMINAL_MODES)}, not {mode}")
    return mode


def may_ask_terminal() -> bool:
    """Whether the terminal may be asked what it can do. The environment decides."""
    return (
        not os.environ.get("TMUX")
        and not os.environ.get("TERM", "dumb").startswith(_TERMS_NEVER_ASKED)
        and os.environ.get("TERM_PROGRAM") != "Apple_Terminal"
    )


def best_terminal_mode(answers: TerminalAnswers) -> str:
    """The best mode for a terminal that gave these answers."""
    if answers.kitty:
        return "kitty"
    name = answers.name or os.environ.get("LC_TERMINAL") or os.environ.get("TERM_PROGRAM") or ""
    if name.startswith(("iTerm", "WezTerm")):
        return "iterm2"
    return "sixel" if answers.sixel else "blocks"


def open_painter(mode: str, answers: TerminalAnswers) -> Painter:
    """The painter of a mode. Half blocks replace Sixel where the extra ``terminal`` is not installed."""
    if mode == "kitty":
        return KittyPainter()
    if mode == "iterm2":
        return ITerm2Painter()
    if mode == "sixel":
        with contextlib.suppress(ImportError):
            return SixelPainter(answers.colours)
    return HalfBlockPainter(mode != "256" and has_true_colour())


class _Layout(NamedTuple):
    """The terminal's size, the picture's cells, and the text in the last line."""

    columns: int
    lines: int
    area: CellArea
    text: str


class Terminal:
    """Shows frames in a terminal, centred and as large as possible, and reads keys that change what plays.

    A context manager: the alternate screen is entered, and it is left also after an error. Each frame is one
    write of what has changed. Writing waits for the terminal, so a slow terminal gets fewer frames and no
    queue builds up. Ctrl-Z gives the shell its screen back until ``fg``.

    Args:
        stream: binary stream to draw on; stdout if None.
        size_of: returns (columns, lines) and is called before each frame; by default it asks the stream's
            terminal.
        painter: draws the frames; by default the best one for the terminal, or the one that MLXLAVA_TERMINAL
            names.
        session: what plays; if None, no keys are read.

    Raises:
        UserError: MLXLAVA_TERMINAL names no mode.
    """

    def __init__(
        self,
        stream: Any = None,
        size_of: Callable[[], tuple[int, int]] | None = None,
        painter: Painter | None = None,
        session: Session | None = None,
    ) -> None:
        self.hidden = False
        self.fps: float | None = None
        self._session = session
        self._stream = unbuffered_stdout() if stream is None else stream
        self._size_of = self._terminal_size if size_of is None else size_of
        self._mode = mode_from_environment()
        self._painter = painter
        self._answers = TerminalAnswers()
        self._keyboard: Keyboard | None = None
        if session is not None and sys.stdin is not None and sys.stdin.isatty():
            self._keyboard = Keyboard(sys.stdin.fileno())
        self._frame: Frame | None = None
        self._layout: _Layout | None = None
        self._surround = Surround() if may_colour_surround() else None
        self._help = False
        self._entered = False
        self._stop = self._continued = False
        self._handlers: dict[signal.Signals, Any] = {}

    # Entering and leaving.

    def __enter__(self) -> Terminal:
        try:
            if threading.current_thread() is threading.main_thread():
                for number, handler in (
                    (signal.SIGTSTP, self._on_stop_signal),
                    (signal.SIGCONT, self._on_continue_signal),
                ):
                    self._handlers[number] = signal.signal(number, handler)
            self._take_over_terminal()
            if self._painter is None:
                if self._mode == "auto" and self._keyboard is not None and may_ask_terminal():
                    self._answers = self._keyboard.ask_capabilities(self._write)
                    self._mode = best_terminal_mode(self._answers)
                self._painter = open_painter(self._mode, self._answers)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._restore_terminal(cut=error is not None)
        except PipeClosed:
            if error is None:
                raise
        finally:
            while self._handlers:
                number, handler = self._handlers.popitem()
                signal.signal(number, handler)

    def _take_over_terminal(self) -> None:
        if self._keyboard is not None:
            try:
                self._keyboard.open()
            except termios.error:  # an orphaned process in the background is not allowed to
                self._keyboard = None
        self._entered = True
        self._layout = None
        self._write(_ENTER_SEQUENCE)

    def _restore_terminal(self, cut: bool) -> None:
        """Restore the terminal. ``cut`` drops output that it has not read yet, as it may never read it."""
        with _signals_ignored():
            try:
                if self._entered:
                    self._entered = False
                    self._drop_blocked_output(cut)
                    erase = b"" if self._painter is None else self._painter.erase_pictures()
                    self._write(_END_OF_STRING + erase + _LEAVE_SEQUENCE)
            finally:
                if self._keyboard is not None:
                    self._keyboard.close()

    def _drop_blocked_output(self, cut: bool) -> None:
        """Make sure that the next write does not block, because no signal could end it."""
        with contextlib.suppress(termios.error, OSError, ValueError):
            descriptor = self._stream.fileno()
            if cut or not select.select([], [descriptor], [], 0.5)[1]:
                termios.tcflush(descriptor, termios.TCOFLUSH)
                termios.tcflow(descriptor, termios.TCOON)

    def _on_stop_signal(self, signum: int, stack: Any) -> None:
        self._stop = True  # handled between two frames, when nothing is half written

    def _on_continue_signal(self, signum: int, stack: Any) -> None:
        self._continued = True

    def _handle_signals_and_keys(self) -> None:
        """Handle Ctrl-Z, being continued after it, and keys."""
        if self._stop:
            self._stop = False
            self._restore_terminal(cut=True)
            os.kill(os.getpid(), signal.SIGSTOP)
            wait_for_pending_signals()
            self._take_over_terminal()
        elif self._continued:  # another process had stopped this one, and a shell used the terminal
            self._take_over_terminal()
        self._continued = False
        if self._keyboard is not None:
            self._keyboard.wait_for_input(0)
            for key in self._keyboard.take_pressed_keys():
                self._handle_key(key)

    def _handle_key(self, key: str) -> None:
        action = _ACTION_OF_KEY.get(key.lower())
        if action == "help":
            self._help = not self._help
        elif action is not None and self._session is not None:
            perform_action(self._session, action)

    # Drawing.

    def show(self, frame: Frame) -> None:
        """Draw a frame, uint8 (H, W, 3).

        Raises:
            PipeClosed: the terminal is gone.
        """
        self._frame = frame
        self._handle_signals_and_keys()
        self._draw()

    def wait_and_react(self, seconds: float) -> None:
        """Wait for at most this many seconds. React to keys and to a new size meanwhile."""
        if self._keyboard is not None:
            self._keyboard.wait_for_input(min(seconds, _MAX_WAIT_SECONDS))
        else:
            time.sleep(min(seconds, _MAX_WAIT_SECONDS))
        self._handle_signals_and_keys()
        if self._layout != self._lay_out():
            self._draw()

    def _lay_out(self) -> _Layout | None:
        if self._frame is None or self._painter is None:
            return None
        columns, lines = self._size_of()
        text = self._help_text()[:columns]
        free = max(1, lines - max(bool(text), self._painter.spare))
        cell = self._painter.cell or self._cell_size()
        height, width = self._frame.shape[:2]
        rows, across = fit_cells((height, width), columns, free, cell, self._painter.limit)
        area = CellArea((free - rows) // 2 + 1, (columns - across) // 2 + 1, rows, across, cell)
        return _Layout(columns, lines, area, text)

    def _help_text(self) -> str:
        """What plays, and the keys; empty while no help is wanted."""
        if not self._help or self._session is None:
            return ""
        clock = self._session.clock
        pace = "paused" if clock.paused else f"{clock.speed:.3g}×"
        return f"{self._session.lamp_title}, {pace} · {_HELP_LINE}"

    def _draw(self) -> None:
        layout, shown = self._lay_out(), self._layout
        if layout is None or self._painter is None or self._frame is None:
            return
        body, cleared = b"", shown is None or shown[:3] != layout[:3]
        if cleared:
            body = self._painter.erase_pictures() + b"\x1b[0m\x1b[2J"
        changed = self._surround is not None and self._surround.update_from_frame(self._frame)
        before = "" if cleared or shown is None else shown.text
        if cleared or changed or layout.text != before:
            body += self._surround_and_text_sequences(layout, self._painter.true_colour).encode()
        picture = self._painter.paint(self._frame, layout.area)
        self._layout = layout
        if body or picture:
            # Synchronised output: the terminal shows the whole frame at once, or ignores the request.
            self._write(b"\x1b[?2026h" + body + picture + b"\x1b[?2026l")

    def _surround_and_text_sequences(self, layout: _Layout, true_colour: bool) -> str:
        """Escape sequences for the surround of the picture, and for the text in the last line."""
        line = f"\x1b[{layout.lines};1H"
        if self._surround is None:
            return f"{line}\x1b[2K{layout.text}"
        columns, lines, area, text = layout
        cells = surround_colours(self._surround.sides, area, lines, columns, true_colour)
        out = surround_sequences(cells, area)
        if text:
            light = self._surround.sides.left[-1].mean() > 127
            colours = f"\x1b[{30 if light else 97}m" + background_sequence(cells[-1, 0].tolist())
            out += f"{line}{colours}{text.ljust(columns)}\x1b[0m"
        return out

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._stream, data)
            self._stream.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO, errno.ENXIO):  # the terminal's window was closed
                raise PipeClosed from None
            raise

    def _terminal_size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError):
            size = os.get_terminal_size(self._stream.fileno())
            if min(size) > 0:  # some pseudo-terminals say 0 × 0
                return size
        return shutil.get_terminal_size()

    def _cell_size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError):
            if size := cell_size(self._stream.fileno()):
                return size
        return self._answers.cell or _DEFAULT_CELL_PIXELS


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignore signals that would end or stop the program inside the block."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            before[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
