"""The player: it takes frames from a session and gives them to a screen, a file, or both.

A screen shows the lamp at its true speed and drops late frames. A file gets every frame of an even grid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mlxlava.console import format_duration, progress, say
from mlxlava.errors import UserError
from mlxlava.playback.clock import WallClock
from mlxlava.playback.screens import Screen
from mlxlava.playback.screens.foreign_window import named_window
from mlxlava.playback.screens.terminal import Terminal, understands_escape_sequences
from mlxlava.playback.screens.web_address import DEFAULT_HOST
from mlxlava.playback.session import FrameSource, Library, Session
from mlxlava.playback.writers import (
    OutputFile,
    PipeClosed,
    Writer,
    check_quality,
    choose_format,
    open_writer,
    require_room,
)

_DEFAULT_FPS = 30.0  # frame rate if neither the user nor the screen asks for another
_FPS_WHILE_HIDDEN = 2.0  # frame rate while nobody can see the screen


def has_display() -> bool:
    """Whether this session has a display to open windows on."""
    if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")):
        return True
    return sys.platform == "darwin" and "SSH_CONNECTION" not in os.environ


def can_show_window() -> bool:
    """Whether a window can be opened: there is a display, and the extra ``window`` is installed."""
    if not has_display():
        return False
    try:
        from mlxlava.playback.screens.window import can_open_window
    except ImportError:
        return False
    return can_open_window()


@dataclasses.dataclass(frozen=True)
class PlaybackOptions:
    """Options of a play: where to play, and for how long.

    Attributes:
        target: file to write, ``-`` for stdout, or None.
        screen: one of ``config.SCREENS``. None means ``auto`` without a target, and ``none`` with one.
        format: format of the target; the ending of its name decides when None.
        scale: whole factor by which the frames of the target are enlarged.
        quality: quality of the target, 0 to 100; see ``QUALITY_LEVELS`` in writers/base.py.
        fps: frames per second. None means the rate of the screen, or 30 in a file.
        speed: seconds of the lamp's time per second of play time.
        seconds: play time in seconds; None where not given.
        frames: play time in frames; None where not given.
        forever: play until it is ended.
        name: file to write when there is neither a screen nor a target.
        host: address on which a web page listens; None for this machine only.
        port: port on which a web page listens; None for the first free one.
        window_id: number of another program's X window to play in. If None, the one that a screen saver names
            in the environment, where it does.
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
    window_id: int | None = None

    def resolve(self) -> PlaybackOptions:
        """Decide on ``target`` and ``screen``, and return the options with them.

        Raises:
            UserError: two options exclude each other, or there is nowhere to play.
        """
        if sum((self.seconds is not None, self.frames is not None, self.forever)) > 1:
            raise UserError("play: give one of --forever, --seconds and --frames")
        if self.screen != "web" and (self.host is not None or self.port is not None):
            raise UserError("play: --host and --port are for --screen web")
        target, screen, window_id = self.target, self.screen, self._given_window()
        if window_id is not None:
            screen = "window"
        elif screen is None:
            screen = "auto" if target is None else "none"
        if screen == "auto":
            screen = "terminal" if target != "-" and understands_escape_sequences() else "none"
            # No window if stdout is a pipe or a file: perhaps nobody is there to close it.
            if target is None and sys.stdout.isatty() and can_show_window():
                screen = "window"
        elif screen == "window" and not has_display():
            raise UserError("play: --screen window, but there is no display; try --screen terminal")
        elif screen == "terminal" and not understands_escape_sequences():
            raise UserError("play: --screen terminal, but stdout is not a terminal; write a file with -o")
        elif screen == "none" and target is None:
            raise UserError("play: --screen none needs a file to write; give one with -o")
        if screen == "none" and target is None:
            if self.forever:
                raise UserError("play: --forever, but there is no terminal; give a file or a pipe with -o")
            target = self.name
            say(f"play: there is no terminal, so this writes {target}; -o names another file")
        if target is not None:
            check_quality(choose_format(target, self.format), self.quality)
        return dataclasses.replace(self, target=target, screen=screen, window_id=window_id)

    def _given_window(self) -> int | None:
        """Number of the other program's window to play in. None where no window is wanted or named."""
        if self.screen not in (None, "auto", "window"):
            if self.window_id is not None:
                raise UserError("play: --window-id is for --screen window")
            return None
        writes_only = self.screen is None and self.target is not None
        return named_window() if self.window_id is None and not writes_only else self.window_id

    @property
    def file_fps(self) -> float:
        """Frames per second of the file."""
        return self.fps or _DEFAULT_FPS

    @property
    def is_endless(self) -> bool:
        """Whether the lamp plays until it is ended. On a screen it does so if no length is given."""
        return self.forever or (self.seconds is None and self.frames is None and self.screen != "none")

    @property
    def frame_count(self) -> int | None:
        """Number of frames of the file; None without an end. If no length is given, a file has 10 s."""
        if self.frames is not None:
            return self.frames
        if self.is_endless:
            return None
        seconds = 10.0 if self.seconds is None else self.seconds
        return max(1, math.ceil(seconds * self.file_fps - 1e-6))

    def require_room(self, size: tuple[int, int]) -> None:
        """Refuse frames of this height and width whose file would be too large, before any is drawn.

        Raises:
            UserError: the frames are too large, or the disk has no room for so many of them.
        """
        if self.target is not None:
            name = choose_format(self.target, self.format)
            require_room(self.target, name, size, self.scale, self.frame_count)

    @property
    def loop_period(self) -> float:
        """Seconds of the lamp's time in a seamless clip. Its play time is 10 s if the play has no end."""
        return (10.0 if self.frame_count is None else self.frame_count / self.file_fps) * self.speed


