"""States between two learned steps, from which frames between them are drawn.

The state step can make any fraction of a step (``models/state_step.py``, ``step`` with ``dt``). So a state in
between is no mixture of two states, and is normally distributed as all others are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlxlava.backend import mx

# A time that is a learned step's but for rounding needs no state in between.
_ROUNDING = 1e-6

# (states (N, Z), noise (N, Z), fraction of a step: a number or (N, 1)) → states that fraction of a step later
StepByFraction = Callable[[mx.array, mx.array, "float | mx.array"], mx.array]


class Moment(NamedTuple):
    """A moment of a lamp that is rolled.

    Attributes:
        states: states (lamps, Z) at the last learned step before it.
        noise: noise (lamps, Z) of the next step.
        fraction: the fraction of the next step that lies before it.
    """

    states: mx.array
    noise: mx.array
    fraction: float


def split_into_steps(time: float, rate: float) -> tuple[int, float]:
    """Whole learned steps before a time (at ``rate`` steps a second), and the fraction of the next one."""
    whole, fraction = divmod(max(time * rate, 0.0), 1.0)
    if fraction > 1 - _ROUNDING:
        whole, fraction = whole + 1, 0.0
    return int(whole), fraction


def states_at_moments(
    moments: Sequence[Moment], step_by_fraction: StepByFraction, *, one_by_one: bool
) -> mx.array:
    """The states (N, Z) of the first lamp at N moments, not evaluated yet.

    Args:
        moments: the moments.
        step_by_fraction: the state step.
        one_by_one: whether the step must see all lamps of a moment together, as that of duralava must.
    """
    if len(moments) == 1 or one_by_one:
        return mx.concatenate([_states_at_moment(moment, step_by_fraction)[:1] for moment in moments])
    # A step is so little work that it takes the same time for a few states as for one.
    states = mx.concatenate([moment.states[:1] for moment in moments])
    noise = mx.concatenate([moment.noise[:1] for moment in moments])
    return step_by_fraction(states, noise, mx.array([[moment.fraction] for moment in moments]))


def _states_at_moment(moment: Moment, step_by_fraction: StepByFraction) -> mx.array:
    states, noise, fraction = moment
    return states if fraction < _ROUNDING else step_by_fraction(states, noise, fraction)
