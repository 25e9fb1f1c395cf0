"""The session: which lamp plays on a screen, and what its viewers have asked for.

Screens change a ``Session`` from any thread. The player reads it between two frames. Frames are uint8
(H, W, 3).
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlxlava.playback.clock import WallClock
from mlxlava.playback.writers import Frame

# A function that takes rising times of the lamp (seconds) and yields each with its frame, as Rollout.play
# does.
PlayFunction = Callable[[Iterable[float]], Iterator[tuple[float, Frame]]]

SPEED_RANGE = (0.05, 50.0)  # the lowest and the highest speed that viewers can choose
SPEED_FACTOR_PER_KEY_PRESS = 1.25  # a key press multiplies or divides the speed by this
SEED_COUNT = 2**31  # seeds are 0 … SEED_COUNT − 1

_MIN_SECONDS_BETWEEN_MOMENTS = 0.5  # least seconds between two computations of the moments


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """One lamp, ready to be played from its beginning.

    Attributes:
        play: yields one frame for each of rising times of the lamp.
        size: height and width of the frames.
        moments: returns mean, standard deviation, skewness and kurtosis of the present state's numbers. None
            for a lamp that has no state.
        play_in_batches: yields the same frames as ``play``, but draws them in batches. This is faster for a
            file, where nobody waits for a single frame. ``play`` is used when None.
        caption: returns a few words about the lamp that change while it plays. None for no words.
    """

    play: PlayFunction
    size: tuple[int, int]
    moments: Callable[[], tuple[float, float, float, float]] | None = None
    play_in_batches: PlayFunction | None = None
    caption: Callable[[], str] | None = None


class Library(Protocol):
    """The lamps that can be played. A lamp has a name (of weights or of a theme) and a seed."""

    @property
    def names(self) -> Sequence[str]:
        """Names that can be opened; at least one."""

    def open(self, name: str, seed: int) -> FrameSource:
        """Open the lamp of a name and a seed, at its beginning.

        Raises:
            UserError: the lamp cannot be read.
        """


class Session:
    """Which lamp is playing, and what its viewers have asked for.

    Args:
        library: the lamps that can be played.
        name: the first lamp's name; one of ``library.names``.
        seed: the first lamp's seed.
        clock: the clock that paces the frames.

    Attributes:
        ended: whether a viewer has ended the play.

    Raises:
        UserError: the first lamp cannot be opened.
    """

    def __init__(self, library: Library, name: str, seed: int, clock: WallClock) -> None:
        self.clock = clock
        self._library = library
        self._playing = (name, seed)
        self._wanted: tuple[str, int] | None = None
        self._source = library.open(name, seed)
        self._lock = threading.RLock()
        self._shown = 0  # frames of this lamp that were shown
        self._at = 0.0  # the lamp's time of the last frame that was shown
        self._moments: tuple[float, float, float, float] | None = None
        self._measured = -math.inf  # when the moments were last computed
        self.ended = False

    # What screens use.

    @property
    def lamp_names(self) -> Sequence[str]:
        """Names of the lamps that can be chosen."""
        return self._library.names

    @property
    def lamp_name(self) -> str:
        """Name of the lamp that plays, or that was chosen to come next."""
        return (self._wanted or self._playing)[0]

    @property
    def seed(self) -> int:
        """Seed of the lamp that plays, or that was chosen to come next."""
        return (self._wanted or self._playing)[1]

    @property
    def caption(self) -> str:
        """A few words about the lamp that change while it plays; empty if there are none."""
        return self._source.caption() if self._source.caption is not None else ""

    @property
    def lamp_title(self) -> str:
        """Name and seed, for people."""
        return f"{Path(self.lamp_name).name}, seed {self.seed}"

    def choose_lamp(self, name: str | None = None, seed: int | None = None) -> None:
        """Play another lamp from its beginning. None keeps the present name or seed.

        Raises:
            KeyError: there is no lamp of that name.
        """
        if name is not None and name not in self.lamp_names:
            raise KeyError(name)
        with self._lock:
            self._wanted = (self.lamp_name if name is None else name, self.seed if seed is None else seed)
        self.clock.interrupt_waiting()

    def multiply_speed(self, factor: float) -> None:
        """Multiply the speed, within ``SPEED_RANGE``."""
        self.clock.speed = min(max(self.clock.speed * factor, SPEED_RANGE[0]), SPEED_RANGE[1])

    def reset_speed(self) -> None:
        """Play at the lamp's own speed."""
        self.clock.speed = 1.0

    def switch_to_next_seed(self) -> None:
        """Play the lamp of the next seed. After the last seed comes the first."""
        self.choose_lamp(seed=(self.seed + 1) % SEED_COUNT)

    def switch_to_next_lamp(self) -> bool:
        """Play the next of ``names``. Returns False if there is only one."""
        if len(self.lamp_names) == 1:
            return False
        self.choose_lamp(self.lamp_names[(self.lamp_names.index(self.lamp_name) + 1) % len(self.lamp_names)])
        return True

    def toggle_pause(self) -> None:
        """Pause, or go on."""
        self.clock.paused = not self.clock.paused

    def end(self) -> None:
        """Stop playing, as closing a window does."""
        self.ended = True
        self.clock.interrupt_waiting()

    def status(self) -> dict[str, Any]:
        """The state of the session as plain values for JSON."""
        return {
            "name": self.lamp_name,
            "seed": self.seed,
            "speed": self.clock.speed,
            "paused": self.clock.paused,
            "frame": self._shown,
            "seconds": self._at,
            "moments": self._moments,
            "caption": self.caption,
        }

    # What the player uses.

    def frame_sources(self) -> Iterator[FrameSource]:
        """Yield the first lamp. Then yield each chosen lamp as soon as the player has left the one before."""
        while not self.ended:
            yield self._source
            with self._lock:
                if self._wanted is None:  # the frames of this lamp have ended
                    return
                self._playing, self._wanted = self._wanted, None
            self._source = self._library.open(*self._playing)
            self._shown, self._at, self._moments = 0, 0.0, None
            self.clock.restart()

    @property
    def should_leave_lamp(self) -> bool:
        """Whether the player should leave this lamp: another was chosen, or the play was ended."""
        return self.ended or self._wanted is not None

    def count_shown_frame(self, at: float) -> None:
        """Note that a frame has been shown, at the lamp's time ``at``."""
        self._shown += 1
        self._at = at
        now = time.monotonic()
        if self._source.moments is not None and now - self._measured > _MIN_SECONDS_BETWEEN_MOMENTS:
            self._measured, self._moments = now, self._source.moments()
