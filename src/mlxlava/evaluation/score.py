"""Score weights against real footage: every measure, beside its value for real footage itself.

Real footage is split into two halves: the *reference*, to which the features are fitted, and *held out*. The
weights draw as many clips as a half has. The floor of a measure is its value for held-out footage against the
reference.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlxlava.errors import UserError
from mlxlava.evaluation.features import ClipFeatures, FittedFeatures, extract_features
from mlxlava.evaluation.frames import Array, evenly_spaced
from mlxlava.evaluation.measures import MEASURES, measure, standard_errors
from mlxlava.footage.dataset import Footage
from mlxlava.resize import resize
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights

LENGTHS = (256, 128, 64, 32, 16)  # learned steps of a clip; the longest with enough clips is used
CLIPS = 256  # at most, of each half
FRAMES = 16_384  # at most, of each half, by default
_ENOUGH = (16, 8)  # clips of a half: if there are fewer, shorter clips are used
_LEAST = 4  # clips of a half that measures need
_BLOCKS = 8  # pieces into which footage is split, in turns for the reference and to be held out
_WARM_UP = 256  # learned steps before the first frame that is drawn
LAMPS = 32  # rolled together
REPEATS = 40  # of the bootstrap
HEADLINES = {
    "image": ("image.frechet", "image.sharpness", "image.colour"),
    "motion": ("motion.frechet", "motion.spectrum", "motion.energy"),
}

Notice = Callable[[float, "float | None", str], None]


@dataclasses.dataclass(frozen=True)
class RealClips:
    """Real clips in two halves.

    Attributes:
        frames: the frames of each half, uint8 (N, H, W, 3).
        starts: first frames of the clips of each half.
        length: frames of a clip.
        step_fps: learned steps a second.
    """

    frames: tuple[Array, Array]
    starts: tuple[list[int], list[int]]
    length: int
    step_fps: float

    def clips(self, half: int, size: tuple[int, int] | None = None) -> Iterator[Array]:
        """The clips of the reference (0) or of held-out footage (1), resized to ``size``."""
        for start in self.starts[half]:
            yield _resized(np.asarray(self.frames[half][start : start + self.length]), size)

    def __len__(self) -> int:
        return len(self.starts[0])


def _resized(clip: Array, size: tuple[int, int] | None) -> Array:
    if size is None or clip.shape[1:3] == tuple(size):
        return clip
    return np.stack([resize(frame, size) for frame in clip])


def split_footage(
    footage: Footage, held_out: Footage | None, frames: int = FRAMES, lengths: Sequence[int] = LENGTHS
) -> RealClips:
    """Split real footage into the reference and held-out footage.

    Args:
        footage: the training footage. Without ``held_out``, every second of its eight blocks is held out.
        held_out: footage that was not trained on.
        frames: frames of each half, at most.
        lengths: clip lengths to choose from, longest first. The first one with 16 clips is used, or else the
            first one with 8, or with 4.

    Raises:
        UserError: the footage is too short, or too few frames are asked for.
    """
    least = _LEAST * lengths[-1]
    if frames < least:
        raise UserError(f"score: --frames must be at least {least}, not {frames}")
    for enough in (*_ENOUGH, _LEAST):
        for length in lengths:
            if held_out is None:
                starts = _blocks(footage, length)
            else:
                starts = (_clips_apart(footage, length), _clips_apart(held_out, length))
            count = min(len(starts[0]), len(starts[1]), frames // length, CLIPS)
            if count >= enough:
                halves = (footage.frames, footage.frames if held_out is None else held_out.frames)
                chosen = (_spread(starts[0], count), _spread(starts[1], count))
                return RealClips(halves, chosen, length, footage.step_fps)
    both = held_out is None
    need = 2 * least if both else least
    shorter = footage if held_out is None or len(footage.frames) < len(held_out.frames) else held_out
    raise UserError(
        f"score: the footage is too short: it has {len(shorter.frames)} learned steps, and measures need "
        f"{_LEAST} clips of {lengths[-1]} steps without a cut{' and as many held out' if both else ''}: "
        f"{need} steps, {need / footage.step_fps:.0f} s"
    )


def _clips_apart(footage: Footage, length: int, low: int = 0, high: int | None = None) -> list[int]:
    """First frames of clips that do not overlap, within frames ``low`` … ``high``."""
    starts: list[int] = []
    for start in footage.clip_starts(length).tolist():
        inside = start >= low and (high is None or start + length <= high)
        if inside and (not starts or start >= starts[-1] + length):
            starts.append(start)
    return starts


def _blocks(footage: Footage, length: int) -> tuple[list[int], list[int]]:
    halves: tuple[list[int], list[int]] = ([], [])
    bounds = np.linspace(0, len(footage.frames), _BLOCKS + 1).astype(int).tolist()
    for block in range(_BLOCKS):
        halves[block % 2].extend(_clips_apart(footage, length, bounds[block], bounds[block + 1]))
    return halves


def _spread(starts: list[int], count: int) -> list[int]:
    return [starts[index] for index in evenly_spaced(len(starts), count)]


def draw_clips(
    weights: Weights, count: int, length: int, seed: int, warm_up: int = _WARM_UP
) -> Iterator[Array]:
    """Draw clips one by one, each of another lamp, uint8 (length, H, W, 3).

    Raises:
        UserError: a state is not finite.
    """
    for group in range(math.ceil(count / LAMPS)):
        rollout = Rollout(weights, seed * 1000 + group, lamps=LAMPS)
        rollout.roll(warm_up)
        states = rollout.roll(length)
        if not np.isfinite(states).all():
            raise UserError(f"score: the lamp died: states are not finite after {warm_up + length} steps")
        for lamp in states[: count - group * LAMPS]:
            yield rollout.draw(lamp)


@dataclasses.dataclass(frozen=True)
class ReferenceSet:
    """Real footage with which drawn clips are compared.

    Attributes:
        real: the clips.
        fitted: makes features of frames; fitted to the reference.
        reference: features of the reference.
        held_out: features of held-out footage.
    """

    real: RealClips
    fitted: FittedFeatures
    reference: ClipFeatures
    held_out: ClipFeatures


def fit_reference(real: RealClips, size: tuple[int, int], update: Notice) -> ReferenceSet:
    """The features of both halves of real footage, at a size (H, W).

    Raises:
        UserError: nothing moves in the reference.
    """
    update(0, None, "fitting features to real footage")
    clips = list(real.clips(0, size))
    try:
        fitted = FittedFeatures(clips)
    except ValueError:
        raise UserError("score: nothing changes in this footage, so there is no motion to score") from None
    update(0, None, "extracting features of real footage")
    return ReferenceSet(
        real, fitted, extract_features(fitted, clips), extract_features(fitted, real.clips(1, size))
    )


def compare(
    reference_set: ReferenceSet, other: ClipFeatures, seed: int, update: Notice, repeats: int = REPEATS
) -> dict[str, Any]:
    """Every measure of ``other`` beside its floor.

    Returns:
        For each measure ``value``, ``interval`` (value ± 1.96 bootstrap standard errors), ``floor``,
        ``floor_interval`` and ``ratio``: value over floor. The floor of an unbiased measure is about
        zero, so its ratio is taken to the upper end of the floor's interval.
    """
    rows: dict[str, Any] = {}
    sides = []
    for name, one in (("drawn", other), ("real", reference_set.held_out)):
        update(0, None, f"bootstrap of {name} clips")
        sides.append(
            (
                measure(reference_set.reference, one),
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


def headline(rows: dict[str, Any]) -> dict[str, float]:
    """The geometric mean of the ratios of three distances of pictures, and of motion."""
    return {
        name: math.exp(sum(math.log(max(rows[one]["ratio"], 1e-9)) for one in measures) / len(measures))
        for name, measures in HEADLINES.items()
    }


def score(
    weights: Weights, real: RealClips, *, seed: int = 0, update: Notice = lambda done, total, text: None
) -> tuple[dict[str, Any], ReferenceSet, ClipFeatures]:
    """Score weights, with as many drawn clips as real ones.

    Args:
        weights: a learned lamp.
        real: clips of real footage (``split_footage``).
        seed: seed of the drawn lamps and of the bootstrap.
        update: called with the amount done, the total amount and a text.

    Returns:
        What ``mlxlava score --json`` prints, the reference set, and the features of the drawn clips.

    Raises:
        UserError: nothing moves in the footage, or a drawn state is not finite.
    """
    began = time.monotonic()
    reference_set = fit_reference(real, weights.recipe.data.size, update)
    count = len(real)

    def drawn() -> Iterator[Array]:
        for index, clip in enumerate(draw_clips(weights, count, real.length, seed)):
            update(index, count, f"drawing: {index} of {count} clips")
            yield clip

    other = extract_features(reference_set.fitted, drawn())
    rows = compare(reference_set, other, seed, update)
    result = {
        "recipe": weights.recipe.name,
        "clips": count,
        "clip_length": real.length,
        "frames": count * real.length,
        "step_fps": real.step_fps,
        "seed": seed,
        "warm_up": _WARM_UP,
        "bootstrap_repeats": REPEATS,
        "reference_clips": real.starts[0],
        "held_out_clips": real.starts[1],
        "measures": rows,
        "headline": headline(rows),
        "seconds": time.monotonic() - began,
    }
    return result, reference_set, other
