"""Feature matching sees what averages see, and moves drawn clips towards real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mlxlava
from mlxlava.backend import Tree, mx, tree_map
from mlxlava.config import Recipe, override
from mlxlava.models.array_files import load_arrays
from mlxlava.training.feature_matching import FeatureMatching, add_step_to_sums
from tests.conftest import StopAtNextStep

pytestmark = pytest.mark.device

TIMES = mx.array(np.tile(np.array([[0, 1, 4]], np.int32), (8, 1)))


def clips(seed: int, speed: float = 1.0, brightness: float = 0.0) -> mx.array:
    """Clips (8, 3, 16, 16, 3) of a soft bar that sinks by ``speed`` pixels a learned step."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(3, 7, (8, 1, 1, 1, 1))
    rows = np.arange(16).reshape(1, 1, 16, 1, 1)
    at = start + speed * np.array(TIMES)[:, :, None, None, None]
    bar = 0.6 / (1 + np.exp(-2 * (2 - np.abs(rows - at)))) + brightness
    return mx.array(np.broadcast_to(bar, (8, 3, 16, 16, 3)).astype(np.float32))


def sums_of(matching: FeatureMatching, **drawn: float) -> Tree:
    """The sums after forty steps of real clips and of drawn ones that differ."""
    sums = matching.init_sums()
    for step in range(40):
        _, added = matching.loss(sums, clips(step), clips(100 + step, **drawn), TIMES)
        sums = add_step_to_sums(sums, added)
    return sums


def errors_of_right_and_wrong(
    matching: FeatureMatching, make_clips: Callable[[int, bool], mx.array], times: mx.array = TIMES
) -> tuple[float, float]:
    """The errors after forty steps of drawn clips ``make_clips(seed, False)``, as real ones are, and of
    ``make_clips(seed, True)``."""
    errors = []
    for wrong in (False, True):
        sums = matching.init_sums()
        for step in range(40):
            real, drawn = make_clips(step, False), make_clips(100 + step, wrong)
            sums = add_step_to_sums(sums, matching.loss(sums, real, drawn, times)[1])
        errors.append(float(matching.error_of_averages(sums)))
    return errors[0], errors[1]


@pytest.fixture
def matching(tiny: Recipe) -> FeatureMatching:
    return FeatureMatching(tiny)


def test_alike_clips_have_nearly_no_error(matching: FeatureMatching) -> None:
    alike = float(matching.error_of_averages(sums_of(matching)))
    assert alike < 0.1 * float(matching.error_of_averages(sums_of(matching, speed=1.3)))
    assert alike < 0.1 * float(matching.error_of_averages(sums_of(matching, brightness=0.05)))


@pytest.mark.parametrize(("name", "wrong", "better"), [("speed", 1.3, 1.2), ("brightness", 0.05, 0.04)])
def test_the_loss_falls_towards_real_clips(
    matching: FeatureMatching, name: str, wrong: float, better: float
) -> None:
    sums = sums_of(matching, **{name: wrong})
    there, _ = matching.loss(sums, clips(7), clips(8, **{name: wrong}), TIMES)
    nearer, _ = matching.loss(sums, clips(7), clips(8, **{name: better}), TIMES)
    assert float(nearer) < float(there)


def test_nothing_is_learned_from_a_few_steps(matching: FeatureMatching) -> None:
    loss, _ = matching.loss(matching.init_sums(), clips(1), clips(2, speed=2.0), TIMES)
    assert float(loss) == 0


def test_micro_batches_give_what_the_whole_batch_gives(matching: FeatureMatching) -> None:
    sums = sums_of(matching, speed=1.3)
    real, drawn = clips(1), clips(2, speed=1.3)
    whole, added = matching.loss(sums, real, drawn, TIMES)
    halves = [matching.loss(sums, real[at], drawn[at], TIMES[at]) for at in (slice(4), slice(4, 8))]
    assert float(whole) == pytest.approx(np.mean([float(loss) for loss, _ in halves]), rel=1e-4)
    mean = tree_map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
    for name in ("means", "squares", "changes", "speeds", "accelerations"):
        np.testing.assert_allclose(added["drawn"][name], mean["drawn"][name], rtol=1e-4, atol=1e-6)


