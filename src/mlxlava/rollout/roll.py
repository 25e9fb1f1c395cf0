"""The endless roll-out: the state step moves the state, and G draws a frame of it at any time.

A frame between two learned steps is drawn from a state between theirs (``Rollout._look``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx, queue
from mlxlava.backend.cpu.worker_streams import worker_streams
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.rollout.drawing import Draw, make_draw
from mlxlava.rollout.weights import Weights

# At most so many learned steps are queued, so that memory stays flat where two frames lie far apart.
_QUEUED = 64
PIXELS_TOGETHER = 2**16  # drawn together at most (16 frames of 64×64), where nobody waits for a single frame

# A play time and its frame, uint8 (H, W, 3).
Timed = tuple[float, npt.NDArray[np.uint8]]


class Rollout:
    """One lamp, from a seed, without end.

    The frame at a time is a function of (weights, seed, time) alone. So the lamp is the same when frames are
    dropped, and at any frame rate. A frame between two learned steps is drawn from a state between theirs:
    the state step can make any fraction of a step.

    Args:
        weights: a learned lamp.
        seed: of the first state, and of the noise.
        speed: seconds of the lamp's time in a second of play time.
        lamps: lamps rolled together, for ``roll``; ``play`` draws the first. duralava's state step needs a
            batch of a certain size and always rolls so many.
        start: first state of the first lamp (Z,); random when None.
    """

    def __init__(
        self,
        weights: Weights,
        seed: int = 0,
        speed: float = 1.0,
        lamps: int = 1,
        start: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._recipe, self._arrays, self._seed = weights.recipe, weights.arrays, seed
        self._dynamics = make_dynamics(weights.recipe)
        self._bases = self._dynamics.prepare(fixed_bases(weights.arrays))
        self._streams = itertools.cycle(worker_streams())
        self._rate = weights.step_fps * speed
        least = self._dynamics.minimum_batch
        self._shape = (lamps if least == 1 else least, weights.recipe.generator.state_size)
        self._states = mx.random.normal(self._shape, key=mx.random.key(_mix(seed, -1)))
        if start is not None:
            self._states[0] = mx.array(start)
        self._norms = mx.linalg.norm(self._states, axis=-1, keepdims=True)
        self._step = 0
        self._noise = self._new_noise()
        self.size = weights.recipe.data.size

    @functools.cached_property
    def _frames(self) -> Draw:
        """How frames are drawn. Prepared with the first frame, since rolling does not need it."""
        return make_draw(self._recipe, self._arrays["generator"], self._arrays["stats"]["generator"])

    @property
    def step(self) -> int:
        """Learned steps made so far."""
        return self._step

    @property
    def states(self) -> npt.NDArray[np.float32]:
        """The states at ``step``, float32 (lamps rolled together, Z); the first one is drawn."""
        return np.array(self._states)

    def play(self, times: Iterable[float]) -> Iterator[Timed]:
        """Frames at rising play times.

        The next frame is queued before one is yielded. So the device draws while the caller shows a
        frame, and a CPU draws two side by side.

        Args:
            times: seconds of play time from the start, not decreasing. One more is read than was yielded.

        Yields:
            The time and its frame, uint8 (H, W, 3).
        """
        return self._play(iter(times), 1)

    def film(self, times: Iterable[float]) -> Iterator[Timed]:
        """``play`` for a file. It is faster, since several frames are drawn together."""
        return self._play(iter(times), frames_together(self.size))

    def _play(self, times: Iterator[float], together: int) -> Iterator[Timed]:
        times, again = itertools.tee(times)
        groups = iter(lambda: list(itertools.islice(again, together)), [])
        for frames in self._draw_ahead(map(self._look, groups)):
            for frame in frames:
                yield next(times), frame

    def roll(self, steps: int) -> npt.NDArray[np.float32]:
        """Make ``steps`` learned steps: the states after each, float32 (lamps, steps, Z)."""
        path = []
        for _ in range(steps):
            self._go()
            path.append(self._states)
        return np.array(mx.stack(path, axis=1))

    def draw(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The frames of states (N, Z), uint8 (N, H, W, 3)."""
        count = frames_together(self.size)
        groups = (mx.array(states[at : at + count]) for at in range(0, len(states), count))
        return np.concatenate(list(self._draw_ahead(groups)))

    def _draw_ahead(self, groups: Iterable[mx.array]) -> Iterator[npt.NDArray[np.uint8]]:
        """The frames of groups of states (N, Z); the next group is drawn while the caller has one."""
        waiting: mx.array | None = None
        try:
            for states in groups:
                drawn, waiting = waiting, self._draw(states)
                if drawn is not None:
                    yield np.array(drawn)
            if waiting is not None:
                yield np.array(waiting)
        finally:
            if waiting is not None:
                mx.eval(waiting)  # a process that ends while a stream still draws may crash

    def _draw(self, states: mx.array) -> mx.array:
        """The frames of states (N, Z), uint8 (N, H, W, 3), queued on the next stream."""
        # Queued before the frames: on their stream, the next states would wait for them.
        queue(states, self._states)
        with mx.stream(next(self._streams)):
            frames = self._frames(states)
        queue(frames)
        return frames

    def _look(self, times: Sequence[float]) -> mx.array:
        """The states (N, Z) of the lamp that is drawn at play times, not evaluated."""
        moments = [self._reach(at) for at in times]
        if len(times) == 1 or self._dynamics.minimum_batch > 1:
            return mx.concatenate([self._between(*moment)[:1] for moment in moments])
        # A step is so little work that it takes as long for a few states as for one.
        states = mx.concatenate([states[:1] for states, _, _ in moments])
        noise = mx.concatenate([noise[:1] for _, noise, _ in moments])
        return self._advance(states, noise, mx.array([[fraction] for _, _, fraction in moments]))

    def _reach(self, at: float) -> tuple[mx.array, mx.array, float]:
        """Roll to the last learned step before a play time.

        Returns:
            The states there, the noise of the next step, and the fraction of that step up to the play time.
        """
        # A time that differs from a learned step's by rounding alone (1e-6) needs no state in between.
        whole, fraction = divmod(max(at * self._rate, 0.0), 1.0)
        if fraction > 1 - 1e-6:
            whole, fraction = whole + 1, 0.0
        while self._step < whole:
            self._go()
        return self._states, self._noise, fraction

    def _go(self) -> None:
        """Make one learned step."""
        self._states = self._advance(self._states, self._noise, 1.0)
        self._step += 1
        self._noise = self._new_noise()
        if self._step % _QUEUED == 0:
            queue(self._states)

    def _new_noise(self) -> mx.array:
        """The noise of the step after ``step``; it depends on the seed and the step's number alone."""
        return mx.random.normal(self._shape, key=mx.random.key(_mix(self._seed, self._step)))

    def _between(self, states: mx.array, noise: mx.array, fraction: float) -> mx.array:
        """States a fraction of a learned step later."""
        return states if fraction < 1e-6 else self._advance(states, noise, fraction)

    def _advance(self, states: mx.array, noise: mx.array, dt: float | mx.array) -> mx.array:
        """States a fraction ``dt`` of a learned step later."""
        states = self._dynamics.step(self._arrays["dynamics"], self._bases, states, noise, dt)
        if not self._dynamics.keeps_norm:
            return states
        # The step keeps norms, but rounding would shrink a state by some 14 % in a million steps.
        return states * (self._norms / mx.linalg.norm(states, axis=-1, keepdims=True))


def frames_together(size: tuple[int, int]) -> int:
    """How many frames of a size (H, W) are drawn together where nobody waits for each."""
    return max(1, PIXELS_TOGETHER // math.prod(size))


def _mix(seed: int, step: int) -> int:
    """A 64-bit key for a step of a seed's lamp. Multiples of the golden ratio put seeds far apart."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 + step) % 2**64
