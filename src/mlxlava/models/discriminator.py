"""The discriminator D of `lava`: frames of a clip → one logit. Training alone needs it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.layers import dense, downsample, init_conv, init_dense

Frames = mx.array | tuple[mx.array, mx.array]


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

    def __call__(
        self, weights: Tree, frames: Frames, times: mx.array, *, weight_gradient_first: bool = True
    ) -> Any:
        """Frames (B, K, H, W, 3) at learned steps ``times`` (B, K) → logits (B,).

        The same frames twice give logits twice, for two losses, and the weights only learn of the first.
        ``weight_gradient_first`` is that of :func:`mlxlava.backend.ops.conv4_stride2`.
        """
        if not isinstance(frames, mx.array):
            first, second = frames
            return self(weights, first, times), self(tree_map(mx.stop_gradient, weights), second, times)
        batch, count = times.shape
        x = 2 * frames.flatten(0, 1) - 1  # (B, K, H, W, 3) -> (B K, H, W, 3)
        for i in range(len(self.widths)):
            x = downsample(weights[f"down{i}"], x, weight_gradient_first)
        single = downsample(weights["single"], x, weight_gradient_first).flatten(1)
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
        x = downsample(weights["joint"], x, weight_gradient_first).flatten(1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"hidden{i}"], x))
        return logit + dense(weights["out"], x)[:, 0]
