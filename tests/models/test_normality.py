"""Normality as a loss: each term is the number that is also measured."""

from __future__ import annotations

import numpy as np
import pytest

from mlxlava.backend import mx
from mlxlava.models.normality import (
    covariance_distance,
    epps_pulley,
    moments,
)
from mlxlava.normality import epps_pulley as measured_epps_pulley
from mlxlava.normality import normality_statistics

pytestmark = pytest.mark.device


def test_moments_are_those_of_the_numbers() -> None:
    x = np.random.default_rng(1).gamma(2.0, size=(50, 20)).astype(np.float32)
    centred = (x - x.mean()) / x.std()
    found = [moment.item() for moment in moments(mx.array(x))]
    assert np.allclose(found, [x.mean(), x.std(), (centred**3).mean(), (centred**4).mean()], rtol=1e-3)


def test_normality_losses_are_the_measures() -> None:
    x = np.random.default_rng(1).gamma(2.0, size=(50, 20)).astype(np.float32) - 2
    assert np.isclose(epps_pulley(mx.array(x)).item(), measured_epps_pulley(x).mean(), rtol=1e-4)
    assert np.isclose(
        covariance_distance(mx.array(x)).item(), normality_statistics(x)["covariance"], rtol=1e-4
    )
