"""The built-in lamp: what footage, training and the ``lamp`` command rely on."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxlava.errors import UserError
from mlxlava.footage.simulated_lamp import LAMP_VERSION, THEMES, SimulatedLamp, frames


def film(count: int, **settings: object) -> NDArray[np.uint8]:
    """``count`` frames: (T, H, W, 3)."""
    return np.stack(list(islice(frames(**settings), count)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def long() -> NDArray[np.uint8]:
    """Eleven minutes of one lamp."""
    return film(2000, size=(32, 32), fps=3.0, seed=5, theme="mono")


def wax(film: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Roughly how much of each pixel is wax, by its brightness above the liquid: (T, H, W).

    Each pixel is measured between its own darkest and brightest, which only the wax changes.
    """
    grey = film[..., 0].astype(np.float64)
    low, high = grey.min(0), grey.max(0)
    share = (grey - low) / np.maximum(high - low, 1)
    return np.where(high - low > 30, share, 0.0)


def test_same_seed_same_frames() -> None:
    assert np.array_equal(film(5, seed=3), film(5, seed=3))


def test_other_seed_other_motion() -> None:
    assert np.abs(film(1, seed=3).astype(int) - film(1, seed=4)).mean() > 2


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (96, 32), (32, 96), (160, 128)])
def test_every_size_has_a_moving_lamp(size: tuple[int, int]) -> None:
    pictures = film(3, size=size, fps=0.25)
    assert pictures.shape == (3, *size, 3) and pictures.dtype == np.uint8
    moving = np.abs(np.diff(pictures.astype(int), axis=0)).max((0, 3)) > 20
    assert moving.any()
    assert abs(np.flatnonzero(moving.any(0)).mean() + 0.5 - size[1] / 2) < 0.15 * size[1]


def test_frames_are_the_callers_own() -> None:
    lamp = SimulatedLamp((32, 32))
    first = next(lamp)
    kept = first.copy()
    next(lamp)
    assert np.array_equal(first, kept)
    first[:] = 0
    assert next(lamp)[-4:].any()


def test_a_picture_looks_the_same_at_every_size() -> None:
    small = film(1, size=(64, 64), seed=1)[0].astype(float)
    large = film(1, size=(256, 256), seed=1)[0].astype(float)
    shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 3


def test_wax_is_neither_lost_nor_made() -> None:
    # Bright wax against black liquid, counted by pixels, at a size where a pixel hardly matters.
    pictures = film(40, size=(192, 192), fps=0.2, seed=2, theme="classic").astype(int)
    area = (pictures[..., 0] - pictures[..., 2] > 60).sum((1, 2))
    assert area.std() / area.mean() < 0.01
    assert np.ptp(area) / area.mean() < 0.05


def test_nothing_pops() -> None:
    for seed in range(3):
        pictures = film(600, size=(32, 32), fps=10.0, seed=seed).astype(int)
        change = np.abs(np.diff(pictures, axis=0)).mean((1, 2, 3))
        assert change.max() < 6 * np.median(change)
        assert change.min() > 0


def test_room_base_and_cap_stand_still() -> None:
    pictures = film(60, fps=0.5)
    moving = (pictures != pictures[0]).any((0, 3))
    rows, columns = np.flatnonzero(moving.any(1)), np.flatnonzero(moving.any(0))
    assert rows[0] >= 4 and rows[-1] < 57  # cap and base
    assert columns[0] >= 14 and columns[-1] < 50  # room
    assert np.array_equal(film(1, seed=9)[0][~moving], pictures[0][~moving])


def test_motion_does_not_depend_on_the_frame_rate() -> None:
    slow, fast = film(30, fps=10.0, seed=7), film(90, fps=30.0, seed=7)
    assert np.abs(slow.astype(int) - fast[::3]).max() <= 1
    odd, finer = film(20, fps=7.0, seed=7), film(60, fps=21.0, seed=7)
    assert np.abs(odd.astype(int) - finer[::3]).max() <= 1


def test_wax_rises_and_sinks(long: NDArray[np.uint8]) -> None:
    share = wax(long)
    rows = np.arange(share.shape[1])[:, None]
    height = -(share * rows).sum((1, 2)) / share.sum((1, 2))
    climb = height[15:] - height[:-15]  # in rows, over 5 seconds
    assert climb.max() > 1 and climb.min() < -1
    moving = share.std(0).max(1)
    lit = np.flatnonzero(moving > 0.2)
    assert lit[-1] - lit[0] > 0.6 * share.shape[1]  # wax comes and goes from the bottom to the top


def test_it_never_settles_or_drifts(long: NDArray[np.uint8]) -> None:
    quarters = long.reshape(4, 500, -1).astype(np.float32)
    brightness = quarters.mean((1, 2))
    assert np.ptp(brightness) < 0.03 * brightness.mean()
    spread = quarters.std(1).mean(1)
    assert np.ptp(spread) < 0.25 * spread.mean()
    change = np.abs(np.diff(long.astype(int), axis=0)).mean((1, 2, 3))
    assert change[-500:].mean() > 0.7 * change[:500].mean()


def test_the_past_is_forgotten(long: NDArray[np.uint8]) -> None:
    moved = long.astype(np.float32) - long.mean(0)
    power = (moved * moved).mean()
    assert (moved[3:] * moved[:-3]).mean() > 0.6 * power
    assert abs((moved[90:] * moved[:-90]).mean()) < 0.25 * power


def test_the_first_frame_is_typical() -> None:
    first = np.stack([film(1, size=(32, 32), seed=seed)[0] for seed in range(12)]).astype(np.float32)
    later = film(100, size=(32, 32), fps=0.25, seed=50).astype(np.float32)
    assert np.abs(first.mean(0) - later.mean(0)).mean() < 0.5 * later.std(0).mean() + 0.5
    assert first.std(0).mean() > 0.6 * later.std(0).mean()


def test_pictures_stay_those_of_their_version() -> None:
    """If this fails on purpose, raise LAMP_VERSION: runs then see that their footage has changed."""
    bands = film(41, size=(32, 32), fps=1.0, seed=3)[-1].reshape(4, 8, 32, 3).mean((1, 2))
    assert LAMP_VERSION == 1
    assert np.allclose(
        bands, [(16.3, 10.9, 27.1), (66.6, 23.9, 31.2), (51.0, 21.0, 55.8), (49.5, 34.2, 32.9)], atol=0.5
    )


@pytest.mark.parametrize("theme", THEMES)
def test_wax_stands_out_in_every_theme(theme: str) -> None:
    pictures = film(20, fps=0.2, theme=theme).astype(int)
    contrast = np.ptp(pictures, axis=0).max(-1)
    assert np.quantile(contrast[16:40, 26:38], 0.5) > 90


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"theme": "clasic"}, "did you mean classic"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"size": (60, 64)}, "multiples of 16"),
    ],
)
def test_impossible_lamps_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimulatedLamp(**settings)  # type: ignore[arg-type]
