"""Measures whether a lamp stays as it is, in one long roll-out of many lamps.

The states of all learned steps are rolled. Frames are drawn only in the windows that are measured, since
frames do not affect later states. Memory does not grow with the length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlxlava.backend import mx, resident_memory_gb
from mlxlava.console import OnProgress
from mlxlava.errors import UserError
from mlxlava.evaluation.correlation import correlation_time
from mlxlava.evaluation.features import extract_features
from mlxlava.evaluation.measures import MEASURES, motion_distance_to_earlier_frames
from mlxlava.evaluation.score import (
    CANDIDATE_CLIP_LENGTHS,
    LAMPS_AT_ONCE,
    RealClips,
    ReferenceSet,
    fit_reference,
    split_footage,
)
from mlxlava.footage.dataset import Footage
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.normality import intervals_under_normality, normality_statistics
from mlxlava.products import NumpyArray, matmul
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights

WINDOW_STEPS = 64  # learned steps of a window; all of them are drawn
MIN_STEPS = 1_000  # learned steps that a slope needs at least
FOLLOWED_MEASURES = ("image.frechet", "image.sharpness", "image.colour", "motion.frechet", "motion.energy")
_STEPS_PER_COMPARISON = 64  # learned steps after which states are compared with earlier states
_MAX_LAG_STEPS = 1_000  # longest lag in learned steps, so that states that hardly move are compared too
_LYAPUNOV_STEPS = 512  # learned steps over which the exponent is measured
# Distance of two lamps: far above the rounding of float32, far below the deviation of states, which is 1.
_LYAPUNOV_INITIAL_DISTANCE = 1e-3


def window_ends(frames: int) -> list[int]:
    """The ends of the windows in learned steps: 1,000, 2,000, 5,000, 10,000 … and last ``frames``."""
    ends = [base * 10**power for power in range(3, 12) for base in (1, 2, 5)]
    return [*(end for end in ends if end < frames), frames]


def slope_per_decade(steps: Iterable[float], values: Iterable[float], slope_count: int = 1) -> dict[str, Any]:
    """Least-squares slope per decade of learned steps, with confidence intervals (Student's t).

    Args:
        steps: learned steps.
        values: value of a measure at each of these steps.
        slope_count: number of slopes that are judged together. Of thirteen 95 % intervals, one misses its
            true slope by chance about every second time. So there is a wider interval too (Šidák 1967):
            with a probability of 95 %, or more, the wider intervals of all slopes hold the true slopes.

    Returns:
        ``slope``, ``interval`` and ``holds_zero``; ``interval_together`` and ``holds_zero_together``.
    """
    from scipy import stats

    x, y = np.log10(list(steps)), np.array(list(values))
    if np.ptp(y) <= 1e-9 * np.abs(y).max():  # a lamp that stands still: the values do not scatter
        found, error = 0.0, 0.0
    else:
        fit = stats.linregress(x, y)
        found, error = float(fit.slope), float(fit.stderr)
    result: dict[str, Any] = {"slope": found}
    for suffix, level in (("", 0.95), ("_together", 0.95 ** (1 / slope_count))):
        half = float(stats.t.ppf((1 + level) / 2, len(x) - 2)) * error if len(x) > 2 else float("inf")
        low, high = found - half, found + half
        result |= {f"interval{suffix}": [low, high], f"holds_zero{suffix}": bool(low <= 0 <= high)}
    return result


class ReturnDistances:
    """Measures how near lamps come to earlier states of themselves, and to earlier states of other lamps.

    A lamp cannot return to a state of another lamp. So the second distance shows how near lamps come by
    chance in the same number of steps. An anchor holds the states of all lamps at one time.

    Args:
        lag: learned steps after an anchor before lamps are compared with it, since they have to leave it
            first.
    """

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self._since: list[int] = []
        self._anchors: list[NumpyArray] = []
        # Of each anchor the squared distances (lamps, 2): to the same lamp, to another.
        self._nearest: list[NumpyArray] = []

    def add_anchor(self, step: int, states: NumpyArray) -> None:
        """Add the states of all lamps (lamps, Z) as an anchor."""
        self._since.append(step)
        self._anchors.append(np.stack([states, np.roll(states, 1, axis=0)], axis=1))
        self._nearest.append(np.full((len(states), 2), np.inf))

    def compare(self, step: int, path: NumpyArray) -> None:
        """Compare a path of states (lamps, steps, Z), which begins after ``step``, with all anchors."""
        if not self._anchors:
            return
        anchors = np.concatenate(self._anchors, axis=1)  # (lamps, 2 A, Z)
        products = matmul(path, np.swapaxes(anchors, 1, 2))
        squares = (path**2).sum(-1)[..., None] + (anchors**2).sum(-1)[:, None] - 2 * products
        for index, since in enumerate(self._since):
            away = max(0, since + self.lag - step)
            if away < path.shape[1]:
                near = squares[:, away:, 2 * index : 2 * index + 2].min(1)
                self._nearest[index] = np.minimum(self._nearest[index], near)

    def summary(self, size: int) -> dict[str, Any]:
        """Mean distances over all lamps and all anchors older than the lag. ``size`` is Z."""
        met = [nearest for nearest in self._nearest if np.isfinite(nearest).all()]
        if not met:
            return {"anchors": 0, "lag": self.lag}
        own, other = np.sqrt(np.maximum(np.concatenate(met), 0)).T
        ratios = own / np.maximum(other, 1e-9)
        half = 1.96 * float(ratios.std(ddof=1)) / np.sqrt(len(ratios))
        return {
            "anchors": len(met),
            "lag": self.lag,
            "own": float(own.mean()),
            "nearest_own": float(own.min()),
            "others": float(other.mean()),
            "far_apart": float(np.sqrt(2 * size)),
            "ratio": float(ratios.mean()),
            "interval": [float(ratios.mean()) - half, float(ratios.mean()) + half],
        }


def lyapunov_exponent(weights: Weights, states: NumpyArray, seed: int) -> dict[str, Any]:
    """The largest Lyapunov exponent: how fast the distance of two lamps with the same noise grows.

    The lamps differ by 0.001 at first, and the difference is scaled back to 0.001 after every step (Benettin
    1980). If the exponent is above zero, the lamps part: this is chaos, so there is no loop. If it is below
    zero, all lamps with the same noise become equal.

    Args:
        weights: a learned lamp.
        states: states to start from (lamps, Z).
        seed: seed of the first difference and of the noise.

    Returns:
        ``per_step`` and ``per_second``; ``interval`` is ``per_step`` ± 1.96 standard errors over lamps.
    """
    dynamics = make_dynamics(weights.recipe)
    arrays, bases = weights.arrays["dynamics"], dynamics.basis_changes(fixed_bases(weights.arrays))
    lamps = len(states)
    nudge = mx.random.normal(states.shape, key=mx.random.key(seed))
    here = mx.array(states)
    there = here + _LYAPUNOV_INITIAL_DISTANCE * nudge / mx.linalg.norm(nudge, axis=-1, keepdims=True)
    growth = []
    for step in range(_LYAPUNOV_STEPS):
        noise = mx.random.normal(states.shape, key=mx.random.key(seed + 1 + step))
        # Two calls are made, since a step that computes statistics over its batch must not mix both.
        here, there = (dynamics.step(arrays, bases, one, noise) for one in (here, there))
        distance = mx.linalg.norm(there - here, axis=-1, keepdims=True)
        growth.append(mx.log(mx.maximum(distance, 1e-12) / _LYAPUNOV_INITIAL_DISTANCE)[:, 0])
        there = here + (there - here) * (_LYAPUNOV_INITIAL_DISTANCE / mx.maximum(distance, 1e-12))
        mx.eval(here, there, growth[-1])
    rates = np.array(mx.stack(growth[_LYAPUNOV_STEPS // 4 :])).mean(0)
    half = 1.96 * float(rates.std(ddof=1)) / np.sqrt(lamps)
    rate = float(rates.mean())
    return {
        "per_step": rate,
        "interval": [rate - half, rate + half],
        "per_second": rate * weights.step_fps,
    }


def _real_footage_ranges(reference_set: ReferenceSet, count: int) -> dict[str, list[float]]:
    """The lowest, mean and highest value of each measure over windows of held-out footage."""
    windows = [
        reference_set.held_out.select(np.arange(at, at + count))
        for at in range(0, len(reference_set.held_out) - count + 1, count)
    ]
    floors = {}
    for name in FOLLOWED_MEASURES:
        values = [MEASURES[name].function(reference_set.reference, window) for window in windows]
        floors[name] = [min(values), float(np.mean(values)), max(values)]
    return floors


def split_for_drift(footage: Footage, held_out: Footage | None) -> tuple[RealClips, RealClips]:
    """Split real footage for ``drift`` into clips as long as a window, and into long clips to look for loops.

    Raises:
        UserError: the footage is too short.
    """
    windows = split_footage(footage, held_out, lengths=(WINDOW_STEPS, WINDOW_STEPS // 2, WINDOW_STEPS // 4))
    return windows, split_footage(footage, held_out, frames=LAMPS_AT_ONCE * CANDIDATE_CLIP_LENGTHS[0])


def drift(
    weights: Weights,
    windows: RealClips,
    long_clips: RealClips,
    frames: int,
    *,
    seed: int = 0,
    on_progress: OnProgress = lambda done, total, text: None,
) -> tuple[dict[str, Any], list[tuple[int, NumpyArray]]]:
    """Roll 32 lamps for ``frames`` learned steps each, and measure them on the way.

    Args:
        weights: a learned lamp.
        windows: clips of real footage that are as long as a window, from ``split_for_drift``.
        long_clips: long clips of real footage, from ``split_for_drift``.
        frames: learned steps of each lamp, at least 1,000.
        seed: seed of the lamps.
        on_progress: called with the amount done, the total amount and a text.

    Returns:
        The result that ``mlxlava drift --json`` prints; and for each window its end and one frame.

    Raises:
        UserError: too few frames, or nothing moves in the footage.
    """
    if frames < MIN_STEPS:
        raise UserError(f"drift: --frames must be at least {MIN_STEPS}, not {frames}")
    began = time.monotonic()
    reference_set = fit_reference(windows, weights.recipe.data.size, on_progress)
    rollout = Rollout(weights, seed, lamps=LAMPS_AT_ONCE)
    followed = _FollowedRollout(rollout, reference_set, began)
    followed.roll(frames, on_progress)
    size = weights.recipe.generator.state_size
    nulls = intervals_under_normality(LAMPS_AT_ONCE, size)
    result: dict[str, Any] = {
        "recipe": weights.recipe.name,
        "frames": frames,
        "lamps": LAMPS_AT_ONCE,
        "window": followed.window,
        "drawn_a_window": followed.drawn_lamps * followed.window,
        "step_fps": weights.step_fps,
        "seed": seed,
        "reference_clips": windows.starts[0],
        "held_out_clips": windows.starts[1],
        "died_at": followed.died_at,
        "interrupted_at": followed.interrupted_at,
        "windows": followed.rows,
        "real": _real_footage_ranges(reference_set, followed.drawn_lamps),
        "null": {name: list(range_) for name, range_ in nulls.items()},
        "returns": followed.returns.summary(size),
    }
    if len(followed.rows) > 2:
        result["slopes"] = _slopes_of_windows(followed.rows, list(nulls))
    if followed.died_at is None and followed.interrupted_at is None:
        on_progress(frames, frames, "looking for loops and chaos at the end")
        result["lyapunov"] = lyapunov_exponent(weights, followed.states, seed)
        result["loops"] = _distances_to_earlier_frames(reference_set, long_clips, rollout)
    result["seconds"] = time.monotonic() - began
    return result, followed.pictures


class _FollowedRollout:
    """One long roll-out of many lamps, which is measured in windows.

    Args:
        rollout: the lamps, at their beginning.
        reference_set: real footage, in clips as long as a window.
        began: when the work began, for the seconds of the windows (``time.monotonic``).

    Attributes:
        window: learned steps of a window.
        drawn_lamps: lamps that are drawn in a window; the states of all lamps are measured.
        rows: what was measured in each window.
        pictures: the end of each window, and one frame of it.
        states: states of all lamps at the end of the last window (lamps, Z).
        returns: distances to earlier states.
        died_at: the learned step after which states are not finite; None if all were.
        interrupted_at: the learned step at which Ctrl-C was pressed; None if it was not.
    """

    def __init__(self, rollout: Rollout, reference_set: ReferenceSet, began: float) -> None:
        self._rollout, self._reference_set, self._began = rollout, reference_set, began
        self.window = reference_set.real.length
        self.drawn_lamps = min(LAMPS_AT_ONCE, len(reference_set.real))
        first = rollout.roll_states(min(512, MIN_STEPS - self.window))
        self.states = first[:, -1]
        # States need not be centred, since the mean of N(0, I) is zero.
        self.returns = ReturnDistances(min(5 * math.ceil(correlation_time(first)), _MAX_LAG_STEPS))
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[int, NumpyArray]] = []
        self.died_at: int | None = None
        self.interrupted_at: int | None = None

    def roll(self, frames: int, on_progress: OnProgress) -> None:
        """Roll all lamps for so many learned steps, and measure each window. Ctrl-C ends it early."""
        try:
            for end in window_ends(frames):
                path = self._roll_to_window(end, frames, on_progress)
                if path is None:
                    self.died_at = self._rollout.steps_made
                    return
                self._measure(end, path)
        except KeyboardInterrupt:  # the results so far are kept
            self.interrupted_at = self._rollout.steps_made

    def _roll_to_window(self, end: int, frames: int, on_progress: OnProgress) -> NumpyArray | None:
        """Roll to ``end``. Returns the states of the last window (lamps, window, Z); None if not finite."""
        rollout = self._rollout
        while True:
            before = rollout.steps_made
            left = end - self.window - before
            path = rollout.roll_states(min(_STEPS_PER_COMPARISON, left) if left > 0 else self.window)
            self.returns.compare(before, path)
            on_progress(rollout.steps_made, frames, f"{rollout.steps_made} of {frames} frames")
            if not np.isfinite(path[:, -1]).all():
                return None
            if left <= 0:
                return path

    def _measure(self, end: int, path: NumpyArray) -> None:
        """Draw a window of some lamps, and measure it and the states of all."""
        self.states = path[:, -1]
        clips = [self._rollout.draw(lamp) for lamp in path[: self.drawn_lamps]]
        drawn = extract_features(self._reference_set.fitted, clips)
        reference = self._reference_set.reference
        self.rows.append(
            {
                "frames": end,
                "measures": {name: MEASURES[name].function(reference, drawn) for name in FOLLOWED_MEASURES},
                "state": normality_statistics(self.states),
                "resident_gb": resident_memory_gb(),
                "seconds": time.monotonic() - self._began,
            }
        )
        self.pictures.append((end, clips[0][-1]))
        self.returns.add_anchor(self._rollout.steps_made, self.states)


def _slopes_of_windows(rows: Sequence[Mapping[str, Any]], state_statistics: Sequence[str]) -> dict[str, Any]:
    """The slope of each measure and of each statistic of states, over the windows."""
    ends = [row["frames"] for row in rows]
    series = {name: [row["measures"][name] for row in rows] for name in FOLLOWED_MEASURES}
    series |= {f"state.{name}": [row["state"][name] for row in rows] for name in state_statistics}
    return {name: slope_per_decade(ends, values, len(series)) for name, values in series.items()}


def _distances_to_earlier_frames(
    reference_set: ReferenceSet, long_clips: RealClips, rollout: Rollout
) -> dict[str, float]:
    """``motion_distance_to_earlier_frames`` of a long clip of each lamp, and of held-out clips as long."""
    path = rollout.roll_states(long_clips.length)[: len(long_clips)]
    drawn = extract_features(reference_set.fitted, (rollout.draw(lamp) for lamp in path))
    held_out = extract_features(reference_set.fitted, long_clips.clips(1, rollout.size))
    values = [motion_distance_to_earlier_frames(reference_set.reference, one) for one in (drawn, held_out)]
    return {
        "length": long_clips.length,
        "drawn": values[0],
        "real": values[1],
        "ratio": values[0] / max(values[1], 1e-12),
    }
