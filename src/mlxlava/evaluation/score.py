"""Scores weights against real footage. Each measure has a floor: its value for other real footage.

Real footage is split into two halves: the *reference* and the *held-out* footage. Features are fitted to the
reference. The weights draw as many clips as a half has. The floor of a measure is its value for held-out
footage against the reference.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlxlava.console import OnProgress
from mlxlava.errors import UserError
from mlxlava.evaluation.features import ClipFeatures, FittedFeatures, extract_features
from mlxlava.evaluation.frames import evenly_spaced_indices
from mlxlava.evaluation.measures import MEASURES, measure_all, standard_errors
from mlxlava.footage.dataset import Footage
from mlxlava.products import NumpyArray
from mlxlava.resize import resize
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights

# Lengths of a clip in learned steps; the longest with enough clips is used.
CANDIDATE_CLIP_LENGTHS = (256, 128, 64, 32, 16)
MAX_CLIPS = 256  # most clips of a half
MAX_FRAMES = 16_384  # most frames of a half, by default
_PREFERRED_CLIP_COUNTS = (16, 8)  # a half should have so many clips; else shorter clips are tried
_MIN_CLIPS = 4  # a half needs at least so many clips
# Footage is cut into so many blocks. Every second one is held out; the others are the reference.
_FOOTAGE_BLOCK_COUNT = 8
_WARM_UP_STEPS = 256  # learned steps that are rolled before the first frame is drawn
LAMPS_AT_ONCE = 32  # number of lamps that are rolled together
BOOTSTRAP_REPEATS = 40  # repeats of the bootstrap
HEADLINE_MEASURES = {
    "image": ("image.frechet", "image.sharpness", "image.colour"),
    "motion": ("motion.frechet", "motion.spectrum", "motion.energy"),
}


@dataclasses.dataclass(frozen=True)
class RealClips:
    """Real clips in two halves.

    Attributes:
        frames: the frames of each half, uint8 (N, H, W, 3).
        starts: index of the first frame of each clip, for each half.
        length: number of frames of a clip.
        step_fps: learned steps per second.
    """

    frames: tuple[NumpyArray, NumpyArray]
    starts: tuple[list[int], list[int]]
    length: int
    step_fps: float

    def clips(self, half: int, size: tuple[int, int] | None = None) -> Iterator[NumpyArray]:
        """The clips of the reference (half 0) or of the held-out footage (half 1), resized to ``size``."""
        for start in self.starts[half]:
            yield _resize_clip(np.asarray(self.frames[half][start : start + self.length]), size)

    def __len__(self) -> int:
        return len(self.starts[0])


def _resize_clip(clip: NumpyArray, size: tuple[int, int] | None) -> NumpyArray:
    if size is None or clip.shape[1:3] == tuple(size):
        return clip
    return np.stack([resize(frame, size) for frame in clip])


def split_footage(
    footage: Footage,
    held_out: Footage | None,
    frames: int = MAX_FRAMES,
    lengths: Sequence[int] = CANDIDATE_CLIP_LENGTHS,
) -> RealClips:
    """Split real footage into the reference and held-out footage.

    Args:
        footage: the training footage. Without ``held_out``, it is cut into eight blocks. The 2nd, 4th, 6th
            and 8th block are held out.
        held_out: footage that was not trained on.
        frames: most frames of each half.
        lengths: clip lengths to choose from, longest first. The first length with 16 clips is used. If there
            is none, the first with 8 clips is used, or the first with 4.

    Raises:
        UserError: the footage is too short, or too few frames are asked for.
    """
    least = _MIN_CLIPS * lengths[-1]
    if frames < least:
        raise UserError(f"score: --frames must be at least {least}, not {frames}")
    for enough in (*_PREFERRED_CLIP_COUNTS, _MIN_CLIPS):
        for length in lengths:
            if held_out is None:
                starts = _clip_starts_of_halves(footage, length)
            else:
                starts = (
                    _starts_of_separate_clips(footage, length),
                    _starts_of_separate_clips(held_out, length),
                )
            count = min(len(starts[0]), len(starts[1]), frames // length, MAX_CLIPS)
            if count >= enough:
                halves = (footage.frames, footage.frames if held_out is None else held_out.frames)
                chosen = (_evenly_spaced_starts(starts[0], count), _evenly_spaced_starts(starts[1], count))
                return RealClips(halves, chosen, length, footage.step_fps)
    both = held_out is None
    need = 2 * least if both else least
    shorter = footage if held_out is None or len(footage.frames) < len(held_out.frames) else held_out
    raise UserError(
        f"score: the footage is too short: it has {len(shorter.frames)} learned steps, and measures need "
        f"{_MIN_CLIPS} clips of {lengths[-1]} steps without a cut"
        f"{' and as many held out' if both else ''}: {need} steps, {need / footage.step_fps:.0f} s"
    )


def _starts_of_separate_clips(
    footage: Footage, length: int, low: int = 0, high: int | None = None
) -> list[int]:
    """Indices of the first frames of clips that do not overlap, within frames ``low`` … ``high``."""
    starts: list[int] = []
    for start in footage.clip_starts(length).tolist():
        inside = start >= low and (high is None or start + length <= high)
        if inside and (not starts or start >= starts[-1] + length):
            starts.append(start)
    return starts


def _clip_starts_of_halves(footage: Footage, length: int) -> tuple[list[int], list[int]]:
    halves: tuple[list[int], list[int]] = ([], [])
    bounds = np.linspace(0, len(footage.frames), _FOOTAGE_BLOCK_COUNT + 1).astype(int).tolist()
    for block in range(_FOOTAGE_BLOCK_COUNT):
        halves[block % 2].extend(_starts_of_separate_clips(footage, length, bounds[block], bounds[block + 1]))
    return halves


def _evenly_spaced_starts(starts: list[int], count: int) -> list[int]:
    return [starts[index] for index in evenly_spaced_indices(len(starts), count)]


def draw_clips(
    weights: Weights, count: int, length: int, seed: int, warm_up: int = _WARM_UP_STEPS
) -> Iterator[NumpyArray]:
    """Draw clips one by one, uint8 (length, H, W, 3). Each clip shows another lamp.

    Raises:
        UserError: a state is not finite.
    """
    for group in range(math.ceil(count / LAMPS_AT_ONCE)):
        rollout = Rollout(weights, seed * 1000 + group, lamps=LAMPS_AT_ONCE)
        rollout.roll_states(warm_up)
        states = rollout.roll_states(length)
        if not np.isfinite(states).all():
            raise UserError(f"score: the states of the lamp are not finite after {warm_up + length} steps")
        for lamp in states[: count - group * LAMPS_AT_ONCE]:
            yield rollout.draw(lamp)


@dataclasses.dataclass(frozen=True)
class ReferenceSet:
    """Real footage with which drawn clips are compared.

    Attributes:
        real: the clips of both halves.
        fitted: features that were fitted to the reference.
        reference: features of the reference.
        held_out: features of held-out footage.
    """

    real: RealClips
    fitted: FittedFeatures
    reference: ClipFeatures
    held_out: ClipFeatures


def fit_reference(real: RealClips, size: tuple[int, int], on_progress: OnProgress) -> ReferenceSet:
    """Fit features to the reference, and compute those of both halves of real footage at a size (H, W).

    Raises:
        UserError: nothing moves in the reference.
    """
    on_progress(0, None, "fitting features to real footage")
    clips = list(real.clips(0, size))
    try:
        fitted = FittedFeatures(clips)
    except ValueError:
        raise UserError("score: nothing changes in this footage, so there is no motion to score") from None
    on_progress(0, None, "extracting features of real footage")
    return ReferenceSet(
        real, fitted, extract_features(fitted, clips), extract_features(fitted, real.clips(1, size))
    )


def compare_with_floors(
    reference_set: ReferenceSet,
    other: ClipFeatures,
    seed: int,
    on_progress: OnProgress,
    repeats: int = BOOTSTRAP_REPEATS,
) -> dict[str, Any]:
    """Compute every measure of ``other``, and its floor.

    Returns:
        For each measure ``value``, ``interval`` (value ± 1.96 bootstrap standard errors), ``floor``,
        ``floor_interval``, and ``ratio``: the value divided by the floor. The floor of an unbiased measure is
        about zero. So its value is divided by the upper end of the interval of the floor.
    """
    rows: dict[str, Any] = {}
    sides = []
    for name, one in (("drawn", other), ("real", reference_set.held_out)):
        on_progress(0, None, f"bootstrap of {name} clips")
        sides.append(
            (
                measure_all(reference_set.reference, one),
                standard_errors(reference_set.reference, one, repeats, seed),
            )
        )
    (values, errors), (floors, floor_errors) = sides
    for name, how in MEASURES.items():
        half, floor_half = 1.96 * errors[name], 1.96 * floor_errors[name]
        floor = floors[name]
        under = abs(floor) + floor_half if how.kind == "unbiased" else floor
        rows[name] = {
            "value": values[name],
            "interval": [values[name] - half, values[name] + half],
            "floor": floor,
            "floor_interval": [floor - floor_half, floor + floor_half],
            "ratio": values[name] / under if abs(under) > 1e-12 else None,
        }
    return rows


def headline_ratios(rows: dict[str, Any]) -> dict[str, float]:
    """Two figures: the geometric mean of three ratios of pictures, and of three ratios of motion."""
    return {
        name: math.exp(sum(math.log(max(rows[one]["ratio"], 1e-9)) for one in measures) / len(measures))
        for name, measures in HEADLINE_MEASURES.items()
    }


def score(
    weights: Weights,
    real: RealClips,
    *,
    seed: int = 0,
    repeats: int = BOOTSTRAP_REPEATS,
    on_progress: OnProgress = lambda done, total, text: None,
) -> tuple[dict[str, Any], ReferenceSet, ClipFeatures]:
    """Score weights, with as many drawn clips as real ones.

    Args:
        weights: a learned lamp.
        real: clips of real footage (``split_footage``).
        seed: seed of the drawn lamps and of the bootstrap.
        repeats: repeats of the bootstrap.
        on_progress: called with the amount done, the total amount and a text.

    Returns:
        The result that ``mlxlava score --json`` prints, the reference set, and the features of the drawn
        clips.

    Raises:
        UserError: nothing moves in the footage, or a drawn state is not finite.
    """
    began = time.monotonic()
    reference_set = fit_reference(real, weights.recipe.data.size, on_progress)
    count = len(real)

    def draw_with_progress() -> Iterator[NumpyArray]:
        for index, clip in enumerate(draw_clips(weights, count, real.length, seed)):
            on_progress(index, count, f"drawing: {index} of {count} clips")
            yield clip

    other = extract_features(reference_set.fitted, draw_with_progress())
    rows = compare_with_floors(reference_set, other, seed, on_progress, repeats)
    result = {
        "recipe": weights.recipe.name,
        "clips": count,
        "clip_length": real.length,
        "frames": count * real.length,
        "step_fps": real.step_fps,
        "seed": seed,
        "warm_up": _WARM_UP_STEPS,
        "bootstrap_repeats": repeats,
        "reference_clips": real.starts[0],
        "held_out_clips": real.starts[1],
        "measures": rows,
        "headline": headline_ratios(rows),
        "seconds": time.monotonic() - began,
    }
    return result, reference_set, other
