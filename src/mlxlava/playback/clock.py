"""The clock that paces a lamp on a screen."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

# A gap longer than this (seconds) between two readings of the wall clock counts as a pause: the machine was
# asleep, the process was stopped, or MLX compiled.
_MIN_PAUSE_SECONDS = 1.0
_MAX_SLEEP_SECONDS = 0.5  # shorter than a pause, so that sleeping does not count as one


class WallClock:
    """Gives the lamp's times at which frames are due; an endless iterator unless ``seconds`` is given.

    There are three times, all in seconds. The wall clock's time is the system's. Play time advances with it,
    except in a pause. The lamp's time advances ``speed`` times as fast as play time. The clock ticks
    ``target_fps`` times per second of play time, and iterating it yields the lamp's time of each tick.

    A tick that is already past when it is asked for is skipped. So late frames are dropped, and the lamp
    never slows down. After a gap of more than a second (the machine was asleep, Ctrl-Z) play time goes on
    from where it was. A roll-out may ask one tick ahead of the frame that the player waits for.
    ``target_fps``, ``speed`` and ``paused`` may change at any time, from any thread. The lamp's time never
    decreases.

    Args:
        target_fps: ticks per second of play time.
        seconds: play time after which there are no more ticks; None for ever.
        speed: seconds of the lamp's time per second of play time.
        now: returns the wall clock's time in seconds.
        sleep: sleeps for at most this many seconds.

    Attributes:
        sleep: the argument. A screen replaces it by its own function, to react to viewers while it waits.
    """

    def __init__(
        self,
        target_fps: float,
        *,
        seconds: float | None = None,
        speed: float = 1.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._target_fps, self._speed, self._now = target_fps, speed, now
        self.sleep = sleep
        self._end = math.inf if seconds is None else seconds - 1e-6 / target_fps
        self._lock = threading.RLock()
        self._paused = False
        self._interrupted = False
        self._read_at: float | None = None  # the wall clock's time when it was last read
        self._played = 0.0  # play time at that moment
        # Play time of tick 0, and the number of the next tick. Both are counted from the last change of
        # target_fps.
        self._tick_origin, self._tick = 0.0, 0
        # Play time and lamp's time at the last change of speed.
        self._speed_origin = (0.0, 0.0)
        self._last = 0.0  # the lamp's time that was last given

    def _play_time(self) -> float:
        now = self._now()
        if self._read_at is not None and now - self._read_at <= _MIN_PAUSE_SECONDS and not self._paused:
            self._played += now - self._read_at
        self._read_at = now
        return self._played

    @property
    def target_fps(self) -> float:
        """Ticks per second of play time."""
        return self._target_fps

    @target_fps.setter
    def target_fps(self, target_fps: float) -> None:
        with self._lock:
            if target_fps != self._target_fps:
                # The last tick that was given becomes tick 0, so that the next follows at the new distance.
                self._tick_origin += max(self._tick - 1, 0) / self._target_fps
                self._tick = min(self._tick, 1)
                self._target_fps = target_fps

    @property
    def speed(self) -> float:
        """Seconds of the lamp's time per second of play time."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        with self._lock:
            now = self._play_time()
            self._speed_origin = (now, self._lamp_time(now))
            self._speed = speed

    @property
    def paused(self) -> bool:
        """Whether play time stands still."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        with self._lock:
            self._play_time()
            self._paused = paused

    def restart(self) -> None:
        """Start the lamp's time at 0 now, for another lamp. Its first frame is due now, even in a pause."""
        with self._lock:
            now = self._play_time()
            self._tick_origin, self._tick = now, 0
            self._speed_origin, self._last = (now, 0.0), 0.0
            self._interrupted = False

    def interrupt_waiting(self) -> None:
        """Make ``wait_until`` return at once, until ``restart``."""
        self._interrupted = True

    def _lamp_time(self, play_time: float) -> float:
        played, shown = self._speed_origin
        return shown + (play_time - played) * self._speed

    def _next_tick(self) -> int:
        """The first tick that was not given yet and is not past."""
        # 1e-6: a tick that is due right now is not past.
        return max(self._tick, math.ceil((self._play_time() - self._tick_origin) * self._target_fps - 1e-6))

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        with self._lock:
            tick = self._next_tick()
            due = self._tick_origin + tick / self._target_fps
            if due >= self._end:
                raise StopIteration
            self._tick = tick + 1
            self._last = max(self._last, self._lamp_time(due))
            return self._last

    def wait_until(self, at: float) -> None:
        """Sleep until the lamp's time ``at``; return at once after ``interrupt_waiting`` or if it is past."""
        while not self._interrupted:
            with self._lock:
                played, shown = self._speed_origin
                left = played + (at - shown) / self._speed - self._play_time()
            if left <= 1e-6:
                return
            self.sleep(min(left, _MAX_SLEEP_SECONDS))
