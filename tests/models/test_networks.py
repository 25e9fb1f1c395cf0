"""Networks: shapes are what they say, and every input counts."""

from __future__ import annotations

import numpy as np
import pytest

from mlxlava.backend import Tree, arrays_by_name, mx, tree_map, use_gpu_path
from mlxlava.backend.cpu.chunks import Chunks, split_into_chunks
from mlxlava.backend.ops import LEAKY_SLOPE
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.models.duralava import RecurrentDiscriminator, batch_norm_leaky_relu, init_batch_norm
from mlxlava.models.encoder import Encoder, inverse_square_root, standardise, whiten
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.registry import Discriminator, Generator, make_discriminator, make_encoder, make_generator

pytestmark = pytest.mark.device


@pytest.mark.parametrize("name", ["lava", "duralava"])
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 16)])
def test_a_generator_draws_frames_of_any_size(name: str, size: tuple[int, int]) -> None:
    recipe = override(load_recipe(name), {"data.size": size, "generator.widths": [8, 6, 4, 4]})
    generator = make_generator(recipe)
    weights = generator.init(mx.random.key(0))
    frames, _ = generator(weights, mx.random.normal((3, 64), key=mx.random.key(1)), generator.init_stats())
    assert frames.shape == (3, *size, 3)
    assert np.array(frames).min() >= 0 and np.array(frames).max() <= 1
    assert to_uint8_frames(frames).dtype == mx.uint8


def test_a_background_is_added_pixel_by_pixel(tiny: Recipe) -> None:
    generator = make_generator(tiny)
    weights = generator.init(mx.random.key(0))
    states = mx.random.normal((3, 8), key=mx.random.key(1))
    plain, _ = generator(weights, states)
    light = mx.zeros((16, 16, 3))
    light[4, 5, 1] = 2.0
    lit, _ = generator({**weights, "background": light}, states)
    changed = np.argwhere(np.array(plain != lit))
    assert {tuple(place) for place in changed[:, 1:].tolist()} == {(4, 5, 1)}


def test_an_encoder_gives_a_distribution_for_each_clip(tiny: Recipe) -> None:
    encoder = Encoder(tiny)
    frames = mx.random.uniform(shape=(4, 3, 16, 16, 3), key=mx.random.key(1)) - 0.5
    mean, log_variance = standardise(*encoder(encoder.init(mx.random.key(0)), frames))
    assert mean.shape == log_variance.shape == (4, 8)
    # Over the batch the states that may be drawn have mean 0 and variance 1.
    assert np.allclose(np.array(mean.mean(0)), 0, atol=1e-5)
    assert np.allclose(np.array(mean.var(0) + mx.exp(log_variance).mean(0)), 1, atol=1e-3)
    assert (np.array(log_variance) < 0).all()


def test_correlated_numbers_of_states_are_made_independent() -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    spread = mx.exp(mx.random.normal((8,), key=keys[1])) * mx.random.normal((8, 8), key=keys[2])
    raw = mx.random.normal((20_000, 8), key=keys[0]) @ spread
    mean, log_variance = standardise(raw, mx.full(raw.shape, -2.0))
    before = np.linalg.eigvalsh(np.cov(np.array(mean).T))
    assert before.max() / before.min() > 20
    own = whiten(mean, log_variance, mx.eye(8), 0.1)[1]
    white = np.cov(np.array(whiten(mean, log_variance, own, 1e-5)[0]).T)
    # The variance of the means and that of an encoded state are 1 together.
    assert np.allclose(white, (1 - np.exp(-2)) * np.eye(8), atol=2e-3)
    # Directions with less variance than the ridge stay narrow; none is wider than it should be.
    ridged = np.linalg.eigvalsh(np.cov(np.array(whiten(mean, log_variance, own, 0.1)[0]).T))
    assert ridged.max() < 1 - np.exp(-2) and ridged.min() < 0.5


@pytest.mark.parametrize("condition", [10, 1e3, 1e4])
def test_the_inverse_root_of_a_covariance(condition: float) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    matrix = (basis * np.geomspace(5, 5 / condition, 64)) @ basis.T
    root = np.array(inverse_square_root(mx.array(matrix.astype(np.float32))))
    assert np.allclose(root @ matrix @ root, np.eye(64), atol=1e-3)


