"""Where frames go and for how long: a screen at the true speed, a file on an even grid, or both."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mlxlava.console import clock, progress, say
from mlxlava.errors import UserError
from mlxlava.playback.screens import Screen
from mlxlava.playback.screens.terminal import Terminal, has_terminal
from mlxlava.playback.session import Lamps, Live, Reel, WallClock
from mlxlava.playback.writers import Output, PipeClosed, Writer, check_quality, format_of, open_writer

_FPS = 30.0  # where neither the user nor the screen has a wish
_HIDDEN_FPS = 2.0


def has_display() -> bool:
    """Whether this session has a display to open windows on."""
    if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")):
        return True
    return sys.platform == "darwin" and "SSH_CONNECTION" not in os.environ


def has_window() -> bool:
    """Whether a window would open: there is a display, and the extra ``window``."""
    if not has_display():
        return False
    try:
        from mlxlava.playback.screens.window import can_open
    except ImportError:
        return False
    return can_open()


@dataclasses.dataclass(frozen=True)
class Programme:
    """What to play on, and how long.

    Attributes:
        target: file to write, ``-`` for stdout, or None.
        screen: one of ``config.SCREENS``; None for auto without a target and none with one.
        format: format of the target; by its ending when None.
        scale: whole factor by which the pictures of the target are enlarged.
        quality: of the target, 0 to 100; see ``writers.QUALITIES``.
        fps: frames a second; None for what suits the screen, 30 in a file.
        speed: seconds of the lamp's time in a second of play time.
        seconds: play time; None where not given.
        frames: the same in frames; None where not given.
        forever: until it is ended.
        name: file to write when there is neither a screen nor a target.
        host, port: where a web page listens; None for this machine only, and the first free port.
    """

    target: str | None = None
    screen: str | None = None
    format: str | None = None
    scale: int = 1
    quality: int | None = None
    fps: float | None = None
    speed: float = 1.0
    seconds: float | None = None
    frames: int | None = None
    forever: bool = False
    name: str = "lava.mp4"
    host: str | None = None
    port: int | None = None

    def settle(self) -> Programme:
        """The same with ``target`` and ``screen`` decided.

        Raises:
            UserError: two of them exclude each other, or there is nowhere to play.
        """
        if sum((self.seconds is not None, self.frames is not None, self.forever)) > 1:
            raise UserError("play: give one of --forever, --seconds and --frames")
        if self.screen != "web" and (self.host is not None or self.port is not None):
            raise UserError("play: --host and --port are for --screen web")
        target, screen = self.target, self.screen
        if screen is None:
            screen = "auto" if target is None else "none"
        if screen == "auto":
            screen = "terminal" if target != "-" and has_terminal() else "none"
            # Into a pipe or a file goes no window: nobody may be there to close it.
            if target is None and sys.stdout.isatty() and has_window():
                screen = "window"
        elif screen == "window" and not has_display():
            raise UserError("play: --screen window, but there is no display; try --screen terminal")
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
            check_quality(format_of(target, self.format), self.quality)
        return dataclasses.replace(self, target=target, screen=screen)

    @property
    def rate(self) -> float:
        """Frames a second of a file."""
        return self.fps or _FPS

    @property
    def endless(self) -> bool:
        """Whether it plays until it is ended: what has no length given does on a screen."""
        return self.forever or (self.seconds is None and self.frames is None and self.screen != "none")

    @property
    def length(self) -> int | None:
        """Frames of a file; None to go on until it is ended. 10 s where no length is given."""
        if self.frames is not None:
            return self.frames
        if self.endless:
            return None
        seconds = 10.0 if self.seconds is None else self.seconds
        return max(1, math.ceil(seconds * self.rate - 1e-6))

    @property
    def period(self) -> float:
        """Seconds of the lamp's time in a seamless clip; it is 10 s of play time if it has no end."""
        return (10.0 if self.length is None else self.length / self.rate) * self.speed


