"""What a lamp in a terminal costs: bytes a frame and the processor's share at 30 frames a second.

    python -m benchmarks.terminal [--seconds S]

Frames are rendered before; only drawing and sending them is measured, to a terminal that reads all at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import time
from collections.abc import Callable

import numpy as np

from mlxlava.footage.simulated_lamp import ThemeLibrary
from mlxlava.playback.screens.pictures import (
    HalfBlockPainter,
    ITerm2Painter,
    KittyPainter,
    Painter,
    SixelPainter,
)
from mlxlava.playback.screens.terminal import Terminal
from mlxlava.playback.writers import Frame

FPS = 30.0
SIZES = ((80, 24), (200, 60))
MODES: dict[str, Callable[[], Painter]] = {
    "256 colours": lambda: HalfBlockPainter(true_colour=False),
    "half blocks": lambda: HalfBlockPainter(true_colour=True),
    "Kitty": KittyPainter,
    "iTerm2": ITerm2Painter,
    "Sixel": SixelPainter,
}


class Reader:
    """A pseudo-terminal; what is written to it is counted and dropped, by another process."""

    def __init__(self) -> None:
        ours, theirs = pty.openpty()
        self._result, write_end = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(theirs)
            total = 0
            with contextlib.suppress(OSError):  # Linux's end of a pseudo-terminal
                while data := os.read(ours, 65536):
                    total += len(data)
            os.write(write_end, str(total).encode())
            os._exit(0)
        os.close(ours)
        self.stream = os.fdopen(theirs, "wb", buffering=0)

    def close(self) -> int:
        """Bytes that were read."""
        self.stream.close()
        os.waitpid(self._child, 0)
        return int(os.read(self._result, 99))


def measure(painter: Painter, size: tuple[int, int], frames: list[Frame], seconds: float) -> list[str]:
    """Bytes a frame, frames a second, and (user + system) time over wall time."""
    reader = Reader()
    shown = 0
    with Terminal(reader.stream, lambda: size, painter) as terminal:
        terminal.show(frames[0])
        began, used = time.monotonic(), time.process_time()
        while (now := time.monotonic() - began) < seconds:
            due = int(now * FPS)  # late frames are dropped
            terminal.show(frames[due % len(frames)])
            shown += 1
            time.sleep(max(0.0, (due + 1) / FPS - (time.monotonic() - began)))
        share = (time.process_time() - used) / (time.monotonic() - began)
    per_frame = reader.close() / (shown + 1)
    return [f"{per_frame / 1000:.1f} kB", f"{shown / seconds:.1f}", f"{share:.0%}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    seconds = parser.parse_args().seconds
    source = ThemeLibrary((64, 64)).open("classic", 0)
    frames = [frame for _, frame in source.play(np.arange(0, seconds + 1, 1 / FPS) + 20)]
    print("64×64 frames;", "; ".join("×".join(map(str, size)) for size in SIZES))
    print(f"{'':12} {'a frame':>10} {'frames/s':>9} {'processor':>9}   " * len(SIZES))
    for name, make in MODES.items():
        for size in SIZES:
            row = measure(make(), size, frames, seconds)
            print(f"{name:12} {row[0]:>10} {row[1]:>9} {row[2]:>9}   ", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