def test_bytes_are_rounded() -> None:
    assert to_uint8_frames(mx.array([0.0, 0.499 / 255, 0.501 / 255, 1.0])).tolist() == [0, 0, 1, 255]


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
    # The same frames at other times: the same change in less time is faster motion.
    near, far = mx.array([[0, 1, 2]] * 2), mx.array([[0, 2, 5]] * 2)
    assert not np.allclose(
        np.array(discriminator(weights, frames, near)), np.array(discriminator(weights, frames, far))
    )


@pytest.mark.parametrize("kind", ["tiny", "tiny_duralava"])
def test_frames_given_twice_are_judged_for_two_losses(kind: str, request: pytest.FixtureRequest) -> None:
    recipe = request.getfixturevalue(kind)
    discriminator = make_discriminator(recipe)
    weights = discriminator.init(mx.random.key(0))
    count = recipe.data.drawn_frames or recipe.data.seq_len
    frames = mx.random.uniform(shape=(4, count, 16, 16, 3), key=mx.random.key(1))
    times = mx.broadcast_to(mx.arange(count), (4, count))

    def by_both(weights: Tree, frames: mx.array) -> mx.array:
        one, other = discriminator(weights, (mx.stop_gradient(frames), frames), times)
        total: mx.array = (one**2).sum() + mx.sin(3 * other).sum()
        return total

    by_weights = mx.grad(lambda weights: (discriminator(weights, frames, times) ** 2).sum())(weights)
    by_frames = mx.grad(lambda frames: mx.sin(3 * discriminator(weights, frames, times)).sum())(frames)
    of_weights, of_frames = mx.grad(by_both, (0, 1))(weights, frames)
    assert np.allclose(np.array(of_frames), np.array(by_frames), rtol=1e-4, atol=1e-6)
    mine, wanted = arrays_by_name(of_weights), arrays_by_name(by_weights)
    for name, gradient in wanted.items():
        scale = max(float(mx.abs(gradient).max()), 1e-3)
        assert np.allclose(np.array(mine[name]), np.array(gradient), atol=1e-5 * scale), name


def test_the_recurrent_discriminator_remembers_only_what_was(tiny_duralava: Recipe) -> None:
    discriminator = make_discriminator(tiny_duralava)
    weights = discriminator.init(mx.random.key(0))
    features = mx.random.normal((2, 6), key=mx.random.key(1))
    rest = mx.random.normal((2, 5), key=mx.random.key(2))
    assert isinstance(discriminator, RecurrentDiscriminator)
    once = discriminator.recurrent_cell(weights, features, mx.zeros((2, 5)))
    twice = discriminator.recurrent_cell(weights, features, rest)
    assert once.shape == (2, 5)
    assert not np.allclose(np.array(once), np.array(twice))


def test_batch_norm_uses_its_batch_or_kept_statistics() -> None:
    x = 3 + 2 * mx.random.normal((9, 4, 4, 5), key=mx.random.key(0))
    weights = init_batch_norm(5)
    whole, used = batch_norm_leaky_relu(weights, Chunks([x]))
    before_relu = mx.where(whole[0] > 0, whole[0], whole[0] / LEAKY_SLOPE)
    assert np.allclose(np.array(before_relu.mean((0, 1, 2))), 0, atol=1e-4)
    assert np.allclose(np.array(before_relu.var((0, 1, 2))), 1, atol=1e-2)
    alone, _ = batch_norm_leaky_relu(weights, Chunks([x[:1]]), stats=used)
    assert np.allclose(np.array(alone[0]), np.array(whole[0][:1]), atol=1e-5)


