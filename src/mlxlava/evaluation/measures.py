"""Measures of how far one set of clips is from another: pictures, motion, wax, memory. NumPy only.

A measure is a function of the :class:`ClipFeatures` of two sets: reference and other. To add a measure, write
its function and list it in ``MEASURES``, with its kind, the corruptions that it detects and what it cannot
see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from mlxlava.evaluation.correlation import correlation_time
from mlxlava.evaluation.distances import (
    frechet_distance,
    mean_wasserstein_of_columns,
    nearest_distances,
    polynomial_mmd,
    squared_distances,
)
from mlxlava.evaluation.features import FRAMES_PER_CLIP, PATCH_DIRECTIONS, PYRAMID_LEVELS, ClipFeatures
from mlxlava.evaluation.frames import evenly_spaced_indices
from mlxlava.products import NumpyArray, matmul

MODE_COUNT = 16  # measures of motion use so many principal components, the strongest ones
_NEIGHBOUR_COUNT = 5  # the k of density and coverage (Naeem 2020)
_MATCHED_PIECE_STEPS = 8  # learned steps of a piece that is searched for in the reference
_PAIRED_MODE_COUNT = 8  # number of modes whose pairs give the arrow of time
_DISCRIMINANT_RIDGE = 10.0  # λ of the discriminant in motion_arrow_of_time
_MAX_VECTOR_NORM = 3.0  # longest vector, in deviations: longer vectors are shortened smoothly


# --- pictures ---


def _features_of_sampled_frames(clips: ClipFeatures) -> tuple[NumpyArray, NumpyArray]:
    """Features of a few frames of each clip (C · 16, d), and the number of the clip of each frame."""
    length = clips.features.shape[1]
    at = evenly_spaced_indices(length, min(FRAMES_PER_CLIP, length))
    return clips.features[:, at].reshape(-1, clips.features.shape[-1]), np.repeat(clips.clip_numbers, len(at))


def _features_of_every_second_frame(clips: ClipFeatures) -> NumpyArray:
    """Features of half of the frames (C · L / 2, d): neighbours are almost equal, so these are enough."""
    return clips.features[:, ::2].reshape(-1, clips.features.shape[-1])


def image_frechet_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Fréchet distance of frames."""
    return frechet_distance(*map(_features_of_every_second_frame, (reference, other)))


