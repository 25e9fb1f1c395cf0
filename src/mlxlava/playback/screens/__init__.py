"""Screens: a terminal, a window and a web page, on which a lamp is shown while it plays.

A new screen is a class with the methods of ``Screen``; ``open_screen`` in player.py opens it, and
playback/keys.py has its keys. Frames are uint8 (H, W, 3).
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from mlxlava.playback.writers import Frame


class Screen(Protocol):
    """Shows frames. A context manager: on leaving, the screen is as it was before.

    Attributes:
        hidden: whether nobody can see it now. The player then draws only a few frames.
        fps: frames per second that suit the screen, used where the user asks for none; None for no
            preference.
    """

    hidden: bool
    fps: float | None

    def __enter__(self) -> Screen:
        """Open the screen."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the screen, also after an error."""

    def show(self, frame: Frame) -> None:
        """Show a frame, uint8 (H, W, 3).

        Raises:
            PipeClosed: the screen was closed for good.
        """

    def wait_and_react(self, seconds: float) -> None:
        """Wait for at most this many seconds, and react to viewers meanwhile."""
