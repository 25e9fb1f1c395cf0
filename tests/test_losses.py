"""Losses against closed forms."""

from __future__ import annotations

import numpy as np

from mlxlava.backend import mx
from mlxlava.losses import cross_entropy, gradient_penalty, moments, relativistic, relativistic_ratio

REAL, DRAWN = np.array([0.3, -2.0, 5.0]), np.array([1.1, -1.0, -4.0])


def test_relativistic_losses_compare_pairs() -> None:
    for_d, for_g = relativistic(mx.array(REAL), mx.array(DRAWN))
    assert np.isclose(for_d.item(), np.log1p(np.exp(DRAWN - REAL)).mean())
    assert np.isclose(for_g.item(), np.log1p(np.exp(REAL - DRAWN)).mean())


def test_the_ratio_turns_ds_gradient_into_gs() -> None:
    real, drawn = mx.array(REAL), mx.array(DRAWN)
    by_d = mx.grad(lambda x: relativistic(real, x)[0])(drawn)
    by_g = mx.grad(lambda x: relativistic(real, x)[1])(drawn)
    assert np.allclose(np.array(by_d * relativistic_ratio(real, drawn)), np.array(by_g), rtol=1e-4)


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


def test_moments_are_those_of_the_numbers() -> None:
    x = np.random.default_rng(1).gamma(2.0, size=(50, 20)).astype(np.float32)
    centred = (x - x.mean()) / x.std()
    found = [moment.item() for moment in moments(mx.array(x))]
    assert np.allclose(found, [x.mean(), x.std(), (centred**3).mean(), (centred**4).mean()], rtol=1e-3)
