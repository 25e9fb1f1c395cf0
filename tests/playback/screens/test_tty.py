"""What a terminal is asked, and its keys: a program talks to a terminal that this test plays."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from mlxlava.errors import UserError
from mlxlava.playback.screens.terminal import Terminal, best_terminal_mode, may_ask_terminal
from mlxlava.playback.screens.tty import Keyboard, TerminalAnswers
from mlxlava.playback.writers import PipeClosed

# Shows a frame, twenty times a second, until it is ended; then says whether the terminal is as it was.
PROGRAM = """
    import itertools, os, select, sys, termios
    import numpy as np
    from mlxlava.playback.clock import WallClock
    from mlxlava.playback.session import Session, FrameSource
    from mlxlava.playback.screens.terminal import Terminal

    class Library:
        names = ["a", "b"]
        def open(self, name, seed):
            return FrameSource(lambda times: iter(()), (32, 32))

    before = termios.tcgetattr(0)
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    frames = itertools.cycle(noise if "NOISE" in os.environ else noise[:1])
    session = Session(Library(), "a", 0, WallClock(20))
    try:
        with Terminal(session=session) as terminal:
            while not session.ended:
                terminal.show(next(frames))
                terminal.wait_and_react(0.05)
    except KeyboardInterrupt:
        pass
    left = os.read(0, 99) if select.select([0], [], [], 0.3)[0] else b""
    print("LEFT", left, termios.tcgetattr(0) == before, session.seed, session.lamp_name)
