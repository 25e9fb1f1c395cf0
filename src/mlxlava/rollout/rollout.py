"""Endless frames from weights: the state moves, G draws it, whatever the frame rate."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx, parallel_streams, queue
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import StationaryStep, make_dynamics
from mlxlava.rollout.drawing import Draw, make_draw
from mlxlava.rollout.weights import Weights

# So many learned steps are queued at most: a long way between two frames stays flat in memory.
_QUEUED = 64
_COMPARED = 512  # pairs of neighbouring frames that a pace is measured on
_ROUNDS = 4  # of finding it; more change nothing
_DRAWN = 2**16  # pixels that are drawn together at most, where they may be: 16 frames of 64×64

# A play time and its frame, uint8 (H, W, 3).
Timed = tuple[float, npt.NDArray[np.uint8]]


class Rollout:
    """One lamp, from a seed, for ever.

    The frame at a time is a function of (weights, seed, time) alone: dropping frames, or asking for
    more of them a second, plays the same lamp. Frames between learned steps are drawn from states in
    between, on the path of the state step itself.

    Args:
        weights: a learned lamp.
        seed: which of its lives is played.
        speed: seconds of the lamp's time in a second of play time.
        lamps: lamps rolled together, for ``roll``; ``play`` draws the first. A step that needs more
            rolls that many, whatever is asked for.
        start: state (Z,) that the first lamp goes on from; one of the seed's when None.
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
        self._bases = self._dynamics.prepare(weights.arrays["stats"]["dynamics"])
        self._streams = itertools.cycle(parallel_streams())
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
        """How frames are drawn; arranged when the first is, since rolling needs none of it."""
        return make_draw(self._recipe, self._arrays["generator"], self._arrays["stats"]["generator"])

    @property
    def step(self) -> int:
        """Learned steps gone so far."""
        return self._step

    @property
    def states(self) -> npt.NDArray[np.float32]:
        """The states at ``step``, float32 (lamps rolled together, Z); the first one is drawn."""
        return np.array(self._states)

    def play(self, times: Iterable[float]) -> Iterator[Timed]:
        """Frames at rising play times.

        The frame after the one that is yielded is queued before, so the device draws while the
        caller shows; on a CPU the two are drawn side by side.

        Args:
            times: seconds of play time from the start, not falling; asked for one ahead.

        Yields:
            The time and its frame, uint8 (H, W, 3).
        """
        return self._play(iter(times), 1)

    def film(self, times: Iterable[float]) -> Iterator[Timed]:
        """``play``, faster where nobody waits for a frame: several are drawn together, and as many ahead."""
        return self._play(iter(times), _together(self.size))

    def _play(self, times: Iterator[float], together: int) -> Iterator[Timed]:
        times, again = itertools.tee(times)
        groups = iter(lambda: list(itertools.islice(again, together)), [])
        for frames in self._draw_ahead(map(self._look, groups)):
            for frame in frames:
                yield next(times), frame

    def roll(self, steps: int) -> npt.NDArray[np.float32]:
        """Go on by ``steps`` learned steps: the states after each, float32 (lamps, steps, Z)."""
        path = []
        for _ in range(steps):
            self._go()
            path.append(self._states)
        return np.array(mx.stack(path, axis=1))

    def draw(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The frames of states (N, Z), uint8 (N, H, W, 3)."""
        count = _together(self.size)
        groups = (mx.array(states[at : at + count]) for at in range(0, len(states), count))
        return np.concatenate(list(self._draw_ahead(groups)))

    def _draw_ahead(self, groups: Iterable[mx.array]) -> Iterator[npt.NDArray[np.uint8]]:
        """The frames of groups of states (N, Z); the next group is drawn while one is looked at."""
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
        # Apart from the frames, whose stream would otherwise keep the next states waiting.
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
        # A step is so little work that it takes as long for a few lamps as for one.
        states = mx.concatenate([states[:1] for states, _, _ in moments])
        noise = mx.concatenate([noise[:1] for _, noise, _ in moments])
        return self._advance(states, noise, mx.array([[share] for _, _, share in moments]))

    def _reach(self, at: float) -> tuple[mx.array, mx.array, float]:
        """The states of the last learned step before a play time, and noise and share of the one after."""
        # 1e-6: a time that is a learned step but for rounding needs no state in between.
        whole, share = divmod(max(at * self._rate, 0.0), 1.0)
        if share > 1 - 1e-6:
            whole, share = whole + 1, 0.0
        while self._step < whole:
            self._go()
        return self._states, self._noise, share

    def _go(self) -> None:
        """One learned step on."""
        self._states = self._advance(self._states, self._noise, 1.0)
        self._step += 1
        self._noise = self._new_noise()
        if self._step % _QUEUED == 0:
            queue(self._states)

    def _new_noise(self) -> mx.array:
        """The noise of the step after ``step``; it depends on the seed and the step's number alone."""
        return mx.random.normal(self._shape, key=mx.random.key(_mix(self._seed, self._step)))

    def _between(self, states: mx.array, noise: mx.array, share: float) -> mx.array:
        """States a share of a learned step on, if any."""
        return states if share < 1e-6 else self._advance(states, noise, share)

    def _advance(self, states: mx.array, noise: mx.array, dt: float | mx.array) -> mx.array:
        """States a share ``dt`` of a learned step on."""
        states = self._dynamics.step(self._arrays["dynamics"], self._bases, states, noise, dt)
        if not self._dynamics.keeps_norm:
            return states
        # Exact but for rounding, which would shrink a state by some 14 % in a million steps.
        return states * (self._norms / mx.linalg.norm(states, axis=-1, keepdims=True))


def true_pace(weights: Weights, frames: npt.NDArray[np.uint8], cuts: Sequence[int]) -> tuple[Weights, float]:
    """Weights slowed to the pace of real footage, if they are faster: frame to frame as much changes.

    Random states pass a little faster than encoded ones, which is all that training saw of real time. One
    number sets that right: the share of the learned rotations that a step makes. N(0, I) is kept for any.
    A lamp is never sped up, since a camera's noise is no motion.

    Args:
        weights: a learned lamp with a stationary step.
        frames: real frames, one learned step apart, uint8 (N, H, W, 3).
        cuts: frames that have nothing to do with the one before.

    Returns:
        The weights and the share, at most 1.
    """
    dynamics, generator = make_dynamics(weights.recipe), make_generator(weights.recipe)
    if not isinstance(dynamics, StationaryStep):
        return weights, 1.0
    arrays, stats = weights.arrays, weights.arrays["stats"]
    cut = {index - 1 for index in cuts}
    at = [n for n in range(0, len(frames) - 1, -(-len(frames) // _COMPARED)) if n not in cut]
    real = np.mean([np.abs(frames[n + 1].astype(np.float32) - frames[n]).mean() for n in at])
    shape = (_COMPARED, weights.recipe.generator.state_size)
    states, noise = (mx.random.normal(shape, key=mx.random.key(n)) for n in (1, 2))

    count = _together(weights.recipe.data.size)

    def draw(states: mx.array) -> mx.array:
        parts = [states[n : n + count] for n in range(0, len(states), count)]
        drawn = [255 * generator(arrays["generator"], part, stats["generator"])[0] for part in parts]
        for part in drawn:
            mx.eval(part)
        return mx.concatenate(drawn)

    bases = dynamics.prepare(stats["dynamics"])
    before, share = draw(states), 1.0
    for _ in range(_ROUNDS):
        slow = dynamics.scaled_rotations(arrays["dynamics"], share)
        after = draw(dynamics.step(slow, bases, states, noise))
        drawn = float(np.array(mx.abs(after - before).mean()))
        share = min(1.0, share * float(real) / max(drawn, 1e-9))
    slow = dynamics.scaled_rotations(arrays["dynamics"], share)
    mx.eval(slow)
    return dataclasses.replace(weights, arrays={**arrays, "dynamics": slow}), share


def _together(size: tuple[int, int]) -> int:
    """Frames of a size that are drawn together where they may be."""
    return max(1, _DRAWN // math.prod(size))


def _mix(seed: int, step: int) -> int:
    """A 64-bit key for a step of a seed's lamp (multiples of the golden ratio spread seeds apart)."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 + step) % 2**64
