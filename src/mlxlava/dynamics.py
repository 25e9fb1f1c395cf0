"""State steps: from a state to the next, and to any state in between.

Two kinds behind one interface. ``stationary`` keeps N(0, I) exactly, for any weights;
``penalised`` is duralava's, kept near N(0, I) by penalties and re-standardisation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mlxlava.backend import mx
from mlxlava.config import Recipe
from mlxlava.losses import moments
from mlxlava.nets import Tree, dense, glorot, init_dense, leaky_relu


class StationaryStep:
    """Coupled rotations, and a little fresh noise: N(0, I) in, N(0, I) out.

    A coupling layer splits the state (in a fixed orthogonal basis) into two halves, and rotates
    pairs of numbers of one half by angles that a small network reads off the other. A rotation
    keeps a normal law, and its angle depends only on what it leaves alone; so each layer keeps
    N(0, I) for any weights, and so does ``z' = rho T(z) + sqrt(1 - rho²) noise``. With rho < 1
    a wrong start is forgotten: KL(p_t ‖ N) <= rho^(2t) KL(p_0 ‖ N).
    """

    companions = 1  # states that have to be rolled together to play one lamp

    def __init__(self, recipe: Recipe) -> None:
        self.size = recipe.generator.state_size
        self.hidden = recipe.dynamics.hidden
        self.couplings = recipe.dynamics.couplings
        self.rho = recipe.dynamics.rho
        self.keeps_norm = self.rho == 1  # whether a step leaves each state's norm as it is
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
        return weights

    def init_stats(self) -> Tree:
        """The fixed orthogonal bases, (Z, Z) each."""
        rng = np.random.default_rng(0)
        bases = (np.linalg.qr(rng.standard_normal((self.size, self.size)))[0] for _ in range(self.couplings))
        return {f"basis{c}": mx.array(basis.astype(np.float32)) for c, basis in enumerate(bases)}

    def transport(self, weights: Tree, stats: Tree, states: mx.array, dt: float | mx.array = 1.0) -> mx.array:
        """The rotations alone, for a share ``dt`` of a learned step; keeps each state's norm. (B, Z)."""
        for c in range(self.couplings):
            layer, basis = weights[f"coupling{c}"], stats[f"basis{c}"]
            first, second, kept = mx.split(states @ basis, [self.size // 4, self.size // 2], axis=-1)
            x = kept
            for i in range(len(self.hidden)):
                x = mx.tanh(dense(layer[f"hidden{i}"], x))
            angles = dt * dense(layer["angles"], x)
            cos, sin = mx.cos(angles), mx.sin(angles)
            turned = [first * cos - second * sin, first * sin + second * cos, kept]
            states = mx.concatenate(turned, axis=-1) @ basis.T
        return states

    def advance(
        self, weights: Tree, stats: Tree, states: mx.array, noise: mx.array, dt: float | mx.array = 1.0
    ) -> mx.array:
        """States (B, Z) a share ``dt`` of a learned step later; ``noise`` (B, Z) is that step's own.

        Going from one state by dt = 0 … 1 with the same noise runs along one path, so states in
        between need no others.
        """
        states = self.transport(weights, stats, states, dt)
        if self.rho == 1:
            return states
        kept = self.rho**dt
        return kept * states + mx.sqrt(mx.array(1 - kept * kept)) * noise

    def roll(
        self, weights: Tree, stats: Tree, states: mx.array, key: mx.array, steps: int
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """States (B, Z) → the states after 1 … ``steps`` learned steps (B, steps, Z); no penalty."""
        noise = mx.random.normal((steps, *states.shape), key=key)
        path = []
        for t in range(steps):
            states = self.advance(weights, stats, states, noise[t])
            path.append(states)
        return mx.stack(path, axis=1), {}


class PenalisedStep:
    """duralava's: an MLP whose states are re-standardised, with a penalty on their moments.

    Mean and deviation are taken over the whole batch, so one lamp cannot be played alone:
    ``companions`` states are rolled together.
    """

    companions = 32
    keeps_norm = False

    def __init__(self, recipe: Recipe) -> None:
        self.size = recipe.generator.state_size
        self.hidden = recipe.dynamics.hidden

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = mx.random.split(key, len(self.hidden) + 1)
        widths = (self.size, *self.hidden)
        weights = {
            f"hidden{i}": init_dense(keys[i], *pair, glorot(*pair)) for i, pair in enumerate(pairwise(widths))
        }
        weights["out"] = init_dense(keys[-1], widths[-1], self.size, glorot(widths[-1], self.size))
        return weights

    def init_stats(self) -> Tree:
        """Nothing is kept."""
        return {}

    def _propose(self, weights: Tree, states: mx.array) -> mx.array:
        for i in range(len(self.hidden)):
            states = leaky_relu(dense(weights[f"hidden{i}"], states))
        return dense(weights["out"], states)

    def advance(
        self, weights: Tree, stats: Tree, states: mx.array, noise: mx.array, dt: float | mx.array = 1.0
    ) -> mx.array:
        """States (B, Z) a share ``dt`` of a learned step later, on the great circle to the next states.

        Spherical interpolation (Shoemake 1985) keeps the length of a state between its ends';
        ``noise`` is not used.
        """
        raw = self._propose(weights, states)
        mean, std = raw.mean(), mx.sqrt(raw.var() + 1e-8)
        after = (raw - mean) / std
        if isinstance(dt, float) and dt == 1.0:
            return after
        norms = mx.linalg.norm(states, axis=-1, keepdims=True) * mx.linalg.norm(after, axis=-1, keepdims=True)
        cosine = (states * after).sum(-1, keepdims=True) / norms
        angle = mx.arccos(mx.clip(cosine, -0.9999, 0.9999))
        return (mx.sin((1 - dt) * angle) * states + mx.sin(dt * angle) * after) / mx.sin(angle)

    def roll(
        self, weights: Tree, stats: Tree, states: mx.array, key: mx.array, steps: int
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """States (B, Z) → the states after 1 … ``steps`` steps (B, steps, Z), and the mean penalty terms.

        The terms are of the states before re-standardisation: mean², (std − 1)², skew² and
        (kurtosis − 3)² over the whole batch × Z.
        """
        path, terms = [], []
        for _ in range(steps):
            raw = self._propose(weights, states)
            mean, std, skew, kurtosis = moments(raw)
            terms.append(mx.stack([mean**2, (std - 1) ** 2, skew**2, (kurtosis - 3) ** 2]))
            states = (raw - mean) / std
            path.append(states)
        means = mx.stack(terms).mean(0)
        names = ("normality_mean", "normality_std", "normality_skew", "normality_kurtosis")
        return mx.stack(path, axis=1), {name: means[i] for i, name in enumerate(names)}


Dynamics = StationaryStep | PenalisedStep


def make_dynamics(recipe: Recipe) -> Dynamics:
    """The state step that the recipe names."""
    kinds: dict[str, Any] = {"stationary": StationaryStep, "penalised": PenalisedStep}
    step: Dynamics = kinds[recipe.dynamics.kind](recipe)
    return step
