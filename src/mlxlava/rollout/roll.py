"""The endless roll-out: the state step moves the state, and G draws a frame from the state at any time.

A frame between two learned steps is drawn from a state between those of the steps (interpolation.py).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx, start_computing
from mlxlava.backend.cpu.worker_streams import worker_streams
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.rollout.drawing import DrawFunction, make_draw_function
from mlxlava.rollout.interpolation import Moment, split_into_steps, states_at_moments
from mlxlava.rollout.weights import Weights

# At most so many learned steps are computed at once. So memory does not grow if two frames lie far apart.
_STEPS_PER_EVAL = 64
# At most so many pixels (16 frames of 64×64) are drawn in one call, if nobody waits for a single frame.
MAX_PIXELS_DRAWN_AT_ONCE = 2**16

# A play time and its frame, uint8 (H, W, 3).
TimedFrame = tuple[float, npt.NDArray[np.uint8]]


class Rollout:
    """A lamp that is rolled from a seed, without end.

    A frame depends only on weights, seed and time. So the lamp is the same if frames are dropped, and at any
    frame rate. A frame between two learned steps is drawn from a state between those of the steps: the state
    step can make any fraction of a step.

    Args:
        weights: a learned lamp.
        seed: seed of the first state and of the noise.
        speed: seconds of the lamp's time in a second of play time.
        lamps: number of lamps that are rolled together by ``roll``; ``play`` draws the first one. The state
            step of duralava needs a batch of a certain size and always rolls that many.
        start: first state (Z,) of the first lamp; random when None.
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
        self._bases = self._dynamics.basis_changes(fixed_bases(weights.arrays))
        self._streams = itertools.cycle(worker_streams())
        self._rate = weights.step_fps * speed
        least = self._dynamics.minimum_batch
        self._shape = (lamps if least == 1 else least, weights.recipe.generator.state_size)
        self._states = mx.random.normal(self._shape, key=mx.random.key(_mix_seed_and_step(seed, -1)))
        if start is not None:
            self._states[0] = mx.array(start)
        self._norms = mx.linalg.norm(self._states, axis=-1, keepdims=True)
        self._step = 0
        self._noise = self._new_noise()
        self.size = weights.recipe.data.size

    @functools.cached_property
    def _draw_function(self) -> DrawFunction:
        """The function that draws frames. It is made at the first frame, since rolling does not need it."""
        return make_draw_function(self._recipe, self._arrays["generator"], self._arrays["stats"]["generator"])

    @property
    def steps_made(self) -> int:
        """Number of learned steps made so far."""
        return self._step

    @property
    def states(self) -> npt.NDArray[np.float32]:
        """The present states, float32 (lamps rolled together, Z). The first one is the lamp that is drawn."""
        return np.array(self._states)

    def exchange_weights(self, weights: Weights) -> None:
        """Go on from the present states with other weights of the same networks."""
        self._arrays = weights.arrays
        self._bases = self._dynamics.basis_changes(fixed_bases(weights.arrays))
        self.__dict__.pop("_draw_function", None)  # the cached property: it is made anew

    def play(self, times: Iterable[float]) -> Iterator[TimedFrame]:
        """Yield frames at rising play times.

        The next frame is queued before one is yielded. So the device draws while the caller shows a
        frame, and a CPU draws two side by side.

        Args:
            times: seconds of play time from the start; they must not decrease. One more is read than frames
                are yielded.

        Yields:
            The time and its frame, uint8 (H, W, 3).
        """
        return self._play_in_groups(iter(times), 1)

    def play_in_batches(self, times: Iterable[float]) -> Iterator[TimedFrame]:
        """Like ``play``, for a file. It is faster, since several frames are drawn in one call."""
        return self._play_in_groups(iter(times), frames_drawn_at_once(self.size))

    def _play_in_groups(self, times: Iterator[float], frames_at_once: int) -> Iterator[TimedFrame]:
        times, again = itertools.tee(times)
        groups = iter(lambda: list(itertools.islice(again, frames_at_once)), [])
        for frames in self._draw_ahead(map(self._states_at, groups)):
            for frame in frames:
                yield next(times), frame

    def roll_states(self, steps: int) -> npt.NDArray[np.float32]:
        """Make ``steps`` learned steps. Returns the states after each step, float32 (lamps, steps, Z)."""
        path = []
        for _ in range(steps):
            self._take_step()
            path.append(self._states)
        return np.array(mx.stack(path, axis=1))

    def draw(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Draw the frames of states (N, Z): uint8 (N, H, W, 3)."""
        count = frames_drawn_at_once(self.size)
        groups = (mx.array(states[at : at + count]) for at in range(0, len(states), count))
        return np.concatenate(list(self._draw_ahead(groups)))

    def _draw_ahead(self, groups: Iterable[mx.array]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames of groups of states (N, Z). The next group is drawn while the caller uses one."""
        waiting: mx.array | None = None
        try:
            for states in groups:
                drawn, waiting = waiting, self._start_to_draw(states)
                if drawn is not None:
                    yield np.array(drawn)
            if waiting is not None:
                yield np.array(waiting)
        finally:
            if waiting is not None:
                mx.eval(waiting)  # a process that ends while a stream is drawing may crash

    def _start_to_draw(self, states: mx.array) -> mx.array:
        """Start to draw the frames of states (N, Z), uint8 (N, H, W, 3), on the next stream."""
        # The states are started before the frames. On the stream of the frames, the next states would wait
        # for them.
        start_computing(states, self._states)
        with mx.stream(next(self._streams)):
            frames = self._draw_function(states)
        start_computing(frames)
        return frames

    def _states_at(self, times: Sequence[float]) -> mx.array:
        """The states (N, Z) of the lamp at play times, not evaluated yet."""
        one_by_one = self._dynamics.minimum_batch > 1
        moments = [self._roll_to_time(at) for at in times]
        return states_at_moments(moments, self._step_by_fraction, one_by_one=one_by_one)

    def _roll_to_time(self, at: float) -> Moment:
        """Roll to the last learned step before a play time."""
        whole, fraction = split_into_steps(at, self._rate)
        while self._step < whole:
            self._take_step()
        return Moment(self._states, self._noise, fraction)

    def _take_step(self) -> None:
        """Make one learned step."""
        self._states = self._step_by_fraction(self._states, self._noise, 1.0)
        self._step += 1
        self._noise = self._new_noise()
        if self._step % _STEPS_PER_EVAL == 0:
            start_computing(self._states)

    def _new_noise(self) -> mx.array:
        """The noise of the next step. It depends only on the seed and on the number of the step."""
        return mx.random.normal(self._shape, key=mx.random.key(_mix_seed_and_step(self._seed, self._step)))

    def _step_by_fraction(self, states: mx.array, noise: mx.array, dt: float | mx.array) -> mx.array:
        """States a fraction ``dt`` of a learned step later."""
        states = self._dynamics.step(self._arrays["dynamics"], self._bases, states, noise, dt)
        if not self._dynamics.keeps_norm:
            return states
        # The step keeps norms, but rounding would shrink a state by some 14 % in a million steps.
        return states * (self._norms / mx.linalg.norm(states, axis=-1, keepdims=True))


def frames_drawn_at_once(size: tuple[int, int]) -> int:
    """How many frames of a size (H, W) are drawn in one call, if nobody waits for a single frame."""
    return max(1, MAX_PIXELS_DRAWN_AT_ONCE // math.prod(size))


def _mix_seed_and_step(seed: int, step: int) -> int:
    """A 64-bit key for a step of a seed's lamp. Multiples of the golden ratio keep the seeds far apart."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 + step) % 2**64
