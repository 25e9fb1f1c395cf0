"""duralava's generator and discriminator, with BatchNorm (the reference system, 2022; recipe `duralava`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.cpu.chunks import Chunks, forward_once_for_two_losses
from mlxlava.backend.ops import (
    biased_leaky_relu,
    conv4_stride2,
    conv4_transposed,
    leaky_relu,
    scaled_leaky_relu,
)
from mlxlava.config import Recipe
from mlxlava.models.discriminator import FramesForOneOrTwoLosses
from mlxlava.models.layers import dense, glorot_gain, init_conv, init_dense

Layer = Callable[..., Chunks]  # (batch, weights …, weight_gradient_first) → results


def init_batch_norm(channels: int) -> Tree:
    """Scale 1, bias 0."""
    return {"scale": mx.ones((channels,)), "bias": mx.zeros((channels,))}


def batch_norm_leaky_relu(
    weights: Tree, batch: Chunks, bias: mx.array | float = 0.0, stats: Tree | None = None
) -> tuple[Chunks, Tree]:
    """BatchNorm over all axes but the last (Ioffe and Szegedy 2015), then leaky ReLU; in one pass.

    Args:
        weights: ``scale`` and ``bias`` (C,).
        batch: Inputs (…, C).
        bias: Bias (C,) of the convolution before, which has not been added yet. Subtracting the batch's own
            mean removes it again. So training need not add it, nor compute its gradient.
        stats: ``mean`` and ``var`` to use in place of the statistics of the batch.

    Returns:
        The activated batch, and the statistics that were used.
    """
    if stats is None:
        count = sum(x.size for x in batch) // batch[0].shape[-1]
        mean, square = (total / count for total in batch.sum(_sum_and_square_sum))
        # E[x²] − E[x]² is exact enough: |mean| stays small against the deviation here.
        stats = {"mean": mean + bias, "var": mx.maximum(square - mean * mean, 0)}
    scale = weights["scale"] * mx.rsqrt(stats["var"] + 1e-3)
    shift = weights["bias"] + (bias - stats["mean"]) * scale
    return batch.map(lambda x: scaled_leaky_relu(x, scale, shift)), stats


def _sum_and_square_sum(x: mx.array) -> tuple[mx.array, mx.array]:
    """Σ x and Σ x² over all axes but the last, in float32: Σ x² of a batch overflows in float16."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(mx.float32)
    return x.sum(axes), (x * x).sum(axes)


def _conv_transposed_without_bias(weights: Tree, x: mx.array) -> mx.array:
    """(N, H, W, I) → (N, 2H, 2W, O), without the bias. :func:`batch_norm_leaky_relu` takes the bias."""
    return conv4_transposed(x, weights["weight"])


