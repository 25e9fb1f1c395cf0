"""The pace of a lamp (the mean change from frame to frame), set to that of real footage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import StationaryStep, fixed_bases, make_dynamics
from mlxlava.rollout.roll import frames_together
from mlxlava.rollout.weights import Weights

_COMPARED = 512  # pairs of neighbouring frames that a pace is measured on
_ROUNDS = 4  # in which the scale is found; more change nothing


def match_pace(weights: Weights, frames: npt.NDArray[np.uint8], cuts: Sequence[int]) -> tuple[Weights, float]:
    """Slow a lamp to the pace of real footage, if it is faster.

    A lamp that starts from random states moves a little faster than one that starts from encoded footage.
    Only the latter is compared with footage in training. So all angles of the state step are scaled by one
    factor. The step keeps N(0, I) for any factor. A lamp is never made faster: in footage, a camera's noise
    adds to the change from frame to frame, and it is no motion.

    Args:
        weights: a learned lamp with a stationary step.
        frames: real frames, one learned step apart, uint8 (N, H, W, 3).
        cuts: frames that begin a new scene, whose change from the frame before is left out.

    Returns:
        The weights, and the factor of the angles, at most 1.
    """
    dynamics, generator = make_dynamics(weights.recipe), make_generator(weights.recipe)
    if not isinstance(dynamics, StationaryStep):
        return weights, 1.0
    arrays, stats = weights.arrays, weights.arrays["stats"]
    before_cuts = {index - 1 for index in cuts}
    at = [n for n in range(0, len(frames) - 1, -(-len(frames) // _COMPARED)) if n not in before_cuts]
    real = np.mean([np.abs(frames[n + 1].astype(np.float32) - frames[n]).mean() for n in at])
    shape = (_COMPARED, weights.recipe.generator.state_size)
    states, noise = (mx.random.normal(shape, key=mx.random.key(n)) for n in (1, 2))

    count = frames_together(weights.recipe.data.size)

    def draw(states: mx.array) -> mx.array:
        chunks = [states[n : n + count] for n in range(0, len(states), count)]
        drawn = [255 * generator(arrays["generator"], chunk, stats["generator"])[0] for chunk in chunks]
        for chunk in drawn:
            mx.eval(chunk)
        return mx.concatenate(drawn)

    bases = dynamics.prepare(fixed_bases(arrays))
    first, scale = draw(states), 1.0
    for _ in range(_ROUNDS):
        slow = dynamics.scaled_rotations(arrays["dynamics"], scale)
        second = draw(dynamics.step(slow, bases, states, noise))
        drawn = float(np.array(mx.abs(second - first).mean()))
        scale = min(1.0, scale * float(real) / max(drawn, 1e-9))
    slow = dynamics.scaled_rotations(arrays["dynamics"], scale)
    mx.eval(slow)
    return dataclasses.replace(weights, arrays={**arrays, "dynamics": slow}), scale