"""

NAME, KITTY, CELL, ATTRIBUTES, COLOURS = b"\x1b[>q", b"\x1b_Gi=31", b"\x1b[16t", b"\x1b[c", b"\x1b[?1;1;0S"
ANSWERS = {
    "kitty": {KITTY: b"\x1b_Gi=31;OK\x1b\\", NAME: b"\x1bP>|kitty(0.40)\x1b\\", ATTRIBUTES: b"\x1b[?62;c"},
    "iTerm2": {NAME: b"\x1bP>|iTerm2 3.5\x1b\\", CELL: b"\x1b[6;18;9t", ATTRIBUTES: b"\x1b[?62;4c"},
    "xterm": {CELL: b"\x1b[6;18;9t", ATTRIBUTES: b"\x1b[?63;1;4;6c", COLOURS: b"\x1b[?1;0;16S"},
    "plain": {ATTRIBUTES: b"\x1b[?1;2c"},
    "silent": {},
}
SENT = {"kitty": b"\x1b_Ga=T", "iTerm2": b"\x1b]1337;File=", "xterm": b"\x1bP", "plain": "▀".encode()}


class Program:
    """A program in a terminal of its own, which answers as told."""

    def __init__(
        self, answers: dict[bytes, bytes], delay: float = 0.0, environment: dict[str, str] | None = None
    ) -> None:
        self.said, self._answers, self._delay = b"", answers, delay
        self._asked = 0
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            for name in ("TMUX", "TERM_PROGRAM", "LC_TERMINAL", "MLXLAVA_TERMINAL", "COLORTERM"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm", "MLXLAVA_CORES": "1", **(environment or {})})
            os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(PROGRAM)])

    def until(self, said: bytes, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while said not in self.said:
            assert time.monotonic() < end, self.said[-500:]
            if select.select([self.terminal], [], [], 0.05)[0]:
                self.said += os.read(self.terminal, 10_000)
            new, self._asked = self.said[self._asked :], len(self.said)
            asked = {
                new.index(question): answer for question, answer in self._answers.items() if question in new
            }
            if asked:
                time.sleep(self._delay)
                os.write(self.terminal, b"".join(asked[place] for place in sorted(asked)))

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def assert_restored(self, more: bytes = b"True") -> None:
        self.until(b"LEFT")
        self.until(b"\r\n", 5)
        while not self.said[self.said.index(b"LEFT") :].endswith(b"\n"):
            self.said += os.read(self.terminal, 100)
        assert b"LEFT b'' " + more in self.said[self.said.index(b"LEFT") :]
        assert b"\x1b[?25h\x1b[?1049l" in self.said

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.terminal)


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.close()


@pytest.mark.parametrize("kind", SENT)
def test_the_best_that_the_terminal_can(kind: str, programs: list[Program]) -> None:
    programs.append(program := Program(ANSWERS[kind]))
    if kind == "xterm" and find_spec("textual_image") is None:  # Sixel needs the extra `terminal`
        kind = "plain"
    program.until(SENT[kind])
    assert [sent for sent in SENT.values() if sent in program.said] == [SENT[kind]]
    program.type(b"q")
    program.assert_restored()
    assert program.said.count(SENT[kind]) == 1 or kind == "plain"  # the frame never changed


def test_a_silent_terminal_costs_a_second_and_gets_half_blocks(programs: list[Program]) -> None:
    programs.append(program := Program(ANSWERS["silent"]))
    program.until(ATTRIBUTES)
    began = time.monotonic()
    program.until(SENT["plain"])
    assert time.monotonic() - began < 10
    program.type(b"\x1b")
    program.assert_restored()


@pytest.mark.parametrize("delay", [0.3, 1.3])
def test_late_answers_are_neither_keys_nor_left_on_the_prompt(delay: float, programs: list[Program]) -> None:
    programs.append(program := Program(ANSWERS["kitty"], delay))
    program.until(SENT["kitty"] if delay < 1 else SENT["plain"])
    time.sleep(0.2)
    program.type(b"nW")
    time.sleep(0.2)
    program.type(b"q")
    program.assert_restored(b"True 1 b")


def test_an_answer_to_who_has_left_is_dropped(programs: list[Program]) -> None:
    programs.append(program := Program({}))
    program.until(ATTRIBUTES)
    program.type(b"\x03")
    time.sleep(0.05)
    program.type(b"".join(ANSWERS["kitty"].values()))
    program.assert_restored()


def test_a_terminal_that_reads_no_more_can_be_left(programs: list[Program]) -> None:
    environment = {"MLXLAVA_TERMINAL": "kitty", "NOISE": "1"}
    programs.append(program := Program({}, environment=environment))
    program.until(SENT["kitty"])
    time.sleep(1)  # by now it waits in the middle of a picture
    os.kill(program.process, signal.SIGINT)
    program.assert_restored()
    left = program.said.index(b"\x1b[?1049l")
    restored = program.said[program.said.rindex(b"\x1b\\\x1b_Ga=d", 0, left) : left]
    assert b"\x1b[?25h" in restored and len(restored) < 200


def test_a_multiplexer_is_not_asked(programs: list[Program]) -> None:
    programs.append(program := Program(ANSWERS["kitty"], environment={"TMUX": "/tmp/tmux,1,0"}))
    program.until(SENT["plain"])
    assert not any(question in program.said for question in (NAME, KITTY, CELL, ATTRIBUTES))
    program.type(b"q")
    program.assert_restored()


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "TMUX": "/tmp/tmux,1,0"}, False),
        ({"TERM": "screen-256color"}, False),
        ({"TERM": "linux"}, False),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, False),
    ],
)
def test_who_prints_questions_is_not_asked(
    environment: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "TMUX", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert may_ask_terminal() == asked


def test_a_mode_can_be_forced(programs: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    programs.append(program := Program({}, environment={"MLXLAVA_TERMINAL": "kitty"}))
    program.until(SENT["kitty"])
    program.type(b"q")
    program.assert_restored()
    assert ATTRIBUTES not in program.said
    monkeypatch.setenv("MLXLAVA_TERMINAL", "kity")
    with pytest.raises(UserError, match="must be one of auto, kitty"):
        Terminal(io.BytesIO())


def test_kittys_protocol_comes_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_TERMINAL", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    assert best_terminal_mode(TerminalAnswers(name="WezTerm 2025", kitty=True, sixel=True)) == "kitty"
    assert best_terminal_mode(TerminalAnswers(name="WezTerm 2025", sixel=True)) == "iterm2"
    assert best_terminal_mode(TerminalAnswers(name="foot", sixel=True)) == "sixel"
    assert best_terminal_mode(TerminalAnswers()) == "blocks"


def test_an_iterm2_that_does_not_tell_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LC_TERMINAL", raising=False)
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    assert best_terminal_mode(TerminalAnswers()) == "iterm2"
    assert best_terminal_mode(TerminalAnswers(name="XTerm(379)")) == "blocks"  # started from iTerm2's shell


@pytest.fixture
def keyboard() -> Iterator[tuple[Keyboard, int]]:
    ours, theirs = pty.openpty()
    board = Keyboard(theirs)
    board.open()
    yield board, ours
    board.close()
    os.close(ours)
    os.close(theirs)


def test_keys_are_told_from_sequences(keyboard: tuple[Keyboard, int]) -> None:
    board, ours = keyboard

    def pressed(keys: str) -> list[str]:
        os.write(ours, keys.encode())
        board.wait_for_input(1)
        return board.take_pressed_keys()

    assert pressed("q") == ["q"]
    assert pressed(" +−n") == [" ", "+", "−", "n"]
    assert pressed("\x7f\b") == ["backspace", "backspace"]
    assert pressed("a\x1b[A\x1bOP\x1b[15;2~\x1bxb") == ["a", "b"]
    assert pressed("\x1b_Gi=31;O") == []
    assert pressed("K\x1b\\h") == ["h"]
    assert pressed("\x1b") == []
    time.sleep(0.15)
    board.wait_for_input(0)
    assert board.take_pressed_keys() == ["esc"]


def test_a_terminal_that_is_gone_is_a_closed_pipe() -> None:
    ours, theirs = pty.openpty()
    board = Keyboard(theirs)
    board.open()
    os.close(ours)
    with pytest.raises(PipeClosed):
        board.wait_for_input(1)
    board.close()
    os.close(theirs)
