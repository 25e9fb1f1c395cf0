"""Watch a lamp while it is trained: a viewer process, and the callback that gives it weights."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from mlxlava.backend import Tree
from mlxlava.backend.cpu.worker_streams import worker_streams
from mlxlava.backend.ranks import rank
from mlxlava.config import WATCH_SCREENS, recipe_from_dict
from mlxlava.console import say
from mlxlava.cores import CORES_ENV_VAR
from mlxlava.errors import UserError
from mlxlava.paths import read_json
from mlxlava.playback.options import has_display
from mlxlava.rollout.weights import Weights, save_weights
from mlxlava.training.callbacks import Callbacks
from mlxlava.training.checkpoint import playable_arrays

_SECONDS_BETWEEN_WEIGHTS = 10.0
# Weights are written again only after so many times their own writing time.
_WRITING_TIMES_BETWEEN_WRITES = 100
_VIEWER_END_TIMEOUT = 5.0  # seconds in which the viewer has to end
_MLX_LAUNCH_VARIABLES = ("MLX_RANK", "MLX_HOSTFILE", "MLX_WORLD_SIZE")  # variables of mlx.launch


class Viewer(Callbacks):
    """Shows the lamp as it is now, in a window or on a web page, while it is trained.

    The lamp plays in a process of its own (rollout/live.py), from weights that are written to a temporary
    folder every ten seconds. Closing the window, or a failure of the viewer, does not end the training.

    Args:
        screen: one of ``config.WATCH_SCREENS``.

    Raises:
        UserError: on entering, if there is no display, no free port, or the screen's extra is missing.
    """

    def __init__(self, screen: str) -> None:
        self._screen = screen
        self._process: subprocess.Popen[str] | None = None
        self._ended = False  # whether the viewer has ended by itself
        self._written, self._cost = -1e9, 0.0  # when weights were last written, and the seconds it took

    def __enter__(self) -> Viewer:
        if self._screen not in WATCH_SCREENS:
            raise UserError(f"train: --watch must be one of {', '.join(WATCH_SCREENS)}, not {self._screen}")
        if self._screen == "window" and not has_display():
            raise UserError("train: --watch window, but there is no display; try --watch web")
        self._folder = Path(tempfile.mkdtemp(prefix="mlxlava-watch-"))
        self._weights = self._folder / "weights"
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _MLX_LAUNCH_VARIABLES}
        # One core for drawing; the number of cores that train says how much time it may take.
        cores = str(max(1, len(worker_streams())))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlxlava.rollout.live", self._weights, self._screen, "in training", cores],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, CORES_ENV_VAR: "1"},
            start_new_session=True,  # Ctrl-C is for the training, which still has to write a checkpoint
        )
        assert self._process.stdout is not None
        kind, _, text = self._process.stdout.readline().strip().partition(" ")
        if kind != "ready":
            raise UserError(f"train: --watch {self._screen}: {_last_error_line(text)}")
        where = f"watch it at {text}" if text else "watch it in the window"
        say(f"train: {where}; closing it does not end the training")

    def on_state(self, run: Path, step: int, state: Tree) -> None:
        """Give the viewer the averaged weights, if those it has are old."""
        began = time.monotonic()
        if self._ended or began - self._written < max(
            _SECONDS_BETWEEN_WEIGHTS, _WRITING_TIMES_BETWEEN_WRITES * self._cost
        ):
            return
        if self._has_ended():
            return
        config = read_json(run / "config.json", "run")
        recipe = recipe_from_dict(config["recipe"])
        # The arrays are written before the next step begins, so none of them needs to be copied.
        weights = Weights(recipe, float(config["step_fps"]), playable_arrays(state), {"steps": step})
        try:
            save_weights(weights, self._weights)
        except UserError as error:
            self._ended = True
            say(f"train: --watch has stopped: {error}; the training continues")
        self._written = time.monotonic()
        self._cost = self._written - began

    def _has_ended(self) -> bool:
        """Whether the viewer has ended by itself; the first time, it is said why."""
        assert self._process is not None and self._process.stdout is not None
        if self._process.poll() is None:
            return False
        self._ended = True
        kind, _, text = self._process.stdout.read().strip().partition(" ")
        why = _last_error_line(text) if kind == "error" else "it was closed"
        if kind != "error" and self._process.returncode:
            why = f"it failed with status {self._process.returncode}"
        say(f"train: {self._screen}: {why}; the training continues")
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()  # which ends it
            try:
                self._process.wait(_VIEWER_END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def open_viewer(screen: str | None) -> Iterator[list[Callbacks]]:
    """Yield the callbacks of a viewer: none if there is no screen, or in all processes but the first."""
    if screen is None or ("MLX_RANK" in os.environ and rank()):
        yield []
        return
    with Viewer(screen) as viewer:
        yield [viewer]


def _last_error_line(text: str) -> str:
    """The message of a screen without its prefix, and without advice that names options of other commands."""
    text = text.removeprefix("play: ")
    what, _, advice = text.partition("; ")
    return text if advice and "--" not in advice else what or "the viewer could not be started"
