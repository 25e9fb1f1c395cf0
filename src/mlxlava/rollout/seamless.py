"""A clip that ends where it begins: a closed path of states that the lamp could have gone by itself.

A lamp never comes back to a state by itself. So every learned step is steered: its result is moved a little,
such that the path closes. The steering is found in two stages:

1. A bridge. The state step can be inverted. So for every time we know the state from which the lamp would
   reach the start without steering. A lamp rolls on from the start, and each step turns it a little towards
   that state.
2. The path of least steering near the bridge, at the lamp's natural pace, found by gradient descent. If the
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
from mlxlava.models.interpolation import slerp
from mlxlava.models.state_step import StationaryStep, fixed_bases, make_dynamics
from mlxlava.rollout.descent import OnProgress, descend
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights

_STARTS = 16  # starts that are tried; the one whose bridge needs the least steering is used
_LONG = 400  # learned steps; a longer loop needs so little steering that one start is enough
_FEWEST = 8  # states that a loop has at least
_QUEUED = 64  # steps that are computed together: a long path stays flat in memory
_ENOUGH = 0.05  # steering, as a fraction of the motion, that needs no descent
_ROUNDS = 400
_RATE = 0.02  # Adam's first learning rate
_PACE = 3.0  # weight of the pace against the steering


class Loop:
    """A closed path of a lamp, played again and again: its frame at ``period`` is that at 0.

    Args:
        weights: a learned lamp with a stationary step.
        period: seconds of the lamp's time after which it begins again.
        seed: which lamp.
        start: state (Z,) to begin and end with; one of the seed's when None.
        on_progress: called with the number of rounds done and the number of all rounds.

    Attributes:
        size: height and width of a frame.
        states: the path, float32 (K, Z), evenly spaced over the period.
        steering: how far a learned step is moved by steering, over how far it moves a state by itself (root
            mean square of both).

    Raises:
        UserError: the weights' state step cannot be inverted.
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
        count = max(_FEWEST, round(steps))
        self._dynamics, self._bases = dynamics, dynamics.prepare(fixed_bases(weights.arrays))
        # The period has to be a whole number of steps. So each is a little longer or shorter than learned.
        self._weights = dynamics.scaled_rotations(weights.arrays["dynamics"], steps / count)
        self._per_second = count / period
        self._drawer = Rollout(weights, seed)
        self.size = weights.recipe.data.size
        path = self._bridge(_starts(dynamics.size, count, seed, start), count)
        fixed = 0 if start is None else 1
        self._path, self.steering = self._relax(path, fixed, on_progress)
        self.states = np.array(self._path)

    def play(self, times: Iterable[float]) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Frames at times of the lamp (seconds): each time and its frame, uint8 (H, W, 3)."""
        for at in times:
            yield at, self._drawer.draw(np.array(self.state(at)))[0]

    def state(self, at: float) -> mx.array:
        """The state (1, Z) at a time of the lamp (seconds).

        Between two states of the path there are two candidates: a fraction of a step forwards from the first
        state, and the rest of a step backwards from the second. The result moves evenly from the one to the
        other. So it has the velocity of the state step, and the steering is the same all the way.
        """
        whole, fraction = divmod(at * self._per_second, 1.0)
        if fraction > 1 - 1e-6:  # rounding alone makes it differ from a state of the path
            whole, fraction = whole + 1, 0.0
        here = int(whole) % len(self._path)
        first, second = self._path[here : here + 1], self._path[(here + 1) % len(self._path)][None]
        if fraction < 1e-6:
            return first
        forwards = self._dynamics.transport(self._weights, self._bases, first, fraction)
        backwards = self._dynamics.inverse(self._weights, self._bases, second, 1 - fraction)
        return slerp(forwards, backwards, fraction)

    def _bridge(self, starts: mx.array, count: int) -> mx.array:
        """The bridges (K, B, Z) from states (B, Z): the first of the two stages."""
        ahead = [starts]  # the states that reach the start in 0, 1, 2 … steps without steering
        for n in range(1, count):
            ahead.append(self._dynamics.inverse(self._weights, self._bases, ahead[-1]))
            if n % _QUEUED == 0:
                mx.eval(ahead[-1])
        path = [starts]
        for n in range(1, count):
            moved = self._dynamics.transport(self._weights, self._bases, path[-1])
            path.append(slerp(moved, ahead[count - n], 1 / (count - n + 1)))
            if n % _QUEUED == 0:
                mx.eval(path[-1])
        return mx.stack(path)

    def _relax(self, path: mx.array, fixed: int, on_progress: OnProgress | None) -> tuple[mx.array, float]:
        """The path (K, Z) of least steering near the best of bridges (K, B, Z), and its steering.

        The first ``fixed`` states do not change. If the start may move, the path has no corner there.
        """
        pace = self._pace()
        steering = self._steering(path)
        path = path[:, int(np.argmin(np.array(steering / _moved(path))))]
        held, free, norm = path[:fixed], path[fixed:], mx.linalg.norm(path[0])

        def close(free: mx.array) -> mx.array:
            return mx.concatenate([held, norm * free / mx.linalg.norm(free, axis=-1, keepdims=True)])

        def loss(free: mx.array) -> mx.array:
            path = close(free)
            return self._steering(path) + _PACE * (mx.sqrt(_moved(path)) - math.sqrt(pace)) ** 2

        if float(np.array(self._steering(path))) > _ENOUGH**2 * pace:
            free = descend(loss, free, rounds=_ROUNDS, rate=_RATE, on_progress=on_progress)
        path = close(free)
        mx.eval(path)
        return path, math.sqrt(float(np.array(self._steering(path))) / pace)

    def _steering(self, path: mx.array) -> mx.array:
        """Mean squared distance of each next state to where the step leads by itself, (K, …, Z): (…)."""
        moved = self._dynamics.transport(self._weights, self._bases, path.reshape(-1, path.shape[-1]))
        return ((moved.reshape(path.shape) - _next(path)) ** 2).sum(-1).mean(0)

    def _pace(self) -> float:
        """Mean squared distance by which one step moves a random state."""
        states = mx.random.normal((256, self._dynamics.size), key=mx.random.key(0))
        moved = self._dynamics.transport(self._weights, self._bases, states)
        return float(np.array(((moved - states) ** 2).sum(-1).mean()))


def _starts(size: int, count: int, seed: int, start: npt.NDArray[np.float32] | None) -> mx.array:
    """States (B, Z) to try as the start of a loop of ``count`` steps."""
    if start is not None:
        return mx.array(start)[None]
    return mx.random.normal((_STARTS if count < _LONG else 1, size), key=mx.random.key(seed))


def _next(path: mx.array) -> mx.array:
    """The next state of each state of a closed path, (K, …, Z)."""
    return mx.concatenate([path[1:], path[:1]])


def _moved(path: mx.array) -> mx.array:
    """Mean squared distance from a state to the next one, of closed paths (K, …, Z): (…)."""
    return ((_next(path) - path) ** 2).sum(-1).mean(0)
