"""Predicts how much memory a training step takes, and chooses micro-batches so that it fits.

The floats of each network's layers are counted from the shapes. Each count is multiplied by the number of
arrays of that size that live at the worst moment. These numbers were fitted to measured peaks on MLX's CPU
back end (benchmarks/memory.py checks them against other measurements). A GPU needs more: patches of pictures,
and arrays that wait for queued work. For Metal, their sizes were taken from MLX's sources and not measured.
For CUDA, they were fitted to seven peaks of an H100. So predictions for GPUs are estimates.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from mlxlava.config import Recipe, override
from mlxlava.errors import UserError

BYTES_PER_GB = 1e9
_PREDICTION_MARGIN = 1.15  # safety factor: a prediction may be too low by up to 11 % (benchmarks/memory.py)

# Bytes that queued work holds on a GPU although nothing needs them any more. MLX closes a command buffer
# after 40 operations, or once their inputs and outputs have more than 40 × 2^20 numbers (metal/device.cpp; 50
# of both on Max and Ultra). It lets ten command buffers wait (transforms.cpp). Each keeps its arrays until it
# is done: 168 MB in float32 if the arrays are small. About half of these arrays are dead by then, since in
# the backward pass an operation reads two arrays for the last time and writes one. If a single array is
# larger than that, a command buffer has only one or two operations. The CPU, where all other numbers were
# measured, has a hundred operations queued. MLX waits before all of this passes its memory limit.
_QUEUED_WORK_BYTES = 10 * 40 * 2**20 * 4 / 2
# On CUDA, nearly a whole step is queued before its first operation is done. Peaks of seven recipes on an H100
# (docs/performance.md) were above those of a CPU by 2.5 to 5.1 times the bytes of all patches, which are what
# grows fastest. With 4.5, predictions are between 10 % too low and 66 % too high. Too much does no harm:
# recipes of this size fit in any case.
_QUEUED_PATCHES_ON_CUDA = 4.5


@dataclasses.dataclass(frozen=True)
class StepFloats:
    """Numbers of floats that the memory of a training step depends on.

    Attributes:
        weights: weights of all networks.
        generator_outputs: outputs of G's layers for the frames of one micro-batch.
        discriminator_outputs: outputs of D's layers for real and drawn frames of one micro-batch.
        encoder_outputs: outputs of the encoder's layers for all frames that it encodes.
        real_frames: real frames of the whole batch. They are bytes, so four numbers count as one float.
        pixels: pixels of the real frames of one micro-batch.
    """

    weights: float
    generator_outputs: float
    discriminator_outputs: float
    encoder_outputs: float
    real_frames: float
    pixels: float


def _count_feature_map_floats(size: tuple[int, int], widths: Sequence[int], *, first: int = 1) -> float:
    """Floats of feature maps of ``widths`` channels. Each map is half as high and wide as the one before."""
    return sum(width * math.prod(size) / 4.0 ** (first + i) for i, width in enumerate(widths))


def _count_dense_weights(widths: Sequence[int]) -> float:
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def _count_weights(recipe: Recipe) -> float:
    """The approximate number of weights of all networks of a recipe."""
    state = recipe.generator.state_size
    counts = (
        _count_generator_weights(recipe),
        _count_discriminator_weights(recipe),
        _count_encoder_weights(recipe),
        _count_dense_weights((state, *recipe.dynamics.hidden, state)),
    )
    return sum(counts)


def _count_generator_weights(recipe: Recipe) -> float:
    generator = recipe.generator
    coarsest = math.prod(recipe.drawn_size) / 4.0 ** len(generator.widths)
    shuffles = generator.kind == "shuffle"
    taps, last = (36, generator.last_width) if shuffles else (16, 3)
    convolutions = taps * sum(a * b for a, b in itertools.pairwise((*generator.widths, last)))
    return generator.state_size * coarsest * generator.widths[0] + convolutions


def _count_discriminator_weights(recipe: Recipe) -> float:
    judge = recipe.discriminator
    last, coarsest = judge.widths[-1], math.prod(recipe.data.size) / 4.0 ** len(judge.widths)
    convolutions = _count_halving_weights(judge.widths)
    if judge.kind == "frames":
        frames = recipe.data.drawn_frames or recipe.data.seq_len
        return convolutions + 16 * last**2 * (frames + 0.5) + coarsest / 4 * last * (*judge.hidden, 1)[0]
    cell = _count_dense_weights((judge.features + judge.state, *judge.hidden))
    return convolutions + coarsest * last * judge.features + cell


def _count_encoder_weights(recipe: Recipe) -> float:
    encoder = recipe.encoder
    if not encoder.context_frames:
        return 0.0
    coarsest = math.prod(recipe.encoder_input_size) / 4.0 ** len(encoder.widths)
    dense = encoder.context_frames * coarsest * encoder.widths[-1] * (*encoder.hidden, 1)[0]
    return _count_halving_weights(encoder.widths) + dense


def _count_halving_weights(widths: Sequence[int]) -> float:
    """Weights of 4×4 convolutions that halve a picture."""
    return 16 * sum(a * b for a, b in itertools.pairwise((3, *widths)))


def count_step_floats(recipe: Recipe, ranks: int = 1) -> StepFloats:
    """Count the floats that a step of a recipe keeps, in each of ``ranks`` processes."""
    if recipe.generator.upsampler_widths:
        return _count_upsampler_floats(recipe, ranks)
    data, size = recipe.data, recipe.data.size
    pixels = math.prod(size)
    clips_of_rank, frames = data.batch_size / ranks, data.drawn_frames or data.seq_len
    judged = clips_of_rank / recipe.training.micro_batches * frames
    drawn = judged * (2 if recipe.encoder.context_frames else 1)
    widths = recipe.generator.widths
    # From coarse to fine; the last map has the size of the picture.
    fine = recipe.generator.last_width if recipe.generator.kind == "shuffle" else 3
    layers = _count_feature_map_floats(size, [fine, *reversed(widths)], first=0)
    return StepFloats(
        weights=_count_weights(recipe),
        generator_outputs=drawn * layers,
        discriminator_outputs=2 * judged * _count_feature_map_floats(size, recipe.discriminator.widths),
        encoder_outputs=clips_of_rank
        * recipe.encoder.context_frames
        * (_count_feature_map_floats(recipe.encoder_input_size, recipe.encoder.widths) + 3 * pixels),
        real_frames=clips_of_rank * frames * 3 * pixels / 4,
        pixels=judged * pixels,
    )


def _count_upsampler_floats(recipe: Recipe, ranks: int) -> StepFloats:
    """Count the floats of a step in which an upsampling network learns. Nothing else is computed in it."""
    widths = (*recipe.generator.upsampler_widths, recipe.generator.last_width)
    pixels = math.prod(recipe.data.size)
    frames = _frames_of_rank(recipe, ranks)
    drawn = frames / recipe.training.micro_batches
    # The map of the first convolution has the size of the small picture; each other one is twice as large as
    # the one before.
    maps = math.prod(recipe.drawn_size) * widths[0] + _count_feature_map_floats(
        recipe.data.size, [*reversed(widths[1:])], first=0
    )
    taps = [27 * widths[0], *(36 * a * b for a, b in itertools.pairwise(widths)), 27 * widths[-1]]
    return StepFloats(
        weights=sum(taps),
        generator_outputs=drawn * maps,
        discriminator_outputs=0.0,
        encoder_outputs=0.0,
        real_frames=0.0,
        pixels=drawn * pixels,
    )


def _frames_of_rank(recipe: Recipe, ranks: int) -> float:
    """Number of frames of a batch that each of ``ranks`` processes draws."""
    return recipe.data.batch_size / ranks * (recipe.data.drawn_frames or recipe.data.seq_len)


@dataclasses.dataclass(frozen=True)
class _LiveArrays:
    """How many arrays of each size live at the worst moment of a step, and a constant part in GB."""

    weights: float  # with their gradients, averages and both moments of Adam
    generator_outputs: float
    recomputed_generator_outputs: float  # in place of ``generator_outputs`` if frames are recomputed
    discriminator_outputs: float
    encoder_outputs: float
    real_frames: float
    constant_gb: float
    # Share that each million pixels beyond ``_PIXELS_BEFORE_CROWDING`` adds, since more work is queued then.
    crowding: float = 0.0


_PIXELS_BEFORE_CROWDING = 10e6  # pixels in one micro-batch, about 2,500 frames of 64×64

# These numbers minimise the largest relative error over the configurations of benchmarks/memory.py; none may
# be negative. With the discriminator ``frames``, the outputs of G and of D grow in the same way. So one
# number stands for both. The number of real frames also stands for arrays that wait until their micro-batch
# is done.
_LIVE_ARRAYS_OF_KIND = {
    "frames": _LiveArrays(
        2.0,
        generator_outputs=5.96,
        recomputed_generator_outputs=3.59,
        discriminator_outputs=0.0,
        encoder_outputs=0.0,
        real_frames=76.3,
        constant_gb=0.168,
    ),
    "recurrent": _LiveArrays(
        2.83,
        generator_outputs=0.09,
        recomputed_generator_outputs=0.0,
        discriminator_outputs=2.81,
        encoder_outputs=0.0,
        real_frames=4.82,
        constant_gb=0.134,
        crowding=0.047,
    ),
    # A training step of an upsampling network.
    "upsampler": _LiveArrays(
        2.0,
        generator_outputs=8.9,
        recomputed_generator_outputs=8.9,  # nothing is recomputed
        discriminator_outputs=0.0,
        encoder_outputs=0.0,
        real_frames=0.0,
        constant_gb=0.015,
    ),
}


def _patch_bytes_of_layers(recipe: Recipe, ranks: int) -> list[tuple[float, float]]:
    """For each convolution: the number of its input pictures, and the bytes of all patches of one picture.

    MLX computes the gradient with respect to the weight as a matrix product with all patches of the input. It
    writes them out as one array, with k² C numbers for each place of the kernel.
    """
    data, generator, encoder = recipe.data, recipe.generator, recipe.encoder
    pixels = math.prod(data.size)
    if generator.upsampler_widths:
        pictures = _frames_of_rank(recipe, ranks) / recipe.training.micro_batches
        widths, small = (*generator.upsampler_widths, generator.last_width), math.prod(recipe.drawn_size)
        sizes = [small, *(small * 4**i for i in range(len(widths)))]
        return [(pictures, 4.0 * size * 9 * width) for size, width in zip(sizes, (3, *widths), strict=True)]
    clips = data.batch_size / ranks
    micro_batch = clips / recipe.training.micro_batches
    frames = data.drawn_frames or data.seq_len
    found: list[tuple[float, float]] = []

    def add_layer(pictures: float, halvings: int, patch_numbers: int, pixels: int = pixels) -> None:
        found.append((pictures, 4 * pixels / 4.0**halvings * patch_numbers))

    def add_halving_layers(pictures: float, widths: Sequence[int], pixels: int = pixels) -> None:
        for i, width in enumerate(widths):
            add_layer(pictures, i + 1, 16 * width, pixels)

    drawn = micro_batch * frames * (2 if encoder.context_frames else 1)
    layers = len(generator.widths)
    if generator.kind == "shuffle":
        for i, width in enumerate((*generator.widths, generator.last_width)):
            add_layer(drawn, layers - i, 9 * width)
    else:
        # For a transposed convolution the patches are those of its result.
        for i, width in enumerate((*generator.widths[1:], 3)):
            add_layer(drawn, layers - i, 16 * width)
    judge = recipe.discriminator
    if judge.kind == "frames":  # real and drawn frames in one call
        add_halving_layers(2 * micro_batch * frames, (3, *judge.widths))
        if frames > 1:
            add_layer(2 * micro_batch, len(judge.widths) + 1, 16 * frames * judge.widths[-1])
    else:
        add_halving_layers(micro_batch * frames, (3, *judge.widths[:-1]))
    if encoder.context_frames:
        add_halving_layers(
            clips * encoder.context_frames, (3, *encoder.widths[:-1]), math.prod(recipe.encoder_input_size)
        )
    return found


def _extra_gpu_bytes(recipe: Recipe, ranks: int, arrays: float) -> float:
    """Bytes that a GPU holds in addition to ``arrays`` bytes of layers."""
    from mlxlava.backend import on_cuda  # late: a plan for a CPU does not load MLX
    from mlxlava.backend.ops import MAX_PATCH_BYTES

    if on_cuda():
        of_layers = (pictures * one for pictures, one in _patch_bytes_of_layers(recipe, ranks))
        return _QUEUED_PATCHES_ON_CUDA * sum(of_layers)
    # A convolution with larger patches works in chunks of its batch, of at least one picture.
    chunks = max(
        min(pictures * one, max(MAX_PATCH_BYTES, one))
        for pictures, one in _patch_bytes_of_layers(recipe, ranks)
    )
    # Two chunks count: one whose product is computed, and the next one, which is written meanwhile. Ten
    # command buffers can have five chunks, and _QUEUED_WORK_BYTES makes room for the others. No more can wait
    # than there is.
    return 2 * chunks + min(_QUEUED_WORK_BYTES, arrays)


def predict_peak_gb(recipe: Recipe, ranks: int = 1, *, gpu: bool = False) -> float:
    """Predict the peak of MLX's arrays in a training step in GB, in each of ``ranks`` processes.

    Args:
        recipe: recipe to be trained.
        ranks: number of processes that share a batch.
        gpu: whether the code for GPUs is used; then the prediction is an estimate.
    """
    kind = "upsampler" if recipe.generator.upsampler_widths else recipe.discriminator.kind
    live, counted = _LIVE_ARRAYS_OF_KIND[kind], count_step_floats(recipe, ranks)
    floats = (
        live.weights * counted.weights
        + (live.recomputed_generator_outputs if recipe.training.recompute else live.generator_outputs)
        * counted.generator_outputs
        + live.discriminator_outputs * counted.discriminator_outputs
        + live.encoder_outputs * counted.encoder_outputs
        + live.real_frames * counted.real_frames
    )
    crowded = max(0.0, counted.pixels - _PIXELS_BEFORE_CROWDING) / 1e6
    predicted = (4 * floats / BYTES_PER_GB + live.constant_gb) * (1 + live.crowding * crowded)
    return predicted + (_extra_gpu_bytes(recipe, ranks, 4 * floats) / BYTES_PER_GB if gpu else 0.0)


def micro_batch_counts(clips: int, at_least: int = 1) -> list[int]:
    """The numbers of micro-batches that divide ``clips`` clips evenly, from ``at_least`` on, rising."""
    return [count for count in range(at_least, clips + 1) if clips % count == 0]


def require_memory(recipe: Recipe, gigabytes: float, ranks: int = 1) -> None:
    """Raise UserError if a step of a recipe takes more than all memory of a machine (on a CPU)."""
    peak = predict_peak_gb(recipe, ranks)
    if peak > gigabytes:
        raise UserError(
            f"train: a step would take about {peak:.3g} GB, and this machine has {gigabytes:.3g}; "
            "give --memory, which works on a batch in parts, or a smaller --size, --seq-len or --batch-size"
        )


def split_to_fit_memory(recipe: Recipe, gigabytes: float, ranks: int = 1, *, gpu: bool = False) -> Recipe:
    """The recipe with as few micro-batches as fit into memory. If none fit, frames are recomputed too.

    Micro-batches give the same result as the whole batch, except with BatchNorm, which sees one micro-batch
    at a time. They cost little time as long as each has many frames.

    Args:
        recipe: recipe to be trained; its ``micro_batches`` are the fewest that are tried.
        gigabytes: GB for MLX's arrays.
        ranks: number of processes that share a batch.
        gpu: whether the code for GPUs is used.

    Raises:
        UserError: not even single clips fit.
    """
    counts = micro_batch_counts(recipe.data.batch_size // ranks, recipe.training.micro_batches)
    choices = [(n, recipe.training.recompute) for n in counts] + [(n, True) for n in counts]
    for micro_batches, recompute in choices:
        settings = {"training.micro_batches": micro_batches, "training.recompute": recompute}
        tried = override(recipe, settings)
        if _PREDICTION_MARGIN * predict_peak_gb(tried, ranks, gpu=gpu) <= gigabytes:
            return tried
    least = predict_peak_gb(tried, ranks, gpu=gpu)
    takes = "is estimated to take" if gpu else "takes"
    raise UserError(
        f"train: a step {takes} {least:.2f} GB with one clip at a time, and {gigabytes:.3g} GB are given; "
        "give a smaller --size or --batch-size, or fewer data.drawn_frames"
    )


def gigabytes_for_more_micro_batches(recipe: Recipe, ranks: int = 1, *, gpu: bool = False) -> float | None:
    """A round number of GB for which :func:`split_to_fit_memory` takes more micro-batches, or None."""
    whole = _PREDICTION_MARGIN * predict_peak_gb(recipe, ranks, gpu=gpu)
    for count in micro_batch_counts(recipe.data.batch_size // ranks, recipe.training.micro_batches)[1:]:
        tried = override(recipe, {"training.micro_batches": count})
        needed = _PREDICTION_MARGIN * predict_peak_gb(tried, ranks, gpu=gpu)
        for unit in (1, 10, 100, 1000):
            if (rounded := math.ceil(unit * needed) / unit) < whole:
                return rounded
    return None


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """The predicted memory of a step for one size, length and batch, and the recipe that fits.

    Attributes:
        recipe: recipe with this size, length and batch, in one micro-batch.
        peak: predicted peak in GB.
        fitted: recipe whose micro-batches fit; None if nothing fits.
        fitted_peak: predicted peak of ``fitted`` in GB; None if nothing fits.
    """

    recipe: Recipe
    peak: float
    fitted: Recipe | None
    fitted_peak: float | None


def plan_rows(
    recipe: Recipe,
    gigabytes: float,
    sizes: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    batches: Sequence[int],
    *,
    gpu: bool = False,
) -> list[PlanRow]:
    """A row for each size, sequence length and batch size of a recipe. With ``gpu`` they are estimates."""
    rows = []
    for size, length, batch in itertools.product(sizes, lengths, batches):
        settings = {"data.size": size, "data.seq_len": length, "data.batch_size": batch}
        one = override(recipe, {**settings, "training.micro_batches": 1})
        try:
            fitted = split_to_fit_memory(one, gigabytes, gpu=gpu)
        except UserError:
            fitted = None
        rows.append(
            PlanRow(
                one,
                predict_peak_gb(one, gpu=gpu),
                fitted,
                predict_peak_gb(fitted, gpu=gpu) if fitted else None,
            )
        )
    return rows
