"""Statistics that are at their null for N(0, I) and see what pooled moments do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlxlava.normality import intervals_under_normality, normality_statistics

COUNT, SIZE = 256, 64


@pytest.fixture(scope="module")
def law() -> dict[str, tuple[float, float]]:
    return intervals_under_normality(COUNT, SIZE, repeats=60)


def outside(states: npt.NDArray[Any], law: dict[str, tuple[float, float]]) -> set[str]:
    values = normality_statistics(states)
    return {name for name, (low, high) in law.items() if not low <= values[name] <= high}


def test_normal_states_are_at_the_null(law: dict[str, tuple[float, float]]) -> None:
    rng = np.random.default_rng(7)
    missed = [name for _ in range(20) for name in outside(rng.standard_normal((COUNT, SIZE)), law)]
    assert max(missed.count(name) for name in law) <= 6  # of 20, at 5 %


def test_a_law_of_three_points_has_the_moments_but_is_seen(law: dict[str, tuple[float, float]]) -> None:
    rng = np.random.default_rng(0)
    states = rng.choice([-np.sqrt(3), 0, np.sqrt(3)], (COUNT, SIZE), p=[1 / 6, 2 / 3, 1 / 6])
    seen = outside(states, law)
    assert "epps_pulley_axes" in seen
    assert not seen & {"deviation", "kurtosis"}


def test_states_of_low_rank_are_seen(law: dict[str, tuple[float, float]]) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((SIZE, 16)))[0]
    states = 2 * rng.standard_normal((COUNT, 16)) @ basis.T
    assert "covariance" in outside(states, law)


def test_states_that_all_agree_are_seen(law: dict[str, tuple[float, float]]) -> None:
    states = np.repeat(np.random.default_rng(0).standard_normal((1, SIZE)), COUNT, axis=0)
    assert {"covariance", "epps_pulley_axes", "epps_pulley_directions"} <= outside(states, law)
