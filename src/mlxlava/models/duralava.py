"""duralava's generator and discriminator, with BatchNorm (the reference system, 2022; recipe `duralava`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from mlxlava.backend import Tree, current_stream, mx, part_count, side_by_side, tree_map
from mlxlava.backend.ops import Convolution, conv_down, conv_up, without_weights
from mlxlava.config import Recipe
from mlxlava.models.discriminator import Frames
from mlxlava.models.layers import (
    biased_relu,
    dense,
    glorot,
    init_conv,
    init_dense,
    leaky_relu,
    scaled_relu,
    split,
)


def init_batch_norm(channels: int) -> Tree:
    """Scale 1, bias 0."""
    return {"scale": mx.ones((channels,)), "bias": mx.zeros((channels,))}


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
    return side_by_side(lambda x: scaled_relu(current_stream())(x, scale, shift), parts), stats


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


def _swapped(form: Convolution, kernel: mx.array, x: mx.array) -> mx.array:
    return form(x, kernel)


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
            return convolve(side_by_side(partial(biased_relu, bias), parts), weight)

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
