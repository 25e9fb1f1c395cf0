"""State steps: from a state to the next, and to any state in between.

Two kinds behind one interface. ``stationary`` keeps N(0, I) exactly, for any weights;
``penalised`` is duralava's, kept near N(0, I) by penalties and re-standardisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.gradients import checkpointed_steps, keep_gradient_apart
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.interpolation import slerp
from mlxlava.models.layers import dense, glorot, init_dense
from mlxlava.models.normality import (
    covariance_distance,
    epps_pulley,
    epps_pulley_directions,
    moments,
)

Step = Callable[[Tree, Tree, mx.array, mx.array], mx.array]


class StationaryStep:
    """Coupled rotations, and a little fresh noise: N(0, I) in, N(0, I) out.

    A coupling layer splits the state (in a fixed orthogonal basis) into two halves, and rotates
    pairs of numbers of one half by angles that a small network reads off the other. A rotation
    keeps a normal distribution, and its angle depends only on what it leaves alone; so each layer keeps
    N(0, I) for any weights, and so does ``z' = rho T(z) + sqrt(1 - rho²) noise``, an
    Ornstein–Uhlenbeck process around it. With rho < 1 a wrong start is forgotten:
    KL(p_t ‖ N) <= rho^(2t) KL(p_0 ‖ N). With ``learn_rho`` each number of the state has a rho of its
    own, which is learned; the largest one stands in the bound.
    """

    minimum_batch = 1  # states that have to be rolled together to play one lamp
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
        """Weights; the angles start near fixed small values, alike in every state."""
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

    def prepare(self, bases: Tree) -> Tree:
        """The changes from basis to basis that a step takes, from the fixed bases; made once for all steps.

        States go from the basis of a coupling to that of the next one by the product of both: a step of C
        couplings has C + 1 products and not 2 C. They are made in float64: in float32 they would be less
        orthogonal than the bases, and twenty steps there and back would be off by twice as much.
        """
        exact = [np.array(bases[f"basis{c}"]).astype(np.float64) for c in range(self.couplings)]
        changes = [exact[0], *(one.T @ other for one, other in pairwise(exact)), exact[-1].T]
        return {f"change{n}": mx.array(change.astype(np.float32)) for n, change in enumerate(changes)}

    def transport(self, weights: Tree, bases: Tree, states: mx.array, dt: float | mx.array = 1.0) -> mx.array:
        """The rotations alone, for a share ``dt`` of a learned step; they keep each state's norm. (B, Z)."""
        for c in range(self.couplings):
            states = self._couple(weights[f"coupling{c}"], states @ bases[f"change{c}"], dt)
        last: mx.array = bases[f"change{self.couplings}"]
        return states @ last

    def inverse(self, weights: Tree, bases: Tree, states: mx.array, dt: float | mx.array = 1.0) -> mx.array:
        """The states (B, Z) that ``transport`` takes to these; with rho = 1 that undoes a step."""
        for c in reversed(range(self.couplings)):
            states = self._couple(weights[f"coupling{c}"], states @ bases[f"change{c + 1}"].T, -dt)
        first: mx.array = bases["change0"]
        return states @ first.T

    def _couple(self, layer: Tree, states: mx.array, dt: float | mx.array) -> mx.array:
        """Turn pairs of one half of the states by ``dt`` times the angles that the other half gives."""
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
        """States (B, Z) a share ``dt`` (0 … 1) of a learned step later; ``noise`` (B, Z) is that step's own.

        With the same noise, dt = 0 … 1 runs along one path from a state to the next. So a state between two
        learned steps is made from the one before it alone.
        """
        return self._stir(weights, self.transport(weights, bases, states, dt), noise, dt)

    def inverse_step(self, weights: Tree, bases: Tree, states: mx.array, noise: mx.array) -> mx.array:
        """States (B, Z) a learned step earlier, by the same process reversed in time.

        If u is N(0, I) and z' = rho u + sqrt(1 − rho²) noise, then u given z' is distributed as
        rho z' + sqrt(1 − rho²) noise. So a path of normal states that was rolled backwards has exactly the
        distribution of one that was rolled forwards.
        """
        return self.inverse(weights, bases, self._stir(weights, states, noise, 1.0))

    def _stir(self, weights: Tree, states: mx.array, noise: mx.array, dt: float | mx.array) -> mx.array:
        """The Ornstein–Uhlenbeck part of a share ``dt`` of a step: states shrink a little, noise is added.

        States and noise are mixed as by a rotation, whose angle has rho as its cosine for a whole step. A
        share of a step takes that share of the angle. This keeps N(0, I), at an even speed. Noise that grows
        with √dt, as in the process itself, would jolt the lamp after each learned step (docs/decisions.md,
        "Even between learned steps").
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

    def scaled_rotations(self, weights: Tree, factor: float) -> Tree:
        """Weights whose step rotates by ``factor`` times the angles: the same flow, slower if below 1."""
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

        The given states are number ``position`` of the path, counted from 1; or, with 0, those just before
        its first. States after them are rolled forwards, states before them backwards. From the middle of a
        path, gradients go through half as many steps.
        """
        noise = mx.random.normal((steps, *states.shape), key=key)
        length = checkpointed_steps()

        def go(states: mx.array, noise: mx.array, step: Step) -> list[mx.array]:
            def piece(weights: Tree, bases: Tree, states: mx.array, noise: mx.array) -> list[mx.array]:
                path = []
                for t in range(len(noise)):
                    states = step(weights, bases, states, noise[t])
                    path.append(states)
                return path

            # A long path is rolled in pieces. Only the states are kept for the backward pass, which rolls
            # each piece again: 200 steps take 0.4 % more memory than 32 (docs/experiments.md).
            if len(noise) > length:
                piece = mx.checkpoint(piece)
            path: list[mx.array] = []
            for t in range(0, len(noise), length):
                piece_weights = tree_map(keep_gradient_apart, weights)
                path += piece(piece_weights, bases, states, noise[t : t + length])
                states = path[-1]
            return path

        after = go(states, noise[position:], self.step)
        if position:
            after = [*reversed(go(states, noise[1:position], self.inverse_step)), states, *after]
        return mx.stack(after, axis=1), {}


