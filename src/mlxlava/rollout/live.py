"""Plays a lamp that is still being trained: a process of its own, whose weights are exchanged while it plays.

``python -m mlxlava.rollout.live FOLDER SCREEN NAME CORES``. The training (api/watching.py) starts it, writes
weights into the folder again and again, and ends it by closing its standard input. Its first line on stdout
is ``ready``, with the page's address if there is one, or ``error`` and what is wrong. If it fails later, its
last line is such an ``error``.

A process of its own shows frames at an even pace, however long a training step takes (seconds on a CPU). On
macOS only the main thread of a process may have a window. No two threads have to share MLX's arrays. If it
fails, the training goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlxlava.console import mute
from mlxlava.errors import UserError
from mlxlava.normality import pooled_moments
from mlxlava.playback.clock import WallClock
from mlxlava.playback.options import PlaybackOptions
from mlxlava.playback.player import open_screen, show_until_end
from mlxlava.playback.session import FrameSource, Session
from mlxlava.playback.writers import Frame
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights, load_weights

MAX_FPS = 12.0  # enough for wax, which moves a few pixels a second
_MIN_FPS = 1.0
_HIDDEN_FPS = 0.5  # while nobody looks
# Seconds of processor time a second that this process may take, for each core that trains. The training loses
# more than that, since its threads wait for one another: measured, it loses up to twice as much.
_CPU_SHARE_PER_TRAINING_CORE = 0.025
_SECONDS_BETWEEN_RATE_CHANGES = 2.0
_SECONDS_BETWEEN_FIRST_LOOKS = 0.2  # into the folder, for the first weights


class LiveLibrary:
    """One lamp, whose weights are read again when the training has written new ones.

    Args:
        folder: folder in which the training writes weights.
        name: what viewers see as the lamp's name.
        seconds_between_looks: how often the folder is looked into for newer weights, while a lamp plays.

    Attributes:
        names: the name.
        ended: set when the play is over, so that nothing waits for weights any more.
    """

    def __init__(self, folder: Path, name: str, seconds_between_looks: float = 1.0) -> None:
        self.names = [name]
        self.ended = threading.Event()
        self._folder, self._seconds_between_looks = folder, seconds_between_looks
        self._read: tuple[int, int] | None = None  # of the file that was read last: number and time
        self._rollout: Rollout | None = None
        self._caption = ""

    def open(self, name: str, seed: int) -> FrameSource:
        """Open the lamp of a seed, at its beginning. It waits for weights when it is asked for a frame."""
        # Only files need the size of frames.
        return FrameSource(
            lambda times: self._play(seed, times), (0, 0), self._moments, caption=lambda: self._caption
        )

    def _moments(self) -> tuple[float, float, float, float]:
        assert self._rollout is not None  # moments belong to a frame that was shown
        return pooled_moments(self._rollout.states[:1])

    def _play(self, seed: int, times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
        self._read = None
        while (weights := self._wait_for_weights()) is not None:
            times = _Remaining(times)
            self._rollout = Rollout(weights, seed)
            yield from self._rollout.play(
                self._yield_times_and_exchange_weights(self._rollout, weights, times)
            )
            if times.over:
                return

    def _yield_times_and_exchange_weights(
        self, rollout: Rollout, weights: Weights, times: _Remaining
    ) -> Iterator[float]:
        """Yield times, and exchange the rollout's weights in between. Ends when it needs another rollout."""
        looked = time.monotonic()
        for at in times:
            if time.monotonic() - looked > self._seconds_between_looks:
                looked = time.monotonic()
                newest = self._read_new_weights()
                if newest is not None and not _has_same_architecture(newest, weights):
                    self._read = None  # a lamp that has grown; it is read once more for its own rollout
                    return
                if newest is not None:
                    rollout.exchange_weights(newest)
            yield at

    def _wait_for_weights(self) -> Weights | None:
        """The next weights that can be read; None if the play has ended before."""
        while not self.ended.is_set():
            if (weights := self._read_new_weights()) is not None:
                return weights
            self.ended.wait(_SECONDS_BETWEEN_FIRST_LOOKS)
        return None

    def _read_new_weights(self) -> Weights | None:
        """Weights that were not read yet; None if there are none, or if they are just being replaced."""
        with contextlib.suppress(OSError, UserError):
            found = (self._folder / "config.json").stat()
            identity = (found.st_ino, found.st_mtime_ns)
            if identity != self._read:
                weights = load_weights(self._folder)
                self._read, self._caption = identity, f"Training step {weights.about.get('steps', 0)}"
                return weights
        return None


class _Remaining:
    """An iterator over times that tells whether they are over."""

    def __init__(self, times: Iterable[float]) -> None:
        self._times = iter(times)
        self.over = False

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        try:
            return next(self._times)
        except StopIteration:
            self.over = True
            raise


def _has_same_architecture(one: Weights, other: Weights) -> bool:
    first, second = one.recipe, other.recipe
    return (first.data.size, first.generator, first.dynamics) == (
        second.data.size,
        second.generator,
        second.dynamics,
    )


class FrugalPace:
    """Frames a second, such that this process takes only a small share of the processors' time.

    Args:
        cores: number of cores that the training uses.
    """

    def __init__(self, cores: int) -> None:
        self._budget = _CPU_SHARE_PER_TRAINING_CORE * cores
        self._fps = MAX_FPS / 2
        self._read = (time.monotonic(), time.process_time())

    def __call__(self) -> float:
        """The present frame rate; it follows what drawing and showing a frame takes."""
        now = (time.monotonic(), time.process_time())
        elapsed, used = now[0] - self._read[0], now[1] - self._read[1]
        if elapsed >= _SECONDS_BETWEEN_RATE_CHANGES:
            self._read = now
            change = min(max(self._budget * elapsed / max(used, 1e-6), 0.5), 1.5)
            self._fps = min(max(self._fps * change, _MIN_FPS), MAX_FPS)
        return self._fps


def main(folder: str, screen_name: str, name: str, cores: str) -> None:
    """Play until the training or a viewer ends it."""
    mute()
    with contextlib.suppress(OSError):
        os.nice(10)
    library = LiveLibrary(Path(folder), name)
    session = Session(library, name, 0, WallClock(MAX_FPS))

    def end_with_the_training() -> None:
        # Not sys.stdin.read: Python aborts if it ends while a thread waits in there.
        while os.read(0, 1024):
            pass
        library.ended.set()
        session.end()

    try:
        with open_screen(PlaybackOptions(screen=screen_name), session) as screen:
            print(f"ready {getattr(screen, 'url', '')}".strip(), flush=True)
            threading.Thread(target=end_with_the_training, daemon=True).start()
            session.clock.sleep = screen.wait_and_react
            show_until_end(session, screen, FrugalPace(int(cores)), _HIDDEN_FPS)
    except UserError as error:
        print(f"error {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
