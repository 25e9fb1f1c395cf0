"""The terminal's picture is read back from its escape sequences."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from mlxlava.playback.screens.pictures import HalfBlockPainter
from mlxlava.playback.screens.terminal import Terminal, has_true_colour, understands_escape_sequences
from mlxlava.playback.writers import Frame, PipeClosed

SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|(▀)|( +)|\x1b\\")


class Emulator:
    """As much of a terminal as ``Terminal`` uses; any other output fails."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.modes: dict[str, bool] = {"25": True, "7": True}
        self.cells: dict[tuple[int, int], list[Any]] = {}
        self.around: dict[tuple[int, int], Any] = {}  # background colours of spaces
        self.drawn = 0
        self.row = self.column = 0
        self.colours: list[Any] = [None, None]

    def feed(self, data: bytes) -> None:
        text, end = data.decode(), 0
        for match in SEQUENCE.finditer(text):
            assert match.start() == end, repr(text[end : match.start()])
            end = match.end()
            private, numbers, letter, block, spaces = match.groups()
            if block:
                assert 1 <= self.row <= self.lines and 1 <= self.column <= self.columns
                self.cells[self.row, self.column] = list(self.colours)
                self.column += 1
                self.drawn += 1
            elif spaces:
                for column in range(self.column, self.column + len(spaces)):
                    assert 1 <= self.row <= self.lines and 1 <= column <= self.columns
                    self.around[self.row, column] = self.colours[1]
                self.column += len(spaces)
            elif private:
                self.modes[numbers] = letter == "h"
            elif letter == "H":
                self.row, self.column = map(int, (numbers or "1;1").split(";"))
            elif letter == "J":
                self.cells.clear()
                self.around.clear()
            elif letter == "m":
                self.paint([int(n) for n in numbers.split(";")])
        assert end == len(text)

    def paint(self, numbers: list[int]) -> None:
        if numbers == [0]:
            self.colours = [None, None]
            return
        ground, kind, *rest = numbers
        assert ground in (38, 48)
        if kind == 5:
            (n,) = rest
            assert 16 <= n < 256
            rest = [(0, 95, 135, 175, 215, 255)[(n - 16) // place % 6] for place in (36, 6, 1)]
            rest = rest if n < 232 else 3 * [8 + 10 * (n - 232)]
        self.colours[ground == 48] = rest

    def picture(self) -> tuple[Frame, tuple[int, int]]:
        """The pixels shown, and the (row, column) of their first cell, counted from 1."""
        top, left = (min(place[axis] for place in self.cells) for axis in (0, 1))
        bottom, right = (max(place[axis] for place in self.cells) + 1 for axis in (0, 1))
        cells = [[self.cells[row, column] for column in range(left, right)] for row in range(top, bottom)]
        return np.array(cells, np.uint8).swapaxes(1, 2).reshape(-1, right - left, 3), (top, left)


class Wire(io.BytesIO):
    """A stream that an emulator reads from; counts writes."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self.emulator, self.writes = emulator, 0

    def write(self, data: Any) -> int:
        self.writes += 1
        self.emulator.feed(bytes(data))
        return len(data)


def frames(count: int, height: int = 32, width: int = 32) -> list[Frame]:
    return list(np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def make(columns: int = 40, lines: int = 16, **options: Any) -> tuple[Terminal, Emulator, Wire]:
    emulator = Emulator(columns, lines)
    wire = Wire(emulator)
    options = {"painter": HalfBlockPainter(true_colour=True), **options}
    return Terminal(wire, lambda: (emulator.columns, emulator.lines), **options), emulator, wire


def test_what_is_shown_is_the_frame() -> None:
    terminal, emulator, wire = make()
    with terminal:
        assert emulator.modes["1049"] and not emulator.modes["25"]
        for count, frame in enumerate(frames(3), start=2):
            terminal.show(frame)
            seen, place = emulator.picture()
            np.testing.assert_array_equal(seen, frame)
            assert place == (1, 5)  # 32 of 40 columns, centred
            assert wire.writes == count  # one write a frame
            assert not emulator.modes["2026"]
    assert emulator.modes == {"25": True, "7": True, "1049": False, "2026": False}


def test_only_changed_cells_are_sent() -> None:
    terminal, emulator, wire = make()
    (frame,) = frames(1)
    with terminal:
        terminal.show(frame)
        emulator.drawn, writes = 0, wire.writes
        terminal.show(frame)
        assert emulator.drawn == 0 and wire.writes == writes
        changed = frame.copy()
        changed[7, 11] ^= 255
        changed[20:24, 3:5] ^= 255
        terminal.show(changed)
        assert emulator.drawn == 1 + 2 * 2
        np.testing.assert_array_equal(emulator.picture()[0], changed)


def test_it_follows_the_terminals_size() -> None:
    terminal, emulator, _ = make(columns=80, lines=30)
    smooth = np.full((32, 64, 3), 40, np.uint8)
    smooth[:, 32:] = 200
    with terminal:
        for columns, lines, shape, place in (
            (80, 30, (40, 80, 3), (6, 1)),  # enlarged
            (100, 20, (40, 80, 3), (1, 11)),  # same picture elsewhere
            (20, 30, (10, 20, 3), (13, 1)),  # made smaller
            (1, 1, (2, 1, 3), (1, 1)),
        ):
            emulator.columns, emulator.lines = columns, lines
            terminal.show(smooth)
            seen, where = emulator.picture()
            assert (seen.shape, where) == (shape, place)
            if columns > 1:
                assert np.abs(seen[:, 1].astype(int) - 40).max() <= 2
                assert np.abs(seen[:, -2].astype(int) - 200).max() <= 2


def lit(height: int = 32, width: int = 32) -> Frame:
    """A lamp whose four sides differ, and that is brighter in the middle."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    inside = np.minimum(np.minimum(down, 1 - down), np.minimum(across, 1 - across))
    return np.stack([30 + 40 * across, 20 + 40 * down, 50 + 200 * inside], -1).astype(np.uint8)


@pytest.fixture
def many_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("many_colours")
@pytest.mark.parametrize(("columns", "lines"), [(60, 16), (32, 30), (60, 17)])
def test_the_surround_continues_the_edge(columns: int, lines: int) -> None:
    terminal, emulator, wire = make(columns, lines)
    with terminal:
        terminal.show(lit())
        seen, (top, left) = emulator.picture()
        rows, across = seen.shape[0] // 2, seen.shape[1]
        assert len(emulator.around) == columns * lines - rows * across  # every other cell
        for (row, column), colour in emulator.around.items():
            pixel = min(max(2 * (row - top), 0), 2 * rows - 1), min(max(column - left, 0), across - 1)
            assert np.abs(np.subtract(colour, seen[pixel], dtype=int)).max() <= 4, (row, column)
        writes = wire.writes
        terminal.show(lit())
        assert wire.writes == writes
        before = dict(emulator.around)
        terminal.show(lit()[::-1])
        assert emulator.around.keys() == before.keys() and emulator.around != before  # another lamp
    assert emulator.colours == [None, None] and not emulator.around


@pytest.mark.usefixtures("many_colours")
def test_noise_at_the_edge_does_not_draw_the_surround_anew() -> None:
    terminal, emulator, _ = make(60, 16)
    noise = np.random.default_rng(0).integers(0, 4, (5, 32, 32, 3), dtype=np.uint8)
    with terminal:
        terminal.show(lit())
        emulator.around.clear()
        for extra in noise:
            terminal.show(lit() + extra)
    assert not emulator.around


@pytest.mark.usefixtures("many_colours")
def test_the_surround_in_256_colours_is_near_on_average() -> None:
    terminal, emulator, _ = make(60, 16, painter=HalfBlockPainter(true_colour=False))
    with terminal:
        terminal.show(np.full((32, 32, 3), (13, 9, 20), np.uint8))
        around = np.array(list(emulator.around.values()))
    assert len(around) == 28 * 16
    assert np.abs(around.mean(0) - 14).max() < 4 and np.abs(around - 14).max() <= 14


@pytest.mark.parametrize(
    "variable", [("TERM", "linux"), ("TERM", "xterm-16color"), ("TERM", "vt340"), ("NO_COLOR", "1")]
)
@pytest.mark.usefixtures("many_colours")
def test_few_colours_leave_the_surround_alone(
    variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable)
    terminal, emulator, _ = make(60, 16)
    with terminal:
        terminal.show(lit())
        assert emulator.cells and not emulator.around


@pytest.mark.usefixtures("many_colours")
def test_a_tall_lamp_has_the_terminals_height() -> None:
    terminal, emulator, _ = make(80, 24)
    with terminal:
        terminal.show(lit(256, 128))
        seen, (top, _) = emulator.picture()
    assert top == 1 and seen.shape == (48, 24, 3)


def test_an_enlarged_edge_has_no_rim() -> None:
    terminal, emulator, _ = make(90, 41)
    edge = np.full((32, 32, 3), 50, np.uint8)
    edge[:, 16:] = 200
    with terminal:
        terminal.show(edge)
        seen, _ = emulator.picture()
    assert seen.shape == (82, 82, 3) and seen.min() == 50 and seen.max() == 200


def test_256_colours_are_near_on_average() -> None:
    terminal, emulator, _ = make(painter=HalfBlockPainter(true_colour=False))
    frame = np.full((32, 32, 3), (200, 90, 30), np.uint8)
    with terminal:
        terminal.show(frame)
        seen, _ = emulator.picture()
    assert np.abs(seen.mean((0, 1)) - frame.mean((0, 1))).max() < 6
    assert np.abs(seen.astype(int) - frame).max() <= 95


def test_a_dark_room_is_dark_in_256_colours() -> None:
    terminal, emulator, _ = make(painter=HalfBlockPainter(true_colour=False))
    frame = np.full((32, 32, 3), (9, 6, 14), np.uint8)
    with terminal:
        terminal.show(frame)
        seen, _ = emulator.picture()
    assert np.abs(seen.astype(int) - frame).max() <= 14


def test_apples_old_terminal_gets_256_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    assert has_true_colour()
    monkeypatch.setenv("TERM_PROGRAM", "Apple_Terminal")
    assert not has_true_colour()
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert has_true_colour()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_terminal_is_restored_whatever_happens(error: type[BaseException]) -> None:
    terminal, emulator, _ = make()
    old = signal.getsignal(signal.SIGTSTP)
    with pytest.raises(error), terminal:
        terminal.show(frames(1)[0])
        raise error
    assert emulator.modes == {"25": True, "7": True, "1049": False, "2026": False}
    assert emulator.colours == [None, None]
    assert signal.getsignal(signal.SIGTSTP) == old


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_terminal_that_goes_away_is_a_closed_pipe(number: int) -> None:
    terminal, _, wire = make()

    def gone(data: Any) -> int:
        raise OSError(number, "gone")

    with pytest.raises(PipeClosed), terminal:
        wire.write = gone  # type: ignore[method-assign]
        terminal.show(frames(1)[0])


def test_has_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0), open(theirs, "wb", buffering=0) as stream:  # noqa: PTH123
        monkeypatch.setenv("TERM", "xterm")
        assert understands_escape_sequences(stream)
        monkeypatch.setenv("TERM", "dumb")
        assert not understands_escape_sequences(stream)
    monkeypatch.setenv("TERM", "xterm")
    assert not understands_escape_sequences(io.StringIO())


def test_ctrl_z_gives_the_shell_its_screen_back() -> None:
    program = """
        import os, signal
        import numpy as np
        from mlxlava.playback.screens.terminal import Terminal
        with Terminal() as terminal:
            os.kill(os.getpid(), signal.SIGTSTP)
            terminal.show(np.zeros((32, 32, 3), np.uint8))
    """
    ours, theirs = pty.openpty()
    # A picture that the terminal's buffer can hold: nobody reads until it is over.
    size = {**os.environ, "COLUMNS": "8", "LINES": "4"}
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=theirs, env=size)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    before = b""
    while not before.endswith(b"\x1b[?1049l"):
        before += os.read(ours, 10_000)
    assert before.endswith(b"\x1b[?25h\x1b[?1049l") and "▀".encode() not in before
    os.kill(child.pid, signal.SIGCONT)
    os.waitpid(child.pid, 0)
    child.returncode = 0
    after = os.read(ours, 100_000)
    assert after.startswith(b"\x1b[?1049h\x1b[?25l") and after.endswith(b"\x1b[?1049l")
    assert "▀".encode() in after
    os.close(ours)
    os.close(theirs)
