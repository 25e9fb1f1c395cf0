"""State steps: from a state to the next, and to any state in between.

There are two kinds with the same interface. The ``stationary`` step keeps N(0, I) exactly, for any weights.
The ``penalised`` step is that of duralava: penalties and re-standardisation keep its states near N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.gradients import keep_gradient_unfused, steps_per_gradient_checkpoint
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.layers import dense, glorot_gain, init_dense
from mlxlava.models.normality import (
    covariance_distance,
    epps_pulley,
    epps_pulley_directions,
    moments,
)
from mlxlava.models.slerp import slerp

StepFunction = Callable[[Tree, Tree, mx.array, mx.array], mx.array]


class StationaryStep:
    """Coupled rotations and a little noise: if states are distributed as N(0, I), so are the next states.

    A coupling layer splits the state, in a fixed orthogonal basis, into two halves. It rotates pairs of
    numbers of one half. A small network computes the angles from the other half, which does not change. A
    rotation by an angle that does not depend on the rotated numbers keeps N(0, I), so each layer keeps N(0,
    I) for any weights. All layers together are T. The step is ``z' = rho T(z) + sqrt(1 - rho²) noise``. The
    noise makes it an Ornstein–Uhlenbeck process, which keeps N(0, I) as well.

    With rho < 1 a start from another distribution is forgotten: KL(p_t ‖ N) <= rho^(2t) KL(p_0 ‖ N). With
    ``learn_rho`` each number of the state has a rho of its own, which is learned. Then the bound holds with
    the largest rho.
    """

    minimum_batch = 1  # number of states that have to be rolled together to play one lamp
    reversible = True

    def __init__(self, recipe: Recipe) -> None:
        self.size = recipe.generator.state_size
        self.hidden = recipe.dynamics.hidden
        self.couplings = recipe.dynamics.couplings
        self.rho = recipe.dynamics.rho
        self.learn_rho = recipe.dynamics.learn_rho
        # Whether a step leaves each state's norm as it is.
        self.keeps_norm = self.rho == 1 and not self.learn_rho
        self.angle = recipe.dynamics.angle

    def init(self, key: mx.array) -> Tree:
        """Initial weights. At first the angles are small, and nearly the same for every state."""
        weights: Tree = {}
        widths = (self.size // 2, *self.hidden)
        for c, layer_key in enumerate(mx.random.split(key, self.couplings)):
            keys = mx.random.split(layer_key, len(self.hidden) + 2)
            layer: Tree = {}
            for i, (inputs, outputs) in enumerate(pairwise(widths)):
                layer[f"hidden{i}"] = init_dense(keys[i], inputs, outputs, 1.0)
            layer["angles"] = init_dense(keys[-2], widths[-1], self.size // 4, self.angle)
            layer["angles"]["bias"] = self.angle * mx.random.normal((self.size // 4,), key=keys[-1])
            weights[f"coupling{c}"] = layer
        if self.learn_rho:
            weights["log_rate"] = mx.full((self.size,), np.log(-np.log(self.rho)))
        return weights

    def init_bases(self) -> Tree:
        """The fixed orthogonal bases, (Z, Z) each."""
        rng = np.random.default_rng(0)
        bases = (np.linalg.qr(rng.standard_normal((self.size, self.size)))[0] for _ in range(self.couplings))
        return {f"basis{c}": mx.array(basis.astype(np.float32)) for c, basis in enumerate(bases)}

    def basis_changes(self, bases: Tree) -> Tree:
        """The matrices that take states from the basis of each coupling to the basis of the next.

        They are computed once from the fixed bases and used in all steps. With them a step of C couplings has
        C + 1 changes of basis and not 2 C. They are computed in float64. In float32 they would be less
        orthogonal than the bases, and the error of twenty steps there and back would be twice as large.
        """
        exact = [np.array(bases[f"basis{c}"]).astype(np.float64) for c in range(self.couplings)]
        changes = [exact[0], *(one.T @ other for one, other in pairwise(exact)), exact[-1].T]
        return {f"change{n}": mx.array(change.astype(np.float32)) for n, change in enumerate(changes)}

    def transport(self, weights: Tree, bases: Tree, states: mx.array, dt: float | mx.array = 1.0) -> mx.array:
        """Apply only the rotations to states (B, Z), for a share ``dt`` of a step. This keeps each norm."""
        for c in range(self.couplings):
            states = self._rotate_half(weights[f"coupling{c}"], states @ bases[f"change{c}"], dt)
        last: mx.array = bases[f"change{self.couplings}"]
        return states @ last

    def inverse_transport(
        self, weights: Tree, bases: Tree, states: mx.array, dt: float | mx.array = 1.0
    ) -> mx.array:
        """Undo ``transport``: the states (B, Z) that it would take to the given ones."""
        for c in reversed(range(self.couplings)):
            states = self._rotate_half(weights[f"coupling{c}"], states @ bases[f"change{c + 1}"].T, -dt)
        first: mx.array = bases["change0"]
        return states @ first.T

    def _rotate_half(self, layer: Tree, states: mx.array, dt: float | mx.array) -> mx.array:
        """Rotate pairs of one half of the states by ``dt`` times the angles computed from the other half."""
        first, second, unchanged = mx.split(states, [self.size // 4, self.size // 2], axis=-1)
        x = unchanged
        for i in range(len(self.hidden)):
            x = mx.tanh(dense(layer[f"hidden{i}"], x))
        angles = dt * dense(layer["angles"], x)
        cos, sin = mx.cos(angles), mx.sin(angles)
        return mx.concatenate([first * cos - second * sin, first * sin + second * cos, unchanged], axis=-1)

    def step(
        self, weights: Tree, bases: Tree, states: mx.array, noise: mx.array, dt: float | mx.array = 1.0
    ) -> mx.array:
        """States (B, Z) after a share ``dt`` (0 … 1) of a learned step with the noise (B, Z).

        With the same noise, dt = 0 … 1 runs along one path from a state to the next. So a state between two
        learned steps is computed from the state before it and the noise.
        """
        return self._mix_with_noise(weights, self.transport(weights, bases, states, dt), noise, dt)

    def reverse_time_step(self, weights: Tree, bases: Tree, states: mx.array, noise: mx.array) -> mx.array:
        """States (B, Z) one learned step earlier, drawn from the process reversed in time.

        This is not the inverse of a step. If u is N(0, I) and z' = rho u + sqrt(1 − rho²) noise, then u given
        z' is distributed as rho z' + sqrt(1 − rho²) noise. So a path of normal states that is rolled
        backwards has exactly the distribution of a path that is rolled forwards.
        """
        return self.inverse_transport(weights, bases, self._mix_with_noise(weights, states, noise, 1.0))

    def _mix_with_noise(
        self, weights: Tree, states: mx.array, noise: mx.array, dt: float | mx.array
    ) -> mx.array:
        """The Ornstein–Uhlenbeck part of a share ``dt`` of a step: states shrink a little, noise is added.

        The mixture is cos(a) · states + sin(a) · noise. For a whole step, cos(a) is rho. For a share of a
        step, the angle a is that share of the whole angle. This keeps N(0, I), and states move at an even
        speed. In the process itself the noise grows with √dt, which would jolt the lamp after each learned
        step (docs/decisions/023-equal-sub-steps.md).
        """
        if self.keeps_norm:
            return states
        rate = mx.exp(weights["log_rate"]) if self.learn_rho else mx.array(-math.log(self.rho))
        # expm1: 1 − rho² is lost to rounding in float32 when rho is near one.
        noisy = mx.sqrt(-mx.expm1(-2 * rate))
        if isinstance(dt, float) and dt == 1.0:
            return mx.exp(-rate) * states + noisy * noise
        angle = dt * mx.arcsin(noisy)
        return mx.cos(angle) * states + mx.sin(angle) * noise

    def scale_rotations(self, weights: Tree, factor: float) -> Tree:
        """Weights with all angles multiplied by ``factor``. Below 1 the lamp moves as before, only slower."""
        scaled = dict(weights)
        for c in range(self.couplings):
            layer = weights[f"coupling{c}"]
            scaled[f"coupling{c}"] = {
                **layer,
                "angles": {name: factor * a for name, a in layer["angles"].items()},
            }
        return scaled

    def roll(
        self, weights: Tree, bases: Tree, states: mx.array, key: mx.array, steps: int, position: int = 0
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """States (B, Z) → a path of ``steps`` states (B, steps, Z); no penalty.

        The given states are number ``position`` of the path, counted from 1. With 0 they are the states just
        before the path. States after them are rolled forwards, and states before them backwards. If the given
        states are in the middle of the path, gradients go through half as many steps.
        """
        noise = mx.random.normal((steps, *states.shape), key=key)
        length = steps_per_gradient_checkpoint()

        def roll_one_way(states: mx.array, noise: mx.array, step: StepFunction) -> list[mx.array]:
            def roll_piece(weights: Tree, bases: Tree, states: mx.array, noise: mx.array) -> list[mx.array]:
                path = []
                for t in range(len(noise)):
                    states = step(weights, bases, states, noise[t])
                    path.append(states)
                return path

            # A long path is rolled in pieces. Only the states between the pieces are kept for the backward
            # pass, which rolls each piece again: 200 steps take 0.4 % more memory than 32
            # (docs/experiments.md).
            if len(noise) > length:
                roll_piece = mx.checkpoint(roll_piece)
            path: list[mx.array] = []
            for t in range(0, len(noise), length):
                piece_weights = tree_map(keep_gradient_unfused, weights)
                path += roll_piece(piece_weights, bases, states, noise[t : t + length])
                states = path[-1]
            return path

        path = roll_one_way(states, noise[position:], self.step)
        if position:
            before = roll_one_way(states, noise[1:position], self.reverse_time_step)
            path = [*reversed(before), states, *path]
        return mx.stack(path, axis=1), {}


class PenalisedStep:
    """duralava's state step: an MLP whose states are re-standardised, with a penalty on their moments.

    Mean and deviation are computed over the whole batch. So one lamp cannot be played alone: at least
    ``minimum_batch`` states are rolled together.
    """

    minimum_batch = 32
    keeps_norm = False
    reversible = False

    def __init__(self, recipe: Recipe) -> None:
        self.size = recipe.generator.state_size
        self.hidden = recipe.dynamics.hidden
        self._penalties = PENALTY_FUNCTIONS[recipe.dynamics.penalty]

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = mx.random.split(key, len(self.hidden) + 1)
        widths = (self.size, *self.hidden)
        weights = {
            f"hidden{i}": init_dense(keys[i], *pair, glorot_gain(*pair))
            for i, pair in enumerate(pairwise(widths))
        }
        weights["out"] = init_dense(keys[-1], widths[-1], self.size, glorot_gain(widths[-1], self.size))
        return weights

    def init_bases(self) -> Tree:
        """This step has no bases."""
        return {}

    def basis_changes(self, bases: Tree) -> Tree:
        """This step has no bases, so there are no changes of basis."""
        return {}

    def _raw_next_states(self, weights: Tree, states: mx.array) -> mx.array:
        for i in range(len(self.hidden)):
            states = leaky_relu(dense(weights[f"hidden{i}"], states))
        return dense(weights["out"], states)

    def step(
        self, weights: Tree, bases: Tree, states: mx.array, noise: mx.array, dt: float | mx.array = 1.0
    ) -> mx.array:
        """States (B, Z) after a share ``dt`` of a learned step, on the great circle to the next states.

        ``noise`` is not used.
        """
        after = _standardise_pooled(self._raw_next_states(weights, states))
        if isinstance(dt, float) and dt == 1.0:
            return after
        return slerp(states, after, dt)

    def roll(
        self, weights: Tree, bases: Tree, states: mx.array, key: mx.array, steps: int, position: int = 0
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """States (B, Z) → the states after 1 … ``steps`` steps (B, steps, Z), and the mean penalty terms.

        The terms are computed from the states before re-standardisation. ``position`` must be 0, since this
        step cannot be rolled backwards.
        """
        path, terms = [], []
        for step_key in mx.random.split(key, steps):
            raw = self._raw_next_states(weights, states)
            terms.append(self._penalties(raw, step_key))
            states = _standardise_pooled(raw)
            path.append(states)
        means = {name: mx.stack([one[name] for one in terms]).mean() for name in terms[0]}
        return mx.stack(path, axis=1), means


def _standardise_pooled(raw: mx.array) -> mx.array:
    """Scale states (B, Z) so that all their numbers together have mean 0 and variance 1."""
    return (raw - raw.mean()) / mx.sqrt(raw.var() + 1e-8)


def _moment_penalties(raw: mx.array, key: mx.array) -> dict[str, mx.array]:
    """duralava's penalties: mean², (std − 1)², skew² and (kurtosis − 3)² of all numbers pooled."""
    mean, std, skew, kurtosis = moments(raw)
    return {
        "normality_mean": mean**2,
        "normality_std": (std - 1) ** 2,
        "normality_skew": skew**2,
        "normality_kurtosis": (kurtosis - 3) ** 2,
    }


def _epps_pulley_penalties(raw: mx.array, key: mx.array) -> dict[str, mx.array]:
    """Penalties that also see states that collapse onto one another, or onto a few directions."""
    return {
        "normality_axes": epps_pulley(raw),
        "normality_directions": epps_pulley_directions(raw, key),
        "normality_covariance": covariance_distance(raw),
    }


PENALTY_FUNCTIONS = {"moments": _moment_penalties, "epps_pulley": _epps_pulley_penalties}
Dynamics = StationaryStep | PenalisedStep


def fixed_bases(arrays: Tree) -> Tree:
    """The fixed bases of the state step, from weights or from a run state.

    They are stored among the statistics, as ``stats.dynamics``, since they are not learned.
    """
    bases: Tree = arrays["stats"]["dynamics"]
    return bases


def make_dynamics(recipe: Recipe) -> Dynamics:
    """The state step that the recipe names."""
    kinds: dict[str, Any] = {"stationary": StationaryStep, "penalised": PenalisedStep}
    step: Dynamics = kinds[recipe.dynamics.kind](recipe)
    return step
