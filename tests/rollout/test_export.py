"""Weights out of a run: they play, and their card says where they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlxlava.backend import arrays_by_name, mx
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.rollout.export import export, weights_facts
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import load_weights, training_history
from mlxlava.training.folder import make_run_folder
from mlxlava.training.loop import train

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def trained(tiny: Recipe, footage: Footage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    make_run_folder(folder, tiny, footage, ["/home/me/lamp.mov"], "mlxlava train lamp.mov", None)
    mx.disable_compile()
    try:
        train(folder, tiny, footage)
    finally:
        mx.enable_compile()
    return folder


def test_exported_weights_are_those_the_run_plays(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "mine")
    left, right = load_weights(trained), load_weights(tmp_path / "mine")
    assert left.recipe == right.recipe and left.step_fps == right.step_fps
    # But for the pace, which is that of the footage.
    for layer in left.arrays["dynamics"].values():
        for name in layer["angles"]:
            layer["angles"][name] = right.about["pace"] * layer["angles"][name]
    arrays = arrays_by_name(right.arrays)
    for name, array in arrays_by_name(left.arrays).items():
        assert np.allclose(np.array(array), np.array(arrays[name]), rtol=1e-6), name
    assert "discriminator" not in "".join(arrays)


def test_the_card_says_how_they_were_made_and_names_no_folder_of_this_machine(
    trained: Path, tmp_path: Path
) -> None:
    weights = export(trained, tmp_path / "mine")
    card = (tmp_path / "mine/README.md").read_text(encoding="utf-8")
    for words in (
        "mlxlava train lamp.mov",
        "lamp.mov, ",
        "6 steps of 4 clips",
        "16×16",
        "sample.png",
        "float32",
    ):
        assert words in card
    assert "/home/me" not in card + (tmp_path / "mine/config.json").read_text(encoding="utf-8")
    assert weights_facts(weights)["training"].startswith("6 steps")
    # Nor does the config of a run that starts from it.
    (training,) = training_history(load_weights(trained))
    assert training["steps"] == 6 and training["footage"]["sources"] == ["lamp.mov"]
    assert np.ptp(np.asarray(Image.open(tmp_path / "mine/sample.png"))) > 0


def test_half_is_half_the_size_and_plays_alike(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "whole")
    export(trained, tmp_path / "half", half=True)
    whole, half = (tmp_path / name / "weights.safetensors" for name in ("whole", "half"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    # Rounded bases would not be orthogonal, and the state would slowly stop being normal.
    bases = load_weights(half.parent).arrays["stats"]["dynamics"]
    for name, basis in bases.items():
        assert np.allclose(np.array(basis @ basis.T), np.eye(len(basis)), atol=1e-6), name
    frames = [
        next(iter(Rollout(load_weights(file.parent)).play([3.0])))[1].astype(int) for file in (whole, half)
    ]
    assert np.abs(frames[0] - frames[1]).max() <= 4


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run with a checkpoint"):
        export(tmp_path, tmp_path / "mine")


def test_the_card_shows_the_score_that_it_is_given(trained: Path, tmp_path: Path) -> None:
    row = {"value": 0.0467, "floor": 0.0126, "ratio": 3.71}
    measures = {"image.frechet": row, "image.kid": {**row, "ratio": None}}
    headline = {"image": 7.4, "motion": 114.0}
    score = {"measures": measures, "headline": headline, "clips": 64, "clip_length": 256, "seed": 0}
    weights = export(trained, tmp_path / "mine", score=score)
    card = (tmp_path / "mine/README.md").read_text(encoding="utf-8")
    for words in ("image **7.40**", "**114.00**", "| `image.frechet` | 0.0467 | 0.0126 | 3.71 |", "| – |"):
        assert words in card
    assert load_weights(tmp_path / "mine").about["score"] == weights.about["score"]
    with pytest.raises(UserError, match="mlxlava score --json"):
        export(trained, tmp_path / "other", score={"image": 1})
    assert not (tmp_path / "other").exists()
