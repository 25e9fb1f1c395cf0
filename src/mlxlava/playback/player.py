"""The player: it takes frames from a session and gives them to a screen, a file, or both.

A screen shows the lamp at its true speed and drops late frames. A file gets every frame of an even grid.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mlxlava.console import format_duration, progress, say
from mlxlava.errors import UserError
from mlxlava.playback.clock import WallClock
from mlxlava.playback.options import DEFAULT_FPS, PlaybackOptions
from mlxlava.playback.screens import Screen
from mlxlava.playback.screens.terminal import Terminal
from mlxlava.playback.screens.web_address import DEFAULT_HOST
from mlxlava.playback.session import FrameSource, Library, Session
from mlxlava.playback.writers import OutputFile, PipeClosed, Writer, open_writer

_FPS_WHILE_HIDDEN = 2.0  # frame rate while nobody can see the screen


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
                show_until_end(session, screen, options.fps or screen.fps or DEFAULT_FPS)
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
    """Let other signals end the play like Ctrl-C, so that files are finished and the terminal is restored.

    Only the first one counts. A terminal that is closed sends SIGHUP more than once, and a second
    KeyboardInterrupt would break what the first one began, with a traceback.
    """
    old: dict[signal.Signals, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        for each in old:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

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
