"""Every measure of how far one set of clips is from another: pictures, motion, memory. NumPy only.

A measure is a function (reference, other) of the :class:`ClipFeatures` of two sets. To add one, write the
function and name it in ``MEASURES``, with its kind, the corruptions that it detects and what it cannot see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from mlxlava.evaluation.correlation import correlation_time
from mlxlava.evaluation.distances import (
    frechet,
    nearest_distances,
    polynomial_mmd,
    sliced_wasserstein,
    squared_distances,
)
from mlxlava.evaluation.features import DIRECTIONS, FRAMES, LEVELS, ClipFeatures
from mlxlava.evaluation.frames import Array, evenly_spaced
from mlxlava.products import matmul

MODES = 16  # the strongest principal components, for measures of motion
_NEIGHBOURS = 5  # k of density and coverage (Naeem 2020)
_PIECE = 8  # learned steps of the pieces that are searched for in the reference
_PAIRED = 8  # modes whose pairs give the arrow of time
_RIDGE = 10.0  # λ of the discriminant in motion_arrow
_LIMIT = 3.0  # deviations to which long vectors are squashed


# --- pictures ---


def _points(of: ClipFeatures) -> tuple[Array, Array]:
    """A few frames of each clip (C · 16, d), and the clip of each."""
    length = of.features.shape[1]
    at = evenly_spaced(length, min(FRAMES, length))
    return of.features[:, at].reshape(-1, of.features.shape[-1]), np.repeat(of.names, len(at))


def image_frechet(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Fréchet distance of frames."""
    # Neighbouring frames are almost equal, so every second one is enough.
    x, y = (of.features[:, ::2].reshape(-1, of.features.shape[-1]) for of in (reference, other))
    return frechet(x, y)


