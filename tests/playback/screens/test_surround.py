"""Sizes on a screen: what is enlarged has no rims, and the surround is taken from the edge."""

from __future__ import annotations

import numpy as np
import pytest

from mlxlava.playback.screens.surround import Surround, stretch_line
from mlxlava.resize import resize, resize_smoothly


@pytest.mark.parametrize("size", [(32, 32), (33, 35), (47, 90), (128, 128), (301, 500), (16, 100), (9, 9)])
def test_enlarging_a_hard_edge_never_leaves_the_range_of_its_two_colours(size: tuple[int, int]) -> None:
    edge = np.full((32, 32, 3), (20, 40, 60), np.uint8)
    edge[8:24, 8:24] = (250, 130, 30)
    seen = np.asarray(resize_smoothly(edge, size)).reshape(-1, 3)
    assert (seen.min(0) == (20, 40, 30)).all() and (seen.max(0) == (250, 130, 60)).all()


def test_a_ramp_stays_a_ramp_and_a_smaller_picture_is_a_mean() -> None:
    across = np.linspace(0, 255, 64)
    ramp = np.broadcast_to(across[:, None], (64, 64, 3)).astype(np.uint8)
    large = np.asarray(resize_smoothly(ramp, (512, 512))).astype(int)[:, 0, 0]
    steps = np.diff(large)
    assert steps.min() >= 0 and steps.max() <= 1  # no plateau as large as a pixel, no step
    np.testing.assert_array_equal(resize_smoothly(ramp, (16, 16)), resize(ramp, (16, 16)))


def test_the_sides_are_those_of_the_frame() -> None:
    frame = np.zeros((256, 128, 3), np.uint8)
    frame[:, 0] = np.arange(256)[:, None]
    frame[:, -1] = 90
    frame[0, 1:-1], frame[-1, 1:-1] = 30, 60
    surround = Surround()
    assert surround.update_from_frame(frame)
    left, right, top, bottom = surround.sides
    assert np.abs(left[:, 0].astype(int) - np.arange(8, 256, 16)).max() <= 8
    assert (right == 90).all()
    assert (top[1:-1] == 30).all() and (bottom[1:-1] == 60).all()
    assert np.abs(stretch_line(left, 256)[16:-16].astype(int) - frame[16:-16, 0]).max() <= 3
    assert not surround.update_from_frame(frame)
    assert not surround.update_from_frame(np.minimum(frame, 254) + 1)
    assert surround.update_from_frame(frame[::-1])
