"""Generators (state → frame) and discriminators (frames → logits).

A net is a small object built from a recipe: ``init(key)`` makes its weights, a plain tree of
arrays, and calling it with weights is a pure function. Frames are (N, H, W, 3) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

from mlxlava.backend import Tree, current_stream, mx, part_count, side_by_side, stream_of, tree_map
from mlxlava.backend.ops import Convolution, conv3, conv_down, conv_up, depth_to_space, without_weights
from mlxlava.config import Recipe

Frames = mx.array | tuple[mx.array, mx.array]

SLOPE = 0.2  # of every leaky ReLU (duralava; R3GAN, Huang 2024)


def leaky_relu(x: mx.array) -> mx.array:
    """x where positive, else 0.2 x; as a maximum it is one fused pass."""
    return mx.maximum(x, SLOPE * x)


def dense(weights: Tree, x: mx.array) -> mx.array:
    """(…, I) → (…, O)."""
    return mx.addmm(weights["bias"], x, weights["weight"].T)


_NARROW = -3.0  # log variance of an encoded state at first
_ROOT_ROUNDS = (
    20  # of inverse_root; each makes the smallest eigenvalue 9/4 times as large until it is near one
)
_HE = math.sqrt(2)  # gain that keeps the variance through leaky ReLUs (He 2015)


def init_dense(key: mx.array, inputs: int, outputs: int, gain: float = _HE) -> Tree:
    """Normal weights of variance gain² / inputs, zero bias."""
    scale = gain / math.sqrt(inputs)
    return {"weight": scale * mx.random.normal((outputs, inputs), key=key), "bias": mx.zeros((outputs,))}


def init_conv(key: mx.array, side: int, inputs: int, outputs: int, gain: float = _HE) -> Tree:
    """Weights (O, side, side, I) of variance gain² / (side² I), zero bias."""
    scale = gain / math.sqrt(side * side * inputs)
    weight = scale * mx.random.normal((outputs, side, side, inputs), key=key)
    return {"weight": weight, "bias": mx.zeros((outputs,))}


def glorot(inputs: int, outputs: int) -> float:
    """The gain of Glorot 2010, TensorFlow's default and so duralava's: variance 2 / (inputs + outputs)."""
    return math.sqrt(2 * inputs / (inputs + outputs))


def convolve(form: Convolution, weights: Tree, x: mx.array) -> mx.array:
    """A convolution of conv.py with its bias."""
    bias: mx.array = weights["bias"]
    return form(x, weights["weight"]) + bias


def halve(weights: Tree, x: mx.array) -> mx.array:
    """4×4 convolution of stride 2 with its bias, and leaky ReLU: (N, H, W, I) → (N, H/2, W/2, O)."""
    return _biased_relu(weights["bias"], conv_down(x, weights["weight"]))


def _biased_relu(bias: mx.array, x: mx.array) -> mx.array:
    return _scaled_relu(current_stream())(x, mx.ones_like(bias), bias)


def _swapped(form: Convolution, kernel: mx.array, x: mx.array) -> mx.array:
    return form(x, kernel)


def batch_norm(
    weights: Tree, parts: list[mx.array], bias: mx.array | float = 0.0, stats: Tree | None = None
) -> tuple[list[mx.array], Tree]:
    """BatchNorm over all axes but the last (Ioffe and Szegedy 2015), then leaky ReLU; in one pass.

    Args:
        weights: ``scale`` and ``bias`` (C,).
        parts: of the batch, (…, C) each.
        bias: (C,) of the convolution before, not yet added. The batch's own mean takes it away again, so
            training is spared a pass for it and another for its gradient.
        stats: ``mean`` and ``var`` to use instead of the batch's own.

    Returns:
        The parts and the statistics that were used.
    """
    if stats is None:
        count = sum(part.size for part in parts) // parts[0].shape[-1]
        sums = side_by_side(_sums, parts)
        mean, square = (mx.stack(list(which)).sum(0) / count for which in zip(*sums, strict=True))
        # |mean| stays small against the deviation here.
        stats = {"mean": mean + bias, "var": mx.maximum(square - mean * mean, 0)}
    scale = weights["scale"] * mx.rsqrt(stats["var"] + 1e-3)
    shift = weights["bias"] + (bias - stats["mean"]) * scale
    return side_by_side(lambda x: _scaled_relu(current_stream())(x, scale, shift), parts), stats


@cache
def _scaled_relu(stream: int) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    """Leaky ReLU of x · scale + shift, whose gradient needs only x and the result (MLX would keep three).

    Of x in half precision the result is too; sums over the batch are float32.
    """

    def apply(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
        return leaky_relu(x * scale.astype(x.dtype) + shift.astype(x.dtype))

    custom: Any = mx.custom_function(apply)

    def vjp(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        x, scale, shift = primals
        axes = tuple(range(x.ndim - 1))
        with mx.stream(stream_of(stream)):
            slope = SLOPE + (1 - SLOPE) * (output > 0).astype(x.dtype)
            cotangent = cotangent * slope
            exact, exact_x = cotangent.astype(mx.float32), x.astype(mx.float32)
            by_scale, by_shift = (exact * exact_x).sum(axes), exact.sum(axes)
            return (
                cotangent * scale.astype(x.dtype),
                by_scale.astype(scale.dtype),
                by_shift.astype(shift.dtype),
            )

    custom.vjp(vjp)
    wrapped: Callable[[mx.array, mx.array, mx.array], mx.array] = custom
    return wrapped


def _sums(x: mx.array) -> tuple[mx.array, mx.array]:
    """Σ x and Σ x² over all axes but the last, float32: in float16 Σ x² overflows at a recipe's own batch."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(mx.float32)
    return x.sum(axes), (x * x).sum(axes)


