"""`mlxlava score`: floors, intervals, clips that can be found again, and what bad footage is told."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.evaluation.measures import MEASURES
from mlxlava.evaluation.score import draw_clips, score, split_footage
from mlxlava.footage.dataset import Footage
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.rollout.weights import Weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

REPEATS = 4  # of the bootstrap, which is most of a small score


@pytest.fixture(scope="module")
def weights(tiny: Recipe) -> Weights:
    return Weights(tiny, 5.0, playable_arrays(Trainer(tiny, 6).init()), {})


def still(tmp_path: Path, count: int) -> Footage:
    """Footage in which nothing changes."""
    lamp = prepare_lamp(
        tmp_path / "lamp", size=(16, 16), minutes=0.05, fps=5, every_nth=1, seed=0, theme="classic"
    )
    return dataclasses.replace(lamp, frames=np.repeat(lamp.frames[:1], count, axis=0), cuts=())


def test_reference_and_held_out_share_no_frame(lamp: Footage) -> None:
    real = split_footage(lamp, None)
    frames = [{start + at for start in starts for at in range(real.length)} for starts in real.starts]
    assert not frames[0] & frames[1]
    assert len(real.starts[0]) == len(real.starts[1]) >= 16
    for start in real.starts[0]:
        assert not any(start < cut < start + real.length for cut in lamp.cuts)


def test_every_figure_has_a_floor_an_interval_and_a_ratio(lamp: Footage, weights: Weights) -> None:
    result, _, drawn = score(weights, split_footage(lamp, None, frames=256), seed=3, repeats=REPEATS)
    assert set(result["measures"]) == set(MEASURES)
    assert len(drawn) == result["clips"]
    for name, row in result["measures"].items():
        assert row["interval"][0] <= row["value"] <= row["interval"][1], name
        assert row["floor_interval"][0] <= row["floor"] <= row["floor_interval"][1], name
    assert all(math.isfinite(ratio) for ratio in result["headline"].values())
    # Networks that were never trained draw no lamp.
    assert result["headline"]["image"] > 3
    assert json.loads(json.dumps(result))["seed"] == 3


def test_a_score_repeats_exactly(lamp: Footage, weights: Weights) -> None:
    real = split_footage(lamp, None, frames=128)
    once, again = (score(weights, real, seed=1, repeats=REPEATS)[0] for _ in range(2))
    assert {**once, "seconds": 0} == {**again, "seconds": 0}


def test_lamps_are_drawn_one_by_one_whatever_their_number(weights: Weights) -> None:
    few, more = (list(draw_clips(weights, count, 8, 0)) for count in (3, 40))
    assert len(more) == 40
    assert few[0].shape == (8, 16, 16, 3)
    assert all(np.array_equal(one, other) for one, other in zip(few, more, strict=False))


def test_footage_of_another_size_is_resized(lamp: Footage) -> None:
    real = split_footage(lamp, None, frames=128)
    assert next(real.clips(0, (32, 32))).shape[1:3] == (32, 32)
    assert next(real.clips(0, (16, 16))).shape[1:3] == (16, 16)


def test_short_footage_is_told_what_is_needed(lamp: Footage) -> None:
    short = dataclasses.replace(lamp, frames=lamp.frames[:100], cuts=())
    with pytest.raises(UserError, match=r"100 learned steps.* 128 steps, 26 s"):
        split_footage(short, None)
    with pytest.raises(UserError, match="--frames must be at least 64"):
        split_footage(lamp, None, frames=10)


def test_still_footage_is_told_so(tmp_path: Path, weights: Weights) -> None:
    with pytest.raises(UserError, match="nothing changes"):
        score(weights, split_footage(still(tmp_path, 300), None, frames=128))