class PenalisedStep:
    """duralava's: an MLP whose states are re-standardised, with a penalty on their moments.

    Mean and deviation are taken over the whole batch, so one lamp cannot be played alone:
    ``minimum_batch`` states are rolled together.
    """

    minimum_batch = 32
    keeps_norm = False
    reversible = False

    def __init__(self, recipe: Recipe) -> None:
        self.size = recipe.generator.state_size
        self.hidden = recipe.dynamics.hidden
        self._penalties = PENALTIES[recipe.dynamics.penalty]

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = mx.random.split(key, len(self.hidden) + 1)
        widths = (self.size, *self.hidden)
        weights = {
            f"hidden{i}": init_dense(keys[i], *pair, glorot(*pair)) for i, pair in enumerate(pairwise(widths))
        }
        weights["out"] = init_dense(keys[-1], widths[-1], self.size, glorot(widths[-1], self.size))
        return weights

    def init_bases(self) -> Tree:
        """It has none."""
        return {}

    def prepare(self, bases: Tree) -> Tree:
        """Nothing is prepared."""
        return {}

    def _propose(self, weights: Tree, states: mx.array) -> mx.array:
        for i in range(len(self.hidden)):
            states = leaky_relu(dense(weights[f"hidden{i}"], states))
        return dense(weights["out"], states)

    def step(
        self, weights: Tree, bases: Tree, states: mx.array, noise: mx.array, dt: float | mx.array = 1.0
    ) -> mx.array:
        """States (B, Z) a share ``dt`` of a learned step later, on the great circle to the next states.

        ``noise`` is not used.
        """
        raw = self._propose(weights, states)
        mean, std = raw.mean(), mx.sqrt(raw.var() + 1e-8)
        after = (raw - mean) / std
        if isinstance(dt, float) and dt == 1.0:
            return after
        return slerp(states, after, dt)

    def roll(
        self, weights: Tree, bases: Tree, states: mx.array, key: mx.array, steps: int, position: int = 0
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """States (B, Z) → the states after 1 … ``steps`` steps (B, steps, Z), and the mean penalty terms.

        The terms are of the states before re-standardisation. ``position`` must be 0: there is no way back.
        """
        path, terms = [], []
        for step_key in mx.random.split(key, steps):
            raw = self._propose(weights, states)
            terms.append(self._penalties(raw, step_key))
            states = (raw - raw.mean()) / mx.sqrt(raw.var() + 1e-8)
            path.append(states)
        means = {name: mx.stack([one[name] for one in terms]).mean() for name in terms[0]}
        return mx.stack(path, axis=1), means


def _moment_penalties(raw: mx.array, key: mx.array) -> dict[str, mx.array]:
    """duralava's: mean², (std − 1)², skew² and (kurtosis − 3)² of all numbers pooled."""
    mean, std, skew, kurtosis = moments(raw)
    return {
        "normality_mean": mean**2,
        "normality_std": (std - 1) ** 2,
        "normality_skew": skew**2,
        "normality_kurtosis": (kurtosis - 3) ** 2,
    }


def _epps_pulley_penalties(raw: mx.array, key: mx.array) -> dict[str, mx.array]:
    """What also sees states that collapse onto one another, or onto a few directions."""
    return {
        "normality_axes": epps_pulley(raw),
        "normality_directions": epps_pulley_directions(raw, key),
        "normality_covariance": covariance_distance(raw),
    }


PENALTIES = {"moments": _moment_penalties, "epps_pulley": _epps_pulley_penalties}
Dynamics = StationaryStep | PenalisedStep


def fixed_bases(arrays: Tree) -> Tree:
    """The fixed bases of the state step, from weights or from a run state.

    They stand among the statistics, since no gradient changes them: ``stats.dynamics`` in files.
    """
    bases: Tree = arrays["stats"]["dynamics"]
    return bases


def make_dynamics(recipe: Recipe) -> Dynamics:
    """The state step that the recipe names."""
    kinds: dict[str, Any] = {"stationary": StationaryStep, "penalised": PenalisedStep}
    step: Dynamics = kinds[recipe.dynamics.kind](recipe)
    return step
