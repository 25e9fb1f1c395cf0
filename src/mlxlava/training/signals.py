"""Signals that end a training, and a watchdog that ends it when another of its processes is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mlxlava.backend import Tree, mx, on_cpu, tree_map
from mlxlava.backend.ranks import rank_count
from mlxlava.console import say
from mlxlava.failures import is_compiler_failure
from mlxlava.training.failures import ProcessLost

_EXTRA_WAIT_SECONDS = 5.0  # seconds that a process waits for others, in addition to the time of three steps


class StopRequest:
    """The number of the signal that asked the training to stop; None as long as no signal did."""

    signal: int | None = None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request to stop. A second signal ends the process."""
    request = StopRequest()
    old: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()
        say("train: stopping after this step (once more to stop at once, without saving)")

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_IGN:  # nohup
                continue
            old[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()


@contextlib.contextmanager
def stop_if_compiler_was_interrupted(request: StopRequest) -> Iterator[None]:
    """End the block quietly if the signal that asks to stop has also ended the compiler of a kernel.

    On a Linux CPU, MLX compiles kernels with g++. A terminal sends Ctrl-C to all processes in its foreground,
    so to that compiler too. MLX then reports that it could not compile.
    """
    try:
        yield
    except RuntimeError as error:
        if request.signal is None or not is_compiler_failure(error):
            raise


class StateBeforeCompiling:
    """The run state before the first step of each kind, where a compiler may be ended during that step.

    A step gives the memory of its run state away. So a step that fails leaves no run state to be saved.
    The cost: a copy of the run state during the first step of each kind.
    """

    def __init__(self) -> None:
        self._kinds: set[object] = set()
        self._copy: Tree | None = None

    def before_step(self, kind: object, state: Tree) -> None:
        """Keep the state if this is the first step of its kind."""
        if kind not in self._kinds and on_cpu():
            self._kinds.add(kind)
            self._copy = tree_map(mx.array, state)
            mx.eval(self._copy)

    def after_step(self) -> None:
        """The step has all its kernels."""
        self._copy = None

    def state_to_save(self, state: Tree) -> Tree:
        """``state``, or the state that was kept if the step after it could not be made."""
        return state if self._copy is None else self._copy


class OtherProcessesTimeout:
    """Decides how long to wait for other processes, from the longest step so far."""

    def __init__(self) -> None:
        self._longest = 0.0

    def note_step_time(self, seconds: float) -> None:
        """Take note of how long a step took."""
        self._longest = max(self._longest, seconds)

    @property
    def seconds_to_wait(self) -> float:
        """Seconds after which a process that does not answer counts as gone."""
        return _EXTRA_WAIT_SECONDS + 3 * self._longest


@contextlib.contextmanager
def watch_for_lost_processes(run: Path) -> Iterator[OtherProcessesTimeout]:
    """End this process, with one line that says why, when another process of the run is gone.

    If a process is gone, MLX usually raises a RuntimeError, but sometimes it waits for ever. mlx.launch sends
    SIGTERM to the remaining processes. A process that waits inside MLX cannot run its signal handler, but a
    thread of it can see that the signal came.

    Raises:
        ProcessLost: instead of MLX's RuntimeError.
    """
    watchdog = OtherProcessesTimeout()
    if rank_count() == 1:
        yield watchdog
        return
    over = threading.Event()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        ours.recv(1)  # receives a signal's number, or nothing when the training is over
        if not over.wait(watchdog.seconds_to_wait):
            say(f"mlxlava: {ProcessLost(run)}")
            os._exit(1)

    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield watchdog
    except RuntimeError as error:
        raise ProcessLost(run) from error
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        theirs.close()
