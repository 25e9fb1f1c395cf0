"""Losses against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from mlxlava.backend import mx
from mlxlava.training.losses import (
    augment,
    cross_entropy,
    gradient_penalty,
    kl_to_normal,
    relativistic_gradient_ratio,
    relativistic_losses,
)

pytestmark = pytest.mark.device

REAL, DRAWN = np.array([0.3, -2.0, 5.0]), np.array([1.1, -1.0, -4.0])


def test_relativistic_losses_compare_pairs() -> None:
    for_d, for_g = relativistic_losses(mx.array(REAL), mx.array(DRAWN))
    assert np.isclose(for_d.item(), np.log1p(np.exp(DRAWN - REAL)).mean())
    assert np.isclose(for_g.item(), np.log1p(np.exp(REAL - DRAWN)).mean())


def test_the_ratio_turns_ds_gradient_into_gs() -> None:
    real, drawn = mx.array(REAL), mx.array(DRAWN)
    by_d = mx.grad(lambda x: relativistic_losses(real, x)[0])(drawn)
    by_g = mx.grad(lambda x: relativistic_losses(real, x)[1])(drawn)
    assert np.allclose(np.array(by_d * relativistic_gradient_ratio(real, drawn)), np.array(by_g), rtol=1e-4)


def test_cross_entropy_is_non_saturating() -> None:
    real, drawn = mx.array(REAL), mx.array(DRAWN)
    for_d = cross_entropy(real, True) + cross_entropy(drawn, False)
    for_g = cross_entropy(drawn, True)
    assert np.isclose(for_d.item(), np.log1p(np.exp(-REAL)).mean() + np.log1p(np.exp(DRAWN)).mean())
    assert np.isclose(for_g.item(), np.log1p(np.exp(-DRAWN)).mean())


def test_the_gradient_penalty_of_a_quadratic() -> None:
    # logit = ½ Σ x², so its gradient is x, and the penalty ½ · mean ‖x‖².
    x = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    penalty = gradient_penalty(lambda x: 0.5 * (x * x).sum((1, 2)), mx.array(x))
    assert np.isclose(penalty.item(), 0.5 * (x**2).sum() / 3)


def test_kl_of_a_normal_law() -> None:
    # Of N(1, 4) to N(0, 1), by its closed form; two numbers of a state.
    kl = kl_to_normal(mx.array([[1.0, 1.0]]), mx.log(mx.array([[4.0, 4.0]])))
    assert np.isclose(kl.item(), 2 * 0.5 * (4 + 1 - 1 - np.log(4)))
    assert kl_to_normal(mx.zeros((3, 2)), mx.zeros((3, 2))).item() == 0


def test_augmentation_is_the_same_in_all_frames_of_a_clip() -> None:
    frame = np.random.default_rng(0).random((5, 1, 12, 16, 3)).astype(np.float32)
    clips = mx.array(np.repeat(frame, 3, axis=1))
    moved = np.array(augment(clips, mx.random.split(mx.random.key(1), len(clips)), 0.25, 0.1))
    assert np.array_equal(moved[:, 0], moved[:, 2])
    changes = np.abs(moved[:, 0] - frame[:, 0]).mean((1, 2, 3))
    assert (changes > 0.01).all() and len(set(changes.tolist())) == 5
    assert np.array_equal(
        np.array(augment(clips, mx.random.split(mx.random.key(1), len(clips)), 0.0, 0.0)), np.array(clips)
    )
    # A shift only: every picture is a part of the old one, edges repeated.
    shifted = np.array(augment(clips, mx.random.split(mx.random.key(2), len(clips)), 0.25, 0.0))[0, 0]
    padded = np.pad(frame[0, 0], [(3, 3), (4, 4), (0, 0)], mode="edge")
    assert any(np.array_equal(shifted, padded[y : y + 12, x : x + 16]) for y in range(7) for x in range(9))
