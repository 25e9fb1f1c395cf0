"""How much memory a training step takes, before it is made; and what to set so that it fits.

Live arrays of a step are counted from the shapes of its layers, a kind of network at a time, and weighed:
how many arrays of a layer's size live at the worst moment was fitted to measured peaks
(benchmarks/memory.py checks it against others). That holds where the step was measured, on MLX's CPU back
end; Metal and CUDA take other convolutions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from mlxlava.config import Recipe, UserError, override

GB = 1e9
_MARGIN = 1.15  # that is left for what a prediction may be too low by (benchmarks/memory.py: 11 %)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the memory of a step depends on, floats.

    Attributes:
        weights: of all networks.
        drawn: outputs of G's layers, for the frames of one part of the batch.
        judged: outputs of D's layers, for real and drawn frames of one part.
        encoded: outputs of the encoder's layers, for all frames that it looks at.
        held: real frames of the whole batch; they are bytes, so a quarter of their number.
        pixels: of the real frames of one part.
    """

    weights: float
    drawn: float
    judged: float
    encoded: float
    held: float
    pixels: float


def _planes(size: tuple[int, int], widths: Sequence[int], *, first: int = 1) -> float:
    """Floats of maps of ``widths`` channels, each half as high and wide as the one before."""
    return sum(width * math.prod(size) / 4.0 ** (first + i) for i, width in enumerate(widths))


def _dense(widths: Sequence[int]) -> float:
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def _weights(recipe: Recipe) -> float:
    """Weights of all networks of a recipe, nearly."""
    size, state = recipe.data.size, recipe.generator.state_size
    pixels = math.prod(size)
    widths = recipe.generator.widths
    end = pixels / 4.0 ** len(widths)
    taps = 36 if recipe.generator.kind == "shuffle" else 16
    last = (*widths, recipe.generator.last_width) if recipe.generator.kind == "shuffle" else (*widths, 3)
    total = state * end * widths[0] + taps * sum(a * b for a, b in itertools.pairwise(last))
    for widths, hidden, more in (
        (recipe.discriminator.widths, recipe.discriminator.hidden, True),
        (recipe.encoder.widths if recipe.encoder.views else (), recipe.encoder.hidden, False),
    ):
        if not widths:
            continue
        total += 16 * sum(a * b for a, b in itertools.pairwise((3, *widths)))
        end = pixels / 4.0 ** len(widths)
        if recipe.discriminator.kind == "frames" and more:
            seen = recipe.data.drawn_frames or recipe.data.seq_len
            total += 16 * widths[-1] ** 2 * (seen + 0.5) + end / 4 * widths[-1] * hidden[0]
        elif more:
            inner = recipe.discriminator.features + recipe.discriminator.state
            total += end * widths[-1] * recipe.discriminator.features + _dense((inner, *hidden))
        else:
            total += recipe.encoder.views * end * widths[-1] * hidden[0]
    return total + _dense((state, *recipe.dynamics.hidden, state))


def shape(recipe: Recipe, ranks: int = 1) -> Shape:
    """Count what a step of a recipe keeps, in each of ``ranks`` processes."""
    data, size = recipe.data, recipe.data.size
    pixels = math.prod(size)
    clips_of_rank, frames = data.batch_size / ranks, data.drawn_frames or data.seq_len
    judged = clips_of_rank / recipe.training.micro_batches * frames
    drawn = judged * (2 if recipe.encoder.views else 1)
    widths = recipe.generator.widths
    # From coarse to fine; the last map has the size of the picture.
    fine = recipe.generator.last_width if recipe.generator.kind == "shuffle" else 3
    layers = _planes(size, [fine, *reversed(widths)], first=0)
    return Shape(
        weights=_weights(recipe),
        drawn=drawn * layers,
        judged=2 * judged * _planes(size, recipe.discriminator.widths),
        encoded=clips_of_rank * recipe.encoder.views * (_planes(size, recipe.encoder.widths) + 3 * pixels),
        held=clips_of_rank * frames * 3 * pixels / 4,
        pixels=judged * pixels,
    )


