"""How much memory a training step takes, before it is made; and what to set so that it fits.

Live arrays of a step are counted from the shapes of its layers, a kind of network at a time, and weighed:
how many arrays of a layer's size live at the worst moment was fitted to measured peaks
(benchmarks/memory.py checks it against others). That holds where the step was measured, on MLX's CPU back
end. What a GPU takes more is added from MLX's sources and has not been measured on one: patches of pictures,
and arrays that wait for work that is under way. So what is said of GPUs is an estimate.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from mlxlava.config import Recipe, override
from mlxlava.errors import UserError

GB = 1e9
_MARGIN = 1.15  # that is left for what a prediction may be too low by (benchmarks/memory.py: 11 %)

# Bytes that work under way holds on a GPU, though nothing needs them any more. MLX closes a command buffer
# after 40 operations, or once what goes in and comes out has more than 40 × 2^20 numbers (metal/device.cpp;
# 50 of both on Max and Ultra), and lets ten of them wait (transforms.cpp). Each keeps its arrays until it is
# done: 168 MB in float32 where arrays are small. About half of them are dead by then: on the way back an
# operation reads two arrays for the last time and writes one. Where a single array is larger than that, a
# buffer has one or two operations, and the CPU, where the rest was measured, has a hundred under way. MLX
# waits before all of that passes its memory limit. CUDA has other numbers, up to 100 operations; this one
# stands for it as well.
_AHEAD = 10 * 40 * 2**20 * 4 / 2


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the memory of a step depends on, floats.

    Attributes:
        weights: of all networks.
        drawn: outputs of G's layers, for the frames of one micro-batch.
        judged: outputs of D's layers, for real and drawn frames of one micro-batch.
        encoded: outputs of the encoder's layers, for all frames that it looks at.
        held: real frames of the whole batch; they are bytes, so a quarter of their number.
        pixels: of the real frames of one micro-batch.
    """

    weights: float
    drawn: float
    judged: float
    encoded: float
    held: float
    pixels: float


def _feature_maps(size: tuple[int, int], widths: Sequence[int], *, first: int = 1) -> float:
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
        (recipe.encoder.widths if recipe.encoder.context_frames else (), recipe.encoder.hidden, False),
    ):
        if not widths:
            continue
        total += 16 * sum(a * b for a, b in itertools.pairwise((3, *widths)))
        end = (pixels if more else math.prod(recipe.encoder_size)) / 4.0 ** len(widths)
        if recipe.discriminator.kind == "frames" and more:
            seen = recipe.data.drawn_frames or recipe.data.seq_len
            total += 16 * widths[-1] ** 2 * (seen + 0.5) + end / 4 * widths[-1] * hidden[0]
        elif more:
            inner = recipe.discriminator.features + recipe.discriminator.state
            total += end * widths[-1] * recipe.discriminator.features + _dense((inner, *hidden))
        else:
            total += recipe.encoder.context_frames * end * widths[-1] * hidden[0]
    return total + _dense((state, *recipe.dynamics.hidden, state))


def shape(recipe: Recipe, ranks: int = 1) -> Shape:
    """Count what a step of a recipe keeps, in each of ``ranks`` processes."""
    data, size = recipe.data, recipe.data.size
    pixels = math.prod(size)
    clips_of_rank, frames = data.batch_size / ranks, data.drawn_frames or data.seq_len
    judged = clips_of_rank / recipe.training.micro_batches * frames
    drawn = judged * (2 if recipe.encoder.context_frames else 1)
    widths = recipe.generator.widths
    # From coarse to fine; the last map has the size of the picture.
    fine = recipe.generator.last_width if recipe.generator.kind == "shuffle" else 3
    layers = _feature_maps(size, [fine, *reversed(widths)], first=0)
    return Shape(
        weights=_weights(recipe),
        drawn=drawn * layers,
        judged=2 * judged * _feature_maps(size, recipe.discriminator.widths),
        encoded=clips_of_rank
        * recipe.encoder.context_frames
        * (_feature_maps(recipe.encoder_size, recipe.encoder.widths) + 3 * pixels),
        held=clips_of_rank * frames * 3 * pixels / 4,
        pixels=judged * pixels,
    )


