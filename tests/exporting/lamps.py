"""Lamps for the tests of this room."""

from __future__ import annotations

from mlxlava.backend import mx
from mlxlava.config import Recipe
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.rollout.weights import Weights


def fresh_weights(recipe: Recipe) -> Weights:
    """Random weights of a recipe."""
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    keys = mx.random.split(mx.random.key(3), 2)
    arrays = {
        "generator": generator.init(keys[0]),
        "dynamics": dynamics.init(keys[1]),
        "stats": {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()},
    }
    return Weights(recipe, 5.0, arrays, {})
