"""Sets the pace of a lamp (the mean change from frame to frame) to the pace of real footage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import StationaryStep, fixed_bases, make_dynamics
from mlxlava.rollout.roll import frames_drawn_at_once
from mlxlava.rollout.weights import Weights

_COMPARED_PAIR_COUNT = 512  # number of pairs of neighbouring frames on which a pace is measured
_SCALING_ROUND_COUNT = 4  # rounds in which the factor is found; more rounds change nothing


def match_pace(weights: Weights, frames: npt.NDArray[np.uint8], cuts: Sequence[int]) -> tuple[Weights, float]:
    """Slow a lamp to the pace of real footage, if it is faster.

    In training, the motion of lamps that start from encoded footage is compared with footage. Lamps that
    start from random states move a little faster. So all angles of the state step are scaled by one factor.
    The step keeps N(0, I) for any factor. A lamp is never made faster, since the noise of a camera adds to
    the change from frame to frame of footage, and noise is no motion.

    Args:
        weights: a learned lamp with a stationary step.
        frames: real frames, one learned step apart, uint8 (N, H, W, 3).
        cuts: indices of frames that begin a new scene. Their change from the frame before does not count.

    Returns:
        The weights with scaled angles; and the factor, which is at most 1.
    """
    dynamics, generator = make_dynamics(weights.recipe), make_generator(weights.recipe)
    if not isinstance(dynamics, StationaryStep):
        return weights, 1.0
    arrays, stats = weights.arrays, weights.arrays["stats"]
    before_cuts = {index - 1 for index in cuts}
    at = [
        n for n in range(0, len(frames) - 1, -(-len(frames) // _COMPARED_PAIR_COUNT)) if n not in before_cuts
    ]
    real = np.mean([np.abs(frames[n + 1].astype(np.float32) - frames[n]).mean() for n in at])
    shape = (_COMPARED_PAIR_COUNT, weights.recipe.generator.state_size)
    states, noise = (mx.random.normal(shape, key=mx.random.key(n)) for n in (1, 2))

    count = frames_drawn_at_once(weights.recipe.data.size)

    def draw(states: mx.array) -> mx.array:
        chunks = [states[n : n + count] for n in range(0, len(states), count)]
        drawn = [255 * generator(arrays["generator"], chunk, stats["generator"])[0] for chunk in chunks]
        for chunk in drawn:
            mx.eval(chunk)
        return mx.concatenate(drawn)

    bases = dynamics.basis_changes(fixed_bases(arrays))
    first, scale = draw(states), 1.0
    for _ in range(_SCALING_ROUND_COUNT):
        slow = dynamics.scale_rotations(arrays["dynamics"], scale)
        second = draw(dynamics.step(slow, bases, states, noise))
        drawn = float(np.array(mx.abs(second - first).mean()))
        scale = min(1.0, scale * float(real) / max(drawn, 1e-9))
    slow = dynamics.scale_rotations(arrays["dynamics"], scale)
    mx.eval(slow)
    return dataclasses.replace(weights, arrays={**arrays, "dynamics": slow}), scale