def test_batch_norm_is_over_all_chunks_and_takes_a_bias_away() -> None:
    x = 3 + 2 * mx.random.normal((9, 4, 4, 5), key=mx.random.key(0))
    bias = mx.random.normal((5,), key=mx.random.key(1))
    weights = init_batch_norm(5)
    whole, _ = batch_norm_leaky_relu(weights, Chunks([x]))
    chunks, used = batch_norm_leaky_relu(weights, Chunks(split_into_chunks(x, 2)), bias)
    assert [len(chunk) for chunk in chunks] == [4, 5]
    assert np.allclose(np.array(chunks.join()), np.array(whole[0]), atol=1e-5)
    assert np.allclose(np.array(used["mean"]), np.array((x + bias).mean((0, 1, 2))), atol=1e-5)
    kept, _ = batch_norm_leaky_relu(weights, Chunks([x]), bias, used)  # as in playing
    assert np.allclose(np.array(kept[0]), np.array(whole[0]), atol=1e-5)


def test_statistics_of_a_whole_batch_do_not_overflow_in_half_precision() -> None:
    """640×16×16 values, as `duralava` has them: the sum of their squares is beyond float16."""
    x = 3 * mx.random.normal((640, 16, 16, 8), key=mx.random.key(0)) + 1
    slope = mx.random.normal(x.shape, key=mx.random.key(1)) / 64
    weights = {"scale": mx.full((8,), 1.5), "bias": mx.full((8,), 0.25)}

    def loss(weights: dict[str, mx.array], x: mx.array) -> tuple[mx.array, mx.array]:
        (y,), stats = batch_norm_leaky_relu(weights, Chunks([x]))
        return (y.astype(mx.float32) * slope).sum(), stats["var"]

    results = []
    for dtype in (mx.float32, mx.float16):
        given = tree_map(lambda a, dtype=dtype: a.astype(dtype), (weights, x))
        with use_gpu_path():
            (value, var), gradients = mx.value_and_grad(loss, (0, 1))(*given)
        by_weights, by_x = tree_map(lambda a: np.array(a.astype(mx.float32)), gradients)
        results.append((value.item(), np.array(var), by_weights["scale"], by_weights["bias"], by_x))
    for exact, half in zip(*results, strict=True):
        assert np.isfinite(half).all()
        assert np.linalg.norm(half - exact) <= 0.01 * np.linalg.norm(exact)


def test_networks_give_the_same_in_chunks(
    tiny: Recipe, tiny_duralava: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks a batch is cut into: values, and gradients with respect to weights and inputs."""
    for recipe in (tiny, tiny_duralava):
        count = recipe.data.drawn_frames or recipe.data.seq_len
        generator, discriminator = make_generator(recipe), make_discriminator(recipe)
        weights = generator.init(mx.random.key(0)), discriminator.init(mx.random.key(1))
        states = mx.random.normal((4 * count, 8), key=mx.random.key(2))
        times = mx.broadcast_to(mx.arange(count), (4, count))

        def loss(
            weights: tuple[Tree, Tree],
            states: mx.array,
            networks: tuple[Generator, Discriminator] = (generator, discriminator),
            times: mx.array = times,
        ) -> mx.array:
            frames = networks[0](weights[0], states)[0].reshape(*times.shape, 16, 16, 3)
            total: mx.array = (networks[1](weights[1], frames, times) ** 2).mean()
            return total

        found = []
        for chunks in (1, 3):
            name = "mlxlava.backend.cpu.chunks.chunk_count"
            monkeypatch.setattr(name, lambda items, pixels, chunks=chunks: chunks)
            found.append(arrays_by_name({"gradient": mx.grad(loss, (0, 1))(weights, states)}))
        for name, array in found[0].items():
            assert np.allclose(np.array(array), np.array(found[1][name]), rtol=1e-3, atol=1e-5), name


def test_an_encoder_gives_the_same_in_chunks(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(tiny)
    assert encoder is not None
    weights = encoder.init(mx.random.key(0))
    frames = mx.random.uniform(shape=(5, 3, 16, 16, 3), key=mx.random.key(1)) - 0.5
    found = []
    for chunks in (1, 3):
        name = "mlxlava.backend.cpu.chunks.chunk_count"
        monkeypatch.setattr(name, lambda items, pixels, chunks=chunks: chunks)
        found.append([np.array(each) for each in encoder(weights, frames)])
    for one, other in zip(*found, strict=True):
        assert one.shape == (5, 8)
        assert np.allclose(one, other, atol=1e-5)