def image_kid(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Polynomial MMD of frames."""
    (x, x_clips), (y, y_clips) = _features_of_sampled_frames(reference), _features_of_sampled_frames(other)
    return polynomial_mmd(x, y, x_clips, y_clips)


def image_sharpness_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Sliced Wasserstein distance of patches of the finest levels of a Laplacian pyramid (Karras 2018).

    Patches of both sets are divided by the reference's deviation, so that a loss of contrast is seen.
    """
    total = []
    for level in range(PYRAMID_LEVELS):
        x, y = (of.patches[:, level].reshape(-1, PATCH_DIRECTIONS) for of in (reference, other))
        total.append(mean_wasserstein_of_columns(x, y) / (float(x.std()) + 1e-3))
    return float(np.mean(total))


def image_colour_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of colour histograms in grey levels, mean over red, green and blue."""
    return float(np.abs(reference.colours.mean(0) - other.colours.mean(0)).sum(1).mean())


def _distances_and_radii(reference: ClipFeatures, other: ClipFeatures) -> tuple[NumpyArray, NumpyArray]:
    """Squared distances of reference frames to other frames, and to their k-th neighbours.

    Neighbours are reference frames of other clips.
    """
    (x, clips), (y, _) = _features_of_sampled_frames(reference), _features_of_sampled_frames(other)
    within = squared_distances(x, x)
    within[clips[:, None] == clips[None]] = np.inf
    k = min(_NEIGHBOUR_COUNT, len(x) - 1)
    return squared_distances(x, y), np.partition(within, k - 1, axis=1)[:, k - 1]


def image_density(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Density: number of reference neighbourhoods in which a frame lies, over k (Naeem 2020, eq. 4)."""
    distances, radii = _distances_and_radii(reference, other)
    return float((distances <= radii[:, None]).sum(0).mean() / _NEIGHBOUR_COUNT)


def image_coverage(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Coverage: fraction of reference neighbourhoods with a frame in them (Naeem 2020, eq. 5)."""
    distances, radii = _distances_and_radii(reference, other)
    return float((distances.min(1) <= radii).mean())


def image_recall(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Recall: fraction of reference frames in the neighbourhood of a frame (Kynkäänniemi 2019, eq. 2)."""
    distances, radii = _distances_and_radii(other, reference)
    return float((distances <= radii[:, None]).any(0).mean())


# --- motion ---


def _strongest_modes(clips: ClipFeatures) -> NumpyArray:
    return clips.features[..., :MODE_COUNT]


def _modes_and_their_differences(reference: ClipFeatures, clips: ClipFeatures) -> ClipFeatures:
    """Clips whose features are (x, Δx, Δ²x) of the modes x: (C, L − 2, 3 modes).

    Each of the three is scaled to variance one in the reference. Vectors longer than three deviations are
    shortened, so that a single jump cannot dominate a distance.
    """
    parts = []
    for order in range(3):
        scale = np.sqrt(np.diff(_strongest_modes(reference), order, axis=1).var((0, 1)).sum()) + 1e-6
        part = np.diff(_strongest_modes(clips), order, axis=1)[:, 2 - order :] / scale
        parts.append(part / np.sqrt(1 + (part**2).sum(-1, keepdims=True) / _MAX_VECTOR_NORM**2))
    return dataclasses.replace(clips, features=np.concatenate(parts, axis=-1))


def motion_frechet_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Fréchet distance of (x, Δx, Δ²x)."""
    return image_frechet_distance(
        _modes_and_their_differences(reference, reference), _modes_and_their_differences(reference, other)
    )


def motion_kid(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Polynomial MMD of (x, Δx, Δ²x)."""
    return image_kid(
        _modes_and_their_differences(reference, reference), _modes_and_their_differences(reference, other)
    )


def power_spectrum(clips: ClipFeatures) -> NumpyArray:
    """Power spectrum of each mode, as a mean over clips (L / 2, modes). Frequency zero is left out."""
    x = _strongest_modes(clips) - _strongest_modes(clips).mean(1, keepdims=True)
    x = x * np.hanning(x.shape[1] + 2)[1:-1, None]
    power: NumpyArray = (np.abs(np.fft.rfft(x, axis=1)) ** 2).mean(0)[1:]
    return power


def motion_spectrum_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Root mean square of the log ratio of power spectra, over modes and octaves of frequency."""
    x, y = (_octave_means(power_spectrum(of)) for of in (reference, other))
    least = 1e-5 * x.max()
    return float(np.sqrt((np.log((y + least) / (x + least)) ** 2).mean()))


def _octave_means(power: NumpyArray) -> NumpyArray:
    """The mean power of each octave.

    Octaves of high frequencies have many more bins than those of low ones.
    """
    edges = [2**n - 1 for n in range(len(power).bit_length() + 1) if 2**n - 1 < len(power)]
    return np.stack([power[low:high].mean(0) for low, high in pairwise([*edges, len(power)])])


def _motion_correlation_time(clips: ClipFeatures) -> float:
    """Correlation time of all modes together, in learned steps."""
    return correlation_time(_strongest_modes(clips) - _strongest_modes(clips).mean((0, 1)))


def motion_correlation_time_ratio(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of the correlation times of motion: 2 means motion of half the speed."""
    return _motion_correlation_time(other) / _motion_correlation_time(reference)


def distance_of_motion_energies(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of changes from frame to frame, divided by the mean change of the reference."""
    x, y = (of.energy.reshape(-1, 1) for of in (reference, other))
    return mean_wasserstein_of_columns(x, y) / (float(reference.energy.mean()) + 1e-6)


def _time_asymmetry(clips: ClipFeatures, mean: NumpyArray, deviation: NumpyArray) -> NumpyArray:
    """Statistics of each clip that change their sign if the clip is played backwards: (C, statistics).

    For lags τ of 1, 2, 4 … steps, up to a quarter of a clip, they are: ⟨x_i² (t) x_j (t+τ) − x_j (t) x_i²
    (t+τ)⟩ of all pairs of modes, i = j included (third order), and ⟨x_i (t) x_j (t+τ) − x_j (t) x_i (t+τ)⟩
    (which mode follows which, second order).
    """
    x = ((_strongest_modes(clips) - mean) / deviation)[..., :_PAIRED_MODE_COUNT]
    length = x.shape[1]
    rows = []
    lag = 1
    while lag <= max(1, length // 4):
        early, late = x[:, :-lag], x[:, lag:]
        third = matmul(np.swapaxes(early**2, 1, 2), late) - matmul(np.swapaxes(late**2, 1, 2), early)
        second = matmul(np.swapaxes(early, 1, 2), late)
        second = (second - np.swapaxes(second, 1, 2))[(slice(None), *np.triu_indices(x.shape[2], 1))]
        rows += [third.reshape(len(x), -1) / (length - lag), second / (length - lag)]
        lag *= 2
    return np.concatenate(rows, axis=1)


def motion_arrow_of_time(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Arrow of time: how clearly clips run in the reference's direction of time.

    A linear discriminant with ridge regularisation is fitted to the statistics of :func:`_time_asymmetry`. It
    tells reference clips from the same clips played backwards. The result is its mean over the other clips,
    divided by its deviation over reference clips. Clips played backwards have minus that value. Motion back
    and forth has 0.
    """
    mean, deviation = _strongest_modes(reference).mean((0, 1)), _strongest_modes(reference).std((0, 1)) + 1e-6
    x, y = _time_asymmetry(reference, mean, deviation), _time_asymmetry(other, mean, deviation)
    scale = np.sqrt((x**2).mean(0)) + 1e-9
    x, y = x / scale, y / scale
    # (XᵀX/C + λI)⁻¹ x̄, computed with the C×C kernel matrix, which is smaller.
    kernel = matmul(x, x.T) / len(x) + _DISCRIMINANT_RIDGE * np.eye(len(x))
    weights = matmul(x.T, np.linalg.solve(kernel, np.full(len(x), 1 / len(x))))
    return float(matmul(y, weights).mean() / (matmul(x, weights).std() + 1e-9))


def motion_distance_to_earlier_frames(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Mean distance of a frame to the nearest much earlier frame of its clip. It is small in a loop.

    "Much earlier" means two correlation times of the reference, or half a clip if that is less.
    """
    length = other.features.shape[1]
    lag = int(min(max(2 * _motion_correlation_time(reference), 2), length // 2))
    stride = 1 if length < 64 else 2
    nearest = []
    for clip in other.features:
        distances = squared_distances(clip[lag::stride], clip[:-lag:stride])
        distances[np.triu_indices(len(distances), 1)] = np.inf  # frame t + lag is compared with 0 … t
        nearest.append(np.sqrt(distances.min(1)).mean())
    return float(np.mean(nearest))


# --- wax ---


def wax_edge_steepness_ratio(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of the steepness of wax edges: below 1 the edges are softer than in the reference."""
    return float(other.edges.mean()) / (float(reference.edges.mean()) + 1e-6)


def wax_amount_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of the amounts of wax, divided by the deviation of the reference."""
    x, y = (of.wax.reshape(-1, 1) for of in (reference, other))
    return mean_wasserstein_of_columns(x, y) / (float(x.std()) + 1e-6)


def wax_amount_deviation_ratio(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of the deviations of the amount of wax: above 1, wax appears out of nothing and fades away."""
    return float(other.wax.std()) / (float(reference.wax.std()) + 1e-6)


def _wax_correlation_time(clips: ClipFeatures) -> float:
    return correlation_time((clips.wax - clips.wax.mean())[..., None])


def wax_amount_correlation_time_ratio(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of the correlation times of the amount of wax."""
    return _wax_correlation_time(other) / _wax_correlation_time(reference)


def wax_blob_count_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of the number of blobs in a frame."""
    x, y = (of.blobs.reshape(-1, 1) for of in (reference, other))
    return mean_wasserstein_of_columns(x, y)


def _blob_count_change(clips: ClipFeatures) -> float:
    return float(np.abs(np.diff(clips.blobs, axis=1)).mean())


def wax_merging_ratio(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of how often blobs merge and part: the mean change of their number in a learned step."""
    return _blob_count_change(other) / (_blob_count_change(reference) + 1e-6)


# --- memory ---


def memorised_frame_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Mean distance of a frame to the nearest reference frame. It is small where frames are replayed."""
    x = _features_of_every_second_frame(reference)
    y, _ = _features_of_sampled_frames(other)
    return float(nearest_distances(y, x).mean())


def memorised_clip_distance(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Mean distance of a piece of eight steps to the nearest piece of the reference, over all modes."""
    length = min(_MATCHED_PIECE_STEPS, reference.features.shape[1])

    def pieces(clips: ClipFeatures, every: int) -> NumpyArray:
        starts = range(0, clips.features.shape[1] - length + 1, every)
        return np.concatenate(
            [_strongest_modes(clips)[:, at : at + length].reshape(len(clips), -1) for at in starts]
        )

    return float(nearest_distances(pieces(other, 32), pieces(reference, 2)).mean() / np.sqrt(length))


# --- all of them ---


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure, with what is needed to read its value.

    Attributes:
        function: (reference, other) → number.
        kind: ``distance`` (more is worse), ``unbiased`` (a distance with a mean of 0 between halves of one
            set, so it can be negative) or ``level`` (best where it equals that of real footage).
        detects: corruptions that change it (benchmarks/corruptions.py checks this).
        cannot_see: differences that do not change it.
    """

    function: Callable[[ClipFeatures, ClipFeatures], float]
    kind: str
    detects: tuple[str, ...]
    cannot_see: str


_ORDER_AND_SPEED_TEXT = "order and speed of frames"
_TIME_DIRECTION_TEXT = "the direction of time"
MEASURES: dict[str, Measure] = {
    "image.frechet": Measure(
        image_frechet_distance,
        "distance",
        ("blur", "frozen", "looped"),
        f"{_ORDER_AND_SPEED_TEXT}; fine detail; shades of colour",
    ),
    "image.kid": Measure(
        image_kid, "unbiased", ("blur",), f"{_ORDER_AND_SPEED_TEXT}; fine detail; missing variety"
    ),
    "image.sharpness": Measure(
        image_sharpness_distance,
        "distance",
        ("blur", "noise"),
        f"{_ORDER_AND_SPEED_TEXT}; where things are; missing variety",
    ),
    "image.colour": Measure(
        image_colour_distance, "distance", ("colour",), f"{_ORDER_AND_SPEED_TEXT}; shapes"
    ),
    "image.density": Measure(image_density, "level", ("blur",), f"{_ORDER_AND_SPEED_TEXT}; missing variety"),
    "image.coverage": Measure(
        image_coverage, "level", ("frozen", "looped"), f"{_ORDER_AND_SPEED_TEXT}; fine detail"
    ),
    "image.recall": Measure(image_recall, "level", ("frozen",), f"{_ORDER_AND_SPEED_TEXT}; fine detail"),
    "image.edges": Measure(
        wax_edge_steepness_ratio, "level", ("blur", "faded"), f"{_ORDER_AND_SPEED_TEXT}; where things are"
    ),
    "motion.frechet": Measure(
        motion_frechet_distance,
        "distance",
        ("noise", "frozen", "shuffled", "dropped"),
        f"{_TIME_DIRECTION_TEXT}; fine detail",
    ),
    "motion.kid": Measure(
        motion_kid, "unbiased", ("shuffled", "dropped"), f"{_TIME_DIRECTION_TEXT}; fine detail"
    ),
    "motion.spectrum": Measure(
        motion_spectrum_distance,
        "distance",
        ("noise", "frozen", "shuffled", "dropped"),
        f"{_TIME_DIRECTION_TEXT}; fine detail",
    ),
    "motion.time": Measure(
        motion_correlation_time_ratio, "level", ("shuffled", "dropped"), f"{_TIME_DIRECTION_TEXT}; flicker"
    ),
    "motion.energy": Measure(
        distance_of_motion_energies,
        "distance",
        ("noise", "frozen", "shuffled", "dropped"),
        f"{_TIME_DIRECTION_TEXT}; what moves",
    ),
    "motion.arrow": Measure(
        motion_arrow_of_time, "level", ("reversed", "pingpong", "shuffled"), "pictures; speed"
    ),
    "motion.loops": Measure(
        motion_distance_to_earlier_frames,
        "level",
        ("frozen", "looped", "pingpong"),
        f"{_TIME_DIRECTION_TEXT}; loops longer than a clip",
    ),
    "wax.amount": Measure(wax_amount_distance, "distance", ("faded",), f"{_ORDER_AND_SPEED_TEXT}; shapes"),
    "wax.deviation": Measure(
        wax_amount_deviation_ratio, "level", ("faded",), f"{_ORDER_AND_SPEED_TEXT}; shapes"
    ),
    "wax.time": Measure(
        wax_amount_correlation_time_ratio, "level", ("shuffled", "dropped"), f"{_TIME_DIRECTION_TEXT}; shapes"
    ),
    "wax.blobs": Measure(
        wax_blob_count_distance, "distance", ("speckled",), f"{_ORDER_AND_SPEED_TEXT}; shapes of blobs"
    ),
    "wax.merging": Measure(
        wax_merging_ratio,
        "level",
        ("shuffled", "dropped", "speckled"),
        f"{_TIME_DIRECTION_TEXT}; shapes of blobs",
    ),
    "memory.frames": Measure(memorised_frame_distance, "level", ("replayed",), "all motion; fine detail"),
    "memory.clips": Measure(memorised_clip_distance, "level", ("replayed",), "fine detail"),
}


def measure_all(reference: ClipFeatures, other: ClipFeatures) -> dict[str, float]:
    """All measures of ``other`` against the reference."""
    return {name: one.function(reference, other) for name, one in MEASURES.items()}


def _resampled_indices(rng: np.random.Generator, count: int) -> NumpyArray:
    """Draw indices of clips with replacement. At least two differ, since pairs of one clip are left out."""
    while True:
        chosen = rng.integers(0, count, count)
        if len(set(chosen.tolist())) > 1:
            return chosen


def standard_errors(
    reference: ClipFeatures, other: ClipFeatures, repeats: int, seed: int
) -> dict[str, float]:
    """Bootstrap standard error of each measure. The clips of both sets are drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(repeats):
        left, right = (_resampled_indices(rng, len(of)) for of in (reference, other))
        rows.append(list(measure_all(reference.select(left), other.select(right)).values()))
    return dict(zip(MEASURES, np.std(rows, axis=0, ddof=1).tolist(), strict=True))
