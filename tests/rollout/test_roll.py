"""Playing: one lamp a seed, the same at any frame rate, for ever."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from mlxlava.backend import mx
from mlxlava.config import Recipe, override
from mlxlava.footage.dataset import Footage
from mlxlava.models.state_step import StationaryStep, make_dynamics
from mlxlava.rollout import roll
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.speed_matching import match_pace
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device

Pictures = dict[float, npt.NDArray[np.uint8]]


def fresh(recipe: Recipe) -> Weights:
    return Weights(recipe, 5.0, playable_arrays(Trainer(recipe, 6).init()), {})


@pytest.fixture(scope="module", params=["tiny", "tiny_duralava"])
def weights(request: pytest.FixtureRequest) -> Weights:
    return fresh(request.getfixturevalue(request.param))


def play(weights: Weights, times: list[float], seed: int = 0, speed: float = 1.0) -> Pictures:
    return dict(Rollout(weights, seed, speed).play(times))


def test_a_frame_is_a_function_of_weights_seed_and_time(weights: Weights) -> None:
    every = play(weights, [n / 30 for n in range(61)])
    some = play(weights, [0.0, 0.5, 1.7, 2.0])
    assert len(every) == 61
    for at, frame in some.items():
        assert frame.shape == (16, 16, 3) and frame.dtype == np.uint8
        nearest = min(every, key=lambda time: abs(time - at))
        assert np.array_equal(frame, every[nearest]), at


@pytest.mark.parametrize(("fps", "frames", "lamps"), [(12.5, 21, 1), (5, 16, 1), (30, 20, 3)])
def test_a_film_is_the_same_lamp(
    weights: Weights, fps: float, frames: int, lamps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "MAX_PIXELS_DRAWN_AT_ONCE", 4 * 16 * 16)  # groups of four frames
    times = [n / fps for n in range(frames)]
    played = list(Rollout(weights, lamps=lamps).play(times))
    filmed = list(Rollout(weights, lamps=lamps).play_in_batches(times))
    assert [at for at, _ in filmed] == times
    for (_, one), (_, other) in zip(played, filmed, strict=True):
        # Products of several rows are rounded in another order.
        assert np.abs(one.astype(int) - other).max() <= 1


def test_another_thread_may_play(weights: Weights) -> None:
    times = [0.0, 0.3, 1.7]
    here = play(weights, times)
    with ThreadPoolExecutor(1) as threads:
        there = threads.submit(play, weights, times).result()
    for at in times:
        assert np.array_equal(here[at], there[at])


def test_seeds_are_different_lamps(weights: Weights) -> None:
    one, other = play(weights, [1.0]), play(weights, [1.0], seed=1)
    assert not np.array_equal(one[1.0], other[1.0])


def test_speed_is_the_lamps_own_time(weights: Weights) -> None:
    slow, fast = play(weights, [2.0]), play(weights, [0.5], speed=4)
    assert np.array_equal(slow[2.0], fast[0.5])


def test_the_next_frame_is_queued_before_this_one_is_shown(weights: Weights) -> None:
    asked = []

    def times() -> list[float]:
        return [0.0, 0.1, 0.2]

    def watched() -> object:
        for at in times():
            asked.append(at)
            yield at

    frames = Rollout(weights).play(watched())  # type: ignore[arg-type]
    assert next(frames)[0] == 0.0
    assert asked == [0.0, 0.1]
    assert [at for at, _ in frames] == [0.1, 0.2]


def test_the_state_stays_normal_and_keeps_its_norm_without_noise(tiny: Recipe) -> None:
    rollout = Rollout(fresh(override(tiny, {"dynamics.rho": 1.0})))
    start = np.linalg.norm(rollout.states)
    list(rollout.play([400.0]))
    assert rollout.steps_made == 2000
    assert np.isclose(np.linalg.norm(rollout.states), start, rtol=1e-5)


def test_the_clock_of_a_roll_out_counts_learned_steps(weights: Weights) -> None:
    rollout = Rollout(weights)
    list(rollout.play([1.0, 1.5]))
    assert rollout.steps_made == 7  # 5 a second; 1.5 s lies between steps 7 and 8
    assert np.isfinite(rollout.states).all()
    assert mx.array(rollout.states).shape[1] == 8


def change(weights: Weights) -> float:
    """Mean change of a frame to the next, grey levels, of many lamps."""
    rollout = Rollout(weights, seed=5, lamps=200)
    path = rollout.roll_states(2)
    early, late = (rollout.draw(path[:, n]).astype(float) for n in (0, 1))
    return float(np.abs(late - early).mean())


def test_a_hasty_lamp_is_slowed_to_the_pace_of_its_footage(tiny: Recipe, footage: Footage) -> None:
    lamp = fresh(override(tiny, {"generator.background": False}))
    dynamics = make_dynamics(lamp.recipe)
    assert isinstance(dynamics, StationaryStep)
    hasty = {**lamp.arrays, "dynamics": dynamics.scale_rotations(lamp.arrays["dynamics"], 20.0)}
    hasty_lamp = dataclasses.replace(lamp, arrays=hasty)
    real = np.abs(np.diff(footage.frames.astype(float), axis=0))
    real = np.delete(real, [cut - 1 for cut in footage.cuts], axis=0).mean()
    assert change(hasty_lamp) > 2 * real
    slow, scale = match_pace(hasty_lamp, footage.frames, footage.cuts)
    assert 0 < scale < 1
    assert abs(change(slow) / real - 1) < 0.15
    # A slow one is left as it is.
    still = dataclasses.replace(
        lamp, arrays={**lamp.arrays, "dynamics": dynamics.scale_rotations(hasty["dynamics"], 0)}
    )
    assert match_pace(still, footage.frames, footage.cuts)[1] == 1.0


def test_motion_between_frames_scales_with_the_time_between_them() -> None:
    """Of 1 to 240 frames a second and ×0.05 to ×50, which are times of the lamp from 1/4800 to 50 s apart."""
    lamp, rates = load_weights("lava-64"), {}
    for apart in (1 / 30, 1 / 120, 1 / 960, 1 / 4800):
        path = [frame for _, frame in Rollout(lamp, seed=2).play(3.0 + n * apart for n in range(25))]
        # Rounding to grey levels cancels in the mean: a pixel changes as often as it should.
        change = np.abs(np.diff(np.array(path, dtype=float), axis=0)).mean((1, 2, 3))
        rates[apart] = change.mean() / apart
        if apart >= 1 / 120:
            assert change.max() < 2 * np.median(change)  # no jolt at a learned step
    mean = np.mean(list(rates.values()))
    assert all(abs(rate / mean - 1) < 0.25 for rate in rates.values()), rates
    assert mean > 1


def test_whole_steps_are_the_learned_ones_at_any_rate_and_speed() -> None:
    lamp = load_weights("lava-64")
    rollout = Rollout(lamp, seed=2)
    learned = rollout.draw(np.concatenate([rollout.states[None], rollout.roll_states(100)], axis=1)[0])
    for fps, speed in ((5, 1.0), (240, 1.0), (240, 0.05), (1, 10.0), (30, 50.0)):
        per_frame = 5 * speed / fps
        whole = [n for n in range(1, 5000) if abs(n * per_frame - round(n * per_frame)) < 1e-9][:2]
        frames = play(lamp, [n / fps * speed for n in whole], seed=2)
        for n, frame in zip(whole, frames.values(), strict=True):
            # One frame is drawn by other sums than many (drawing.py), so a level may be another.
            off = np.abs(frame.astype(int) - learned[round(n * per_frame)]).max()
            assert off <= 1, (fps, speed)


def test_a_frame_between_two_learned_steps_is_no_blend_of_theirs() -> None:
    """Wax moves; in a blend it would fade out here and in there."""
    lamp = load_weights("lava-64")
    dynamics = make_dynamics(lamp.recipe)
    assert isinstance(dynamics, StationaryStep)
    far = dynamics.scale_rotations(
        lamp.arrays["dynamics"], 8.0
    )  # so far between steps that a blend would show
    fast = Weights(lamp.recipe, 0.5, {**lamp.arrays, "dynamics": far}, {})
    closer, count = 0, 12
    for seed in range(count):
        first, half, second = (frame.astype(float) for frame in play(fast, [0.0, 1.0, 2.0], seed).values())
        blend = (first + second) / 2
        # A blend has less contrast than what it is made of.
        closer += bool(half.std() > blend.std())
    assert closer >= count - 1
