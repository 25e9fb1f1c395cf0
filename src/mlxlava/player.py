"""Where frames go and for how long: a screen at the true speed, a file on an even grid, or both."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from mlxlava.config import UserError
from mlxlava.console import clock, progress, say
from mlxlava.screens import Terminal, WallClock, has_terminal, play
from mlxlava.sinks import Frame, PipeClosed, Sink, format_of, open_sink

# Takes rising play times (seconds), gives each with its frame: Rollout.play, Lamp.play.
Source = Callable[[Iterable[float]], Iterator[tuple[float, Frame]]]


@dataclasses.dataclass(frozen=True)
class Programme:
    """What to play on, and how long.

    Attributes:
        target: file to write, ``-`` for stdout, or None.
        screen: one of ``config.SCREENS``; None for auto without a target and none with one.
        format: format of the target; by its ending when None.
        scale: whole factor by which the pictures of the target are enlarged.
        fps: frames a second.
        seconds: play time; None where not given.
        frames: the same in frames; None where not given.
        forever: until it is ended.
        name: file to write when there is neither a screen nor a target.
    """

    target: str | None = None
    screen: str | None = None
    format: str | None = None
    scale: int = 1
    fps: float = 30.0
    seconds: float | None = None
    frames: int | None = None
    forever: bool = False
    name: str = "lava.mp4"

    def settle(self) -> Programme:
        """The same with ``target`` and ``screen`` decided.

        Raises:
            UserError: two of them exclude each other, or there is nowhere to play.
        """
        if sum((self.seconds is not None, self.frames is not None, self.forever)) > 1:
            raise UserError("play: give one of --forever, --seconds and --frames")
        target, screen = self.target, self.screen
        if screen is None:
            screen = "auto" if target is None else "none"
        if screen == "auto":
            screen = "terminal" if target != "-" and has_terminal() else "none"
        elif screen == "terminal" and not has_terminal():
            raise UserError("play: --screen terminal, but stdout is no terminal; write a file with -o")
        elif screen == "none" and target is None:
            raise UserError("play: --screen none needs a file to write; give one with -o")
        if screen == "none" and target is None:
            if self.forever:
                raise UserError("play: --forever, but there is no terminal; give a file or a pipe with -o")
            target = self.name
            say(f"play: there is no terminal, so this writes {target}; -o names another file")
        if target is not None:
            format_of(target, self.format)
        return dataclasses.replace(self, target=target, screen=screen)

    @property
    def length(self) -> int | None:
        """Frames to play; None to go on until it is ended.

        What has no length given plays for 10 s in a file, and without end on a screen.
        """
        if self.frames is not None:
            return self.frames
        if self.forever or (self.seconds is None and self.screen == "terminal"):
            return None
        seconds = 10.0 if self.seconds is None else self.seconds
        return max(1, math.ceil(seconds * self.fps - 1e-6))


def run(source: Source, size: tuple[int, int], programme: Programme) -> None:
    """Play a source as a settled programme says; Ctrl-C, SIGTERM and a closed pipe are good endings.

    Args:
        source: where frames come from.
        size: their height and width.
        programme: where they go.

    Raises:
        UserError: something cannot be written.
    """
    sink = None
    with (
        contextlib.suppress(KeyboardInterrupt, PipeClosed),
        _end_on_signals(),
        contextlib.ExitStack() as stack,
    ):
        if programme.target is not None:
            sink = stack.enter_context(
                open_sink(
                    programme.target,
                    size=size,
                    fps=programme.fps,
                    format=programme.format,
                    scale=programme.scale,
                )
            )
        if programme.screen == "terminal":
            screen = stack.enter_context(Terminal())
            if sink is None:
                seconds = None if programme.length is None else programme.length / programme.fps
                wall = WallClock(programme.fps, seconds=seconds)
                play(source(wall), wall, screen)
            else:
                _show_and_write(source, programme, screen, sink)
        elif sink is not None:
            _write(source, programme, sink)
    if sink is not None and sink.frames and programme.target != "-":
        seconds = sink.frames / programme.fps
        say(f"play: wrote {programme.target} ({sink.frames} frames, {seconds:.1f} s)")


def _ticks(programme: Programme) -> Iterator[float]:
    """Play times on the even grid of a file."""
    tick, length = 0, programme.length
    while length is None or tick < length:
        yield tick / programme.fps
        tick += 1


def _write(source: Source, programme: Programme, sink: Sink) -> None:
    """As fast as it goes, every frame."""
    length = programme.length
    total = None if length is None else length / programme.fps
    with progress("play") as update:
        for at, frame in source(_ticks(programme)):
            sink.write(frame)
            if programme.target != "-":
                done = at + 1 / programme.fps
                update(done, total, clock(done) if total is None else f"{clock(done)} of {clock(total)}")


def _show_and_write(source: Source, programme: Programme, screen: Terminal, sink: Sink) -> None:
    """Every frame into the file; on the screen those that are not late."""
    wall = WallClock(programme.fps)
    due = next(wall)
    for at, frame in source(_ticks(programme)):
        sink.write(frame)
        if at + 0.5 / programme.fps < due:
            continue
        wall.wait(at)
        screen.show(frame)
        due = next(wall)


@contextlib.contextmanager
def _end_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the play as Ctrl-C does: files finished, the terminal restored."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:  # nohup
            continue
        with contextlib.suppress(ValueError):  # not the main thread
            old[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