# (parts, weights …) → parts
Layer = Callable[..., list[mx.array]]
Parts = list[mx.array]


def _forked(layer: Layer, first: Parts, second: Parts, *weights: mx.array) -> tuple[Parts, Parts]:
    """A layer of parts that are there twice, its results twice; computed once.

    What comes back to the first results goes on to the first parts and to the weights, what comes back to
    the second ones to the second parts alone. So two losses share a way forward, but not the way back.
    """
    count, known = len(first), len(weights)

    def forward(*arrays: mx.array) -> Parts:
        results = layer(list(arrays[known : known + count]), *arrays[:known])
        return [*results, *results]

    def backward(primals: Parts, cotangents: Parts, outputs: Parts) -> Parts:
        # Both parts are the same. What is between them and the results is computed anew: cheap, since layers
        # end with what is not, and else it would have to be kept.
        parts = list(primals[known : known + count])
        weights, for_first, for_second = primals[:known], cotangents[:count], cotangents[count:]
        _, by_first = mx.vjp(
            lambda *arrays: layer(list(arrays[known:]), *arrays[:known]), [*weights, *parts], for_first
        )
        with without_weights():
            _, by_second = mx.vjp(lambda *parts: layer(list(parts), *weights), parts, for_second)
        return [*by_first, *by_second]

    custom: Any = mx.custom_function(forward)
    custom.vjp(backward)
    results = list(custom(*weights, *first, *second))
    return results[:count], results[count:]


