"""Makes clips that end where they begin: closed paths of states that move nearly like the lamp itself.

A lamp never comes back to a state by itself. So every learned step is steered: its result is moved a little,
so that the path closes. The steering is found in two stages:

1. A bridge. The state step can be inverted. So for every time, the state is known from which the lamp would
   reach the start without steering. A path is rolled from the start, and each step turns it a little towards
   that state.
2. Gradient descent from the bridge. It finds a path of little steering, at the lamp's natural pace. If the
   steering were the Ornstein–Uhlenbeck noise of the step, this would be the most likely closed path (least
   action, Onsager and Machlup 1953).

Pictures are never blended: every frame is drawn from one state. All states have the norm of the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx
from mlxlava.errors import UserError
from mlxlava.models.slerp import slerp
from mlxlava.models.state_step import StationaryStep, fixed_bases, make_dynamics
from mlxlava.rollout.descent import OnProgress, descend
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights

_START_COUNT = 16  # starts that are tried; the one whose bridge needs the least steering is used
_MIN_LONG_LOOP_STEPS = 400  # with more learned steps a loop needs so little steering that one start is enough
_MIN_LOOP_STATES = 8  # a loop has at least so many states
_MAX_LOOP_STATES = 100_000  # five hours of a lamp of 5 learned steps a second
_STEPS_PER_EVAL = 64  # steps that are computed at once, so that a long path needs little memory
_MIN_STEP_SHARE = 1e-5  # distance that a step must move a state, as a share of its norm: less is rounding
_NEGLIGIBLE_STEERING = 0.05  # steering, as a fraction of the motion, below which no descent is needed
_DESCENT_ROUNDS = 400
_FIRST_LEARNING_RATE = 0.02  # Adam's first learning rate
_PACE_WEIGHT = 3.0  # weight of the pace relative to the steering


class SeamlessLoop:
    """A closed path of a lamp that is played again and again. Its frame at ``period`` is its frame at 0.

    Args:
        weights: a learned lamp with a stationary step.
        period: seconds of the lamp's time after which it begins again.
        seed: seed of the lamp.
        start: state (Z,) to begin and end with; a random one of the seed when None.
        on_progress: called with the number of rounds done and the number of all rounds.

    Attributes:
        size: height and width of a frame.
        states: the path, float32 (K, Z), evenly spaced over the period.
        steering: distance by which steering moves a learned step, divided by the distance that the step moves
            a state by itself (root mean squares).

    Raises:
        UserError: the weights' state step cannot be inverted, the period has too many states, or the lamp
            does not move within the period.
    """

    def __init__(
        self,
        weights: Weights,
        period: float,
        seed: int = 0,
        start: npt.NDArray[np.float32] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        dynamics = make_dynamics(weights.recipe)
        if not isinstance(dynamics, StationaryStep):
            raise UserError(
                "seamless: these weights have a penalised state step, which cannot be undone; "
                "take weights with a stationary one (recipe lava)"
            )
        steps = period * weights.step_fps
        count = max(_MIN_LOOP_STATES, round(steps))
        if count > _MAX_LOOP_STATES:
            raise UserError(
                f"seamless: {period:.6g} s would have {count} states, more than {_MAX_LOOP_STATES}; "
                "give fewer seconds, or a lower --speed"
            )
        self._dynamics, self._bases = dynamics, dynamics.basis_changes(fixed_bases(weights.arrays))
        # The period has to be a whole number of steps. So each step is made a little longer or shorter.
        self._weights = dynamics.scale_rotations(weights.arrays["dynamics"], steps / count)
        self._squared_step = self._mean_squared_step_distance()
        if self._squared_step < _MIN_STEP_SHARE**2 * dynamics.size:  # a norm is about √Z
            raise UserError(
                f"seamless: the lamp of these weights does not move within {period:.6g} s, so there is "
                "nothing to repeat; take other weights, or give more seconds or a higher --speed"
            )
        self._per_second = count / period
        self._drawer = Rollout(weights, seed)
        self.size = weights.recipe.data.size
        path = self._make_bridges(_candidate_starts(dynamics.size, count, seed, start), count)
        fixed = 0 if start is None else 1
        self._path, self.steering = self._minimise_steering(path, fixed, on_progress)
        self.states = np.array(self._path)

    def play(self, times: Iterable[float]) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Yield times of the lamp (seconds), each with its frame, uint8 (H, W, 3)."""
        for at in times:
            yield at, self._drawer.draw(np.array(self.state_at(at)))[0]

    def state_at(self, at: float) -> mx.array:
        """The state (1, Z) at a time of the lamp (seconds).

        Between two states of the path there are two candidates: a fraction of a step forwards from the first
        state, and the rest of the step backwards from the second. The result moves evenly from the first
        candidate to the second. So it moves like the state step, and the steering is spread evenly.
        """
        whole, fraction = divmod(at * self._per_second, 1.0)
        if fraction > 1 - 1e-6:  # it is a state of the path but for rounding
            whole, fraction = whole + 1, 0.0
        here = int(whole) % len(self._path)
        first, second = self._path[here : here + 1], self._path[(here + 1) % len(self._path)][None]
        if fraction < 1e-6:
            return first
        forwards = self._dynamics.transport(self._weights, self._bases, first, fraction)
        backwards = self._dynamics.inverse_transport(self._weights, self._bases, second, 1 - fraction)
        return slerp(forwards, backwards, fraction)

    def _make_bridges(self, starts: mx.array, count: int) -> mx.array:
        """The first stage: bridges (K, B, Z) that start and end at the given states (B, Z)."""
        ahead = [starts]  # the states from which the start is reached in 0, 1, 2 … steps without steering
        for n in range(1, count):
            ahead.append(self._dynamics.inverse_transport(self._weights, self._bases, ahead[-1]))
            if n % _STEPS_PER_EVAL == 0:
                mx.eval(ahead[-1])
        path = [starts]
        for n in range(1, count):
            moved = self._dynamics.transport(self._weights, self._bases, path[-1])
            path.append(slerp(moved, ahead[count - n], 1 / (count - n + 1)))
            if n % _STEPS_PER_EVAL == 0:
                mx.eval(path[-1])
        return mx.stack(path)

    def _minimise_steering(
        self, path: mx.array, fixed_states: int, on_progress: OnProgress | None
    ) -> tuple[mx.array, float]:
        """The second stage: a path (K, Z) of little steering near the best of bridges (K, B, Z).

        The first ``fixed_states`` states do not change. If the start may move, the path has no corner there.
        """
        steering = self._steering_cost(path)
        path = path[:, int(np.argmin(np.array(steering / _mean_squared_motion(path))))]
        held, free, norm = path[:fixed_states], path[fixed_states:], mx.linalg.norm(path[0])

        def close(free: mx.array) -> mx.array:
            return mx.concatenate([held, norm * free / mx.linalg.norm(free, axis=-1, keepdims=True)])

        def loss(free: mx.array) -> mx.array:
            path = close(free)
            return (
                self._steering_cost(path)
                + _PACE_WEIGHT * (mx.sqrt(_mean_squared_motion(path)) - math.sqrt(self._squared_step)) ** 2
            )

        if float(np.array(self._steering_cost(path))) > _NEGLIGIBLE_STEERING**2 * self._squared_step:
            free = descend(
                loss, free, rounds=_DESCENT_ROUNDS, rate=_FIRST_LEARNING_RATE, on_progress=on_progress
            )
        path = close(free)
        mx.eval(path)
        return path, math.sqrt(float(np.array(self._steering_cost(path))) / self._squared_step)

    def _steering_cost(self, path: mx.array) -> mx.array:
        """How strongly closed paths (K, …, Z) are steered: (…).

        It is the mean squared distance of each next state from the result of the step without steering.
        """
        moved = self._dynamics.transport(self._weights, self._bases, path.reshape(-1, path.shape[-1]))
        return ((moved.reshape(path.shape) - _next_states(path)) ** 2).sum(-1).mean(0)

    def _mean_squared_step_distance(self) -> float:
        """The mean squared distance by which one step moves a random state."""
        states = mx.random.normal((256, self._dynamics.size), key=mx.random.key(0))
        moved = self._dynamics.transport(self._weights, self._bases, states)
        return float(np.array(((moved - states) ** 2).sum(-1).mean()))


def _candidate_starts(size: int, count: int, seed: int, start: npt.NDArray[np.float32] | None) -> mx.array:
    """States (B, Z) that are tried as the start of a loop of ``count`` steps."""
    if start is not None:
        return mx.array(start)[None]
    return mx.random.normal(
        (_START_COUNT if count < _MIN_LONG_LOOP_STEPS else 1, size), key=mx.random.key(seed)
    )


def _next_states(path: mx.array) -> mx.array:
    """For each state of closed paths (K, …, Z), the state that follows."""
    return mx.concatenate([path[1:], path[:1]])


def _mean_squared_motion(path: mx.array) -> mx.array:
    """The mean squared distance between neighbouring states of closed paths (K, …, Z): (…)."""
    return ((_next_states(path) - path) ** 2).sum(-1).mean(0)
