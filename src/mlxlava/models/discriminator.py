"""The discriminator D of `lava`: frames of a clip → one logit. It is used in training only."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.layers import conv4_leaky_relu, dense, init_conv, init_dense

FramesForOneOrTwoLosses = mx.array | tuple[mx.array, mx.array]


class FramesDiscriminator:
    """A few frames of a clip and the gaps between them → one logit a clip.

    Every frame goes through the same trunk, which gives a feature map. The map of the first frame, and the
    changes from each map to the next, are judged together. Each change is scaled by a learned function of the
    logarithm of its time gap (after DIGAN, Yu 2022, and StyleGAN-V, Skorokhodov 2022). Otherwise the small
    changes between neighbouring frames would hardly count, and fast motion could not be told from a long gap.
    The logit of single frames is added.

    There is one logit for a clip. So the gradients of D's loss and of G's loss with respect to the frames of
    a clip differ only by a factor, and one backward pass gives both (``Objective.relativistic_loss``).
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
            # e · gap^−0.7: changes over short and over long gaps both begin at about the size of the maps.
            weights["gaps"] = {"weight": mx.full((last, 1), -0.7), "bias": mx.ones((last,))}
            weights["joint"] = init_conv(next(keys), 4, self.count * last, last)
            for i, (inputs, outputs) in enumerate(pairwise((pixels * last, *self.hidden))):
                weights[f"hidden{i}"] = init_dense(next(keys), inputs, outputs)
            weights["out"] = init_dense(next(keys), (pixels * last, *self.hidden)[-1], 1, 1.0)
        return weights

    def __call__(
        self,
        weights: Tree,
        frames: FramesForOneOrTwoLosses,
        times: mx.array,
        *,
        weight_gradient_first: bool = True,
    ) -> Any:
        """Frames (B, K, H, W, 3) at learned steps ``times`` (B, K) → logits (B,).

        If the same frames are given twice, as a pair, the result is a pair of logits for two losses. The
        weights learn only from the first loss. :func:`mlxlava.backend.ops.conv4_stride2` explains
        ``weight_gradient_first``.
        """
        if not isinstance(frames, mx.array):
            first, second = frames
            return self(weights, first, times), self(tree_map(mx.stop_gradient, weights), second, times)
        batch, count = times.shape
        x = 2 * frames.flatten(0, 1) - 1  # (B, K, H, W, 3) -> (B K, H, W, 3)
        for i in range(len(self.widths)):
            x = conv4_leaky_relu(weights[f"down{i}"], x, weight_gradient_first)
        single = conv4_leaky_relu(weights["single"], x, weight_gradient_first).flatten(1)
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
        x = conv4_leaky_relu(weights["joint"], x, weight_gradient_first).flatten(1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"hidden{i}"], x))
        return logit + dense(weights["out"], x)[:, 0]
