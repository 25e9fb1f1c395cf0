"""Rates from stamps, and frames at evenly spaced times."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlxlava.footage.timing import TimeGrid, measure_timing, split_where_time_restarts


def taken(stamps: list[float], period: float, interval: float) -> list[int]:
    """The numbers of the frames that a grid takes."""
    grid, found = TimeGrid(period), []
    for number, stamp in enumerate(stamps):
        found += [number - 1] * grid.add_stamp(stamp)
    return found + [len(stamps) - 1] * grid.finish(interval) if stamps else found


def test_even_stamps_give_each_frame_once() -> None:
    for fps in (30, 30000 / 1001, 12.5, 1 / 60, 1000):
        stamps = np.arange(5000) / fps
        found = measure_timing([stamps])
        assert found is not None and found.fps == pytest.approx(fps, rel=1e-6) and not found.uneven
        assert taken(list(stamps), 1 / found.fps, 1 / fps) == list(range(5000))
        assert taken(list(stamps), 3 / found.fps, 1 / fps) == list(range(0, 5000, 3))


@pytest.mark.parametrize("fps", [30.0, 30000 / 1001, 24000 / 1001, 60.0, 15.0])
def test_whole_milliseconds_do_not_hide_the_rate(fps: float) -> None:
    """As in Matroska: an hour of them must not drift."""
    stamps = np.floor(np.arange(108000) / fps * 1000) / 1000
    found = measure_timing([stamps], tick=0.001)
    assert found is not None and found.fps == fps and not found.uneven
    assert taken(list(stamps), 1 / fps, 1 / fps) == list(range(108000))


def test_jitter_holes_and_dropped_frames_do_not_change_the_rate() -> None:
    rng = np.random.default_rng(0)
    for stamps in (
        np.arange(2000) / 30 + rng.uniform(0, 0.3, 2000) / 30,
        np.delete(np.arange(2000) / 30, rng.choice(1999, 100, replace=False) + 1),
        np.concatenate([np.arange(1000) / 30, 5000 + np.arange(1000) / 30]),
    ):
        found = measure_timing([stamps], tick=1 / 90000)
        assert found is not None and found.fps == pytest.approx(30, rel=0.001)


def test_of_two_rates_the_one_that_lasts_longer_counts() -> None:
    slow, fast = np.arange(0, 6, 1 / 15), 6 + np.arange(0, 3, 1 / 60)
    found = measure_timing([np.concatenate([slow, fast])])
    assert found is not None and found.fps == pytest.approx(15, rel=0.01) and found.uneven
    fast = 6 + np.arange(0, 9, 1 / 60)
    found = measure_timing([np.concatenate([slow, fast])])
    assert found is not None and found.fps == pytest.approx(60, rel=0.01) and found.uneven


def test_a_hole_is_longer_than_what_is_usual_around_it() -> None:
    slow, fast = np.arange(0, 6, 1 / 15), 6 + np.arange(0, 9, 1 / 60)
    stamps = np.concatenate([slow, fast, [16.0, 16 + 1 / 60]])
    found = measure_timing([stamps])
    assert found is not None
    holes = [at for at, pair in enumerate(itertools.pairwise(stamps)) if found.is_hole(*pair)]
    assert holes == [len(stamps) - 3]


def test_no_rate_is_made_up() -> None:
    for runs in ([], [np.zeros(0)], [np.array([3.0])], [np.full(20, 1.5)]):
        assert measure_timing(runs) is None


def test_time_that_begins_again_is_another_run() -> None:
    runs = split_where_time_restarts([0, 2, 1, 3, 0, 1], [0, 1, 2, 3, 0, 1])
    assert [run.tolist() for run in runs] == [[0, 2, 1, 3], [0, 1]]


def test_the_nearest_frame_is_taken() -> None:
    stamps = [0.0, 1.1, 1.9, 2.2, 5.0, 6.0]
    assert taken(stamps, 1.0, 1.0) == [0, 1, 2, 3, 4, 4, 5]
    assert taken(stamps, 2.0, 1.0) == [0, 2, 4, 5]
    assert taken([0.0], 1.0, 1.0) == [0]
    assert taken([], 1.0, 1.0) == []
