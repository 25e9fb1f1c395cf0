"""Generated videos (codec × container × rate × colour × rotation × damage): counts, order and colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mlxlava.errors import UserError
from mlxlava.footage import prepare as footage
from mlxlava.footage.dataset import Footage
from tests.footage import generate
from tests.footage.generate import HEIGHT, WIDTH, Made, Spec

QUICK, ALL = 48, 300
COUNT = 20


def read(made: Made, every_nth: int = 1) -> tuple[Footage, list[str]]:
    said: list[str] = []
    crop = f"0,0,{WIDTH},{HEIGHT}"
    found = footage.prepare(
        [made.path], None, size=(HEIGHT, WIDTH), crop=crop, every_nth=every_nth, on_warning=said.append
    )
    return found, said


def is_nearest(numbers: Sequence[int], stamps: np.ndarray, period: float, interval: float) -> bool:
    """Whether frames are those that are nearest to evenly spaced times. Of two as near, either will do."""
    times = np.arange(stamps[0], stamps[-1] + interval / 2, period)
    if len(times) != len(numbers):
        return False
    distances = np.abs(stamps[:, None] - times)
    least = distances.min(axis=0)
    return bool((distances[list(numbers), np.arange(len(times))] <= least + 0.002).all())


def wrong(spec: Spec, folder: Path) -> str:
    """Make a video and read it; what is wrong about what was read, or nothing."""
    made = generate.make(spec, folder, COUNT)
    try:
        found, said = read(made)
    except UserError as error:
        return f"refused: {error}"
    numbers = generate.numbers(found.frames)
    off = generate.colour_error(found.frames, made.grey)
    if off > made.off:
        return f"colours are off by {off:.1f}; numbers {numbers}; said {said}"
    rate = 30.0 if spec.container in ("h264", "mjpeg") else generate.fraction(spec.rate)
    if abs(found.fps / rate - 1) > 0.01 and spec.damage == "none":
        return f"{found.fps} frames a second, not {rate}; said {said}"
    return _wrong_numbers(spec, made, found, numbers, said)


def _wrong_numbers(spec: Spec, made: Made, found: Footage, numbers: Sequence[int], said: list[str]) -> str:
    every = list(range(COUNT))
    interval = 1 / generate.fraction(spec.rate)
    if spec.damage != "none":
        # What is left is in order. A frame that is lost is said, and one beside it may stand in for it.
        fine = (np.diff(numbers) >= 0).all() and numbers[0] >= 0 and set(numbers) <= set(every)
        lost = len(set(numbers)) <= numbers[-1] or (spec.damage == "wrong bytes" and len(numbers) < COUNT)
        return "" if fine and (said or not lost) else f"numbers {numbers}; said {said}"
    if spec.timing in ("dropped", "faster"):
        fine = is_nearest(numbers, made.stamps, 1 / found.fps, interval) and found.cuts == ()
    elif spec.timing == "jitter" and abs(found.fps * interval - 1) > 0.004:
        fine = is_nearest(numbers, made.stamps, 1 / found.fps, interval)
    else:
        fine = list(numbers) == every and found.cuts == ((10,) if spec.timing == "hole" else ())
    if not fine:
        return f"numbers {numbers}; cuts {found.cuts}; {found.fps:g} a second; said {said}"
    odd = spec.timing != "even" or spec.container in ("h264", "mjpeg")
    return "" if bool(said) == odd else f"said {said}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("spec", generate.specs(QUICK), ids=str)
def test_generated_videos(spec: Spec, tmp_path: Path) -> None:
    assert wrong(spec, tmp_path) == ""


@pytest.mark.slow
def test_three_hundred_generated_videos(tmp_path: Path) -> None:
    failed = {str(spec): text for spec in generate.specs(ALL) if (text := wrong(spec, tmp_path))}
    assert not failed, f"{len(failed)} of {ALL} are wrong:\n" + "\n".join(map(" ".join, failed.items()))


def test_every_third_frame_of_a_variable_rate(tmp_path: Path) -> None:
    spec = Spec(0, "h264", "mp4", "yuv420p", "bt709", "tv", "30", timing="dropped")
    made = generate.make(dataclasses.replace(spec, index=900), tmp_path, COUNT)
    found, _ = read(made, every_nth=3)
    assert is_nearest(generate.numbers(found.frames), made.stamps, 3 / 30, 1 / 30)
