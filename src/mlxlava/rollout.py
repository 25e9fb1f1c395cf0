"""Endless frames from weights: the state moves, G draws it, whatever the frame rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mlxlava.backend import limit_blas_threads, mx, queue
from mlxlava.checkpoint import Weights
from mlxlava.dynamics import StationaryStep, make_dynamics
from mlxlava.nets import make_generator, to_bytes

# So many learned steps are queued at most: a long way between two frames stays flat in memory.
_QUEUED = 64
_COMPARED = 512  # pairs of neighbouring frames that a pace is measured on
_ROUNDS = 4  # of finding it; more change nothing
_DRAWN = 8  # frames at a time in ``draw``: more of them fall out of the processor's cache


class Rollout:
    """One lamp, from a seed, for ever.

    The frame at a time is a function of (weights, seed, time) alone: dropping frames, or asking for
    more of them a second, plays the same lamp. Frames between learned steps are drawn from states in
    between, on the path of the state step itself.

    Args:
        weights: a learned lamp.
        seed: which of its lives is played.
        speed: seconds of the lamp's time in a second of play time.
        lamps: lamps rolled together, for ``roll``; ``play`` draws the first. A step that needs companions
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
        limit_blas_threads(1)  # one frame is too little work for two threads: they wait for each other
        self._arrays, self._seed = weights.arrays, seed
        self._generator, self._dynamics = make_generator(weights.recipe), make_dynamics(weights.recipe)
        self._rate = weights.step_fps * speed
        companions = self._dynamics.companions
        self._shape = (lamps if companions == 1 else companions, weights.recipe.generator.state_size)
        self._states = mx.random.normal(self._shape, key=mx.random.key(_mix(seed, -1)))
        if start is not None:
            self._states[0] = mx.array(start)
        self._norms = mx.linalg.norm(self._states, axis=-1, keepdims=True)
        self._step = 0
        self.size = weights.recipe.data.size

    @property
    def step(self) -> int:
        """Learned steps gone so far."""
        return self._step

    @property
    def states(self) -> npt.NDArray[np.float32]:
        """The states at ``step``, float32 (lamps rolled together, Z); the first one is drawn."""
        return np.array(self._states)

    def play(self, times: Iterable[float]) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Frames at rising play times.

        The frame after the one that is yielded is queued before, so the device draws while the
        caller shows.

        Args:
            times: seconds of play time from the start, not falling; asked for one ahead.

        Yields:
            The time and its frame, uint8 (H, W, 3).
        """
        waiting: tuple[float, mx.array] | None = None
        for at in times:
            frame = self._draw(at)
            queue(frame, self._states)
            if waiting is not None:
                yield waiting[0], np.array(waiting[1])
            waiting = (at, frame)
        if waiting is not None:
            yield waiting[0], np.array(waiting[1])

    def roll(self, steps: int) -> npt.NDArray[np.float32]:
        """Go on by ``steps`` learned steps: the states after each, float32 (lamps, steps, Z)."""
        path = []
        for _ in range(steps):
            self._states = self._advance(1.0)
            self._step += 1
            path.append(self._states)
            if self._step % _QUEUED == 0:
                queue(self._states)
        return np.array(mx.stack(path, axis=1))

    def draw(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The frames of states (N, Z), uint8 (N, H, W, 3)."""
        generator, stats = self._arrays["generator"], self._arrays["stats"]["generator"]
        parts = [states[at : at + _DRAWN] for at in range(0, len(states), _DRAWN)]
        drawn = (to_bytes(self._generator(generator, mx.array(part), stats)[0]) for part in parts)
        return np.concatenate([np.array(frames) for frames in drawn])

    def _draw(self, at: float) -> mx.array:
        """The frame at a play time (seconds), uint8 (H, W, 3), not evaluated."""
        # 1e-6: a time that is a learned step but for rounding needs no state in between.
        whole, share = divmod(max(at * self._rate, 0.0), 1.0)
        if share > 1 - 1e-6:
            whole, share = whole + 1, 0.0
        while self._step < whole:
            self._states = self._advance(1.0)
            self._step += 1
            if self._step % _QUEUED == 0:
                mx.eval(self._states)
        states = self._states if share < 1e-6 else self._advance(share)
        arrays = self._arrays
        frames, _ = self._generator(arrays["generator"], states[:1], arrays["stats"]["generator"])
        return to_bytes(frames[0])

    def _advance(self, dt: float) -> mx.array:
        """The states a share of a learned step on; the step's noise depends on its number alone."""
        noise = mx.random.normal(self._shape, key=mx.random.key(_mix(self._seed, self._step)))
        arrays = self._arrays
        states = self._dynamics.advance(
            arrays["dynamics"], arrays["stats"]["dynamics"], self._states, noise, dt
        )
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

    def draw(states: mx.array) -> mx.array:
        parts = [states[n : n + _DRAWN] for n in range(0, len(states), _DRAWN)]
        drawn = [255 * generator(arrays["generator"], part, stats["generator"])[0] for part in parts]
        for part in drawn:
            mx.eval(part)
        return mx.concatenate(drawn)

    before, share = draw(states), 1.0
    for _ in range(_ROUNDS):
        slow = dynamics.slowed(arrays["dynamics"], share)
        after = draw(dynamics.advance(slow, stats["dynamics"], states, noise))
        drawn = float(np.array(mx.abs(after - before).mean()))
        share = min(1.0, share * float(real) / max(drawn, 1e-9))
    slow = dynamics.slowed(arrays["dynamics"], share)
    mx.eval(slow)
    return dataclasses.replace(weights, arrays={**arrays, "dynamics": slow}), share


def _mix(seed: int, step: int) -> int:
    """A 64-bit key for a step of a seed's lamp (multiples of the golden ratio spread seeds apart)."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 + step) % 2**64
