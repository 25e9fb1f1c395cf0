"""The terminal for real: a lamp plays in tmux, keys are sent, panes are captured."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]

LAMP = [sys.executable, "-m", "mlxlava", "lamp", "--size", "32"]
MODES = "#{alternate_on} #{cursor_flag} #{wrap_flag}"


class Tmux:
    """A shell in a terminal of 80 × 24 cells."""

    def __init__(self, folder: str) -> None:
        self._tmux = ["tmux", "-S", f"{folder}/tmux", "-f", os.devnull]
        # A short prompt without colours, and no waiting for the rest of an escape sequence.
        self("new-session", "-d", "-x", "80", "-y", "24", "env PS1='$ ' bash --norc --noprofile -i")
        self("set", "-g", "escape-time", "0")

    def __call__(self, *arguments: str) -> str:
        ended = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def run(self, command: str) -> None:
        self("send-keys", "-l", command)
        self("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        self("send-keys", *keys)

    def pane(self, *options: str) -> str:
        return self("capture-pane", "-p", *options)

    def until(self, there: Callable[[str], bool], seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while not there(pane := self.pane()):
            assert time.monotonic() < end, pane
            time.sleep(0.05)
        return pane

    def play(self, *arguments: str) -> str:
        self.run(shlex.join([*LAMP, *arguments]))
        return self.until(lambda pane: "▀" in pane)

    def child(self) -> int | None:
        """The program that the shell runs."""
        shell = self("display-message", "-p", "#{pane_pid}").strip()
        listed = subprocess.run(["ps", "-A", "-o", "ppid=", "-o", "pid="], capture_output=True, text=True)
        found = [line.split() for line in listed.stdout.splitlines()]
        return next((int(child) for parent, child in found if parent == shell), None)

    def kill(self, number: signal.Signals) -> None:
        child = self.child()
        assert child is not None
        os.kill(child, number)

    def modes(self) -> str:
        return self("display-message", "-p", MODES).strip()

    def number(self, command: str) -> int:
        """What a command prints, a number."""
        self.run(f"echo =$({command})=")
        # With its marks: a line that is a number can be left of what was played before.
        printed = re.compile(r"^=(\d+)=$", re.MULTILINE)
        pane = self.until(lambda pane: printed.search(pane) is not None)
        found = printed.findall(pane)
        self("clear-history")
        self.run("clear")
        self.until(lambda pane: "=" not in pane)
        return int(found[-1])


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    # The path of a socket has at most 104 bytes on macOS, where temporary folders have long names.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        terminal = Tmux(folder)
        try:
            terminal.until(lambda pane: "$" in pane)
            terminal.run("clear; before=$(stty -g)")
            yield terminal
        finally:
            terminal("kill-server")


def assert_restored(tmux: Tmux) -> None:
    pane = tmux.until(lambda pane: pane.rstrip().endswith("$"))
    assert "▀" not in pane
    assert tmux.modes() == "0 1 1"
    assert tmux.number('test "$before" = "$(stty -g)"; echo $?') == 0


def last_line(pane: str) -> str:
    return pane.splitlines()[-1]


def test_keys_change_what_plays(tmux: Tmux) -> None:
    tmux.play()
    assert tmux.modes() == "1 0 0"
    tmux.press("h")
    assert "q quit" in tmux.until(lambda pane: "space pause" in last_line(pane))
    for key, said in (
        ("Space", "paused"),
        ("Space", "1× ·"),
        ("+", "1.25×"),
        ("-", "1× ·"),
        ("n", "seed 1"),
        ("w", "seed 1"),
    ):
        before = last_line(tmux.pane())
        tmux.press(key)
        tmux.until(lambda pane, before=before, said=said: said in last_line(pane) != before)  # type: ignore[misc]
    assert "classic" not in last_line(tmux.pane())
    tmux.press("Up", "F5", "M-x")  # sequences are no keys: Esc would end it
    tmux.press("h")
    tmux.until(lambda pane: "space" not in pane)
    tmux.press("q")
    assert_restored(tmux)


def test_it_stands_still_while_paused_and_follows_the_size(tmux: Tmux) -> None:
    tmux.play("--speed", "50")
    tmux.press("h", "Space")
    tmux.until(lambda pane: "paused" in pane)
    time.sleep(0.3)  # a frame that was due when it was paused
    before = tmux.pane("-e")
    time.sleep(0.5)
    assert tmux.pane("-e") == before
    tmux("resize-window", "-x", "40", "-y", "10")
    pane = tmux.until(lambda pane: "▀" * 18 in pane and "▀" * 20 not in pane)
    assert len(pane.splitlines()) == 10
    tmux("resize-window", "-x", "100", "-y", "40")
    pane = tmux.until(lambda pane: "▀" * 78 in pane)
    assert pane.splitlines()[0].index("▀") == (100 - 78) // 2
    tmux.press("Space")
    tmux.until(lambda pane: "paused" not in pane)
    assert tmux.pane("-e") != before
    tmux.press("Escape")
    assert_restored(tmux)


def test_ctrl_z_and_fg(tmux: Tmux) -> None:
    tmux.play()
    tmux.press("h", "Space")
    tmux.until(lambda pane: "paused" in pane)
    tmux.press("C-z")
    tmux.until(lambda pane: "Stopped" in pane)
    assert_restored(tmux)
    tmux.run("bg")  # who may not have the terminal stops at once, and draws nothing
    time.sleep(0.5)
    tmux.run("jobs")
    tmux.until(lambda pane: pane.count("Stopped") >= 1)
    assert "▀" not in tmux.pane() and tmux.modes() == "0 1 1"
    tmux.run("fg")
    tmux.until(lambda pane: "▀" in pane and "paused" in pane)
    tmux.press("Space")
    tmux.until(lambda pane: "paused" not in last_line(pane))
    tmux.press("C-z")
    tmux.until(lambda pane: "Stopped" in pane)
    tmux.run("kill %1")
    tmux.until(lambda pane: tmux.child() is None)
    tmux.run("jobs")
    tmux.until(lambda pane: "Done" in pane)  # not Terminated: it has ended well
    tmux.run("clear")
    assert_restored(tmux)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_end_it_well(tmux: Tmux, number: signal.Signals) -> None:
    tmux.run(f"{shlex.join(LAMP)}; echo status $?")
    tmux.until(lambda pane: "▀" in pane)
    tmux.kill(number)
    tmux.until(lambda pane: "status 0" in pane)
    assert_restored(tmux)


@pytest.mark.parametrize("key", ["C-c", "C-\\"])
def test_keys_end_it_well(tmux: Tmux, key: str) -> None:
    tmux.run(f"{shlex.join(LAMP)}; echo status $?")
    tmux.until(lambda pane: "▀" in pane)
    tmux.press(key)
    tmux.until(lambda pane: "status 0" in pane)
    assert_restored(tmux)


def test_stopped_and_continued_by_somebody_else(tmux: Tmux) -> None:
    tmux.play()
    tmux.press("h", "Space")
    tmux.until(lambda pane: "paused" in pane)
    tmux.kill(signal.SIGSTOP)
    tmux.until(lambda pane: "Stopped" in pane)
    tmux.run("fg")
    tmux.until(lambda pane: "▀" in pane and "paused" in last_line(pane) and "Stopped" not in pane)
    tmux.press("q")
    tmux.until(lambda pane: pane.rstrip().endswith("$"))
    assert tmux.modes() == "0 1 1"


def test_a_program_error_leaves_the_terminal_as_it_was(tmux: Tmux) -> None:
    code = (
        "import numpy as np; from mlxlava.playback.screens.terminal import Terminal\n"
        "with Terminal() as t: t.show(np.zeros((32, 32, 3), np.uint8)); 1 / 0"
    )
    tmux.run(f"clear; {sys.executable} -c {shlex.quote(code)}; echo status $?")
    pane = tmux.until(lambda pane: "status 1" in pane)
    assert pane.count("ZeroDivisionError") == 1
    assert_restored(tmux)


def test_256_colours_where_they_are_asked_for(tmux: Tmux) -> None:
    tmux.run("export MLXLAVA_TERMINAL=256")
    tmux.play()
    pane = tmux.pane("-e")
    assert "\x1b[38;5;" in pane and "\x1b[38;2;" not in pane
    tmux.press("q")
    assert_restored(tmux)
    tmux.run("export MLXLAVA_TERMINAL=blocks")
    tmux.play()
    assert "\x1b[38;2;" in tmux.pane("-e")
