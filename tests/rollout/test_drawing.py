"""Drawing: for playing and in training, on either path, frames are those of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from mlxlava.backend import Tree, mx, use_gpu_path
from mlxlava.config import Recipe, override
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.registry import make_generator
from mlxlava.rollout.drawing import make_draw_function
from tests.definitions import shuffled, spread, taps

pytestmark = pytest.mark.device

PATHS = pytest.mark.parametrize("on_gpu", [False, True], ids=["CPU path", "GPU path"])


def leaky(x: mx.array) -> mx.array:
    return mx.where(x > 0, x, 0.2 * x)


def as_bytes(x: mx.array) -> np.ndarray:
    frames: np.ndarray = np.round(255 / (1 + np.exp(-np.array(x)))).astype(int)
    return frames


@PATHS
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"generator.background": False},
        {
            "data.size": [48, 80],
            "generator.widths": [8, 6, 5, 4],
        },  # feature maps of odd sides to begin with: 3×5
        {"data.size": [16, 32], "generator.widths": [8, 6, 5, 4]},  # one of a single row
    ],
)
def test_frames_of_shuffled_pixels(tiny: Recipe, changes: dict[str, object], on_gpu: bool) -> None:
    recipe = override(tiny, changes)
    generator = make_generator(recipe)
    weights = generator.init(mx.random.key(1))
    if recipe.generator.background:
        shape = (*recipe.data.size, 3)
        weights["background"] = mx.random.normal(shape, key=mx.random.key(2))
        weights["gate"] = mx.random.uniform(shape=shape, key=mx.random.key(3))
    states = mx.random.normal((5, recipe.generator.state_size), key=mx.random.key(4))

    widths = recipe.generator.widths
    height, width = (side // 2 ** len(widths) for side in recipe.data.size)
    x = leaky(states @ weights["dense"]["weight"].T + weights["dense"]["bias"])
    x = x.reshape(5, height, width, widths[0])
    for i in range(len(widths)):
        up = weights[f"up{i}"]
        x = leaky(shuffled(taps(x, up["weight"], 1) + up["bias"]))
    x = taps(x, weights["out"]["weight"], 1) + weights["out"]["bias"]
    defined = as_bytes(weights.get("background", 0) + weights.get("gate", 1) * x)

    with use_gpu_path(on_gpu):
        trained = np.array(to_uint8_frames(generator(weights, states)[0]))
        draw = make_draw_function(recipe, weights, {})
        drawn, one = np.array(draw(states)), np.array(draw(states[:1]))
    assert defined.std() > 5
    for frames in (trained, drawn):
        assert frames.shape == defined.shape and frames.dtype == np.uint8
        assert np.abs(frames.astype(int) - defined).max() <= 1
    assert np.abs(one.astype(int) - defined[:1]).max() <= 1


@PATHS
def test_normalised_generators_play_with_their_running_statistics(
    tiny_duralava: Recipe, on_gpu: bool
) -> None:
    generator = make_generator(tiny_duralava)
    keys = mx.random.split(mx.random.key(1), 4)
    weights, stats = generator.init(keys[0]), generator.init_stats()
    widths = tiny_duralava.generator.widths
    for i, channels in enumerate(widths):
        stats[f"norm{i}"] = {
            "mean": 0.1 * mx.random.normal((channels,), key=keys[1]),
            "var": mx.random.uniform(0.5, 2, (channels,), key=keys[2]),
        }
    states = mx.random.normal((2, tiny_duralava.generator.state_size), key=keys[3])

    height, width = (side // 2 ** len(widths) for side in tiny_duralava.data.size)
    x = (states @ weights["dense"]["weight"].T + weights["dense"]["bias"]).reshape(
        2, height, width, widths[0]
    )
    for i in range(len(widths)):
        norm: Tree = {**weights[f"norm{i}"], **stats[f"norm{i}"]}
        x = leaky((x - norm["mean"]) * mx.rsqrt(norm["var"] + 1e-3) * norm["scale"] + norm["bias"])
        x = spread(x, weights[f"up{i}"]["weight"]) + weights[f"up{i}"]["bias"]
    defined = as_bytes(x)

    with use_gpu_path(on_gpu):
        drawn = np.array(make_draw_function(tiny_duralava, weights, stats)(states))
    assert defined.std() > 2
    assert np.abs(drawn.astype(int) - defined).max() <= 1


@PATHS
@pytest.mark.parametrize("background", [False, True])
def test_pictures_of_a_lamp_that_has_grown(tiny: Recipe, background: bool, on_gpu: bool) -> None:
    recipe = override(
        tiny,
        {
            "data.size": [64, 64],
            "generator.widths": [8, 6],
            "generator.upsampler_widths": [6, 5],
            "generator.background": background,
        },
    )
    weights = make_generator(recipe).init(mx.random.key(1))
    upsampler = weights["upsampler"]
    if background:
        for layers, size in ((weights, (16, 16)), (upsampler, (64, 64))):
            layers["background"] = mx.random.normal((*size, 3), key=mx.random.key(2))
            layers["gate"] = mx.random.uniform(shape=(*size, 3), key=mx.random.key(3))
    upsampler["out"]["weight"] = 3 * upsampler["out"]["weight"]
    states = mx.random.normal((5, recipe.generator.state_size), key=mx.random.key(4))

    small = override(recipe, {"data.size": [16, 16], "generator.upsampler_widths": []})
    own = {name: layer for name, layer in weights.items() if name != "upsampler"}
    with use_gpu_path(on_gpu):
        pictures = make_generator(small)(own, states)[0]
    centre: mx.array | float = 0.5
    if background:
        centre = mx.sigmoid(upsampler["background"]).reshape(16, 4, 16, 4, 3).mean((1, 3))
    x = leaky(taps(4 * (pictures - centre), upsampler["in"]["weight"], 1) + upsampler["in"]["bias"])
    for name in ("up0", "up1"):
        x = leaky(shuffled(taps(x, upsampler[name]["weight"], 1) + upsampler[name]["bias"]))
    x = taps(x, upsampler["out"]["weight"], 1) + upsampler["out"]["bias"]
    defined = as_bytes(upsampler.get("background", 0) + upsampler.get("gate", 1) * x)

    with use_gpu_path(on_gpu):
        trained = np.array(to_uint8_frames(make_generator(recipe)(weights, states)[0]))
        drawn = np.array(make_draw_function(recipe, weights, {})(states))
    assert defined.std() > 5
    for frames in (trained, drawn):
        assert frames.shape == defined.shape == (5, 64, 64, 3)
        assert np.abs(frames.astype(int) - defined).max() <= 1
