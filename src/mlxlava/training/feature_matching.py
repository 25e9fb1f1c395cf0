"""Feature matching: over many steps, drawn clips have the averages of real ones (Salimans 2016, section 3.1).

The discriminator judges one clip at a time. That lamps from random states move a fifth too fast, or have a
little too much wax, can hardly be seen in one clip, since real clips differ by more. In the average of a
thousand clips it is plain. So running averages of a few features are kept, of real clips and of drawn ones.
With f a feature, and averages over the last fifty steps or so, G and R minimise::

    half the sum of  ((average of drawn f  −  average of real f) / scale of f)²

as if only this step's drawn clips could still change. The features of a clip are

- means: of each block of its frames, for each colour. Blocks are of four sizes, up to the whole frame: so its
  amount of wax counts as much as where the wax is;
- spreads: the squared distance of these from the average of real clips;
- changes: how much a pixel changes from one of its frames to another, by the learned steps between them (1,
  2 to 3, 4 to 7 …). As absolute values: a soft edge that moves changes as much as a sharp one.
"""

from __future__ import annotations

import math

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.config import Recipe

_LEVELS = ((1, 1), (2, 1), (4, 2), (8, 4))  # rows and columns of the blocks of a frame, a size of block each
_DECAY = 0.98  # of the running sums, a step
_FIRST = 15.0  # steps (as the sum decays) that make an average good enough to learn from
_LEAST = 1e-6


class FeatureMatching:
    """The features of a recipe's clips, and the loss that makes their averages alike.

    The run state has decaying sums over the steps: ``real`` and ``drawn``, each of ``means`` (M,),
    ``spreads`` (M,) and ``changes`` (S,); and ``steps``, the same sum of ones.
    """

    def __init__(self, recipe: Recipe) -> None:
        height, width = recipe.data.size
        levels = [(math.gcd(height, rows), math.gcd(width, columns)) for rows, columns in _LEVELS]
        self._levels = list(dict.fromkeys(levels))
        # Each level counts alike, whatever the number of its blocks.
        counts = [3 * math.prod(level) for level in self._levels]
        self._shares = mx.concatenate([mx.full((count,), 1 / (count * len(counts))) for count in counts])
        self._spans = max(1, (recipe.data.seq_len - 1).bit_length())

    def init(self) -> Tree:
        """The sums before the first step."""
        means = len(self._shares)

        def zeros() -> Tree:
            return {
                "means": mx.zeros((means,)),
                "spreads": mx.zeros((means,)),
                "changes": mx.zeros((self._spans,)),
            }

        return {"real": zeros(), "drawn": zeros(), "steps": mx.zeros(())}

    def loss(self, sums: Tree, real: mx.array, drawn: mx.array, times: mx.array) -> tuple[mx.array, Tree]:
        """The loss of drawn clips, and what this step adds to the sums.

        The loss is an average over clips, so micro-batches give what the whole batch gives.

        Args:
            sums: as they were after the step before.
            real: real clips (B, K, H, W, 3) in [0, 1].
            drawn: drawn clips, of the same shape.
            times: learned steps of the frames in their clips, int32 (B, K).
        """
        steps = mx.maximum(sums["steps"], _LEAST)
        averages = tree_map(lambda array: array / steps, sums)
        centre = averages["real"]["means"]
        of_real, of_drawn = (self._features(clips, times, centre) for clips in (real, drawn))

        variance = averages["real"]["spreads"] + _LEAST
        change = averages["real"]["changes"] + _LEAST
        weights = {
            "means": self._shares / variance,
            "spreads": self._shares / (2 * variance**2),
            "changes": 1 / (len(change) * change**2),
        }
        terms = [
            (weights[name] * (averages["drawn"][name] - averages["real"][name]) * of_drawn[name]).sum()
            for name in weights
        ]
        known = (sums["steps"] > _FIRST).astype(mx.float32)
        added = {"real": of_real, "drawn": of_drawn, "steps": mx.array(1.0)}
        return known * sum(terms, mx.array(0.0)), tree_map(mx.stop_gradient, added)

    def error(self, sums: Tree) -> mx.array:
        """How far apart the averages are: about what the loss is half of."""
        steps = mx.maximum(sums["steps"], _LEAST)
        real, drawn = (tree_map(lambda array: array / steps, sums[name]) for name in ("real", "drawn"))
        variance, change = real["spreads"] + _LEAST, real["changes"] + _LEAST
        squares = (
            self._shares * (drawn["means"] - real["means"]) ** 2 / variance,
            self._shares * ((drawn["spreads"] - real["spreads"]) / variance) ** 2 / 2,
            ((drawn["changes"] - real["changes"]) / change) ** 2 / len(change),
        )
        return sum((square.sum() for square in squares), mx.array(0.0))

    def _features(self, clips: mx.array, times: mx.array, centre: mx.array) -> Tree:
        """Features of clips (B, K, H, W, 3), averaged over the clips."""
        count, frames = clips.shape[:2]
        pixels = clips.flatten(0, 1)  # (B, K, H, W, 3) -> (B K, H, W, 3)
        levels = []
        for rows, columns in reversed(self._levels):  # finest first: a level is averaged from the one before
            _, height, width, _ = pixels.shape
            pixels = pixels.reshape(-1, rows, height // rows, columns, width // columns, 3).mean((2, 4))
            levels.append(pixels.reshape(count * frames, -1))
        means = mx.concatenate(levels[::-1], axis=1)  # (B K, M)
        gaps = (times[:, 1:] - times[:, :-1])[..., None]
        first = 2 ** mx.arange(self._spans)
        within = ((gaps >= first) & (gaps < 2 * first)).astype(mx.float32)  # (B, K − 1, S)
        change = mx.abs(clips[:, 1:] - clips[:, :-1]).mean((2, 3, 4))
        return {
            "means": means.mean(0),
            "spreads": ((means - centre) ** 2).mean(0),
            "changes": (within * change[..., None]).sum(1).mean(0),
        }


def add(sums: Tree, step: Tree) -> Tree:
    """The sums after a step."""
    after: Tree = tree_map(lambda old, new: _DECAY * old + new, sums, step)
    return after
