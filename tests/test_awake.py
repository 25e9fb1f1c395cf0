"""The Mac stays awake while it works, by a stub for caffeinate that lives until its process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxlava import awake

# As caffeinate does: -w PID ends it with that process.
STUB = """#!/bin/sh
echo "$$ $*" > "{said}.part" && mv "{said}.part" "{said}"
while kill -0 "$3"; do sleep 0.02; done
echo ended > "{said}"
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac; the file is where the stub writes its own process id and its arguments."""
    stub, said = tmp_path / "caffeinate", tmp_path / "said"
    stub.write_text(STUB.format(said=said))
    stub.chmod(0o755)
    monkeypatch.setattr(awake, "CAFFEINATE_PATH", stub)
    monkeypatch.setattr(awake, "ON_MACOS", True)
    return said


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_is_awake_inside_and_may_sleep_again_afterwards(said: Path) -> None:
    with awake.keep_awake():
        until(said.exists)
        process, *arguments = said.read_text().split()
        assert arguments == ["-i", "-w", str(os.getpid())]
        assert lives(int(process))
    assert not lives(int(process))


def test_it_may_sleep_again_after_an_error(said: Path) -> None:
    with pytest.raises(KeyboardInterrupt), awake.keep_awake():
        until(said.exists)
        raise KeyboardInterrupt
    assert not lives(int(said.read_text().split()[0]))


def test_a_process_that_is_killed_keeps_nothing_awake(said: Path) -> None:
    code = (
        "import time; from pathlib import Path; from mlxlava import awake\n"
        f"awake.CAFFEINATE_PATH, awake.ON_MACOS = Path({str(awake.CAFFEINATE_PATH)!r}), True\n"
        "with awake.keep_awake(): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    until(said.exists)
    assert str(process.pid) in said.read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: said.read_text() == "ended\n")


def test_ctrl_c_in_the_terminal_does_not_reach_it(said: Path) -> None:
    """It must stay until the checkpoint is written that Ctrl-C asks for."""
    with awake.keep_awake():
        until(said.exists)
        helper = int(said.read_text().split()[0])
        assert os.getpgid(helper) != os.getpgid(0)


def test_without_caffeinate_nothing_happens(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "CAFFEINATE_PATH", said.parent / "missing")
    with awake.keep_awake():
        pass


def test_elsewhere_nothing_is_started(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "ON_MACOS", False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with awake.keep_awake():
        pass
