"""Loops: closed, smooth at the seam, at the lamp's own pace."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from mlxlava.backend import mx
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.models.slerp import slerp
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.seamless import SeamlessLoop
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device

Path = npt.NDArray[np.float32]


def ways(path: Path, order: int = 1) -> npt.NDArray[np.floating]:
    """Lengths of the differences of an order along a closed path (N, Z); the last ones span the seam."""
    lengths: npt.NDArray[np.floating] = np.linalg.norm(
        np.diff(np.concatenate([path, path[:order]]), order, axis=0), axis=1
    )
    return lengths


@pytest.fixture(scope="module")
def lava() -> Weights:
    return load_weights("lava-64")


@pytest.fixture(scope="module")
def loop(lava: Weights) -> SeamlessLoop:
    return SeamlessLoop(lava, 10.0, seed=1)


@pytest.fixture(scope="module")
def states(loop: SeamlessLoop) -> Path:
    """The loop's states at 30 frames a second."""
    return np.concatenate([np.array(loop.state_at(n / 30)) for n in range(300)])


def test_the_frame_after_the_last_is_the_first(loop: SeamlessLoop) -> None:
    frames = dict(loop.play([0.0, 3.0, 10.0, 13.0, 20.0]))
    assert frames[0.0].shape == (64, 64, 3) and frames[0.0].dtype == np.uint8
    assert np.array_equal(frames[0.0], frames[10.0]) and np.array_equal(frames[0.0], frames[20.0])
    assert np.array_equal(frames[3.0], frames[13.0])
    assert not np.array_equal(frames[0.0], frames[3.0])


def test_nothing_shows_where_the_end_meets_the_start(states: Path) -> None:
    speed, corner = ways(states), ways(states, 2)
    assert speed.max() < 1.2 * speed.min()  # no jump and no halt, the seam included
    assert corner[-2:].max() <= 1.2 * corner[:-2].max()  # nor a change of direction


def test_states_stay_as_likely_and_the_lamp_keeps_its_pace(
    lava: Weights, loop: SeamlessLoop, states: Path
) -> None:
    norms = np.linalg.norm(states, axis=1)
    assert norms.min() > 5.5 and norms.max() < 10.5  # N(0, I) in 64 numbers: 8 ± 0.7
    assert norms.max() - norms.min() < 1e-2
    own = Rollout(lava, lamps=200).roll_states(2)
    pace = np.linalg.norm(own[:, 1] - own[:, 0], axis=1).mean()
    assert 0.8 < ways(loop.states).mean() / pace < 1.25
    assert loop.steering < 0.35


def test_frames_change_as_much_at_the_seam_as_elsewhere(loop: SeamlessLoop) -> None:
    frames = np.stack([frame for _, frame in loop.play(n / 10 for n in range(101))]).astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert change[:-1].min() <= change[-1] <= change[:-1].max()


def test_a_loop_begins_where_it_is_told_to(tiny: Recipe) -> None:
    lamp = Weights(tiny, 5.0, playable_arrays(Trainer(tiny, 6).init()), {})
    start = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    loop = SeamlessLoop(lamp, 4.0, start=start)
    assert np.allclose(loop.states[0], start)
    assert np.allclose(np.array(loop.state_at(4.0))[0], start)
    assert np.allclose(np.linalg.norm(loop.states, axis=1), np.linalg.norm(start), rtol=1e-4)


def test_progress_is_told_and_seeds_are_different_loops(tiny: Recipe) -> None:
    lamp = Weights(tiny, 5.0, playable_arrays(Trainer(tiny, 6).init()), {})
    told: list[tuple[int, int]] = []
    one = SeamlessLoop(lamp, 2.0, 0, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert not np.allclose(one.states, SeamlessLoop(lamp, 2.0, 1).states)


def test_a_step_that_cannot_be_undone_is_refused(tiny_duralava: Recipe) -> None:
    lamp = Weights(tiny_duralava, 5.0, playable_arrays(Trainer(tiny_duralava, 6).init()), {})
    with pytest.raises(UserError, match="cannot be undone"):
        SeamlessLoop(lamp, 4.0)


def test_a_lamp_that_does_not_move_is_refused(tiny: Recipe) -> None:
    lamp = Weights(tiny, 5.0, playable_arrays(Trainer(tiny, 6).init()), {})
    for layer in lamp.arrays["dynamics"].values():
        layer["angles"] = {name: mx.zeros_like(array) for name, array in layer["angles"].items()}
    with pytest.raises(UserError, match="does not move within 4 s") as error:
        SeamlessLoop(lamp, 4.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 2.0])
def test_states_between_two_lie_on_the_circle_through_both(angle: float) -> None:
    first = mx.array([[2.0, 0.0, 0.0]])
    second = 2 * mx.array([[math.cos(angle), math.sin(angle), 0.0]])
    for share in (0.0, 0.25, 1.0):
        expected = [[2 * math.cos(share * angle), 2 * math.sin(share * angle), 0.0]]
        assert np.allclose(np.array(slerp(first, second, share)), expected, atol=1e-4)
