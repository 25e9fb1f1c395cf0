"""State steps: a normal state stays normal, for ever."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlxlava.backend import mx, tree_map
from mlxlava.config import Recipe, override
from mlxlava.dynamics import PenalisedStep, StationaryStep, make_dynamics
from mlxlava.nets import Tree


def stationary(recipe: Recipe, rho: float) -> tuple[StationaryStep, Tree, Tree]:
    """A step with large random weights: stationarity holds for any."""
    step = make_dynamics(override(recipe, {"dynamics.rho": rho}))
    assert isinstance(step, StationaryStep)
    weights = tree_map(lambda a: 3 * a, step.init(mx.random.key(3)))
    return step, weights, step.init_stats()


@pytest.fixture(scope="module")
def penalised(tiny_duralava: Recipe) -> tuple[PenalisedStep, Tree]:
    step = make_dynamics(tiny_duralava)
    assert isinstance(step, PenalisedStep)
    return step, step.init(mx.random.key(0))


def normal(count: int, seed: int) -> mx.array:
    return mx.random.normal((count, 8), key=mx.random.key(seed))


def test_the_rotations_keep_every_norm(tiny: Recipe) -> None:
    step, weights, stats = stationary(tiny, 1.0)
    states = normal(50, 0)
    moved = step.transport(weights, stats, states)
    assert np.allclose(
        np.linalg.norm(np.array(moved), axis=1), np.linalg.norm(np.array(states), axis=1), rtol=1e-5
    )
    assert np.abs(np.array(moved - states)).mean() > 0.1


@pytest.mark.parametrize("rho", [1.0, 0.98])
def test_a_normal_state_stays_normal(tiny: Recipe, rho: float) -> None:
    step, weights, stats = stationary(tiny, rho)
    states = normal(4000, 1)
    for n in range(100):
        states = step.advance(weights, stats, states, normal(4000, 10 + n))
        mx.eval(states)
    z = np.array(states)
    # Five standard errors of each statistic over 4000 states of 8 numbers.
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.02
    assert abs(np.mean(z**4) - 3) < 0.3
    assert np.abs(np.cov(z.T) - np.eye(8)).max() < 0.13


def test_a_wrong_start_is_forgotten(tiny: Recipe) -> None:
    step, weights, stats = stationary(tiny, 0.98)
    states = 5 * normal(2000, 1) + 10
    for n in range(400):
        states = step.advance(weights, stats, states, normal(2000, 10 + n))
        mx.eval(states)
    z = np.array(states)
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.03


def test_states_in_between_lie_on_the_way(tiny: Recipe) -> None:
    step, weights, stats = stationary(tiny, 0.98)
    states, noise = normal(20, 0), normal(20, 1)
    path = [
        np.array(step.advance(weights, stats, states, noise, dt)) for dt in np.linspace(0, 1, 41).tolist()
    ]
    assert np.allclose(path[0], np.array(states), atol=1e-6)
    assert np.allclose(path[-1], np.array(step.advance(weights, stats, states, noise)), atol=1e-6)
    whole = np.abs(path[-1] - path[0]).max()
    # The noise grows like a square root, so the first part of the way is the steepest.
    assert max(np.abs(b - a).max() for a, b in itertools.pairwise(path)) < 0.5 * whole


@pytest.mark.parametrize("kind", ["tiny", "tiny_duralava"])
def test_rolling_is_advancing_again_and_again(kind: str, request: pytest.FixtureRequest) -> None:
    recipe: Recipe = request.getfixturevalue(kind)
    step = make_dynamics(recipe)
    weights, stats = step.init(mx.random.key(0)), step.init_stats()
    states, key = normal(4, 1), mx.random.key(2)
    path, _ = step.roll(weights, stats, states, key, 5)
    noise = mx.random.normal((5, 4, 8), key=key)
    for t in range(5):
        states = step.advance(weights, stats, states, noise[t])
        assert np.allclose(np.array(path[:, t]), np.array(states), atol=1e-5)


def test_penalised_states_are_standardised_and_their_moments_are_the_penalty(
    penalised: tuple[PenalisedStep, Tree],
) -> None:
    step, weights = penalised
    path, terms = step.roll(weights, {}, normal(16, 1), mx.random.key(2), 4)
    assert set(terms) == {f"normality_{name}" for name in ("mean", "std", "skew", "kurtosis")}
    for t in range(4):
        assert abs(path[:, t].mean().item()) < 1e-5
        assert abs(mx.sqrt(path[:, t].var()).item() - 1) < 1e-4
    # One step whose raw states are known: the penalty is their distance from a normal law's moments.
    _, one = step.roll(weights, {}, normal(16, 1), mx.random.key(2), 1)
    raw = np.array(step._propose(weights, normal(16, 1)))
    assert np.isclose(one["normality_mean"].item(), raw.mean() ** 2, rtol=1e-3)
    assert np.isclose(one["normality_std"].item(), (raw.std() - 1) ** 2, rtol=1e-3)


def test_penalised_states_in_between_lie_on_the_great_circle(penalised: tuple[PenalisedStep, Tree]) -> None:
    step, weights = penalised
    states, unused = normal(16, 1), mx.zeros((16, 8))
    at = {dt: np.array(step.advance(weights, {}, states, unused, dt)) for dt in (0.0, 0.5, 0.999999, 1.0)}
    assert np.allclose(at[0.0], np.array(states), atol=1e-5)
    assert np.allclose(at[0.999999], at[1.0], atol=1e-3)
    ends = np.linalg.norm(at[0.0], axis=1), np.linalg.norm(at[1.0], axis=1)
    between = np.linalg.norm(at[0.5], axis=1)
    assert (between > 0.5 * np.minimum(*ends)).all()