def test_a_run_that_matches_features_resumes_exactly(tiny: Recipe, tmp_path: Path) -> None:
    settings = {"data.lamp_minutes": 0.1, "loss.feature_matching": 10.0, "loss.d_start": 0.2}
    recipe = override(dataclasses.replace(tiny), settings)
    mx.disable_compile()
    try:
        whole = mlxlava.train(recipe=recipe, run=tmp_path / "whole", steps=5).run
        cut = mlxlava.train(recipe=recipe, run=tmp_path / "cut", steps=5, callbacks=[StopAtNextStep()])
        assert 0 < cut.step < 5
        mlxlava.resume(cut.run)
    finally:
        mx.enable_compile()
    newest = "checkpoints/00000005/state.safetensors"
    assert (whole / newest).read_bytes() == (cut.run / newest).read_bytes()


def test_the_amount_of_wax_counts_where_blocks_alone_would_not_tell(matching: FeatureMatching) -> None:
    """Real clips keep their brightness; drawn ones have the same blocks on average, but all rise together."""

    def varied(seed: int, together: bool) -> mx.array:
        rng = np.random.default_rng(seed)
        shape = (8, 1, 1, 1, 1) if together else (8, 1, 16, 16, 1)
        return mx.array(
            np.broadcast_to(0.5 + 0.1 * rng.standard_normal(shape), (8, 3, 16, 16, 3)), mx.float32
        )

    right, wrong = errors_of_right_and_wrong(matching, varied)
    assert wrong > 10 * right


def test_half_transparent_wax_is_told_from_wax_of_the_same_mean_colour(matching: FeatureMatching) -> None:
    def frames(seed: int, transparent: bool) -> mx.array:
        rng = np.random.default_rng(seed)
        wax = 0.15 + 0.7 * (rng.random((8, 3, 16, 16, 1)) < 0.3)
        shown = 0.15 + 0.7 * 0.3 + 0 * wax if transparent else wax
        return mx.array(np.broadcast_to(shown, (8, 3, 16, 16, 3)), mx.float32)

    right, wrong = errors_of_right_and_wrong(matching, frames)
    assert wrong > 20 * right


def test_trembling_is_told_from_the_same_motion_without_it(matching: FeatureMatching) -> None:
    """Both clips change as much in a step; one goes on in its direction, and the other turns back."""
    times = mx.array(np.tile(np.array([[0, 1, 2]], np.int32), (8, 1)))

    def frames(seed: int, turns_back: bool) -> mx.array:
        rng = np.random.default_rng(seed)
        start = rng.uniform(0.3, 0.5, (8, 1, 1, 1, 1))
        at = np.array([0.0, 0.1, 0.0 if turns_back else 0.2]).reshape(1, 3, 1, 1, 1)
        return mx.array(np.broadcast_to(start + at, (8, 3, 16, 16, 3)), mx.float32)

    right, wrong = errors_of_right_and_wrong(matching, frames, times)
    assert wrong > 20 * right


def test_a_run_whose_sums_are_of_an_older_version_goes_on(tiny: Recipe, tmp_path: Path) -> None:
    settings = {"data.lamp_minutes": 0.1, "loss.feature_matching": 10.0, "loss.d_start": 0.2}
    recipe = override(dataclasses.replace(tiny), settings)
    mx.disable_compile()
    try:
        cut = mlxlava.train(recipe=recipe, run=tmp_path / "cut", steps=5, callbacks=[StopAtNextStep()])
        file = max((cut.run / "checkpoints").glob("*/state.safetensors"))
        arrays = {name: array for name, array in load_arrays(file).items() if name[:9] != "features."}
        arrays |= {"features.steps": mx.array(3.0), "features.real.spreads": mx.zeros((7,))}
        mx.save_safetensors(str(file), arrays)
        assert mlxlava.resume(cut.run).step == 5
    finally:
        mx.enable_compile()
