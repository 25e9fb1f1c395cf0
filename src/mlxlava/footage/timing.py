"""Time stamps of frames: finds the frame rate, and the frames at evenly spaced times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

_AVERAGED_INTERVALS = 8  # so many intervals are averaged, to remove jitter
_INTERVALS_PER_PIECE = 2**16  # medians of so many intervals are computed at once
_MAX_DIFFERENCE_OF_ONE_RATE = 0.15  # averaged intervals of one rate differ by no more (relative)
_MIN_HOLE_INTERVALS = 3.5  # a gap of more intervals is a hole
_MIN_UNEVENNESS = 0.1  # of an interval; smaller differences are rounding
_MAX_ROUNDING_SECONDS = 0.0015  # containers with coarser stamps have a fixed rate


@dataclasses.dataclass(frozen=True)
class Timing:
    """When the frames of a video are shown.

    Attributes:
        fps: frames per second, for most of the time.
        frames: number of different stamps.
        uneven: whether the intervals differ by more than rounding, holes aside.
        stamps: the stamps, rising; float64 (frames,), in seconds. Empty if time begins again.
        intervals: the usual interval around each stamp, in the same form.
    """

    fps: float
    frames: int
    uneven: bool = False
    stamps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False)
    intervals: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False)

    def evenly_spaced_frames(self) -> float:
        """How many frames of the same rate the time between the stamps has, without its holes."""
        if not len(self.stamps):  # what is between two frames is then short, or a hole
            return float(self.frames)
        gaps = np.diff(self.stamps)
        return 1 + float(gaps[gaps <= _MIN_HOLE_INTERVALS * self.intervals[1:]].sum()) * self.fps

    def is_hole(self, before: float, after: float) -> bool:
        """Whether the gap between two stamps is a hole: much longer than the intervals around it."""
        usual = 1 / self.fps
        if len(self.stamps):
            usual = float(self.intervals[np.searchsorted(self.stamps, after).clip(max=len(self.stamps) - 1)])
        return after - before > _MIN_HOLE_INTERVALS * usual


def measure_timing(
    runs: Sequence[np.ndarray], tick: float = 0.0, declared: Sequence[float] = ()
) -> Timing | None:
    """Find the frame rate from time stamps: the rate that holds for most of the time.

    Jitter is averaged, and holes are ignored. If the rate differs from a usual rate by no more than the
    rounding of the stamps, it is the usual rate.

    Args:
        runs: stamps in seconds; an array for each stretch in which time only rises.
        tick: unit of the stamps, in seconds.
        declared: rates in the header of the file. Such a rate is used if it agrees with the stamps.

    Returns:
        The timing; None if the stamps have no rate: there are fewer than two frames, or all stamps are equal.
    """
    runs = [np.unique(run) for run in runs]
    frames = sum(len(run) for run in runs)
    steps = [np.diff(run) for run in runs if len(run) > 1]
    if not steps:
        return None
    usual = [_running_median(run) for run in steps]
    averaged = _averaged_intervals(steps, usual)
    inside = np.concatenate(
        [run[run <= _MIN_HOLE_INTERVALS * around] for run, around in zip(steps, usual, strict=True)]
    )
    if not len(averaged):
        averaged = np.sort(inside)
    alike = _intervals_of_longest_rate(averaged)
    # The mean over all intervals has the smallest rounding error, but it is wrong if there are several rates.
    interval = float(inside.mean() if len(alike) == len(averaged) else np.median(alike))
    rounding = 2 * min(tick, _MAX_ROUNDING_SECONDS) / float(inside.sum()) + 1e-9
    uneven = float(np.ptp(inside)) > 2.5 * tick + _MIN_UNEVENNESS * interval
    fps = _snap_to_usual_rate(1 / interval, rounding, declared)
    if len(steps) > 1:
        return Timing(fps, frames, uneven)
    around = np.concatenate([usual[0][:1], usual[0]])
    return Timing(fps, frames, uneven, next(run for run in runs if len(run) > 1), around)


def _averaged_intervals(steps: Sequence[np.ndarray], usual: Sequence[np.ndarray]) -> np.ndarray:
    """Means over several intervals, which have little jitter, sorted. Those that contain a hole are left out.

    Args:
        steps: the intervals of each run.
        usual: the usual interval around each of them.
    """
    width = int(np.clip(sum(map(len, steps)) // 4, 1, _AVERAGED_INTERVALS))
    means = []
    for run, around in zip(steps, usual, strict=True):
        total = np.cumsum(np.concatenate([[0.0], run]))
        holes = np.cumsum(np.concatenate([[0], run > _MIN_HOLE_INTERVALS * around]))
        if len(run) >= width:
            whole = holes[width:] == holes[:-width]
            means.append(((total[width:] - total[:-width]) / width)[whole])
    return np.sort(np.concatenate(means)) if means else np.zeros(0)


def _intervals_of_longest_rate(averaged: np.ndarray) -> np.ndarray:
    """Those of sorted intervals whose rate holds for the longest time; of two as long, the slower rate."""
    time = np.concatenate([[0.0], np.cumsum(averaged)])
    first = np.searchsorted(averaged, averaged * (1 - _MAX_DIFFERENCE_OF_ONE_RATE))
    last = np.searchsorted(averaged, averaged * (1 + _MAX_DIFFERENCE_OF_ONE_RATE), side="right")
    held = time[last] - time[first]
    best = int(np.flatnonzero(held >= held.max() * (1 - 1e-9))[-1])
    return averaged[first[best] : last[best]]


def _running_median(steps: np.ndarray) -> np.ndarray:
    """The running median of intervals."""
    half = _AVERAGED_INTERVALS // 2
    if len(steps) <= half:
        return np.full(len(steps), np.median(steps))
    padded = np.pad(steps, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    # It is computed in pieces, since the median copies all windows.
    pieces = [
        np.median(windows[at : at + _INTERVALS_PER_PIECE], axis=1)
        for at in range(0, len(windows), _INTERVALS_PER_PIECE)
    ]
    return np.concatenate(pieces)


def _snap_to_usual_rate(fps: float, rounding: float, declared: Sequence[float]) -> float:
    """The usual rate that equals a measured rate within its relative rounding; else the measured rate."""
    whole = round(fps)
    candidates = [*declared, float(whole), whole * 1000 / 1001]
    if fps < 1:
        candidates.append(1 / round(1 / fps))
    for candidate in candidates:
        if candidate > 0 and abs(candidate / fps - 1) <= rounding:
            return candidate
    return fps


def split_where_time_restarts(stamps: Sequence[float], order: Sequence[float]) -> list[np.ndarray]:
    """Split stamps where time starts again. This happens where files were joined.

    Args:
        stamps: times at which frames are shown, in the order of the file.
        order: times at which they are decoded. They rise within a run.
    """
    breaks = np.flatnonzero(np.diff(np.asarray(order, dtype=np.float64)) < 0) + 1
    return np.split(np.asarray(stamps, dtype=np.float64), breaks)


class TimeGrid:
    """Chooses, for each of evenly spaced times, the frame whose stamp is nearest.

    Stamps are added one by one. How often a frame is taken is known when the next stamp is added.

    Args:
        period: seconds from one time to the next.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._start: float | None = None
        self._last = 0.0
        self._taken = 0

    def add_stamp(self, stamp: float) -> int:
        """Add the next stamp, which must be later. Returns how often the frame before it is taken."""
        count = 0
        if self._start is None:
            self._start = stamp
        else:
            count = self._take_times_before((self._last + stamp) / 2)
        self._last = stamp
        return count

    def finish(self, interval: float) -> int:
        """End the grid; it starts again at the next stamp. Returns how often the last frame is taken.

        Args:
            interval: how long the last frame is shown, in seconds.
        """
        count = 0 if self._start is None else self._take_times_before(self._last + interval / 2)
        self._start, self._taken = None, 0
        return count

    def _take_times_before(self, time: float) -> int:
        """How many times of the grid lie before this one and are not taken yet."""
        assert self._start is not None
        before = self._taken
        # The time is a product and not a sum, so that rounding errors do not add up.
        while self._start + self._taken * self._period < time:
            self._taken += 1
        return self._taken - before
