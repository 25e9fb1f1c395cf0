"""Feature matching: drawn clips get the same averages as real clips (Salimans 2016, section 3.1).

The discriminator judges one clip at a time. Lamps from random states may move a fifth too fast, or have a
little too much wax. One clip hardly shows this, since real clips differ by more. The average of a thousand
clips shows it plainly. So running averages of a few features are kept, for real clips and for drawn clips. If
f is a feature, G and R minimise::

    half the sum of  ((average of drawn f  −  average of real f) / scale of f)²

Only the drawn clips of the present step have a gradient; the sums of earlier steps are constants. The average
of real clips is over about the last thousand steps. That of drawn clips is over about the last hundred, since
G and R change. The features of a clip are

- means: averages over each block of a frame. Blocks have four sizes, up to the whole frame. So the amount of
  wax counts as much as the place of the wax. Averaged are the three colours, and the share of pixels that are
  darker than each of seven levels in each colour. Half transparent wax can have the right mean colour, but
  not the right shares;
- spreads: the squared distance of each mean from its average over real clips;
- changes: the mean absolute change of a pixel between two frames, one number for each range of learned steps
  between them (1, 2 to 3, 4 to 7 …). With absolute values, a soft edge that moves counts as much as a sharp
  one;
- speeds: the mean square of how much a block changes in a learned step, for blocks of two sizes and each
  range of learned steps between two frames. Here it counts what moves far, and not what trembles at an edge;
- accelerations: the mean square of the change of that speed over three frames, for the same blocks and ranges
  of learned steps from the first frame to the third.

The mean and the mean square of each block are kept, so that the spread is about the present average.
"""

from __future__ import annotations

import math

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.config import Recipe
from mlxlava.models.layers import average_pool_to_size

# Rows and columns of the blocks of a frame, for each size of blocks.
_BLOCK_GRIDS = ((1, 1), (2, 1), (4, 2), (8, 4))
_MOTION_GRIDS = ((4, 2), (8, 4))
_LEVELS = tuple(level / 8 for level in range(1, 8))  # of the shares of darker pixels; white is 1
_LEVEL_SOFTNESS = 1 / 24  # width of the smooth step from darker to lighter
_SUM_DECAYS = {"real": 0.999, "drawn": 0.99}  # factors of the running sums in each step
# Decayed number of steps from which on the averages are exact enough to learn from.
_STEPS_BEFORE_LEARNING = 15.0
# Weights of the groups of features. With five times those of spreads, speeds and accelerations, pictures got
# worse: D told them from real ones at once.
_GROUP_WEIGHTS = {"means": 1.0, "spreads": 0.2, "changes": 1.0, "speeds": 0.2, "accelerations": 0.2}
_EPSILON = 1e-6
# Least variance of a block mean. Some shares never change, and sums have rounding errors of 1e-6.
_MIN_VARIANCE = 5e-6


