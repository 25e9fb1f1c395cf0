"""What plays on a screen, and what its viewers have asked for.

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

# Takes rising times of the lamp (seconds) and yields each with its frame: Rollout.play, Lamp.play.
Play = Callable[[Iterable[float]], Iterator[tuple[float, Frame]]]

SPEEDS = (0.05, 50.0)  # the lowest and the highest speed that a viewer can ask for
FASTER = 1.25  # a key press multiplies or divides the speed by this
SEEDS = 2**31  # seeds are 0 … SEEDS − 1

_MOMENTS_INTERVAL = 0.5  # seconds; the status is sent no more often


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """One lamp, ready to be played from its beginning.

    Attributes:
        play: yields frames at rising times of the lamp, one by one.
        size: height and width of the frames.
        moments: mean, standard deviation, skewness and kurtosis of the current state's numbers; None for a
            lamp that has no state.
        render: yields the same frames as ``play``, in batches: faster for a file, where nobody waits for a
            single frame. ``play`` is used when None.
    """

    play: Play
    size: tuple[int, int]
    moments: Callable[[], tuple[float, float, float, float]] | None = None
    render: Play | None = None


class Library(Protocol):
    """The lamps that can be played, by name (of weights, or of a theme) and seed."""

    @property
    def names(self) -> Sequence[str]:
        """Names that can be opened; at least one."""

    def open(self, name: str, seed: int) -> FrameSource:
        """Open the lamp of a name and a seed, at its beginning.

        Raises:
            UserError: the lamp cannot be read.
        """


class Session:
    """What is playing, and what its viewers have asked for.

    Args:
        library: the lamps that can be played.
        name: the first lamp's name; one of ``library.names``.
        seed: the first lamp's seed.
        clock: sets the pace.

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
        self._at = 0.0  # the lamp's time of the last one
        self._moments: tuple[float, float, float, float] | None = None
        self._measured = -math.inf  # when the moments were last computed
        self.ended = False

    # What screens use.

    @property
    def names(self) -> Sequence[str]:
        """Names of the lamps that can be chosen."""
        return self._library.names

    @property
    def name(self) -> str:
        """Name of the lamp that plays, or that was chosen to come next."""
        return (self._wanted or self._playing)[0]

    @property
    def seed(self) -> int:
        """Seed of the lamp that plays, or that was chosen to come next."""
        return (self._wanted or self._playing)[1]

    @property
    def title(self) -> str:
        """Name and seed, for people."""
        return f"{Path(self.name).name}, seed {self.seed}"

    def choose(self, name: str | None = None, seed: int | None = None) -> None:
        """Play another lamp from its beginning. None keeps the present name or seed.

        Raises:
            KeyError: there is no lamp of that name.
        """
        if name is not None and name not in self.names:
            raise KeyError(name)
        with self._lock:
            self._wanted = (self.name if name is None else name, self.seed if seed is None else seed)
        self.clock.interrupt()

    def faster(self, factor: float) -> None:
        """Multiply the speed, within ``SPEEDS``."""
        self.clock.speed = min(max(self.clock.speed * factor, SPEEDS[0]), SPEEDS[1])

    def true_speed(self) -> None:
        """Play at the lamp's own speed."""
        self.clock.speed = 1.0

    def next_seed(self) -> None:
        """Play the lamp of the next seed. After the last seed comes the first."""
        self.choose(seed=(self.seed + 1) % SEEDS)

    def next_name(self) -> bool:
        """Play the next of ``names``. Returns False if there is only one."""
        if len(self.names) == 1:
            return False
        self.choose(self.names[(self.names.index(self.name) + 1) % len(self.names)])
        return True

    def toggle_pause(self) -> None:
        """Pause, or go on."""
        self.clock.paused = not self.clock.paused

    def end(self) -> None:
        """Stop playing, as closing a window does."""
        self.ended = True
        self.clock.interrupt()

    def status(self) -> dict[str, Any]:
        """What plays, as plain values that JSON can hold."""
        return {
            "name": self.name,
            "seed": self.seed,
            "speed": self.clock.speed,
            "paused": self.clock.paused,
            "frame": self._shown,
            "seconds": self._at,
            "moments": self._moments,
        }

    # What the player uses.

    def sources(self) -> Iterator[FrameSource]:
        """Yield the first lamp, then each lamp that was chosen, as soon as the one before is left."""
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
    def changed(self) -> bool:
        """Whether to leave the lamp that plays: another was chosen, or the play was ended."""
        return self.ended or self._wanted is not None

    def frame_shown(self, at: float) -> None:
        """Count a frame that has been shown, of the lamp's time ``at``."""
        self._shown += 1
        self._at = at
        now = time.monotonic()
        if self._source.moments is not None and now - self._measured > _MOMENTS_INTERVAL:
            self._measured, self._moments = now, self._source.moments()
