"""`mlxlava drift`: windows, slopes, loops and chaos, each on something whose answer is known."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from mlxlava.config import Recipe, override
from mlxlava.errors import UserError
from mlxlava.evaluation.drift import (
    ReturnDistances,
    drift,
    lyapunov_exponent,
    slope_per_decade,
    split_for_drift,
    window_ends,
)
from mlxlava.footage.dataset import Footage
from mlxlava.rollout.weights import Weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

needs_scipy = pytest.mark.skipif(find_spec("scipy") is None, reason="needs the extra `score`")


def fresh(recipe: Recipe) -> Weights:
    return Weights(recipe, 5.0, playable_arrays(Trainer(recipe, 6).init()), {})


def test_windows_are_spread_over_decades() -> None:
    assert window_ends(1_000_000) == [
        *(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
    ]
    assert window_ends(1_500) == [1_000, 1_500]


@needs_scipy
def test_a_slope_is_found_and_chance_is_not_taken_for_one() -> None:
    rng = np.random.default_rng(0)
    ends = window_ends(10**6)
    noise = 0.1 * rng.standard_normal(len(ends))
    flat, rising = slope_per_decade(ends, noise), slope_per_decade(ends, 0.5 * np.log10(ends) + noise)
    assert flat["holds_zero"] and not rising["holds_zero"]
    assert rising["interval"][0] < 0.5 < rising["interval"][1]
    still = slope_per_decade(ends, [1.81] * len(ends))
    assert still["interval"] == [0.0, 0.0] and still["holds_zero"] and still["holds_zero_together"]


@pytest.mark.slow
@needs_scipy
def test_intervals_that_hold_together_are_as_wide_as_they_must_be() -> None:
    """Of 400 sets of thirteen slopes of nothing but chance, about one in twenty has one that misses zero."""
    ends, rng = window_ends(100_000), np.random.default_rng(1)
    sets = [
        [slope_per_decade(ends, noise, slope_count=13) for noise in rng.standard_normal((13, len(ends)))]
        for _ in range(400)
    ]
    misses = sum(not all(one["holds_zero_together"] for one in every) for every in sets)
    alone = sum(not all(one["holds_zero"] for one in every) for every in sets)
    assert 8 <= misses <= 35
    assert alone > 150  # without it: nearly every second


@needs_scipy
@pytest.mark.parametrize("recipe", ["tiny", "tiny_duralava"])
def test_drift_of_both_state_steps(recipe: str, lamp: Footage, request: pytest.FixtureRequest) -> None:
    weights = fresh(request.getfixturevalue(recipe))
    result, pictures = drift(weights, *split_for_drift(lamp, None), 2_500)
    assert [row["frames"] for row in result["windows"]] == [1_000, 2_000, 2_500]
    assert [end for end, _ in pictures] == [1_000, 2_000, 2_500]
    assert pictures[0][1].shape == (16, 16, 3)
    assert result["died_at"] is None
    assert set(result["slopes"]) >= {"image.frechet", "motion.frechet", "state.kurtosis"}
    assert result["returns"]["anchors"] >= 1
    assert json.loads(json.dumps(result))["frames"] == 2_500


def test_a_stationary_state_keeps_its_law_without_training(lamp: Footage, tiny: Recipe) -> None:
    result, _ = drift(fresh(tiny), *split_for_drift(lamp, None), 1_500)
    for row in result["windows"]:
        for name in ("deviation", "kurtosis", "norm", "epps_pulley_axes", "covariance"):
            low, high = result["null"][name]
            margin = high - low  # the null is the middle 95 %, and eight statistics are looked at twice
            assert low - margin < row["state"][name] < high + margin, name


def test_a_lamp_that_dies_is_reported_not_crashed_on(lamp: Footage, tiny_duralava: Recipe) -> None:
    weights = fresh(tiny_duralava)
    weights.arrays["dynamics"]["out"]["bias"] = weights.arrays["dynamics"]["out"]["bias"] + float("nan")
    result, pictures = drift(weights, *split_for_drift(lamp, None), 2_000)
    assert result["died_at"] is not None
    assert not pictures


def test_ctrl_c_keeps_what_was_found(lamp: Footage, tiny: Recipe) -> None:
    def update(done: float, total: float | None, text: str) -> None:
        if done > 1_500:
            raise KeyboardInterrupt

    result, pictures = drift(fresh(tiny), *split_for_drift(lamp, None), 5_000, on_progress=update)
    assert [row["frames"] for row in result["windows"]] == [1_000]
    assert result["interrupted_at"] > 1_500
    assert len(pictures) == 1


def test_too_few_frames_are_refused(lamp: Footage, tiny: Recipe) -> None:
    with pytest.raises(UserError, match="at least 1000"):
        drift(fresh(tiny), *split_for_drift(lamp, None), 999)


def walk(period: int | None) -> np.ndarray:
    """States of eight lamps over 3,000 steps: ever new, or coming back after ``period`` steps."""
    path = np.random.default_rng(0).standard_normal((8, 3_000, 16)).astype(np.float32)
    return path if period is None else path[:, np.arange(3_000) % period]


@pytest.mark.parametrize(("period", "looped"), [(None, False), (700, True)])
def test_a_secret_loop_is_found(period: int | None, looped: bool) -> None:
    path = walk(period)
    returns = ReturnDistances(lag=50)
    returns.add_anchor(100, path[:, 99])
    for at in range(100, 3_000, 60):
        returns.compare(at, path[:, at : at + 60])
    summary = returns.summary(16)
    assert summary["anchors"] == 1
    assert (summary["ratio"] < 0.1) == looped
    if not looped:
        assert summary["interval"][0] < 1 < summary["interval"][1]


def test_rotations_alone_do_not_part_lamps_and_noise_is_shared(tiny: Recipe) -> None:
    # No coupling network: fixed angles turn every state alike, so distances stay.
    weights = fresh(override(tiny, {"dynamics.rho": 1.0}))
    for name, layer in weights.arrays["dynamics"].items():
        if name.startswith("coupling"):
            layer["angles"]["weight"] = layer["angles"]["weight"] * 0
    states = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    assert abs(lyapunov_exponent(weights, states, 0)["per_step"]) < 1e-3
