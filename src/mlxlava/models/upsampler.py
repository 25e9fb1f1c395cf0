"""The upsampling network U of a lamp that has grown: small pictures → frames of full size.

The generator draws a small picture, and U enlarges it (a cascade: Denton 2015; Ho 2022). U is a network for
super-resolution (Shi 2016). It knows nothing of states: it learns from real frames and the same frames made
small (training/upsampling.py).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from mlxlava.backend import Tree, mx
from mlxlava.backend.ops import leaky_relu, pixel_shuffle
from mlxlava.config import Recipe
from mlxlava.models.layers import HE_GAIN, average_pool_to_size, conv3_with_bias, init_conv, init_shuffle_conv

# Factor of the input, so that it has about the variance that He's initial weights expect. Colours lie within
# half a unit of the background, most of them much closer.
INPUT_GAIN = 4.0


class Upsampler:
    """3×3 convolution → 3×3 convolutions with pixel shuffle → 3×3 convolution and sigmoid.

    Attributes:
        input_size: Height and width (h, w) of the small pictures.
        widths: Channels before each doubling of the resolution, and before the last convolution.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.input_size = recipe.drawn_size
        self.widths = (*recipe.generator.upsampler_widths, recipe.generator.last_width)
        self._frame_shape = (*recipe.data.size, 3)
        self._background = recipe.generator.background

    def init(self, key: mx.array) -> Tree:
        """Weights."""
        keys = mx.random.split(key, len(self.widths) + 1)
        weights: Tree = {"in": init_conv(keys[0], 3, 3, self.widths[0])}
        for i, (inputs, outputs) in enumerate(pairwise(self.widths)):
            weights[f"up{i}"] = init_shuffle_conv(keys[i + 1], inputs, outputs)
        # As in the generator, the output starts small beside a background that is taken from the footage.
        weights["out"] = init_conv(keys[-1], 3, self.widths[-1], 3, 0.1 if self._background else HE_GAIN)
        if self._background:
            weights["background"] = mx.zeros(self._frame_shape)
            weights["gate"] = mx.ones(self._frame_shape)
        return weights

    def centre(self, weights: Tree) -> mx.array:
        """The small picture (h, w, 3) that is subtracted from the input: the background, made small."""
        if not self._background:
            return mx.full((*self.input_size, 3), 0.5)
        return average_pool_to_size(mx.sigmoid(mx.stop_gradient(weights["background"])), self.input_size)

    def __call__(self, weights: Tree, pictures: mx.array) -> mx.array:
        """Small pictures (N, h, w, 3) in [0, 1] → frames (N, H, W, 3) in [0, 1]."""
        x = INPUT_GAIN * (pictures - self.centre(weights))
        x = leaky_relu(conv3_with_bias(weights["in"], x))
        for i in range(len(self.widths) - 1):
            x = leaky_relu(pixel_shuffle(conv3_with_bias(weights[f"up{i}"], x)))
        x = conv3_with_bias(weights["out"], x)
        if self._background:
            x = mx.stop_gradient(weights["background"]) + mx.stop_gradient(weights["gate"]) * x
        return mx.sigmoid(x)


class CascadedGenerator:
    """A generator and an upsampling network: states → small pictures → frames.

    Attributes:
        generator: G, whose pictures are small.
        upsampler: U.
    """

    def __init__(self, generator: Any, upsampler: Any) -> None:
        self.generator, self.upsampler = generator, upsampler
        self.state_size = generator.state_size

    def init(self, key: mx.array) -> Tree:
        """Weights: those of the generator, and those of U under ``upsampler``."""
        keys = mx.random.split(key)
        return {**self.generator.init(keys[0]), "upsampler": self.upsampler.init(keys[1])}

    def init_stats(self) -> Tree:
        """Initial BatchNorm statistics of the generator."""
        stats: Tree = self.generator.init_stats()
        return stats

    def __call__(self, weights: Tree, states: mx.array, stats: Tree | None = None) -> tuple[mx.array, Tree]:
        """(N, Z) → frames (N, H, W, 3) in [0, 1], and the BatchNorm statistics of the generator."""
        own = {name: layer for name, layer in weights.items() if name != "upsampler"}
        pictures, used = self.generator(own, states, stats)
        return self.upsampler(weights["upsampler"], pictures), used
