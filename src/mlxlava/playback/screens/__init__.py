"""Screens: what a lamp is shown on while it plays. Frames are uint8 (H, W, 3)."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from mlxlava.playback.writers import Frame


class Screen(Protocol):
    """What frames are shown on: a context manager that leaves things as it found them.

    Attributes:
        hidden: whether nobody can see it now; the player then draws few frames.
        fps: frames a second that suit it, where none are asked for; None for no wish of its own.
    """

    hidden: bool
    fps: float | None

    def __enter__(self) -> Screen:
        """Open it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, whatever happened."""

    def show(self, frame: Frame) -> None:
        """Show a frame, uint8 (H, W, 3).

        Raises:
            PipeClosed: nobody will ever see it again.
        """

    def idle(self, seconds: float) -> None:
        """Wait for so many seconds at most, and see to what viewers do meanwhile."""
