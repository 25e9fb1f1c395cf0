"""State steps: a normal state stays normal, for ever."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from mlxlava.backend import Tree, arrays_by_name, mx, tree_map
from mlxlava.config import Recipe, override
from mlxlava.models.state_step import PENALTY_FUNCTIONS, PenalisedStep, StationaryStep, make_dynamics
from mlxlava.normality import intervals_under_normality, normality_statistics
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights, load_weights

pytestmark = pytest.mark.device


def stationary(recipe: Recipe, rho: float) -> tuple[StationaryStep, Tree, Tree]:
    """A step with large random weights: stationarity holds for any."""
    step = make_dynamics(override(recipe, {"dynamics.rho": rho}))
    assert isinstance(step, StationaryStep)
    weights = tree_map(lambda a: 3 * a, step.init(mx.random.key(3)))
    return step, weights, step.basis_changes(step.init_bases())


@pytest.fixture(scope="module")
def penalised(tiny_duralava: Recipe) -> tuple[PenalisedStep, Tree]:
    step = make_dynamics(tiny_duralava)
    assert isinstance(step, PenalisedStep)
    return step, step.init(mx.random.key(0))


def normal(count: int, seed: int) -> mx.array:
    return mx.random.normal((count, 8), key=mx.random.key(seed))


def test_the_rotations_keep_every_norm(tiny: Recipe) -> None:
    step, weights, bases = stationary(tiny, 1.0)
    states = normal(50, 0)
    moved = step.transport(weights, bases, states)
    assert np.allclose(
        np.linalg.norm(np.array(moved), axis=1), np.linalg.norm(np.array(states), axis=1), rtol=1e-5
    )
    assert np.abs(np.array(moved - states)).mean() > 0.1


@pytest.mark.parametrize("rho", [1.0, 0.98])
def test_a_normal_state_stays_normal(tiny: Recipe, rho: float) -> None:
    step, weights, bases = stationary(tiny, rho)
    states = normal(4000, 1)
    for n in range(100):
        states = step.step(weights, bases, states, normal(4000, 10 + n))
        mx.eval(states)
    z = np.array(states)
    # Five standard errors of each statistic over 4000 states of 8 numbers.
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.02
    assert abs(np.mean(z**4) - 3) < 0.3
    assert np.abs(np.cov(z.T) - np.eye(8)).max() < 0.13


def test_a_wrong_start_is_forgotten_at_the_predicted_rate(tiny: Recipe) -> None:
    """Rotations keep a length and noise is independent: E‖z‖² / Z − 1 falls by rho² a step, exactly."""
    step, weights, bases = stationary(tiny, 0.98)
    states = 52 * normal(2000, 1) + 10
    first = np.mean(np.array(states) ** 2)
    for n in range(1, 501):
        states = step.step(weights, bases, states, normal(2000, 10 + n))
        mx.eval(states)
        if n in (1, 10, 50, 100):
            predicted = 1 + 0.98 ** (2 * n) * (first - 1)
            assert np.isclose((states * states).mean().item(), predicted, rtol=0.02), n
    z = np.array(states)
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.03


def test_each_number_may_learn_its_own_rho(tiny: Recipe) -> None:
    step = make_dynamics(override(tiny, {"dynamics.rho": 0.98, "dynamics.learn_rho": True}))
    assert isinstance(step, StationaryStep)
    weights, bases = step.init(mx.random.key(3)), step.basis_changes(step.init_bases())
    fixed, _, _ = stationary(tiny, 0.98)
    states, noise = normal(20, 0), normal(20, 1)
    same = fixed.step(weights, bases, states, noise, 0.3)
    assert np.allclose(np.array(step.step(weights, bases, states, noise, 0.3)), np.array(same), atol=1e-6)
    weights["log_rate"] = mx.linspace(-8, 1, 8)  # rho of 0.9997 … 0.07
    states = normal(4000, 1)
    for n in range(50):
        states = step.step(weights, bases, states, normal(4000, 10 + n))
        mx.eval(states)
    assert np.abs(np.cov(np.array(states).T) - np.eye(8)).max() < 0.13
    gradient = mx.grad(lambda w: step.step(w, bases, states, noise[:1]).sum())(weights)
    assert (np.array(gradient["log_rate"]) != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["random", "random, no noise", "shipped"])
def test_states_stay_normal_over_100_000_steps(which: str, tiny: Recipe) -> None:
    if which == "shipped":
        weights = load_weights("lava-64")
    else:
        recipe = override(tiny, {"dynamics.rho": 1.0 if which == "random, no noise" else 0.999})
        arrays = {"generator": {}, "dynamics": make_dynamics(recipe).init(mx.random.key(5))}
        arrays["dynamics"] = tree_map(lambda a: 3 * a, arrays["dynamics"])
        stats = {"dynamics": make_dynamics(recipe).init_bases(), "generator": {}}
        weights = Weights(recipe, 5.0, {**arrays, "stats": stats}, {})
    rollout = Rollout(weights, seed=3, lamps=64)
    first = rollout.states
    for _ in range(100):
        last = rollout.roll_states(1000)[:, -1]
    intervals = intervals_under_normality(64, first.shape[1], repeats=100)
    width = {name: high - low for name, (low, high) in intervals.items()}
    found = normality_statistics(last)
    # Eight statistics of three lamps: half an interval more, so that chance does not fail one.
    outside = {
        name: found[name]
        for name, (low, high) in intervals.items()
        if not low - width[name] / 2 <= found[name] <= high + width[name] / 2
    }
    assert not outside
    if which == "random, no noise":
        assert np.allclose(np.linalg.norm(last, axis=1), np.linalg.norm(first, axis=1), rtol=1e-5)


def test_without_noise_a_step_can_be_undone(tiny: Recipe) -> None:
    step, weights, bases = stationary(tiny, 1.0)
    states = normal(50, 0)
    moved = states
    for _ in range(20):
        moved = step.step(weights, bases, moved, mx.zeros_like(moved))
    back = moved
    for _ in range(20):
        back = step.inverse_transport(weights, bases, back)
    assert np.abs(np.array(moved - states)).mean() > 0.3
    assert np.allclose(np.array(back), np.array(states), atol=1e-4)


def test_a_long_roll_has_the_gradient_of_its_steps(tiny: Recipe) -> None:
    """Pieces that are rolled again in the backward pass change nothing but memory."""
    step, weights, bases = stationary(tiny, 0.98)
    states, key = normal(4, 1), mx.random.key(2)
    noise = mx.random.normal((25, 4, 8), key=key)

    def by_pieces(weights: Tree) -> mx.array:
        return step.roll(weights, bases, states, key, 25)[0].square().sum((0, 2)).cos().sum()

    def one_by_one(weights: Tree) -> mx.array:
        now, total = states, mx.array(0.0)
        for t in range(25):
            now = step.step(weights, bases, now, noise[t])
            total = total + now.square().sum().cos()
        return total

    weights = tree_map(lambda a: a / 3, weights)  # gentle: chaos would part the two by rounding
    left, right = (arrays_by_name(mx.grad(function)(weights)) for function in (by_pieces, one_by_one))
    for name, array in left.items():
        assert np.allclose(np.array(array), np.array(right[name]), rtol=1e-2, atol=1e-3), name


def test_states_in_between_lie_on_the_way(tiny: Recipe) -> None:
    step, weights, bases = stationary(tiny, 0.98)
    states, noise = normal(20, 0), normal(20, 1)
    path = [np.array(step.step(weights, bases, states, noise, dt)) for dt in np.linspace(0, 1, 41).tolist()]
    assert np.allclose(path[0], np.array(states), atol=1e-6)
    assert np.allclose(path[-1], np.array(step.step(weights, bases, states, noise)), atol=1e-6)
    parts = [np.linalg.norm(b - a, axis=1).mean() for a, b in itertools.pairwise(path)]
    # At an even speed, the noise included: no jolt when a learned step begins.
    assert max(parts) < 1.15 * min(parts)


@pytest.mark.parametrize("kind", ["tiny", "tiny_duralava"])
def test_rolling_is_advancing_again_and_again(kind: str, request: pytest.FixtureRequest) -> None:
    recipe: Recipe = request.getfixturevalue(kind)
    step = make_dynamics(recipe)
    weights, bases = step.init(mx.random.key(0)), step.basis_changes(step.init_bases())
    states, key = normal(4, 1), mx.random.key(2)
    path, _ = step.roll(weights, bases, states, key, 5)
    noise = mx.random.normal((5, 4, 8), key=key)
    for t in range(5):
        states = step.step(weights, bases, states, noise[t])
        assert np.allclose(np.array(path[:, t]), np.array(states), atol=1e-5)


def test_a_roll_may_begin_in_the_middle(tiny: Recipe) -> None:
    step, weights, bases = stationary(tiny, 0.98)
    path, _ = step.roll(weights, bases, normal(2000, 1), mx.random.key(2), 12, position=6)
    assert np.array_equal(np.array(path[:, 5]), np.array(normal(2000, 1)))
    # Backwards or forwards: neighbours are alike in the same way, and every state is normal.
    moved = path[:, 1:] - mx.stack([step.transport(weights, bases, path[:, t]) for t in range(11)], axis=1)
    spread = np.array(moved).std((0, 2))
    assert np.allclose(spread, np.sqrt((1 - 0.98) ** 2 + 1 - 0.98**2), rtol=0.03)
    for t in (0, 11):
        assert np.abs(np.cov(np.array(path[:, t]).T) - np.eye(8)).max() < 0.15


def test_penalised_states_are_standardised_and_their_moments_are_the_penalty(
    penalised: tuple[PenalisedStep, Tree],
) -> None:
    step, weights = penalised
    path, terms = step.roll(weights, {}, normal(16, 1), mx.random.key(2), 4)
    assert set(terms) == {f"normality_{name}" for name in ("mean", "std", "skew", "kurtosis")}
    for t in range(4):
        assert abs(path[:, t].mean().item()) < 1e-5
        assert abs(mx.sqrt(path[:, t].var()).item() - 1) < 1e-4
    # An MLP that gives 1, 2, 3 … whatever the state is: the penalty is their distance from N(0, 1)'s moments.
    raw = np.arange(1, 9, dtype=np.float32)
    known = {**weights, "out": {"weight": mx.zeros_like(weights["out"]["weight"]), "bias": mx.array(raw)}}
    _, one = step.roll(known, {}, normal(16, 1), mx.random.key(2), 1)
    assert np.isclose(one["normality_mean"].item(), raw.mean() ** 2, rtol=1e-4)
    assert np.isclose(one["normality_std"].item(), (raw.std() - 1) ** 2, rtol=1e-4)


def test_the_stronger_penalty_sees_lamps_that_are_all_alike() -> None:
    """One state whose numbers look normal, 32 times: pooled moments are content."""
    one = mx.array([NormalDist().inv_cdf((n + 0.5) / 64) for n in range(64)])
    together, apart = mx.repeat(one[None], 32, axis=0), mx.random.normal((32, 64), key=mx.random.key(0))

    def penalty(kind: str, states: mx.array) -> float:
        return float(
            sum(np.array(term) for term in PENALTY_FUNCTIONS[kind](states, mx.random.key(1)).values())
        )

    assert max(penalty("moments", apart), penalty("moments", together)) < 0.1
    assert penalty("epps_pulley", together) > 20 * penalty("epps_pulley", apart)


def test_penalised_states_in_between_lie_on_the_great_circle(penalised: tuple[PenalisedStep, Tree]) -> None:
    step, weights = penalised
    states, unused = normal(16, 1), mx.zeros((16, 8))
    at = {dt: np.array(step.step(weights, {}, states, unused, dt)) for dt in (0.0, 0.5, 0.999999, 1.0)}
    assert np.allclose(at[0.0], np.array(states), atol=1e-5)
    assert np.allclose(at[0.999999], at[1.0], atol=1e-3)
    ends = np.linalg.norm(at[0.0], axis=1), np.linalg.norm(at[1.0], axis=1)
    between = np.linalg.norm(at[0.5], axis=1)
    assert (between > 0.5 * np.minimum(*ends)).all()