def play_lamp(library: Library, options: PlaybackOptions, name: str, seed: int = 0) -> None:
    """Play until the length is reached or somebody ends it.

    Ctrl-C, SIGTERM, a closed window and a closed pipe end the play without an error.

    Args:
        library: the lamps that can be played.
        options: options from ``PlaybackOptions.resolve``.
        name: name of the first lamp, one of ``library.names``.
        seed: seed of the first lamp.

    Raises:
        UserError: a screen or a file cannot be opened or written.
    """
    writer = None
    wall = WallClock(
        options.file_fps,
        seconds=options.seconds if options.frames is None else options.frames / options.file_fps,
        speed=options.speed,
    )
    session = Session(library, name, seed, wall)
    with (
        contextlib.suppress(KeyboardInterrupt, PipeClosed),
        _end_on_signals(),
        contextlib.ExitStack() as stack,
    ):
        source = next(session.frame_sources())
        if options.target is not None:
            writer = stack.enter_context(
                open_writer(
                    options.target,
                    size=source.size,
                    fps=options.file_fps,
                    format=options.format,
                    scale=options.scale,
                    quality=options.quality,
                    frames=options.frame_count,
                )
            )
        screen = None if options.screen == "none" else stack.enter_context(open_screen(options, session))
        if screen is None and writer is not None:
            _write_file(source, options, writer)
        elif screen is not None:
            wall.sleep = screen.wait_and_react
            if writer is not None:
                _show_and_write(session, options, screen, writer)
            else:
                show_until_end(session, screen, options.fps or screen.fps or _DEFAULT_FPS)
    if writer is not None and writer.frames and options.target != "-":
        seconds = writer.frames / options.file_fps
        say(f"play: wrote {options.target} ({writer.frames} frames, {seconds:.1f} s)")


def _frame_times(options: PlaybackOptions, frames_written: int = 0) -> Iterator[float]:
    """Yield the lamp's times of the next frames of a file that has ``frames_written`` frames already."""
    tick, length = 0, options.frame_count
    while length is None or tick < length - frames_written:
        yield tick / options.file_fps * options.speed
        tick += 1


def _write_file(source: FrameSource, options: PlaybackOptions, writer: Writer) -> None:
    """Write every frame to a file, as fast as possible."""
    length = options.frame_count
    total = None if length is None else length / options.file_fps
    with progress("play") as update:
        for number, (_, frame) in enumerate(
            (source.play_in_batches or source.play)(_frame_times(options)), 1
        ):
            writer.write(frame)
            if options.target != "-":
                done = number / options.file_fps
                update(
                    done,
                    total,
                    format_duration(done)
                    if total is None
                    else f"{format_duration(done)} of {format_duration(total)}",
                )


def show_until_end(
    session: Session,
    screen: Screen,
    fps: float | Callable[[], float],
    hidden_fps: float = _FPS_WHILE_HIDDEN,
) -> None:
    """Show a session on a screen, at true speed, until the session ends. Late frames are dropped.

    Args:
        session: the session that plays.
        screen: the screen; it must be open.
        fps: frames per second while somebody can see the screen, or a function that is asked at each frame.
        hidden_fps: frames per second while nobody can.
    """
    present_fps = fps if callable(fps) else lambda: fps
    session.clock.target_fps = present_fps()
    for source in session.frame_sources():
        for at, frame in source.play(session.clock):
            session.clock.wait_until(at)
            if session.should_leave_lamp:
                break
            screen.show(frame)
            session.count_shown_frame(at)
            # While nobody can see the screen, few frames are drawn, only to keep the lamp's time going.
            session.clock.target_fps = hidden_fps if screen.hidden else present_fps()


def _show_and_write(session: Session, options: PlaybackOptions, screen: Screen, writer: OutputFile) -> None:
    """Write every frame to the file, and show those that are not late."""
    size = None
    for source in session.frame_sources():
        if size not in (None, source.size):  # a lamp of another size was chosen; the file cannot hold it
            return
        size = source.size
        due = next(session.clock, math.inf)
        for at, frame in source.play(_frame_times(options, writer.frames)):
            writer.write(frame)
            if at + 0.5 * options.speed / options.file_fps < due:
                continue
            session.clock.wait_until(at)
            if session.should_leave_lamp:
                break
            screen.show(frame)
            session.count_shown_frame(at)
            due = next(session.clock, math.inf)


def open_screen(options: PlaybackOptions, session: Session) -> Screen:
    """The screen that resolved options name. It opens when its context is entered.

    Raises:
        UserError: an extra that the screen needs is not installed.
    """
    if options.screen == "window":
        try:
            from mlxlava.playback.screens.window import Window
        except ImportError as error:
            raise UserError(f'play: {error.name} is missing; install "mlxlava[window]"') from error
        return Window(session, window_id=options.window_id)
    if options.screen == "web":
        try:
            from mlxlava.playback.screens.web import WebPage
        except ImportError as error:
            raise UserError(f'play: {error.name} is missing; install "mlxlava[web]"') from error
        return WebPage(session, options.host or DEFAULT_HOST, options.port)
    return Terminal(session=session)


@contextlib.contextmanager
def _end_on_signals() -> Iterator[None]:
    """Let other signals end the play like Ctrl-C, so that files are finished and the terminal is restored."""

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