def split(x: mx.array, count: int) -> list[mx.array]:
    """``x`` cut into ``count`` parts along its first axis, alike in length but for one."""
    cuts = [len(x) * i // count for i in range(1, count)]
    return list(mx.split(x, cuts)) if cuts else [x]


def init_batch_norm(channels: int) -> Tree:
    """Scale 1, bias 0."""
    return {"scale": mx.ones((channels,)), "bias": mx.zeros((channels,))}


class ShuffleGenerator:
    """Linear → 3×3 convolutions with pixel shuffle → 3×3 convolution and sigmoid, no normalisation."""

    def __init__(self, recipe: Recipe) -> None:
        widths = recipe.generator.widths
        self.size = recipe.data.size
        self.state_size = recipe.generator.state_size
        self.base = tuple(side // 2 ** len(widths) for side in recipe.data.size)
        self.widths = (*widths, recipe.generator.last_width)
        self.background = (*recipe.data.size, 3) if recipe.generator.background else None

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = mx.random.split(key, len(self.widths) + 1)
        weights: Tree = {"dense": init_dense(keys[0], self.state_size, math.prod(self.base) * self.widths[0])}
        for i, (inputs, outputs) in enumerate(pairwise(self.widths)):
            conv = init_conv(keys[i + 1], 3, inputs, outputs)
            # The four phases start alike (ICNR, Aitken 2017): no checkerboard to unlearn.
            conv = {name: mx.concatenate([value] * 4) for name, value in conv.items()}
            weights[f"up{i}"] = conv
        # Beside a background, which is the footage's mean, small: at first nothing has to be unlearned.
        weights["out"] = init_conv(keys[-1], 3, self.widths[-1], 3, 0.1 if self.background else _HE)
        if self.background:
            # Taken from the footage (train.py), not learned. Glass, base and room stand still: convolutions
            # need not draw them anew in every frame, and cannot make them shimmer.
            weights["background"] = mx.zeros(self.background)
            weights["gate"] = mx.ones(self.background)
        return weights

    def init_stats(self) -> Tree:
        """No statistics to keep."""
        return {}

    def __call__(self, weights: Tree, states: mx.array, stats: Tree | None = None) -> tuple[mx.array, Tree]:
        """(N, Z) → frames (N, H, W, 3) in [0, 1], and {}."""
        parts = split(states, part_count(len(states), math.prod(self.size)))
        return mx.concatenate(side_by_side(lambda part: self._draw(weights, part), parts)), {}

    def _draw(self, weights: Tree, states: mx.array) -> mx.array:
        x = leaky_relu(dense(weights["dense"], states))
        x = x.reshape(-1, *self.base, self.widths[0])
        for i in range(len(self.widths) - 1):
            x = leaky_relu(depth_to_space(convolve(conv3, weights[f"up{i}"], x)))
        x = convolve(conv3, weights["out"], x)
        if self.background:
            x = mx.stop_gradient(weights["background"]) + mx.stop_gradient(weights["gate"]) * x
        return mx.sigmoid(x)


class TransposedGenerator:
    """duralava's: 4×4 transposed convolutions with BatchNorm and leaky ReLU, sigmoid at the end."""

    def __init__(self, recipe: Recipe) -> None:
        widths = recipe.generator.widths
        self.size = recipe.data.size
        self.state_size = recipe.generator.state_size
        self.base = tuple(side // 2 ** len(widths) for side in recipe.data.size)
        self.widths = widths

    def init(self, key: mx.array) -> Tree:
        """Weights; the first transposed convolution meets one pixel, so it is a matrix."""
        keys = mx.random.split(key, len(self.widths) + 1)
        outputs = math.prod(self.base) * self.widths[0]
        gain = glorot(self.state_size, self.widths[0]) / math.sqrt(math.prod(self.base))
        weights = {"dense": init_dense(keys[0], self.state_size, outputs, gain)}
        for i, (inputs, outputs) in enumerate(pairwise((*self.widths, 3))):
            weights[f"up{i}"] = init_conv(keys[i + 1], 4, inputs, outputs, glorot(inputs, outputs))
        for i, channels in enumerate(self.widths):
            weights[f"norm{i}"] = init_batch_norm(channels)
        return weights

    def init_stats(self) -> Tree:
        """Running mean and variance of every BatchNorm, for playing."""
        return {
            f"norm{i}": {"mean": mx.zeros((channels,)), "var": mx.ones((channels,))}
            for i, channels in enumerate(self.widths)
        }

    def __call__(self, weights: Tree, states: mx.array, stats: Tree | None = None) -> tuple[mx.array, Tree]:
        """(N, Z) → frames (N, H, W, 3) in [0, 1], and the BatchNorm statistics that were used.

        ``stats`` None takes the batch's own, as training does.
        """
        used = {}
        parts = split(states, part_count(len(states), math.prod(self.size)))
        parts = side_by_side(
            lambda z: dense(weights["dense"], z).reshape(-1, *self.base, self.widths[0]), parts
        )
        bias: mx.array | float = 0.0  # that of the matrix differs from pixel to pixel
        for i in range(len(self.widths)):
            norm, up = f"norm{i}", weights[f"up{i}"]
            parts, used[norm] = batch_norm(weights[norm], parts, bias, stats and stats[norm])
            parts = side_by_side(partial(_swapped, conv_up, up["weight"]), parts)
            bias = up["bias"]
        parts = side_by_side(lambda x: mx.sigmoid(x + bias), parts)
        return mx.concatenate(parts), used


class Encoder:
    """A few frames of a clip, evenly spaced → the normal law of the state it is rolled from (training only).

    It makes G and R a latent variable model of clips, the variational autoencoder of Kingma 2014 with a
    state that moves, as in latent ODEs (Rubanova 2019).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.views = recipe.encoder.views
        self.widths = recipe.encoder.widths
        self.hidden = recipe.encoder.hidden
        self.state_size = recipe.generator.state_size
        self.end = tuple(side // 2 ** len(self.widths) for side in recipe.data.size)

    def init(self, key: mx.array) -> Tree:
        """Weights; laws start narrow, about means that are spread like N(0, I)."""
        keys = iter(mx.random.split(key, len(self.widths) + len(self.hidden) + 2))
        weights: Tree = {}
        for i, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weights[f"down{i}"] = init_conv(next(keys), 4, inputs, outputs)
        widths = (self.views * math.prod(self.end) * self.widths[-1], *self.hidden)
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            weights[f"hidden{i}"] = init_dense(next(keys), inputs, outputs)
        weights["mean"] = init_dense(next(keys), widths[-1], self.state_size, 1.0)
        weights["log_variance"] = init_dense(next(keys), widths[-1], self.state_size, 0.1)
        weights["log_variance"]["bias"] = mx.full((self.state_size,), _NARROW)
        return weights

    def __call__(self, weights: Tree, frames: mx.array) -> tuple[mx.array, mx.array]:
        """Frames about zero (B, V, H, W, 3) → mean and log variance (B, Z), yet to be standardised."""
        parts = split(frames, part_count(len(frames), math.prod(frames.shape[1:4])))
        x = mx.concatenate(side_by_side(lambda part: self._look(weights, part), parts))
        return dense(weights["mean"], x), mx.minimum(dense(weights["log_variance"], x), 0)

    def _look(self, weights: Tree, frames: mx.array) -> mx.array:
        x = 4 * frames.flatten(0, 1)  # (B, V, H, W, 3) -> (B V, H, W, 3); to a deviation of about one
        for i in range(len(self.widths)):
            x = halve(weights[f"down{i}"], x)
        x = x.reshape(len(frames), -1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"hidden{i}"], x))
        return x


def standardise(mean: mx.array, log_variance: mx.array) -> tuple[mx.array, mx.array]:
    """Laws of states (B, Z) such that over the batch each number of a state has mean 0 and variance 1.

    The means are standardised, as in Zhu 2020 (BN-VAE), to what the variances leave of that. Without it the
    encoder starts by saying little, and G learns states that are shorter than those it will play.
    """
    left = 1 - mx.exp(log_variance).mean(0)
    return (mean - mean.mean(0)) * mx.sqrt(left / (mean.var(0) + 1e-6)), log_variance


def whiten(
    mean: mx.array, log_variance: mx.array, covariance: mx.array, ridge: float
) -> tuple[mx.array, mx.array]:
    """Means of standardised laws (B, Z) made nearly uncorrelated, as the numbers of N(0, I) are.

    Numbers that are standardised one by one may still be strongly correlated. Then states lie in a thin
    ellipsoid, and lamps are played from states outside of it. The means are multiplied by the inverse root of
    their covariance (ZCA whitening; Huang 2018, Decorrelated Batch Normalization). That is a running average,
    since a batch has fewer clips than a state has numbers; no gradient goes through it.

    Args:
        mean: of :func:`standardise`.
        log_variance: of :func:`standardise`.
        covariance: running average (Z, Z) of what this gives.
        ridge: added to the variances, so that directions in which the means hardly differ stay narrow.

    Returns:
        The means, and the covariance (Z, Z) of this batch's, each number divided by its deviation.
    """
    deviation = mx.sqrt(1 - mx.exp(log_variance).mean(0))
    unit = mean / deviation
    own = mx.stop_gradient(unit.T @ unit / len(unit))
    root = inverse_root(mx.stop_gradient(covariance) + ridge * mx.eye(len(covariance)))
    return (unit @ root) * deviation, own


def inverse_root(matrix: mx.array) -> mx.array:
    """The inverse root of a symmetric positive matrix (Z, Z), by Newton–Schulz steps (Higham 2008, ch. 6).

    It is made of products alone, so it compiles and runs on every device. Condition numbers to 10⁴ are fine.
    """
    size = len(matrix)
    scale = mx.sqrt((matrix * matrix).sum())
    y, z = matrix / scale, mx.eye(size)
    for _ in range(_ROOT_ROUNDS):
        turn = 0.5 * (3 * mx.eye(size) - z @ y)
        y, z = y @ turn, turn @ z
    return z / mx.sqrt(scale)


class FramesDiscriminator:
    """A few frames of a clip and the gaps between them → one logit a clip.

    Every frame goes through one trunk; the map of a clip's first frame and the changes from each
    to the next are looked at together. A change is scaled by a learned function of the log gap
    (after DIGAN, Yu 2022, and StyleGAN-V, Skorokhodov 2022), without which the small ones of
    neighbouring frames would drown and haste pass for motion; a head on single frames is added.
    One logit a clip, because then the gradients of the discriminator's and the generator's loss
    by the frames differ by one factor a clip and come from a single backward pass (step.py).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.widths = recipe.discriminator.widths
        self.hidden = recipe.discriminator.hidden
        self.count = recipe.data.drawn_frames or recipe.data.seq_len
        self.end = tuple(side // 2 ** (len(self.widths) + 1) for side in recipe.data.size)

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = iter(mx.random.split(key, len(self.widths) + len(self.hidden) + 6))
        last, pixels = self.widths[-1], math.prod(self.end)
        weights: Tree = {}
        for i, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weights[f"down{i}"] = init_conv(next(keys), 4, inputs, outputs)
        weights["single"] = init_conv(next(keys), 4, last, last // 2)
        weights["single_out"] = init_dense(next(keys), pixels * (last // 2), 1, 1.0)
        if self.count > 1:
            # e · gap^−0.7: neighbours' changes come near the size of the maps, and far ones stay there.
            weights["gaps"] = {"weight": mx.full((last, 1), -0.7), "bias": mx.ones((last,))}
            weights["joint"] = init_conv(next(keys), 4, self.count * last, last)
            for i, (inputs, outputs) in enumerate(pairwise((pixels * last, *self.hidden))):
                weights[f"hidden{i}"] = init_dense(next(keys), inputs, outputs)
            weights["out"] = init_dense(next(keys), (pixels * last, *self.hidden)[-1], 1, 1.0)
        return weights

    def __call__(self, weights: Tree, frames: Frames, times: mx.array) -> Any:
        """Frames (B, K, H, W, 3) at learned steps ``times`` (B, K) → logits (B,).

        The same frames twice give logits twice, for two losses, and the weights only learn of the first.
        """
        if not isinstance(frames, mx.array):
            first, second = frames
            return self(weights, first, times), self(tree_map(mx.stop_gradient, weights), second, times)
        count = part_count(len(frames), math.prod(frames.shape[1:4]))
        parts = list(zip(split(frames, count), split(times, count), strict=True))
        return mx.concatenate(side_by_side(lambda part: self._judge(weights, *part), parts))

    def _judge(self, weights: Tree, frames: mx.array, times: mx.array) -> mx.array:
        batch, count = times.shape
        x = 2 * frames.flatten(0, 1) - 1  # (B, K, H, W, 3) -> (B K, H, W, 3)
        for i in range(len(self.widths)):
            x = halve(weights[f"down{i}"], x)
        single = halve(weights["single"], x).flatten(1)
        logit = dense(weights["single_out"], single).reshape(batch, count).mean(1)
        if self.count == 1:
            return logit
        _, height, width, channels = x.shape
        x = x.reshape(batch, count, height, width, channels)
        gaps = mx.log((times[:, 1:] - times[:, :-1]).astype(x.dtype))[..., None]
        scale = mx.exp(dense(weights["gaps"], gaps))[:, :, None, None]  # (B, K − 1, 1, 1, C)
        x = mx.concatenate([x[:, :1], scale * (x[:, 1:] - x[:, :-1])], axis=1)
        # (B, K, h, w, C) -> (B, h, w, K C)
        x = x.transpose(0, 2, 3, 1, 4).reshape(batch, height, width, count * channels)
        x = halve(weights["joint"], x).flatten(1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"hidden{i}"], x))
        return logit + dense(weights["out"], x)[:, 0]


class RecurrentDiscriminator:
    """duralava's: a convolutional encoder of frames, an MLP that remembers, a logit at every step."""

    def __init__(self, recipe: Recipe) -> None:
        self.widths = recipe.discriminator.widths
        self.features = recipe.discriminator.features
        self.state = recipe.discriminator.state
        self.hidden = recipe.discriminator.hidden
        self.end = tuple(side // 2 ** len(self.widths) for side in recipe.data.size)

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = iter(mx.random.split(key, len(self.widths) + len(self.hidden) + 5))

        def layer(inputs: int, outputs: int) -> Tree:
            return init_dense(next(keys), inputs, outputs, glorot(inputs, outputs))

        weights: Tree = {}
        for i, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weights[f"down{i}"] = init_conv(next(keys), 4, inputs, outputs, glorot(inputs, outputs))
            if i:
                weights[f"norm{i}"] = init_batch_norm(outputs)
        # The last convolution covers all that is left of the picture, so it is a matrix.
        weights["features"] = layer(math.prod(self.end) * self.widths[-1], self.features)
        widths = (self.features + self.state, *self.hidden)
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            weights[f"cell{i}"] = layer(inputs, outputs)
        weights["cell_out"] = layer(widths[-1], self.state)
        head = self.hidden[-1] if self.hidden else self.state
        weights["head"] = layer(self.state, head)
        weights["head_out"] = layer(head, 1)
        return weights

    def encode(self, weights: Tree, frames: mx.array) -> mx.array:
        """Frames (N, H, W, 3) → features (N, F); BatchNorm uses the statistics of this call."""
        parts = self._split(frames)
        for layer, own in self._layers(weights):
            parts = layer(parts, *own)
        return mx.concatenate(parts)

    def encode_twice(self, weights: Tree, first: mx.array, second: mx.array) -> tuple[mx.array, mx.array]:
        """Features of the same frames given twice, for two losses; the weights only learn of the first."""
        parts = self._split(first), self._split(second)
        for layer, own in self._layers(weights):
            parts = _forked(layer, *parts, *own)
        return mx.concatenate(parts[0]), mx.concatenate(parts[1])

    def _split(self, frames: mx.array) -> Parts:
        return split(frames, part_count(len(frames), math.prod(frames.shape[1:3])))

    def _layers(self, weights: Tree) -> list[tuple[Layer, tuple[mx.array, ...]]]:
        """From frames to features, one after the other, with their weights; each ends with a product."""

        def convolve(parts: Parts, weight: mx.array) -> Parts:
            return side_by_side(partial(_swapped, conv_down, weight), parts)

        def first(parts: Parts, bias: mx.array, weight: mx.array) -> Parts:
            return convolve(side_by_side(partial(_biased_relu, bias), parts), weight)

        def norm(parts: Parts, scale: mx.array, shift: mx.array, bias: mx.array) -> Parts:
            return batch_norm({"scale": scale, "bias": shift}, parts, bias)[0]

        def middle(parts: Parts, *own: mx.array) -> Parts:
            *of_norm, weight = own
            return convolve(norm(parts, *of_norm), weight)

        def last(parts: Parts, *own: mx.array) -> Parts:
            *of_norm, weight, bias = own
            features = {"weight": weight, "bias": bias}
            return side_by_side(lambda x: leaky_relu(dense(features, x.flatten(1))), norm(parts, *of_norm))

        downs = [weights[f"down{i}"] for i in range(len(self.widths))]
        layers: list[tuple[Layer, tuple[mx.array, ...]]] = [(convolve, (downs[0]["weight"],))]
        own: tuple[mx.array, ...] = (downs[0]["bias"],)
        for i in range(1, len(self.widths)):
            layers.append((middle if i > 1 else first, (*own, downs[i]["weight"])))
            own = (weights[f"norm{i}"]["scale"], weights[f"norm{i}"]["bias"], downs[i]["bias"])
        return [*layers, (last, (*own, weights["features"]["weight"], weights["features"]["bias"]))]

    def cell(self, weights: Tree, features: mx.array, state: mx.array) -> mx.array:
        """Features (B, F) and what is remembered (B, S) → what is remembered next (B, S)."""
        x = mx.concatenate([features, state], axis=-1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"cell{i}"], x))
        return dense(weights["cell_out"], x)

    def __call__(self, weights: Tree, frames: Frames, times: mx.array) -> Any:
        """Frames (B, T, H, W, 3) → logits (B, T); ``times`` are all steps and not looked at.

        The same frames twice give logits twice, for two losses, and the weights only learn of the first.
        """
        if isinstance(frames, mx.array):
            return self._remember(weights, self.encode(weights, frames.flatten(0, 1)), times)
        first, second = self.encode_twice(weights, *(each.flatten(0, 1) for each in frames))
        kept = tree_map(mx.stop_gradient, weights)
        ways = [(weights, first), (kept, second)]
        return tuple(side_by_side(lambda way: self._remember(*way, times), ways))

    def _remember(self, weights: Tree, features: mx.array, times: mx.array) -> mx.array:
        batch, count = times.shape
        features = features.reshape(batch, count, -1)
        state = mx.zeros((batch, self.state), features.dtype)
        states = []
        for t in range(count):
            state = self.cell(weights, features[:, t], state)
            states.append(state)
        x = leaky_relu(dense(weights["head"], mx.stack(states, axis=1)))
        return dense(weights["head_out"], x)[..., 0]


def to_bytes(frames: mx.array) -> mx.array:
    """Frames in [0, 1] as uint8 of the same shape."""
    return (frames * 255 + 0.5).astype(mx.uint8)


Generator = ShuffleGenerator | TransposedGenerator
Discriminator = FramesDiscriminator | RecurrentDiscriminator


def make_generator(recipe: Recipe) -> Generator:
    """The generator that the recipe names."""
    kinds: dict[str, type[Generator]] = {"shuffle": ShuffleGenerator, "transposed": TransposedGenerator}
    return kinds[recipe.generator.kind](recipe)


def make_discriminator(recipe: Recipe) -> Discriminator:
    """The discriminator that the recipe names."""
    kinds: dict[str, type[Discriminator]] = {
        "frames": FramesDiscriminator,
        "recurrent": RecurrentDiscriminator,
    }
    return kinds[recipe.discriminator.kind](recipe)
