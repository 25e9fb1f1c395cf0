"""Does a lamp stay as it is? One long roll-out of many lamps, measured again and again.

States are rolled for every learned step. Frames are drawn only in the windows that are measured, since a
frame does not affect later states. Memory does not grow with the length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlxlava.backend import mx, resident_memory
from mlxlava.errors import UserError
from mlxlava.evaluation.correlation import correlation_time
from mlxlava.evaluation.features import extract_features
from mlxlava.evaluation.frames import Array
from mlxlava.evaluation.measures import MEASURES, motion_loops
from mlxlava.evaluation.score import (
    LAMPS,
    LENGTHS,
    Notice,
    RealClips,
    ReferenceSet,
    fit_reference,
    split_footage,
)
from mlxlava.footage.dataset import Footage
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.normality import normality, null
from mlxlava.products import matmul
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights

WINDOW = 64  # learned steps of a window, which are drawn for each lamp
LEAST = 1_000  # learned steps that are needed for a slope
FOLLOWED = ("image.frechet", "image.sharpness", "image.colour", "motion.frechet", "motion.energy")
_CHUNK = 64  # learned steps that are rolled before states are compared with earlier ones
_LONGEST_LAG = 1_000  # learned steps, so that a state that hardly moves is compared as well
_LYAPUNOV = 512  # learned steps
_NUDGE = 1e-3  # far above the rounding of float32, far below the state's deviation of one


def window_ends(frames: int) -> list[int]:
    """1, 2 and 5 times powers of ten from 1,000 on, up to ``frames``, which is the last."""
    ends = [base * 10**power for power in range(3, 12) for base in (1, 2, 5)]
    return [*(end for end in ends if end < frames), frames]


def slope(at: Iterable[float], values: Iterable[float], together: int = 1) -> dict[str, Any]:
    """Least-squares slope per decade of learned steps, with confidence intervals (Student's t).

    Args:
        at: learned steps.
        values: a measure's value at each of them.
        together: number of slopes that are judged together. Of thirteen 95 % intervals, one misses its true
            slope by chance about every second time. So there is a wider interval as well (Šidák 1967): all of
            them hold their slopes at once with a probability of 95 %, or more if the slopes are correlated.

    Returns:
        ``slope``, ``interval`` and ``holds_zero``; ``interval_together`` and ``holds_zero_together``.
    """
    from scipy import stats

    x, y = np.log10(list(at)), np.array(list(values))
    if np.ptp(y) <= 1e-9 * np.abs(y).max():  # a lamp that stands still has no scatter
        found, error = 0.0, 0.0
    else:
        fit = stats.linregress(x, y)
        found, error = float(fit.slope), float(fit.stderr)
    result: dict[str, Any] = {"slope": found}
    for suffix, level in (("", 0.95), ("_together", 0.95 ** (1 / together))):
        half = float(stats.t.ppf((1 + level) / 2, len(x) - 2)) * error if len(x) > 2 else float("inf")
        low, high = found - half, found + half
        result |= {f"interval{suffix}": [low, high], f"holds_zero{suffix}": bool(low <= 0 <= high)}
    return result


class Returns:
    """How near lamps come to earlier states of themselves, and to earlier states of other lamps.

    A lamp cannot return to a state of another lamp. So the second distance is what chance gives in the same
    number of steps. An anchor is the states of all lamps at one time.

    Args:
        lag: learned steps before a lamp is compared with its anchor, since it has to leave it first.
    """

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self._since: list[int] = []
        self._anchors: list[Array] = []
        self._nearest: list[
            Array
        ] = []  # squared distances (lamps, 2) of each anchor: to the same lamp, to another

    def add_anchor(self, step: int, states: Array) -> None:
        """Make an anchor of the states of all lamps (lamps, Z)."""
        self._since.append(step)
        self._anchors.append(np.stack([states, np.roll(states, 1, axis=0)], axis=1))
        self._nearest.append(np.full((len(states), 2), np.inf))

    def compare(self, step: int, path: Array) -> None:
        """Compare the states after ``step`` (lamps, steps, Z) with all anchors."""
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
        """Mean distances over all lamps and anchors that are older than the lag; Z is ``size``."""
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


def lyapunov(weights: Weights, states: Array, seed: int) -> dict[str, Any]:
    """The largest Lyapunov exponent: how fast two lamps part that differ by 0.001, with the same noise.

    The difference is scaled back to 0.001 after every step (Benettin 1980). Above zero, lamps part (chaos, so
    there is no loop). Below zero, all lamps with the same noise become equal.

    Args:
        weights: a learned lamp.
        states: where to start, (lamps, Z).
        seed: of the first difference and of the noise.

    Returns:
        ``per_step`` and ``per_second``; ``interval`` is ``per_step`` ± 1.96 standard errors over lamps.
    """
    dynamics = make_dynamics(weights.recipe)
    arrays, bases = weights.arrays["dynamics"], dynamics.prepare(fixed_bases(weights.arrays))
    lamps = len(states)
    nudge = mx.random.normal(states.shape, key=mx.random.key(seed))
    here = mx.array(states)
    there = here + _NUDGE * nudge / mx.linalg.norm(nudge, axis=-1, keepdims=True)
    growth = []
    for step in range(_LYAPUNOV):
        noise = mx.random.normal(states.shape, key=mx.random.key(seed + 1 + step))
        # Two calls: a step that computes statistics over the batch must not see both as one batch.
        here, there = (dynamics.step(arrays, bases, one, noise) for one in (here, there))
        distance = mx.linalg.norm(there - here, axis=-1, keepdims=True)
        growth.append(mx.log(mx.maximum(distance, 1e-12) / _NUDGE)[:, 0])
        there = here + (there - here) * (_NUDGE / mx.maximum(distance, 1e-12))
        mx.eval(here, there, growth[-1])
    rates = np.array(mx.stack(growth[_LYAPUNOV // 4 :])).mean(0)
    half = 1.96 * float(rates.std(ddof=1)) / np.sqrt(lamps)
    rate = float(rates.mean())
    return {
        "per_step": rate,
        "interval": [rate - half, rate + half],
        "per_second": rate * weights.step_fps,
    }


def _floors(reference_set: ReferenceSet, count: int) -> dict[str, list[float]]:
    """The lowest, mean and highest value of each measure over windows of held-out footage."""
    windows = [
        reference_set.held_out.take(np.arange(at, at + count))
        for at in range(0, len(reference_set.held_out) - count + 1, count)
    ]
    floors = {}
    for name in FOLLOWED:
        values = [MEASURES[name].function(reference_set.reference, window) for window in windows]
        floors[name] = [min(values), float(np.mean(values)), max(values)]
    return floors


def split_for_drift(footage: Footage, held_out: Footage | None) -> tuple[RealClips, RealClips]:
    """Real clips for ``drift``: as long as a window and enough for several windows, and long ones for loops.

    Raises:
        UserError: the footage is too short.
    """
    windows = split_footage(footage, held_out, lengths=(WINDOW, WINDOW // 2, WINDOW // 4))
    return windows, split_footage(footage, held_out, frames=LAMPS * LENGTHS[0])


def drift(
    weights: Weights,
    real: RealClips,
    long: RealClips,
    frames: int,
    *,
    seed: int = 0,
    update: Notice = lambda done, total, text: None,
) -> tuple[dict[str, Any], list[tuple[int, Array]]]:
    """Roll 32 lamps for ``frames`` learned steps each, and measure them on the way.

    Args:
        weights: a learned lamp.
        real: clips of real footage, one window long each.
        long: longer ones, for loops (both: ``split_for_drift``).
        frames: learned steps of each lamp, at least 1,000.
        seed: of the lamps.
        update: called with the amount done, the total amount and a text.

    Returns:
        What ``mlxlava drift --json`` prints, and for each window its end and one of its frames.

    Raises:
        UserError: too few frames, or nothing moves in the footage.
    """
    if frames < LEAST:
        raise UserError(f"drift: --frames must be at least {LEAST}, not {frames}")
    began = time.monotonic()
    reference_set = fit_reference(real, weights.recipe.data.size, update)
    count = min(LAMPS, len(real))
    window = real.length
    rollout = Rollout(weights, seed, lamps=LAMPS)
    first = rollout.roll(min(512, LEAST - window))
    # States need not be centred, since the mean of N(0, I) is zero.
    returns = Returns(min(5 * math.ceil(correlation_time(first)), _LONGEST_LAG))
    rows: list[dict[str, Any]] = []
    pictures: list[tuple[int, Array]] = []
    states = first[:, -1]
    died, interrupted = None, False
    try:
        for end in window_ends(frames):
            path = _go_on(rollout, returns, end, window, frames, update)
            if path is None:
                died = rollout.step
                break
            states = path[:, -1]
            clips = [rollout.draw(lamp) for lamp in path[:count]]
            other = extract_features(reference_set.fitted, clips)
            values = {name: MEASURES[name].function(reference_set.reference, other) for name in FOLLOWED}
            row = {"frames": end, "measures": values, "state": normality(states)}
            rows.append({**row, "resident_gb": resident_memory(), "seconds": time.monotonic() - began})
            pictures.append((end, clips[0][-1]))
            returns.add_anchor(rollout.step, states)
    except KeyboardInterrupt:  # what has been found so far is not lost
        interrupted = True
    size = weights.recipe.generator.state_size
    nulls = null(LAMPS, size)
    result: dict[str, Any] = {
        "recipe": weights.recipe.name,
        "frames": frames,
        "lamps": LAMPS,
        "window": window,
        "drawn_a_window": count * window,
        "step_fps": weights.step_fps,
        "seed": seed,
        "reference_clips": real.starts[0],
        "held_out_clips": real.starts[1],
        "died_at": died,
        "interrupted_at": rollout.step if interrupted else None,
        "windows": rows,
        "real": _floors(reference_set, count),
        "null": {name: list(range_) for name, range_ in nulls.items()},
        "returns": returns.summary(size),
    }
    if len(rows) > 2:
        at = [row["frames"] for row in rows]
        series = {name: [row["measures"][name] for row in rows] for name in FOLLOWED}
        series |= {f"state.{name}": [row["state"][name] for row in rows] for name in nulls}
        result["slopes"] = {name: slope(at, values, len(series)) for name, values in series.items()}
    if died is None and not interrupted:
        update(frames, frames, "looking for loops and chaos at the end")
        result["lyapunov"] = lyapunov(weights, states, seed)
        result["loops"] = _loops(reference_set, long, rollout)
    result["seconds"] = time.monotonic() - began
    return result, pictures


def _go_on(
    rollout: Rollout, returns: Returns, end: int, window: int, frames: int, update: Notice
) -> Array | None:
    """Roll to ``end``: the states of its window (lamps, window, Z); None if a state is not finite."""
    while True:
        before = rollout.step
        left = end - window - before
        path = rollout.roll(min(_CHUNK, left) if left > 0 else window)
        returns.compare(before, path)
        update(rollout.step, frames, f"{rollout.step} of {frames} frames")
        if not np.isfinite(path[:, -1]).all():
            return None
        if left <= 0:
            return path


def _loops(reference_set: ReferenceSet, long: RealClips, rollout: Rollout) -> dict[str, float]:
    """``motion_loops`` of a long clip of each lamp, and of held-out clips of that length."""
    path = rollout.roll(long.length)[: len(long)]
    drawn = extract_features(reference_set.fitted, (rollout.draw(lamp) for lamp in path))
    held_out = extract_features(reference_set.fitted, long.clips(1, rollout.size))
    values = [motion_loops(reference_set.reference, one) for one in (drawn, held_out)]
    return {
        "length": long.length,
        "drawn": values[0],
        "real": values[1],
        "ratio": values[0] / max(values[1], 1e-12),
    }
