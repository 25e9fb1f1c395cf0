"""The options of a play: where it goes, how fast, and for how long; and which screen there is."""

from __future__ import annotations

import dataclasses
import math
import os
import sys

from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.playback.screens.foreign_window import named_window
from mlxlava.playback.screens.terminal import understands_escape_sequences
from mlxlava.playback.writers import check_quality, choose_format, require_room

DEFAULT_FPS = 30.0  # frame rate if neither the user nor the screen asks for another


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
        return self.fps or DEFAULT_FPS

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
