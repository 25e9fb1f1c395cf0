"""A wall clock for tests."""

from __future__ import annotations


class Wall:
    """A wall clock that moves when it is slept on, or by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds
