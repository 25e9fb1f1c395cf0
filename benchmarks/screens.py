"""What a screen costs: `python -m benchmarks.screens window` (on Linux under Xvfb as well).

Moving 64×64 pictures that cost nothing to draw, 60 a second at true speed: frames a second, and the share of
one core that this process (user and system time, all its threads) takes for showing them.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mlxlava.playback.clock import WallClock
from mlxlava.playback.session import FrameSource, Session
from mlxlava.playback.writers import Frame

_FPS, _FPS_WHILE_HIDDEN = 60.0, 2.0
_SIZES = ((640, 640), (1920, 1080))
_WARM_UP, _SECONDS = 2.0, 10.0


class Noise:
    """Lamps of smooth noise, all drawn beforehand."""

    names: Sequence[str] = ["noise"]

    def open(self, name: str, seed: int) -> FrameSource:
        """The pictures over and over."""
        frames = np.random.default_rng(seed).integers(0, 256, (16, 64, 64, 3), np.uint8)

        def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
            for number, at in enumerate(times):
                yield at, frames[number % len(frames)]

        return FrameSource(play, (64, 64))


def window(size: tuple[int, int], hidden: bool) -> dict[str, float]:
    """Frames a second and the share of a core, with a window of ``size`` that is shown or as if minimised."""
    from mlxlava.playback.screens.window import Window

    clock = WallClock(_FPS)
    session = Session(Noise(), "noise", 0, clock)
    shown, start, busy = 0, 0.0, 0.0
    with Window(session, size=size) as screen:
        clock.sleep = screen.wait_and_react
        for source in session.frame_sources():
            for at, frame in source.play(clock):
                clock.wait_until(at)
                screen.show(frame)
                screen.hidden = hidden
                clock.target_fps = _FPS_WHILE_HIDDEN if hidden else _FPS
                shown += 1
                if not start and at >= _WARM_UP:
                    shown, start, busy = 0, time.perf_counter(), time.process_time()
                if session.should_leave_lamp or (start and time.perf_counter() - start >= _SECONDS):
                    break
            session.end()
        wall = time.perf_counter() - start
        return {"fps": shown / wall, "share": (time.process_time() - busy) / wall}


def main() -> None:
    """Print a line for each size, shown and hidden, and all of it as JSON."""
    if sys.argv[1:] != ["window"]:
        sys.exit("usage: python -m benchmarks.screens window")
    results = {}
    for size in _SIZES:
        for hidden in (False, True):
            name = f"window {size[0]}×{size[1]} {'hidden' if hidden else 'shown'}"
            results[name] = {key: round(value, 3) for key, value in window(size, hidden).items()}
            print(f"{name:28} {results[name]['fps']:6.1f} frames/s  {results[name]['share']:6.1%} of a core")
    print(json.dumps({"machine": platform.machine(), "system": platform.platform(), **results}))


if __name__ == "__main__":
    main()
