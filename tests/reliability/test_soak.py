"""A lamp that plays for long on each kind of screen: what grows, what comes late, what the state does.

Ten minutes in all; with ``MLXLAVA_RELIABILITY=96`` four hours for each screen. ``-s`` shows the figures.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("psutil", reason="needs the extra `dev`")
pytest.importorskip("scipy", reason="needs the extra `score`")

from benchmarks.soak import SCREENS, VIEWERS, missing_program, slope_per_hour, soak

LENGTH = int(os.environ.get("MLXLAVA_RELIABILITY", "1"))  # so many times as long
_MINUTES = 2.5 * LENGTH
_LONG = 24  # from this length on, an hour for each screen, slopes and lateness are judged as well

# MB that caches and a heap without returned pages may take after the first half. The leaks that were found
# once, 17.5 kB a frame and 116 MB an hour, take 39 and 2.4 MB in 75 seconds.
_MOST_GROWTH_MB = {"pipe": 2.0, "web": 4.0, "terminal": 2.0, "window": 2.0}  # a page's heap grows for longest
_NEEDED = {"web": "aiohttp", "window": "pygame"}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors as Linux does")
@pytest.mark.parametrize("screen", SCREENS)
def test_playing_for_long_takes_no_more_than_playing_for_a_minute(screen: str) -> None:
    if program := missing_program(screen):
        pytest.skip(f"there is no {program}")
    if screen in _NEEDED:
        pytest.importorskip(_NEEDED[screen])
    found = soak(screen, _MINUTES)
    print(dataclasses.asdict(found))
    assert found.errors == ""
    assert found.frames > 100
    assert found.blocks_mb[-1] - found.blocks_mb[0] < _MOST_GROWTH_MB[screen]
    assert found.threads[0] == found.threads[1]
    connections = VIEWERS + 8 if screen == "web" else 0  # a viewer may come before another's line is closed
    assert found.descriptors[1] - found.descriptors[0] <= connections
    if found.moments:  # of 64 numbers that are distributed normally, and go on being so
        (low, high), (least, most), *_ = found.moments
        assert -0.7 < low <= high < 0.7 and 0.6 < least <= most < 1.4
    if LENGTH >= _LONG:
        assert found.slope[1] <= 0
        assert found.lateness[1] <= 1


@pytest.mark.parametrize("slope", [0.0, 5.0, 100.0])
def test_the_interval_of_a_slope_holds_the_true_one(slope: float) -> None:
    seconds = np.arange(0, 600, 0.5)
    noise = np.random.default_rng(0).normal(0, 0.05, len(seconds))
    found, low, high = slope_per_hour(seconds, 100 + slope * seconds / 3600 + noise)
    assert low < slope < high and abs(found - slope) < 1


def test_memory_that_does_not_change_has_no_slope() -> None:
    assert slope_per_hour(np.arange(0, 60, 0.5), np.full(120, 100.0)) == (0, 0, 0)


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert [missing_program(screen) for screen in SCREENS] == [None, None, "tmux", "Xvfb"]