def run(lamps: Lamps, programme: Programme, name: str, seed: int = 0) -> None:
    """Play as a settled programme says; Ctrl-C, SIGTERM, a closed window or pipe are good endings.

    Args:
        lamps: what can be played.
        programme: where it goes.
        name: the lamp to play (first), one of ``lamps.names``.
        seed: its seed.

    Raises:
        UserError: something cannot be opened or written.
    """
    writer = None
    wall = WallClock(
        programme.rate,
        seconds=programme.seconds if programme.frames is None else programme.frames / programme.rate,
        speed=programme.speed,
    )
    live = Live(lamps, name, seed, wall)
    with (
        contextlib.suppress(KeyboardInterrupt, PipeClosed),
        _end_on_signals(),
        contextlib.ExitStack() as stack,
    ):
        reel = next(live.reels())
        if programme.target is not None:
            writer = stack.enter_context(
                open_writer(
                    programme.target,
                    size=reel.size,
                    fps=programme.rate,
                    format=programme.format,
                    scale=programme.scale,
                    quality=programme.quality,
                )
            )
        screen = None if programme.screen == "none" else stack.enter_context(_open_screen(programme, live))
        if screen is None and writer is not None:
            _write(reel, programme, writer)
        elif screen is not None:
            wall.sleep = screen.idle
            if writer is not None:
                _show_and_write(live, programme, screen, writer)
            else:
                _show(live, screen, programme.fps or screen.fps or _FPS)
    if writer is not None and writer.frames and programme.target != "-":
        seconds = writer.frames / programme.rate
        say(f"play: wrote {programme.target} ({writer.frames} frames, {seconds:.1f} s)")


def _ticks(programme: Programme, done: int = 0) -> Iterator[float]:
    """The lamp's times on the even grid of a file that has ``done`` frames already."""
    tick, length = 0, programme.length
    while length is None or tick < length - done:
        yield tick / programme.rate * programme.speed
        tick += 1


def _write(reel: Reel, programme: Programme, writer: Writer) -> None:
    """As fast as it goes, every frame."""
    length = programme.length
    total = None if length is None else length / programme.rate
    with progress("play") as update:
        for number, (_, frame) in enumerate((reel.film or reel.play)(_ticks(programme)), 1):
            writer.write(frame)
            if programme.target != "-":
                done = number / programme.rate
                update(done, total, clock(done) if total is None else f"{clock(done)} of {clock(total)}")


def _show(live: Live, screen: Screen, fps: float) -> None:
    """On a screen, at true speed; late frames are dropped."""
    live.clock.fps = fps
    for reel in live.reels():
        for at, frame in reel.play(live.clock):
            live.clock.wait(at)
            if live.changed:
                break
            screen.show(frame)
            live.note(at)
            # Where nobody looks the lamp only has to go on: few frames are drawn.
            live.clock.fps = _HIDDEN_FPS if screen.hidden else fps


def _show_and_write(live: Live, programme: Programme, screen: Screen, writer: Output) -> None:
    """Every frame into the file, on its own even grid; on the screen those that are not late."""
    size = None
    for reel in live.reels():
        if size not in (None, reel.size):  # a lamp that was chosen meanwhile, and does not fit into the file
            return
        size = reel.size
        due = next(live.clock, math.inf)
        for at, frame in reel.play(_ticks(programme, writer.frames)):
            writer.write(frame)
            if at + 0.5 * programme.speed / programme.rate < due:
                continue
            live.clock.wait(at)
            if live.changed:
                break
            screen.show(frame)
            live.note(at)
            due = next(live.clock, math.inf)


def _open_screen(programme: Programme, live: Live) -> Screen:
    """The screen that a settled programme names."""
    if programme.screen == "window":
        try:
            from mlxlava.playback.screens.window import Window
        except ImportError as error:
            raise UserError(f'play: {error.name} is missing; install "mlxlava[window]"') from error
        return Window(live)
    if programme.screen == "web":
        try:
            from mlxlava.playback.screens.web import HOST, WebPage
        except ImportError as error:
            raise UserError(f'play: {error.name} is missing; install "mlxlava[web]"') from error
        return WebPage(live, programme.host or HOST, programme.port)
    return Terminal(live=live)


@contextlib.contextmanager
def _end_on_signals() -> Iterator[None]:
    """Let other signals end the play as Ctrl-C does: files finished, the terminal restored."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:  # nohup
            continue
        with contextlib.suppress(ValueError):  # not the main thread
            old[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