def image_kid(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Polynomial MMD of frames."""
    (x, x_names), (y, y_names) = _points(reference), _points(other)
    return polynomial_mmd(x, y, x_names, y_names)


def image_sharpness(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Sliced Wasserstein distance of patches of the fine levels of the Laplacian pyramid (Karras 2018).

    Patches of both sets are divided by the reference's deviation, so that a loss of contrast is seen.
    """
    total = []
    for level in range(LEVELS):
        x, y = (of.patches[:, level].reshape(-1, DIRECTIONS) for of in (reference, other))
        total.append(sliced_wasserstein(x, y) / (float(x.std()) + 1e-3))
    return float(np.mean(total))


def image_colour(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of the histograms of red, green and blue, grey levels, mean of the three."""
    return float(np.abs(reference.colours.mean(0) - other.colours.mean(0)).sum(1).mean())


def _neighbourhoods(reference: ClipFeatures, other: ClipFeatures) -> tuple[Array, Array]:
    """Squared distances of reference frames: to other frames, and to their k-th neighbour of another clip."""
    (x, names), (y, _) = _points(reference), _points(other)
    within = squared_distances(x, x)
    within[names[:, None] == names[None]] = np.inf
    k = min(_NEIGHBOURS, len(x) - 1)
    return squared_distances(x, y), np.partition(within, k - 1, axis=1)[:, k - 1]


def image_density(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Density: number of reference neighbourhoods in which a frame lies, over k (Naeem 2020, eq. 4)."""
    distances, radii = _neighbourhoods(reference, other)
    return float((distances <= radii[:, None]).sum(0).mean() / _NEIGHBOURS)


def image_coverage(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Coverage: fraction of reference neighbourhoods with a frame in them (Naeem 2020, eq. 5)."""
    distances, radii = _neighbourhoods(reference, other)
    return float((distances.min(1) <= radii).mean())


def image_recall(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Recall: fraction of reference frames in the neighbourhood of a frame (Kynkäänniemi 2019, eq. 2)."""
    distances, radii = _neighbourhoods(other, reference)
    return float((distances <= radii[:, None]).any(0).mean())


# --- motion ---


def _modes(of: ClipFeatures) -> Array:
    return of.features[..., :MODES]


def _stacked(reference: ClipFeatures, of: ClipFeatures) -> ClipFeatures:
    """(x, Δx, Δ²x) of the modes as features (C, L − 2, 3 modes), each of variance one in the reference.

    Vectors longer than three deviations are squashed, so that a single jump cannot dominate the distance.
    """
    parts = []
    for order in range(3):
        scale = np.sqrt(np.diff(_modes(reference), order, axis=1).var((0, 1)).sum()) + 1e-6
        part = np.diff(_modes(of), order, axis=1)[:, 2 - order :] / scale
        parts.append(part / np.sqrt(1 + (part**2).sum(-1, keepdims=True) / _LIMIT**2))
    return dataclasses.replace(of, features=np.concatenate(parts, axis=-1))


def motion_frechet(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Fréchet distance of (x, Δx, Δ²x)."""
    return image_frechet(_stacked(reference, reference), _stacked(reference, other))


def motion_kid(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Polynomial MMD of (x, Δx, Δ²x)."""
    return image_kid(_stacked(reference, reference), _stacked(reference, other))


def spectrum(of: ClipFeatures) -> Array:
    """Power of each mode over frequency, mean over clips (L / 2, modes); zero frequency left out."""
    x = _modes(of) - _modes(of).mean(1, keepdims=True)
    x = x * np.hanning(x.shape[1] + 2)[1:-1, None]
    power: Array = (np.abs(np.fft.rfft(x, axis=1)) ** 2).mean(0)[1:]
    return power


def motion_spectrum(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Root mean square of the log ratio of power spectra, over modes and octaves of frequency."""
    x, y = (_octaves(spectrum(of)) for of in (reference, other))
    least = 1e-5 * x.max()
    return float(np.sqrt((np.log((y + least) / (x + least)) ** 2).mean()))


def _octaves(power: Array) -> Array:
    """Mean power within each octave, since high frequencies have many more bins than low ones."""
    edges = [2**n - 1 for n in range(len(power).bit_length() + 1) if 2**n - 1 < len(power)]
    return np.stack([power[low:high].mean(0) for low, high in pairwise([*edges, len(power)])])


def _correlation_time(of: ClipFeatures) -> float:
    """Correlation time of all modes together, in learned steps."""
    return correlation_time(_modes(of) - _modes(of).mean((0, 1)))


def motion_time(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of correlation times: 2 is twice as slow."""
    return _correlation_time(other) / _correlation_time(reference)


def motion_energy(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of the change from frame to frame, over the reference's mean change."""
    x, y = (of.energy.reshape(-1, 1) for of in (reference, other))
    return sliced_wasserstein(x, y) / (float(reference.energy.mean()) + 1e-6)


def _arrows(of: ClipFeatures, mean: Array, deviation: Array) -> Array:
    """What changes sign when a clip is played backwards, for each clip (C, features).

    For lags of 1, 2, 4 … steps up to a quarter of a clip: ⟨x_i² (t) x_j (t+τ) − x_j (t) x_i² (t+τ)⟩ of
    all pairs of modes, i = j included (third order), and ⟨x_i (t) x_j (t+τ) − x_j (t) x_i (t+τ)⟩ (which
    mode follows which, second order).
    """
    x = ((_modes(of) - mean) / deviation)[..., :_PAIRED]
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


def motion_arrow(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Arrow of time: how clearly clips run in the reference's direction of time.

    A linear discriminant (ridge-regularised, of the antisymmetric moments) is fitted to tell reference clips
    from the same clips backwards. The result is its mean over clips, in deviations over reference clips.
    Clips that are played backwards have minus that value. Motion back and forth has 0.
    """
    mean, deviation = _modes(reference).mean((0, 1)), _modes(reference).std((0, 1)) + 1e-6
    x, y = _arrows(reference, mean, deviation), _arrows(other, mean, deviation)
    scale = np.sqrt((x**2).mean(0)) + 1e-9
    x, y = x / scale, y / scale
    # (XᵀX/C + λI)⁻¹ x̄, computed with the C×C kernel matrix, which is smaller.
    kernel = matmul(x, x.T) / len(x) + _RIDGE * np.eye(len(x))
    weights = matmul(x.T, np.linalg.solve(kernel, np.full(len(x), 1 / len(x))))
    return float(matmul(y, weights).mean() / (matmul(x, weights).std() + 1e-9))


def motion_loops(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Mean distance of a frame to the nearest much earlier frame of its clip. It is small in a loop.

    Much earlier: by at least two correlation times of the reference, or half a clip if that is less.
    """
    length = other.features.shape[1]
    lag = int(min(max(2 * _correlation_time(reference), 2), length // 2))
    stride = 1 if length < 64 else 2
    nearest = []
    for clip in other.features:
        distances = squared_distances(clip[lag::stride], clip[:-lag:stride])
        distances[np.triu_indices(len(distances), 1)] = np.inf  # frame t + lag is compared with 0 … t
        nearest.append(np.sqrt(distances.min(1)).mean())
    return float(np.mean(nearest))


# --- wax ---


def image_edges(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of how steep edges of wax are: below 1 they are soft."""
    return float(other.edges.mean()) / (float(reference.edges.mean()) + 1e-6)


def wax_amount(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of the amounts of wax, in deviations of the reference's."""
    x, y = (of.wax.reshape(-1, 1) for of in (reference, other))
    return sliced_wasserstein(x, y) / (float(x.std()) + 1e-6)


def wax_deviation(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of the deviations of the amount of wax: above 1, wax comes out of nothing and fades away."""
    return float(other.wax.std()) / (float(reference.wax.std()) + 1e-6)


def _wax_time(of: ClipFeatures) -> float:
    return correlation_time((of.wax - of.wax.mean())[..., None])


def wax_time(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of the correlation times of the amount of wax."""
    return _wax_time(other) / _wax_time(reference)


def wax_blobs(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Wasserstein-1 distance of the numbers of blobs in a frame."""
    x, y = (of.blobs.reshape(-1, 1) for of in (reference, other))
    return sliced_wasserstein(x, y)


def _merging(of: ClipFeatures) -> float:
    return float(np.abs(np.diff(of.blobs, axis=1)).mean())


def wax_merging(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Ratio of how often blobs merge and part: changes of their number a learned step."""
    return _merging(other) / (_merging(reference) + 1e-6)


# --- memory ---


def memory_frames(reference: ClipFeatures, other: ClipFeatures) -> float:
    """Mean distance of a frame to the nearest reference frame. It is small where frames are replayed."""
    x, (y, _) = reference.features[:, ::2].reshape(-1, reference.features.shape[-1]), _points(other)
    return float(nearest_distances(y, x).mean())


def memory_clips(reference: ClipFeatures, other: ClipFeatures) -> float:
    """The same for pieces of eight steps, with all their modes."""
    length = min(_PIECE, reference.features.shape[1])

    def pieces(of: ClipFeatures, every: int) -> Array:
        starts = range(0, of.features.shape[1] - length + 1, every)
        return np.concatenate([_modes(of)[:, at : at + length].reshape(len(of), -1) for at in starts])

    return float(nearest_distances(pieces(other, 32), pieces(reference, 2)).mean() / np.sqrt(length))


# --- all of them ---


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure, and how to read it.

    Attributes:
        function: (reference, other) → number.
        kind: ``distance`` (more is worse), ``unbiased`` (a distance with a mean of 0 between halves of one
            set, so it can be negative) or ``level`` (best where it equals that of real footage).
        sees: corruptions that change it (benchmarks/corruptions.py checks this).
        blind: what it cannot see.
    """

    function: Callable[[ClipFeatures, ClipFeatures], float]
    kind: str
    sees: tuple[str, ...]
    blind: str


_ORDER = "order and speed of frames"
_TIME = "the direction of time"
MEASURES: dict[str, Measure] = {
    "image.frechet": Measure(
        image_frechet, "distance", ("blur", "frozen", "looped"), f"{_ORDER}; fine detail; shades of colour"
    ),
    "image.kid": Measure(image_kid, "unbiased", ("blur",), f"{_ORDER}; fine detail; missing variety"),
    "image.sharpness": Measure(
        image_sharpness, "distance", ("blur", "noise"), f"{_ORDER}; where things are; missing variety"
    ),
    "image.colour": Measure(image_colour, "distance", ("colour",), f"{_ORDER}; shapes"),
    "image.density": Measure(image_density, "level", ("blur",), f"{_ORDER}; missing variety"),
    "image.coverage": Measure(image_coverage, "level", ("frozen", "looped"), f"{_ORDER}; fine detail"),
    "image.recall": Measure(image_recall, "level", ("frozen",), f"{_ORDER}; fine detail"),
    "image.edges": Measure(image_edges, "level", ("blur", "faded"), f"{_ORDER}; where things are"),
    "motion.frechet": Measure(
        motion_frechet, "distance", ("noise", "frozen", "shuffled", "dropped"), f"{_TIME}; fine detail"
    ),
    "motion.kid": Measure(motion_kid, "unbiased", ("shuffled", "dropped"), f"{_TIME}; fine detail"),
    "motion.spectrum": Measure(
        motion_spectrum, "distance", ("noise", "frozen", "shuffled", "dropped"), f"{_TIME}; fine detail"
    ),
    "motion.time": Measure(motion_time, "level", ("shuffled", "dropped"), f"{_TIME}; flicker"),
    "motion.energy": Measure(
        motion_energy, "distance", ("noise", "frozen", "shuffled", "dropped"), f"{_TIME}; what moves"
    ),
    "motion.arrow": Measure(motion_arrow, "level", ("reversed", "pingpong", "shuffled"), "pictures; speed"),
    "motion.loops": Measure(
        motion_loops, "level", ("frozen", "looped", "pingpong"), f"{_TIME}; loops longer than a clip"
    ),
    "wax.amount": Measure(wax_amount, "distance", ("faded",), f"{_ORDER}; shapes"),
    "wax.deviation": Measure(wax_deviation, "level", ("faded",), f"{_ORDER}; shapes"),
    "wax.time": Measure(wax_time, "level", ("shuffled", "dropped"), f"{_TIME}; shapes"),
    "wax.blobs": Measure(wax_blobs, "distance", ("speckled",), f"{_ORDER}; shapes of blobs"),
    "wax.merging": Measure(
        wax_merging, "level", ("shuffled", "dropped", "speckled"), f"{_TIME}; shapes of blobs"
    ),
    "memory.frames": Measure(memory_frames, "level", ("replayed",), "all motion; fine detail"),
    "memory.clips": Measure(memory_clips, "level", ("replayed",), "fine detail"),
}


def measure(reference: ClipFeatures, other: ClipFeatures) -> dict[str, float]:
    """All measures of ``other`` against the reference."""
    return {name: one.function(reference, other) for name, one in MEASURES.items()}


def _resample(rng: np.random.Generator, count: int) -> Array:
    """Indices of clips, drawn with replacement. Two differ at least: measures leave out pairs of one clip."""
    while True:
        chosen = rng.integers(0, count, count)
        if len(set(chosen.tolist())) > 1:
            return chosen


def standard_errors(
    reference: ClipFeatures, other: ClipFeatures, repeats: int, seed: int
) -> dict[str, float]:
    """Bootstrap standard error of each measure: clips of both sets drawn anew with replacement."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(repeats):
        left, right = (_resample(rng, len(of)) for of in (reference, other))
        rows.append(list(measure(reference.take(left), other.take(right)).values()))
    return dict(zip(MEASURES, np.std(rows, axis=0, ddof=1).tolist(), strict=True))
