"""Lamps for the tests of this room."""

from __future__ import annotations

from mlxlava.backend import mx
from mlxlava.config import Recipe, override
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.rollout.weights import Weights


def grown_weights(recipe: Recipe, widths: list[int]) -> Weights:
    """Random weights of a lamp that has grown: with a background, and with colours that change much."""
    weights = fresh_weights(override(recipe, {"generator.upsampler_widths": widths}))
    generator = weights.arrays["generator"]
    for number, layers in enumerate((generator, generator["upsampler"])):
        if "background" in layers:
            # They start small beside a background.
            layers["out"]["weight"] = 10 * layers["out"]["weight"]
            shape = layers["background"].shape
            keys = mx.random.split(mx.random.key(number))
            layers["background"] = mx.random.normal(shape, key=keys[0])
            layers["gate"] = mx.random.uniform(shape=shape, key=keys[1])
    return weights


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
