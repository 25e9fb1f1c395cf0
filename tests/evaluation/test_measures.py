"""Every measure moves with the corruptions that it claims to see, and repeats itself exactly."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.corruptions import CORRUPTIONS, Clips, lamp_clips
from mlxlava.evaluation.correlation import correlation_time
from mlxlava.evaluation.distances import frechet_distance, polynomial_mmd
from mlxlava.evaluation.features import FittedFeatures, extract_features
from mlxlava.evaluation.measures import MEASURES, measure_all, standard_errors
from mlxlava.evaluation.score import RealClips, ReferenceSet, fit_reference

SIZE = (32, 32)


@pytest.fixture(scope="module")
def lamps() -> tuple[RealClips, Clips]:
    """Three built-in lamps of sixteen minutes, which render in seconds."""
    return lamp_clips(16, SIZE)


@pytest.fixture(scope="module")
def reference_set(lamps: tuple[RealClips, Clips]) -> ReferenceSet:
    return fit_reference(lamps[0], SIZE, lambda done, total, text: None)


@pytest.fixture(scope="module")
def floors(reference_set: ReferenceSet) -> dict[str, float]:
    return measure_all(reference_set.reference, reference_set.held_out)


@pytest.fixture(scope="module")
def errors(reference_set: ReferenceSet) -> dict[str, float]:
    return standard_errors(reference_set.reference, reference_set.held_out, 8, 0)


def test_another_lamp_scores_as_the_held_out_one_does(
    lamps: tuple[RealClips, Clips],
    reference_set: ReferenceSet,
    floors: dict[str, float],
    errors: dict[str, float],
) -> None:
    other = extract_features(reference_set.fitted, [clip[: reference_set.real.length] for clip in lamps[1]])
    for name, value in measure_all(reference_set.reference, other).items():
        assert abs(value - floors[name]) < 4 * errors[name], name


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_is_seen_by_all_that_claim_it(
    corruption: str,
    lamps: tuple[RealClips, Clips],
    reference_set: ReferenceSet,
    floors: dict[str, float],
    errors: dict[str, float],
) -> None:
    _, grades, corrupt = CORRUPTIONS[corruption]
    length = reference_set.real.length
    bad = corrupt(lamps[1], grades[-1], length, list(reference_set.real.clips(0)))
    other = extract_features(reference_set.fitted, bad)
    claimed = [name for name, one in MEASURES.items() if corruption in one.detects]
    assert claimed
    # Sixteen minutes are too few to be sure of the arrow of time, which has its own test below.
    claimed = [name for name in claimed if name != "motion.arrow"]
    for name in claimed:
        value = MEASURES[name].function(reference_set.reference, other)
        assert abs(value - floors[name]) > 1.96 * errors[name], name


def test_the_arrow_of_time_turns_with_the_footage(
    reference_set: ReferenceSet, floors: dict[str, float]
) -> None:
    backwards = extract_features(reference_set.fitted, [clip[::-1] for clip in reference_set.real.clips(1)])
    arrow = MEASURES["motion.arrow"].function(reference_set.reference, backwards)
    assert floors["motion.arrow"] > 0
    assert np.isclose(arrow, -floors["motion.arrow"], rtol=1e-3)
    half = reference_set.real.length // 2
    springs = [np.concatenate([clip[:half], clip[:half][::-1]]) for clip in reference_set.real.clips(1)]
    back_and_forth = MEASURES["motion.arrow"].function(
        reference_set.reference, extract_features(reference_set.fitted, springs)
    )
    assert abs(back_and_forth) < 1e-3


def test_the_same_seed_gives_the_same_figures(reference_set: ReferenceSet) -> None:
    once, again = (standard_errors(reference_set.reference, reference_set.held_out, 2, 5) for _ in range(2))
    assert once == again


def test_footage_against_itself_is_at_no_distance(reference_set: ReferenceSet) -> None:
    values = measure_all(reference_set.reference, reference_set.reference)
    for name in ("image.frechet", "image.sharpness", "image.colour", "motion.frechet", "motion.spectrum"):
        assert abs(values[name]) < 1e-3, name
    assert values["memory.frames"] < 0.1


def test_frechet_is_the_closed_form_of_two_normal_laws() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_000, 2))
    # Of N(0, I) and N((1, 0), diag(4, 1)): 1 + (2 − 1)².
    y = rng.standard_normal((200_000, 2)) * [2, 1] + [1, 0]
    assert np.isclose(frechet_distance(x, y), 2, atol=0.05)


def test_the_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    names = np.arange(40)
    pairs = (rng.standard_normal((2, 40, 3)) / 2 for _ in range(300))
    values = [polynomial_mmd(x, y, names, names) for x, y in pairs]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_a_still_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing changes"):
        FittedFeatures([np.full((16, 16, 16, 3), 100, np.uint8)] * 4)


def test_large_frames_are_shrunk_before_features() -> None:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 255, (16, 128, 192, 3), dtype=np.uint8) for _ in range(4)]
    features = extract_features(FittedFeatures(clips), clips)
    assert features.features.shape[:2] == (4, 16)
    assert np.isfinite(features.patches).all()


def test_correlation_times_are_those_of_known_series() -> None:
    rng = np.random.default_rng(0)
    x = np.zeros((64, 512, 2))
    x[:, 0] = rng.standard_normal((64, 2))
    for step in range(1, 512):  # an autoregression whose memory halves every 10 steps
        keep = 0.5**0.1
        x[:, step] = keep * x[:, step - 1] + np.sqrt(1 - keep**2) * rng.standard_normal((64, 2))
    assert correlation_time(x) == pytest.approx(10, rel=0.1)
    assert correlation_time(rng.standard_normal((64, 512, 2))) < 1
    assert correlation_time(np.zeros((3, 20, 2))) == 20
