"""The generator G of `lava`: states → frames (N, H, W, 3) in [0, 1].

A network is a small object built from a recipe: ``init(key)`` makes its weights, a plain tree of arrays, and
calling it with weights is a pure function.
"""

from __future__ import annotations

import math
from itertools import pairwise

from mlxlava.backend import Tree, mx
from mlxlava.backend.ops import leaky_relu, pixel_shuffle
from mlxlava.config import Recipe
from mlxlava.models.layers import HE_GAIN, conv3_with_bias, dense, init_conv, init_dense, init_shuffle_conv


class ShuffleGenerator:
    """Linear → 3×3 convolutions with pixel shuffle → 3×3 convolution and sigmoid, no normalisation."""

    def __init__(self, recipe: Recipe) -> None:
        widths = recipe.generator.widths
        size = recipe.drawn_size
        self.state_size = recipe.generator.state_size
        self.base = tuple(side // 2 ** len(widths) for side in size)
        self.widths = (*widths, recipe.generator.last_width)
        self.background = (*size, 3) if recipe.generator.background else None

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = mx.random.split(key, len(self.widths) + 1)
        weights: Tree = {"dense": init_dense(keys[0], self.state_size, math.prod(self.base) * self.widths[0])}
        for i, (inputs, outputs) in enumerate(pairwise(self.widths)):
            weights[f"up{i}"] = init_shuffle_conv(keys[i + 1], inputs, outputs)
        # A background is the footage's mean. Beside it the output starts small, so that frames start near the
        # mean.
        weights["out"] = init_conv(keys[-1], 3, self.widths[-1], 3, 0.1 if self.background else HE_GAIN)
        if self.background:
            # Taken from the footage (training/initial_state.py), not learned. Glass, base and room stand
            # still. So the convolutions need not draw them in every frame, and cannot make them shimmer.
            weights["background"] = mx.zeros(self.background)
            # The variance mask, under its name in files of weights.
            weights["gate"] = mx.ones(self.background)
        return weights

    def init_stats(self) -> Tree:
        """It has no statistics."""
        return {}

    def __call__(self, weights: Tree, states: mx.array, stats: Tree | None = None) -> tuple[mx.array, Tree]:
        """(N, Z) → frames (N, H, W, 3) in [0, 1], and no statistics."""
        x = leaky_relu(dense(weights["dense"], states))
        x = x.reshape(-1, *self.base, self.widths[0])
        for i in range(len(self.widths) - 1):
            x = leaky_relu(pixel_shuffle(conv3_with_bias(weights[f"up{i}"], x)))
        x = conv3_with_bias(weights["out"], x)
        if self.background:
            x = mx.stop_gradient(weights["background"]) + mx.stop_gradient(weights["gate"]) * x
        return mx.sigmoid(x), {}


def to_uint8_frames(frames: mx.array) -> mx.array:
    """Frames in [0, 1] as uint8 of the same shape."""
    return (frames * 255 + 0.5).astype(mx.uint8)
