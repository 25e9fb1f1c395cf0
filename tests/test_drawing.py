"""Drawing for playing: the trained generator's frames, whatever the form."""

from __future__ import annotations

import numpy as np
import pytest

from mlxlava.backend import mx
from mlxlava.config import Recipe, override
from mlxlava.drawing import make_draw
from mlxlava.nets import make_generator, to_bytes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"generator.background": False},
        {"data.size": [48, 80], "generator.widths": [8, 6, 5, 4]},  # planes of odd sides to begin with: 3×5
        {"data.size": [16, 32], "generator.widths": [8, 6, 5, 4]},  # one of a single row
    ],
)
def test_frames_are_those_of_the_trained_generator(tiny: Recipe, changes: dict[str, object]) -> None:
    recipe = override(tiny, changes)
    generator = make_generator(recipe)
    weights = generator.init(mx.random.key(1))
    if recipe.generator.background:
        shape = (*recipe.data.size, 3)
        weights["background"] = mx.random.normal(shape, key=mx.random.key(2))
        weights["gate"] = mx.random.uniform(shape=shape, key=mx.random.key(3))
    states = mx.random.normal((5, recipe.generator.state_size), key=mx.random.key(4))
    trained = np.array(to_bytes(generator(weights, states)[0]))
    assert trained.std() > 5
    draw = make_draw(recipe, weights, {})
    drawn = np.array(draw(states))
    assert drawn.shape == trained.shape and drawn.dtype == np.uint8
    assert np.abs(drawn.astype(int) - trained).max() <= 1
    one = np.array(draw(states[:1]))
    assert np.abs(drawn[:1].astype(int) - one).max() <= 1


def test_normalised_generators_play_with_their_running_statistics(tiny_duralava: Recipe) -> None:
    generator = make_generator(tiny_duralava)
    weights, stats = generator.init(mx.random.key(1)), generator.init_stats()
    state = mx.random.normal((1, tiny_duralava.generator.state_size), key=mx.random.key(2))
    drawn = make_draw(tiny_duralava, weights, stats)(state)
    trained = to_bytes(generator(weights, state, stats)[0])
    assert np.array_equal(np.array(drawn), np.array(trained))