@dataclasses.dataclass(frozen=True)
class _LiveArrays:
    """How many arrays of each size live at the worst moment of a step; and what does not grow, GB."""

    weights: float  # with their gradients, averages and both moments of Adam
    drawn: float
    drawn_again: float  # in place of ``drawn`` where frames are recomputed
    judged: float
    encoded: float
    held: float
    rest: float
    crowd: float = 0.0  # share that a million pixels beyond ``_CROWDED`` add: more is under way at once then


_CROWDED = 10e6  # pixels in one micro-batch, about 2,500 frames of 64×64

# Of relative errors over the configurations of benchmarks/memory.py, the largest is as small as can be, with
# no number below zero. In the step of ``frames`` the layers of G and of D grow alike, so that one of them
# stands for both; clips that are held stand for all that waits until its micro-batch is done.
_LIVE = {
    "frames": _LiveArrays(2.0, drawn=5.96, drawn_again=3.59, judged=0.0, encoded=0.0, held=76.3, rest=0.168),
    "recurrent": _LiveArrays(
        2.83, drawn=0.09, drawn_again=0.0, judged=2.81, encoded=0.0, held=4.82, rest=0.134, crowd=0.047
    ),
}


def _patches(recipe: Recipe, ranks: int) -> list[tuple[float, float]]:
    """Pictures that go into each convolution with weights at once, and bytes of the patches of one of them.

    MLX's gradient with respect to the weights is a product with the patches that the kernel saw, written out
    as one array: k² C numbers for each pixel that it was laid on.
    """
    data, generator, encoder = recipe.data, recipe.generator, recipe.encoder
    pixels = math.prod(data.size)
    clips = data.batch_size / ranks
    micro_batch = clips / recipe.training.micro_batches
    frames = data.drawn_frames or data.seq_len
    found: list[tuple[float, float]] = []

    def add(pictures: float, halvings: int, numbers: int, pixels: int = pixels) -> None:
        found.append((pictures, 4 * pixels / 4.0**halvings * numbers))

    def add_halving(pictures: float, widths: Sequence[int], pixels: int = pixels) -> None:
        for i, width in enumerate(widths):
            add(pictures, i + 1, 16 * width, pixels)

    drawn = micro_batch * frames * (2 if encoder.context_frames else 1)
    layers = len(generator.widths)
    if generator.kind == "shuffle":
        for i, width in enumerate((*generator.widths, generator.last_width)):
            add(drawn, layers - i, 9 * width)
    else:
        # Transposed: the patches are those of its result, as if the way back were the way forward.
        for i, width in enumerate((*generator.widths[1:], 3)):
            add(drawn, layers - i, 16 * width)
    judge = recipe.discriminator
    if judge.kind == "frames":  # real and drawn frames in one call
        add_halving(2 * micro_batch * frames, (3, *judge.widths))
        if frames > 1:
            add(2 * micro_batch, len(judge.widths) + 1, 16 * frames * judge.widths[-1])
    else:
        add_halving(micro_batch * frames, (3, *judge.widths[:-1]))
    if encoder.context_frames:
        add_halving(clips * encoder.context_frames, (3, *encoder.widths[:-1]), math.prod(recipe.encoder_size))
    return found


def _more_on_gpu(recipe: Recipe, ranks: int, arrays: float) -> float:
    """Bytes that a GPU holds beside ``arrays`` bytes of layers."""
    from mlxlava.backend.ops import PATCH_BYTES  # not above: who plans for a CPU need not load MLX

    # A convolution whose patches take more works on its batch in chunks, of one picture at least.
    chunks = max(min(pictures * one, max(PATCH_BYTES, one)) for pictures, one in _patches(recipe, ranks))
    # Twice: of one chunk while its product is made, and of the next, which is written by then. Ten command
    # buffers can have five chunks, and _AHEAD makes room for the others. No more can wait than there is.
    return 2 * chunks + min(_AHEAD, arrays)