class TransposedGenerator:
    """duralava's generator: 4×4 transposed convolutions with BatchNorm and leaky ReLU, sigmoid at the end."""

    def __init__(self, recipe: Recipe) -> None:
        widths = recipe.generator.widths
        self.size = recipe.drawn_size
        self.state_size = recipe.generator.state_size
        self.base = tuple(side // 2 ** len(widths) for side in self.size)
        self.widths = widths

    def init(self, key: mx.array) -> Tree:
        """Initial weights.

        The first transposed convolution has a single pixel as its input, so it is a matrix.
        """
        keys = mx.random.split(key, len(self.widths) + 1)
        outputs = math.prod(self.base) * self.widths[0]
        gain = glorot_gain(self.state_size, self.widths[0]) / math.sqrt(math.prod(self.base))
        weights = {"dense": init_dense(keys[0], self.state_size, outputs, gain)}
        for i, (inputs, outputs) in enumerate(pairwise((*self.widths, 3))):
            weights[f"up{i}"] = init_conv(keys[i + 1], 4, inputs, outputs, glorot_gain(inputs, outputs))
        for i, channels in enumerate(self.widths):
            weights[f"norm{i}"] = init_batch_norm(channels)
        return weights

    def init_stats(self) -> Tree:
        """Initial running mean and variance of every BatchNorm. Playing uses them."""
        return {
            f"norm{i}": {"mean": mx.zeros((channels,)), "var": mx.ones((channels,))}
            for i, channels in enumerate(self.widths)
        }

    def __call__(self, weights: Tree, states: mx.array, stats: Tree | None = None) -> tuple[mx.array, Tree]:
        """(N, Z) → frames (N, H, W, 3) in [0, 1], and the BatchNorm statistics that were used.

        Without ``stats``, BatchNorm uses the statistics of the batch. Training does that.
        """
        used = {}
        batch = Chunks.from_batch(states, math.prod(self.size)).map(
            lambda z: dense(weights["dense"], z).reshape(-1, *self.base, self.widths[0])
        )
        bias: mx.array | float = 0.0  # the matrix has added its own bias, which differs from pixel to pixel
        for i in range(len(self.widths)):
            norm, up = f"norm{i}", weights[f"up{i}"]
            batch, used[norm] = batch_norm_leaky_relu(weights[norm], batch, bias, stats and stats[norm])
            batch = batch.map(partial(_conv_transposed_without_bias, up))
            bias = up["bias"]
        return batch.map(lambda x: mx.sigmoid(x + bias)).join(), used


class RecurrentDiscriminator:
    """duralava's discriminator: a convolutional encoder of frames, a recurrent MLP, a logit at every step."""

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
            return init_dense(next(keys), inputs, outputs, glorot_gain(inputs, outputs))

        weights: Tree = {}
        for i, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weights[f"down{i}"] = init_conv(next(keys), 4, inputs, outputs, glorot_gain(inputs, outputs))
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

    def encode(self, weights: Tree, frames: mx.array, *, weight_gradient_first: bool = True) -> mx.array:
        """Frames (N, H, W, 3) → features (N, F); BatchNorm uses the statistics of these frames."""
        batch = Chunks.from_batch(frames, math.prod(frames.shape[1:3]))
        for layer, layer_weights in self._frame_layers(weights):
            batch = layer(batch, *layer_weights, weight_gradient_first=weight_gradient_first)
        return batch.join()

    def encode_for_two_losses(
        self, weights: Tree, learned: mx.array, not_learned: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Features of the same frames, given twice, for two losses. Weights learn from the first one only."""
        pixels = math.prod(learned.shape[1:3])
        batches = Chunks.from_batch(learned, pixels), Chunks.from_batch(not_learned, pixels)
        for layer, layer_weights in self._frame_layers(weights):
            batches = forward_once_for_two_losses(layer, *batches, *layer_weights)
        return batches[0].join(), batches[1].join()

    def _frame_layers(self, weights: Tree) -> list[tuple[Layer, tuple[mx.array, ...]]]:
        """The layers from frames to features, each with its weights.

        A layer normalises and activates the result of the layer before, and ends with a convolution or a
        matrix product. :func:`forward_once_for_two_losses` needs layers of this form.
        """

        def first(frames: Chunks, kernel: mx.array, weight_gradient_first: bool) -> Chunks:
            return frames.map(lambda x: conv4_stride2(x, kernel, weight_gradient_first))

        def second(maps: Chunks, bias: mx.array, kernel: mx.array, weight_gradient_first: bool) -> Chunks:
            return maps.map(
                lambda x: conv4_stride2(biased_leaky_relu(x, bias), kernel, weight_gradient_first)
            )

        def normed(
            maps: Chunks,
            scale: mx.array,
            shift: mx.array,
            bias: mx.array,
            kernel: mx.array,
            weight_gradient_first: bool,
        ) -> Chunks:
            maps, _ = batch_norm_leaky_relu({"scale": scale, "bias": shift}, maps, bias)
            return maps.map(lambda x: conv4_stride2(x, kernel, weight_gradient_first))

        def last(
            maps: Chunks,
            scale: mx.array,
            shift: mx.array,
            bias: mx.array,
            matrix: mx.array,
            offset: mx.array,
            weight_gradient_first: bool,  # not used: a matrix product's gradients have no order
        ) -> Chunks:
            maps, _ = batch_norm_leaky_relu({"scale": scale, "bias": shift}, maps, bias)
            out = {"weight": matrix, "bias": offset}
            return maps.map(lambda x: leaky_relu(dense(out, x.flatten(1))))

        downs = [weights[f"down{i}"] for i in range(len(self.widths))]
        layers: list[tuple[Layer, tuple[mx.array, ...]]] = [(first, (downs[0]["weight"],))]
        # The weights with which the next layer activates the result of this one.
        activation: tuple[mx.array, ...] = (downs[0]["bias"],)
        for i in range(1, len(self.widths)):
            layers.append((normed if i > 1 else second, (*activation, downs[i]["weight"])))
            activation = (weights[f"norm{i}"]["scale"], weights[f"norm{i}"]["bias"], downs[i]["bias"])
        return [*layers, (last, (*activation, weights["features"]["weight"], weights["features"]["bias"]))]

    def recurrent_cell(self, weights: Tree, features: mx.array, state: mx.array) -> mx.array:
        """Features (B, F) and recurrent state (B, S) → next recurrent state (B, S)."""
        x = mx.concatenate([features, state], axis=-1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"cell{i}"], x))
        return dense(weights["cell_out"], x)

    def __call__(
        self,
        weights: Tree,
        frames: FramesForOneOrTwoLosses,
        times: mx.array,
        *,
        weight_gradient_first: bool = True,
    ) -> Any:
        """Frames (B, T, H, W, 3) → logits (B, T).

        ``times`` always are all learned steps; only their shape is used.

        If the same frames are given twice, as a pair, the result is a pair of logits for two losses. The
        weights learn only from the first loss. :func:`mlxlava.backend.ops.conv4_stride2` explains
        ``weight_gradient_first``, which has an effect only if frames are given once.
        """
        if isinstance(frames, mx.array):
            frames = frames.flatten(0, 1)
            features = self.encode(weights, frames, weight_gradient_first=weight_gradient_first)
            return self._recurrent_logits(weights, features, times)
        first, second = self.encode_for_two_losses(weights, *(each.flatten(0, 1) for each in frames))
        constant = tree_map(mx.stop_gradient, weights)
        return self._recurrent_logits(weights, first, times), self._recurrent_logits(constant, second, times)

    def _recurrent_logits(self, weights: Tree, features: mx.array, times: mx.array) -> mx.array:
        batch, count = times.shape
        features = features.reshape(batch, count, -1)
        state = mx.zeros((batch, self.state), features.dtype)
        states = []
        for t in range(count):
            state = self.recurrent_cell(weights, features[:, t], state)
            states.append(state)
        x = leaky_relu(dense(weights["head"], mx.stack(states, axis=1)))
        return dense(weights["head_out"], x)[..., 0]
