"""Networks: the fast forms are the native ones, and shapes are what they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlxlava import nets
from mlxlava.backend import mx
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.nets import (
    Tree,
    conv3,
    conv_down,
    conv_up,
    init_conv,
    make_discriminator,
    make_generator,
    to_bytes,
)


def native(name: str) -> Callable[[Tree, mx.array], mx.array]:
    """The convolution as MLX has it."""
    forms: dict[str, Callable[[Tree, mx.array], mx.array]] = {
        "conv3": lambda w, x: mx.conv2d(x, w["weight"], padding=1) + w["bias"],
        "conv_down": lambda w, x: mx.conv2d(x, w["weight"], stride=2, padding=1) + w["bias"],
        "conv_up": lambda w, x: mx.conv_transpose2d(x, w["weight"], stride=2, padding=1) + w["bias"],
    }
    return forms[name]


@pytest.mark.parametrize(("fast", "side"), [(conv3, 3), (conv_down, 4), (conv_up, 4)])
@pytest.mark.parametrize("patch_floats", [100, 10**9], ids=["in parts", "at once"])
def test_fast_convolutions_equal_the_native_ones_both_ways(
    fast: Callable[[Tree, mx.array], mx.array], side: int, patch_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets, "_PATCH_FLOATS", patch_floats)
    keys = mx.random.split(mx.random.key(0), 3)
    weights = init_conv(keys[0], side, 5, 7)
    weights["bias"] = mx.random.normal((7,), key=keys[1])
    x = mx.random.normal((4, 6, 10, 5), key=keys[2])
    slow = native(fast.__name__)
    assert np.allclose(np.array(fast(weights, x)), np.array(slow(weights, x)), atol=1e-5)

    def both(form: Callable[[Tree, mx.array], mx.array]) -> tuple[mx.array, Tree]:
        # A loss that is no sum, so that every output pixel has a gradient of its own.
        by_x = mx.grad(lambda x: (form(weights, x) ** 2).sum())(x)
        by_weights = mx.grad(lambda w: (form(w, x) ** 2).sum())(weights)
        return by_x, by_weights

    (fast_x, fast_w), (slow_x, slow_w) = both(fast), both(slow)
    assert np.allclose(np.array(fast_x), np.array(slow_x), rtol=1e-4, atol=1e-3)
    for name in ("weight", "bias"):
        assert np.allclose(np.array(fast_w[name]), np.array(slow_w[name]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["lava", "duralava"])
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 16)])
def test_a_generator_draws_frames_of_any_size(name: str, size: tuple[int, int]) -> None:
    recipe = override(load_recipe(name), {"data.size": size, "generator.widths": [8, 6, 4, 4]})
    generator = make_generator(recipe)
    weights = generator.init(mx.random.key(0))
    frames, _ = generator(weights, mx.random.normal((3, 64), key=mx.random.key(1)), generator.init_stats())
    assert frames.shape == (3, *size, 3)
    assert np.array(frames).min() >= 0 and np.array(frames).max() <= 1
    assert to_bytes(frames).dtype == mx.uint8


def test_bytes_are_rounded() -> None:
    assert to_bytes(mx.array([0.0, 0.499 / 255, 0.501 / 255, 1.0])).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("kind", ["tiny", "tiny_duralava"])
def test_a_discriminator_gives_a_logit_a_clip_or_a_step(kind: str, request: pytest.FixtureRequest) -> None:
    recipe: Recipe = request.getfixturevalue(kind)
    count = recipe.data.drawn_frames or recipe.data.seq_len
    discriminator = make_discriminator(recipe)
    weights = discriminator.init(mx.random.key(0))
    frames = mx.random.uniform(shape=(4, count, 16, 16, 3), key=mx.random.key(1))
    times = mx.broadcast_to(mx.arange(count), (4, count))
    logits = discriminator(weights, frames, times)
    assert logits.shape == ((4,) if kind == "tiny" else (4, count))


def test_the_discriminator_of_frames_sees_their_gaps(tiny: Recipe) -> None:
    discriminator = make_discriminator(tiny)
    weights = discriminator.init(mx.random.key(0))
    frames = mx.random.uniform(shape=(2, 3, 16, 16, 3), key=mx.random.key(1))
    near, far = mx.array([[0, 1, 2]] * 2), mx.array([[0, 2, 5]] * 2)
    assert not np.allclose(
        np.array(discriminator(weights, frames, near)), np.array(discriminator(weights, frames, far))
    )


def test_the_recurrent_discriminator_remembers_only_what_was(tiny_duralava: Recipe) -> None:
    discriminator = make_discriminator(tiny_duralava)
    weights = discriminator.init(mx.random.key(0))
    features = mx.random.normal((2, 6), key=mx.random.key(1))
    rest = mx.random.normal((2, 5), key=mx.random.key(2))
    assert isinstance(discriminator, nets.RecurrentDiscriminator)
    once = discriminator.cell(weights, features, mx.zeros((2, 5)))
    twice = discriminator.cell(weights, features, rest)
    assert once.shape == (2, 5)
    assert not np.allclose(np.array(once), np.array(twice))


def test_batch_norm_uses_its_batch_or_kept_statistics() -> None:
    x = 3 + 2 * mx.random.normal((8, 4, 4, 5), key=mx.random.key(0))
    weights = nets.init_batch_norm(5)
    normal, used = nets.batch_norm(weights, x)
    assert np.allclose(np.array(normal.mean((0, 1, 2))), 0, atol=1e-4)
    assert np.allclose(np.array(normal.var((0, 1, 2))), 1, atol=1e-2)
    alone, _ = nets.batch_norm(weights, x[:1], used)
    assert np.allclose(np.array(alone), np.array(normal[:1]), atol=1e-5)