def predict(recipe: Recipe, ranks: int = 1, *, gpu: bool = False) -> float:
    """MLX's peak in a training step of a recipe, GB, in each of ``ranks`` processes.

    Args:
        recipe: what is to be trained.
        ranks: processes that share a batch.
        gpu: the code for GPUs is taken: an estimate.
    """
    live, counted = _LIVE[recipe.discriminator.kind], shape(recipe, ranks)
    floats = (
        live.weights * counted.weights
        + (live.drawn_again if recipe.training.recompute else live.drawn) * counted.drawn
        + live.judged * counted.judged
        + live.encoded * counted.encoded
        + live.held * counted.held
    )
    crowded = max(0.0, counted.pixels - _CROWDED) / 1e6
    predicted = (4 * floats / GB + live.rest) * (1 + live.crowd * crowded)
    return predicted + (_more_on_gpu(recipe, ranks, 4 * floats) / GB if gpu else 0.0)


def micro_batch_counts(clips: int, least: int = 1) -> list[int]:
    """In how many micro-batches ``clips`` clips can be worked on, ``least`` or more, fewest first."""
    return [count for count in range(least, clips + 1) if clips % count == 0]


def fit_into(recipe: Recipe, gigabytes: float, ranks: int = 1, *, gpu: bool = False) -> Recipe:
    """The recipe with as few micro-batches as its step needs to fit; if none do, with frames recomputed.

    Micro-batches give the same result, but where BatchNorm sees less of the batch at once, and cost little as
    long as they are of many frames.

    Args:
        recipe: what is to be trained; its own ``micro_batches`` and ``recompute`` are the least.
        gigabytes: for MLX's arrays.
        ranks: processes that share a batch.
        gpu: the code for GPUs is taken.

    Raises:
        UserError: not even single clips fit.
    """
    counts = micro_batch_counts(recipe.data.batch_size // ranks, recipe.training.micro_batches)
    choices = [(n, recipe.training.recompute) for n in counts] + [(n, True) for n in counts]
    for micro_batches, recompute in choices:
        settings = {"training.micro_batches": micro_batches, "training.recompute": recompute}
        tried = override(recipe, settings)
        if _MARGIN * predict(tried, ranks, gpu=gpu) <= gigabytes:
            return tried
    least = predict(tried, ranks, gpu=gpu)
    takes = "is estimated to take" if gpu else "takes"
    raise UserError(
        f"train: a step {takes} {least:.2f} GB with one clip at a time, and {gigabytes:.3g} GB are given; "
        "give a smaller --size or --batch-size, or fewer data.drawn_frames"
    )


def memory_for_more_micro_batches(recipe: Recipe, ranks: int = 1, *, gpu: bool = False) -> float | None:
    """GB, short to type, with which :func:`fit_into` works on fewer clips at once; None if there are none."""
    whole = _MARGIN * predict(recipe, ranks, gpu=gpu)
    for count in micro_batch_counts(recipe.data.batch_size // ranks, recipe.training.micro_batches)[1:]:
        tried = override(recipe, {"training.micro_batches": count})
        needed = _MARGIN * predict(tried, ranks, gpu=gpu)
        for unit in (1, 10, 100, 1000):
            if (rounded := math.ceil(unit * needed) / unit) < whole:
                return rounded
    return None


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
    *,
    gpu: bool = False,
) -> list[Row]:
    """A row for each size, sequence length and batch size of a recipe; estimates where ``gpu``."""
    rows = []
    for size, length, batch in itertools.product(sizes, lengths, batches):
        settings = {"data.size": size, "data.seq_len": length, "data.batch_size": batch}
        one = override(recipe, {**settings, "training.micro_batches": 1})
        try:
            fitted = fit_into(one, gigabytes, gpu=gpu)
        except UserError:
            fitted = None
        rows.append(Row(one, predict(one, gpu=gpu), fitted, predict(fitted, gpu=gpu) if fitted else None))
    return rows