@dataclasses.dataclass(frozen=True)
class _Live:
    """How many arrays of each size live at the worst moment of a step; and what does not grow, GB."""

    weights: float  # with their gradients, averages and both moments of Adam
    drawn: float
    drawn_again: float  # in place of ``drawn`` where frames are recomputed
    judged: float
    encoded: float
    held: float
    rest: float
    crowd: float = 0.0  # share that a million pixels beyond ``_CROWDED`` add: more is under way at once then


_CROWDED = 10e6  # pixels in one part, about 2,500 frames of 64×64

# Of relative errors over the configurations of benchmarks/memory.py, the largest is as small as can be, with
# no number below zero. In the step of ``frames`` the layers of G and of D grow alike, so that one of them
# stands for both; clips that are held stand for all that waits until its part is done.
_LIVE = {
    "frames": _Live(3.52, drawn=7.86, drawn_again=7.16, judged=0.0, encoded=0.0, held=58.9, rest=0.125),
    "recurrent": _Live(
        2.83, drawn=0.09, drawn_again=0.0, judged=2.81, encoded=0.0, held=4.82, rest=0.134, crowd=0.047
    ),
}


def predict(recipe: Recipe, ranks: int = 1) -> float:
    """MLX's peak in a training step of a recipe, GB, in each of ``ranks`` processes."""
    live, counted = _LIVE[recipe.discriminator.kind], shape(recipe, ranks)
    floats = (
        live.weights * counted.weights
        + (live.drawn_again if recipe.training.recompute else live.drawn) * counted.drawn
        + live.judged * counted.judged
        + live.encoded * counted.encoded
        + live.held * counted.held
    )
    crowded = max(0.0, counted.pixels - _CROWDED) / 1e6
    return (4 * floats / GB + live.rest) * (1 + live.crowd * crowded)


def fit_into(recipe: Recipe, gigabytes: float, ranks: int = 1) -> Recipe:
    """The recipe in as few parts of a batch as its step needs to fit; if none do, with frames recomputed.

    Parts give the same result, but where BatchNorm sees less of the batch at once, and cost little as long as
    they are of many frames.

    Args:
        recipe: what is to be trained; its own ``micro_batches`` and ``recompute`` are the least.
        gigabytes: for MLX's arrays.
        ranks: processes that share a batch.

    Raises:
        UserError: not even single clips fit.
    """
    clips = recipe.data.batch_size // ranks
    first = recipe.training.micro_batches
    parts = [n for n in range(first, clips + 1) if clips % n == 0]
    choices = [(n, recipe.training.recompute) for n in parts] + [(n, True) for n in parts]
    for micro_batches, recompute in choices:
        settings = {"training.micro_batches": micro_batches, "training.recompute": recompute}
        tried = override(recipe, settings)
        if _MARGIN * predict(tried, ranks) <= gigabytes:
            return tried
    least = predict(tried, ranks)
    raise UserError(
        f"train: a step takes {least:.2f} GB with one clip at a time, and {gigabytes:g} GB are given; "
        "give a smaller --size or --batch-size, or fewer data.drawn_frames"
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """What a step of one size, length and batch takes, and what it can be made to take.

    Attributes:
        recipe: as asked for.
        peak: predicted, GB.
        fitted: the recipe that fits; None where nothing does.
        fitted_peak: predicted for that, GB; None where nothing does.
    """

    recipe: Recipe
    peak: float
    fitted: Recipe | None
    fitted_peak: float | None


def table(
    recipe: Recipe,
    gigabytes: float,
    sizes: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    batches: Sequence[int],
) -> list[Row]:
    """A row for each size, sequence length and batch size of a recipe."""
    rows = []
    for size, length, batch in itertools.product(sizes, lengths, batches):
        settings = {"data.size": size, "data.seq_len": length, "data.batch_size": batch}
        one = override(recipe, {**settings, "training.micro_batches": 1})
        try:
            fitted = fit_into(one, gigabytes)
        except UserError:
            fitted = None
        rows.append(Row(one, predict(one), fitted, predict(fitted) if fitted else None))
    return rows
