"""Feature matching: drawn clips get the same averages as real clips (Salimans 2016, section 3.1).

The discriminator judges one clip at a time. Lamps from random states may move a fifth too fast, or have a
little too much wax. One clip hardly shows this, since real clips differ by more. The average of a thousand
clips shows it plainly. So running averages of a few features are kept, for real clips and for drawn clips. If
f is a feature, and averages are over about the last fifty steps, G and R minimise::

    half the sum of  ((average of drawn f  −  average of real f) / scale of f)²

Only the drawn clips of the present step have a gradient; the sums of earlier steps are constants. The
features of a clip are

- means: the mean colour of each block of a frame. Blocks have four sizes, up to the whole frame. So the
  amount of wax counts as much as the place of the wax;
- spreads: the squared distance of each mean from its average over real clips;
- changes: the mean absolute change of a pixel between two frames, one number for each range of learned steps
  between them (1, 2 to 3, 4 to 7 …). With absolute values, a soft edge that moves counts as much as a sharp
  one.
"""

from __future__ import annotations

import math

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.config import Recipe
from mlxlava.models.layers import average_pool_to_size

# Rows and columns of the blocks of a frame, for each size of blocks.
_BLOCK_GRIDS = ((1, 1), (2, 1), (4, 2), (8, 4))
_SUM_DECAY = 0.98  # factor of the running sums in each step
# Decayed number of steps from which on the averages are exact enough to learn from.
_STEPS_BEFORE_LEARNING = 15.0
_EPSILON = 1e-6


class FeatureMatching:
    """The features of a recipe's clips, and the loss that makes their averages alike.

    The run state holds decaying sums over the steps. ``real`` and ``drawn`` each have ``means`` (M,),
    ``spreads`` (M,) and ``changes`` (S,). ``steps`` is the same decaying sum of ones: the number of steps.
    """

    def __init__(self, recipe: Recipe) -> None:
        height, width = recipe.data.size
        grids = [(math.gcd(height, rows), math.gcd(width, columns)) for rows, columns in _BLOCK_GRIDS]
        self._grids = list(dict.fromkeys(grids))
        # Each grid has the same weight in the loss, whatever the number of its blocks.
        counts = [3 * math.prod(grid) for grid in self._grids]
        self._shares = mx.concatenate([mx.full((count,), 1 / (count * len(counts))) for count in counts])
        self._spans = max(1, (recipe.data.seq_len - 1).bit_length())

    def init_sums(self) -> Tree:
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
        """The loss of drawn clips, and the features that this step adds to the sums.

        The loss is an average over clips, so micro-batches give the same result as the whole batch.

        Args:
            sums: running sums after the step before.
            real: real clips (B, K, H, W, 3) in [0, 1].
            drawn: drawn clips, of the same shape.
            times: learned step of each frame in its clip, int32 (B, K).
        """
        averages = _averages_over_steps(sums)
        centre = averages["real"]["means"]
        of_real, of_drawn = (self._features(clips, times, centre) for clips in (real, drawn))

        variance = averages["real"]["spreads"] + _EPSILON
        change = averages["real"]["changes"] + _EPSILON
        weights = {
            "means": self._shares / variance,
            "spreads": self._shares / (2 * variance**2),
            "changes": 1 / (len(change) * change**2),
        }
        terms = [
            (weights[name] * (averages["drawn"][name] - averages["real"][name]) * of_drawn[name]).sum()
            for name in weights
        ]
        known = (sums["steps"] > _STEPS_BEFORE_LEARNING).astype(mx.float32)
        added = {"real": of_real, "drawn": of_drawn, "steps": mx.array(1.0)}
        return known * sum(terms, mx.array(0.0)), tree_map(mx.stop_gradient, added)

    def error_of_averages(self, sums: Tree) -> mx.array:
        """How far apart the averages are. G and R minimise about half of this number."""
        averages = _averages_over_steps(sums)
        real, drawn = averages["real"], averages["drawn"]
        variance, change = real["spreads"] + _EPSILON, real["changes"] + _EPSILON
        squares = (
            self._shares * (drawn["means"] - real["means"]) ** 2 / variance,
            self._shares * ((drawn["spreads"] - real["spreads"]) / variance) ** 2 / 2,
            ((drawn["changes"] - real["changes"]) / change) ** 2 / len(change),
        )
        return sum((square.sum() for square in squares), mx.array(0.0))

    def _features(self, clips: mx.array, times: mx.array, centre: mx.array) -> Tree:
        """The features of clips (B, K, H, W, 3), averaged over the clips."""
        count, frames = clips.shape[:2]
        pixels = clips.flatten(0, 1)  # (B, K, H, W, 3) -> (B K, H, W, 3)
        means_of_grids = []
        for grid in reversed(self._grids):  # finest first: each grid is averaged from the one before
            pixels = average_pool_to_size(pixels, grid)
            means_of_grids.append(pixels.reshape(count * frames, -1))
        means = mx.concatenate(means_of_grids[::-1], axis=1)  # (B K, M)
        gaps = (times[:, 1:] - times[:, :-1])[..., None]
        first = 2 ** mx.arange(self._spans)
        within = ((gaps >= first) & (gaps < 2 * first)).astype(mx.float32)  # (B, K − 1, S)
        change = mx.abs(clips[:, 1:] - clips[:, :-1]).mean((2, 3, 4))
        return {
            "means": means.mean(0),
            "spreads": ((means - centre) ** 2).mean(0),
            "changes": (within * change[..., None]).sum(1).mean(0),
        }


def _averages_over_steps(sums: Tree) -> Tree:
    """The averages of the features over the steps."""
    steps = mx.maximum(sums["steps"], _EPSILON)
    averages: Tree = tree_map(lambda array: array / steps, sums)
    return averages


def add_step_to_sums(sums: Tree, step: Tree) -> Tree:
    """The running sums after a step, whose features are ``step``."""
    after: Tree = tree_map(lambda old, new: _SUM_DECAY * old + new, sums, step)
    return after