class FeatureMatching:
    """The features of a recipe's clips, and the loss that makes their averages alike.

    The run state holds decaying sums over the steps. ``real`` and ``drawn`` each have ``means`` (M,),
    ``squares`` (M,), ``changes`` (S,), ``speeds`` and ``accelerations`` (grids, S), and ``steps``, the same
    decaying sum of ones. S is the number of ranges of learned steps.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._grids = _fitting_grids(_BLOCK_GRIDS, recipe)
        self._motion_grids = _fitting_grids(_MOTION_GRIDS, recipe)
        # Each grid has the same weight in the loss, whatever the number of its blocks. Colours and shares
        # have the same weight too.
        count = 3 * len(_LEVELS)
        of_channels = mx.concatenate([mx.full((3,), 1 / 6), mx.full((count,), 0.5 / count)])
        self._shares = mx.concatenate(
            [
                mx.concatenate([of_channels] * math.prod(grid)) / (math.prod(grid) * len(self._grids))
                for grid in self._grids
            ]
        )
        self._spans = max(1, (recipe.data.seq_len - 1).bit_length())

    def init_sums(self) -> Tree:
        """The sums before the first step."""
        return {"real": self._zero_sums(), "drawn": self._zero_sums()}

    def _zero_sums(self) -> Tree:
        means, motions = len(self._shares), (len(self._motion_grids), self._spans)
        return {
            "means": mx.zeros((means,)),
            "squares": mx.zeros((means,)),
            "changes": mx.zeros((self._spans,)),
            "speeds": mx.zeros(motions),
            "accelerations": mx.zeros(motions),
            "steps": mx.zeros(()),
        }

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
        target, present = (_with_spreads(averages[side], centre) for side in ("real", "drawn"))
        of_real, of_drawn = (self._features(clips, times) for clips in (real, drawn))
        learned = _with_spreads(of_drawn, centre)
        terms = [
            (weight * (present[name] - target[name]) * learned[name]).sum()
            for name, weight in self._weights(target, present).items()
        ]
        known = (sums["drawn"]["steps"] > _STEPS_BEFORE_LEARNING).astype(mx.float32)
        added = {"real": of_real, "drawn": of_drawn}
        return known * sum(terms, mx.array(0.0)), tree_map(mx.stop_gradient, added)

    def error_of_averages(self, sums: Tree) -> mx.array:
        """How far apart the averages are. G and R minimise about half of this number."""
        averages = _averages_over_steps(sums)
        real, drawn = (_with_spreads(averages[side], averages["real"]["means"]) for side in ("real", "drawn"))
        weights = self._weights(real, drawn)
        squares = ((weight * (drawn[name] - real[name]) ** 2).sum() for name, weight in weights.items())
        return sum(squares, mx.array(0.0))

    def _weights(self, real: Tree, drawn: Tree) -> Tree:
        """The weight of the squared error of each average: 1 / scale², times the weight of its group."""
        variance = real["spreads"] + _MIN_VARIANCE
        # A share that hardly ever changes in real frames has nearly no spread. So the larger spread counts.
        larger = mx.maximum(real["spreads"], drawn["spreads"]) + _MIN_VARIANCE
        weights = {"means": self._shares / variance, "spreads": self._shares / (2 * larger**2)}
        for name, least in (("changes", _EPSILON), ("speeds", _EPSILON**2), ("accelerations", _EPSILON**2)):
            weights[name] = 1 / (real[name].size * (real[name] + least) ** 2)
        return {name: _GROUP_WEIGHTS[name] * weight for name, weight in weights.items()}

    def _features(self, clips: mx.array, times: mx.array) -> Tree:
        """The features of clips (B, K, H, W, 3), averaged over the clips."""
        count, frames = clips.shape[:2]
        pixels = clips.flatten(0, 1)  # (B, K, H, W, 3) -> (B K, H, W, 3)
        darker = mx.sigmoid((mx.array(_LEVELS) - pixels[..., None]) / _LEVEL_SOFTNESS).flatten(-2)
        pixels = mx.concatenate([pixels, darker], axis=-1)
        blocks: dict[tuple[int, int], mx.array] = {}
        for grid in reversed(self._grids):  # finest first: each grid is averaged from the one before
            pixels = average_pool_to_size(pixels, grid)
            blocks[grid] = pixels.reshape(count, frames, math.prod(grid), -1)
        means = mx.concatenate([blocks[grid].reshape(count * frames, -1) for grid in self._grids], axis=1)
        change = mx.abs(clips[:, 1:] - clips[:, :-1]).mean((2, 3, 4))
        gaps = times[:, 1:] - times[:, :-1]
        motions = [self._motions(blocks[grid][..., :3], times) for grid in self._motion_grids]
        return {
            "means": means.mean(0),
            "squares": (means**2).mean(0),
            "changes": self._mean_by_span(change, gaps),
            "speeds": mx.stack([speeds for speeds, _ in motions]),
            "accelerations": mx.stack([accelerations for _, accelerations in motions]),
            "steps": mx.array(1.0),
        }

    def _motions(self, blocks: mx.array, times: mx.array) -> tuple[mx.array, mx.array]:
        """Speeds and accelerations of block means (B, K, P, 3): (S,) each, by the range of learned steps."""
        gaps = times[:, 1:] - times[:, :-1]
        speed = (blocks[:, 1:] - blocks[:, :-1]) / gaps.astype(mx.float32)[..., None, None]
        speeds = self._mean_by_span((speed**2).mean((2, 3)), gaps)
        if times.shape[1] < 3:
            return speeds, mx.zeros((self._spans,))
        squares = ((speed[:, 1:] - speed[:, :-1]) ** 2).mean((2, 3))  # (B, K − 2)
        return speeds, self._mean_by_span(squares, times[:, 2:] - times[:, :-2])

    def _mean_by_span(self, values: mx.array, spans: mx.array) -> mx.array:
        """Sums of values (B, N) over the spans of each range, averaged over clips: (S,)."""
        first = 2 ** mx.arange(self._spans)
        within = ((spans[..., None] >= first) & (spans[..., None] < 2 * first)).astype(mx.float32)
        return (within * values[..., None]).sum(1).mean(0)


def _fitting_grids(grids: tuple[tuple[int, int], ...], recipe: Recipe) -> list[tuple[int, int]]:
    """Grids whose blocks fill a frame of the recipe, each once."""
    height, width = recipe.data.size
    return list(dict.fromkeys((math.gcd(height, rows), math.gcd(width, columns)) for rows, columns in grids))


def _averages_over_steps(sums: Tree) -> Tree:
    """The averages of the features over the steps."""
    averages: Tree = {
        side: {name: array / mx.maximum(of_side["steps"], _EPSILON) for name, array in of_side.items()}
        for side, of_side in sums.items()
    }
    return averages


def _with_spreads(averages: Tree, centre: mx.array) -> Tree:
    """The averages, with the mean squared distances of block means from ``centre`` (M,) as ``spreads``."""
    spreads = averages["squares"] - 2 * centre * averages["means"] + centre**2
    return {**averages, "spreads": mx.maximum(spreads, 0)}


def add_step_to_sums(sums: Tree, step: Tree) -> Tree:
    """The running sums after a step, whose features are ``step``."""
    after: Tree = {
        side: tree_map(lambda old, new, decay=_SUM_DECAYS[side]: decay * old + new, of_side, step[side])
        for side, of_side in sums.items()
    }
    return after
