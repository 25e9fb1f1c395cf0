"""What a training chooses for a user's footage: it fits, it is said and stored, and it can be overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxlava
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.footage import simulated_lamp
from mlxlava.footage.dataset import Footage
from mlxlava.playback.writers import open_writer
from mlxlava.training.choices import choose_before_preparing, choose_for_footage, free_settings

TINY = {
    "generator.widths": [8, 8],
    "discriminator.widths": [8, 8],
    "dynamics.hidden": [8],
    "encoder.widths": [8, 8],
    "data.batch_size": 2,
}


pytestmark = pytest.mark.usefixtures("eager")


def write(path: Path, frames: list[np.ndarray], fps: float = 10) -> Path:
    with open_writer(str(path), size=frames[0].shape[:2], fps=fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def lamp_in_a_room(count: int, fps: float) -> list[np.ndarray]:
    """A glass of 96×48, in the left half of a grey picture of 128×192."""
    stream = simulated_lamp.frames((96, 48), fps=fps, seed=1)
    frames = []
    for _ in range(count):
        frame = np.full((128, 192, 3), 70, np.uint8)
        frame[16:112, 40:88] = next(stream)
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "lamp.mp4", lamp_in_a_room(60, 10))


def test_choices_are_said_and_stored_with_their_reasons(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mlxlava.train(video, run=tmp_path / "run", settings=TINY, steps=1).run
    config = json.loads((run / "config.json").read_text())
    chosen = {each["setting"]: each for each in config["choices"]}
    for setting in ("data.size", "data.crop", "data.every_nth", "loss.d_start", "loss.shift"):
        assert chosen[setting]["reason"]
        section, name = setting.split(".")
        assert config["recipe"][section][name] == chosen[setting]["value"]
    assert f"train: data.every_nth = {chosen['data.every_nth']['value']}: " in capsys.readouterr().err
    height, width = chosen["data.size"]["value"]
    assert height > width and height % 16 == width % 16 == 0
    assert 0.5 < height * width / 64**2 < 1.3
    x, y, across, down = map(int, chosen["data.crop"]["value"].split("@")[0].split(","))
    assert x >= 30 and x + across <= 98 and y <= 30 and y + down >= 100


def test_what_is_given_is_not_chosen(video: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "data.size": (32, 32),
        "data.crop": "centre",
        "data.every_nth": 2,
        "data.seq_len": 8,
        "loss.shift": 0.0,
        "loss.d_start": 0.3,
    }
    run = mlxlava.train(video, run=tmp_path / "run", settings={**TINY, **given}, steps=1).run
    config = json.loads((run / "config.json").read_text())
    assert {each["setting"] for each in config["choices"]} == {
        "loss.colour",
        "loss.elbo_weight",
        "generator.state_size",
    }
    assert config["recipe"]["data"]["crop"] == "centre"


def test_the_shape_fits_a_crop_that_is_given(video: Path) -> None:
    recipe = override(load_recipe("lava"), {"data.crop": "0,0,150,50"})
    free = free_settings("lava", {"data.crop": "0,0,150,50"})
    found = choose_before_preparing(recipe, [video], free)[0].data
    assert found.crop == "0,0,150,50" and found.size[1] >= 2 * found.size[0]


def test_the_built_in_lamp_keeps_its_recipe(tiny: Recipe, tmp_path: Path) -> None:
    recipe = override(tiny, {"data.lamp_minutes": 0.1})
    run = mlxlava.train(recipe=recipe, run=tmp_path / "run", steps=1).run
    config = json.loads((run / "config.json").read_text())
    assert config["choices"] == []
    assert config["recipe"]["data"]["crop"] == "centre"


def test_a_recipe_of_ones_own_keeps_what_it_sets() -> None:
    own = override(load_recipe("lava"), {"data.size": (32, 32), "loss.shift": 0.01})
    free = free_settings(own, {"data.crop": "centre"})
    assert free.isdisjoint({"data.size", "loss.shift", "data.crop"})
    assert {"data.every_nth", "loss.colour"} <= free


def test_a_learned_step_spans_more_frames_where_wax_is_slow_and_frames_are_many(tmp_path: Path) -> None:
    recipe = load_recipe("lava")
    free = {"data.every_nth"}
    stream = simulated_lamp.frames((64, 32), fps=30, seed=1)
    long = write(tmp_path / "long.mp4", [next(stream) for _ in range(1300)], 30)
    short = write(tmp_path / "short.mp4", [frame for frame, _ in zip(stream, range(330), strict=False)], 30)
    (slow,) = choose_before_preparing(recipe, [long], free)[1]
    (few,) = choose_before_preparing(recipe, [short], free)[1]
    assert slow.value == 4 and few.value == 1
    assert "too few frames" in few.reason


def footage_of(count: int, cuts: tuple[int, ...] = ()) -> Footage:
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    return Footage(Path("footage"), frames, 10.0, 1, (16, 16), cuts, "")


def test_settings_for_little_footage_fade_out() -> None:
    recipe = load_recipe("lava")
    free = free_settings("lava", ())
    recipes = [choose_for_footage(recipe, footage_of(count), free)[0] for count in (300, 1300, 5000)]
    assert [each.generator.state_size for each in recipes] == [16, 32, 64]
    assert [each.data.held_out for each in recipes] == [0, 0, 0.1]
    found = [each.loss for each in recipes]
    assert [each.d_start for each in found] == [0.7, pytest.approx(0.52, abs=0.02), 0.4]
    assert [each.shift for each in found] == [0.06, 0.06, 0.0]


def test_clips_are_shorter_where_cuts_are_many_and_some_footage_is_refused() -> None:
    recipe = load_recipe("lava")
    free = free_settings("lava", ())
    cut = footage_of(200, tuple(range(20, 200, 20)))
    assert choose_for_footage(recipe, cut, free)[0].data.seq_len == 16
    with pytest.raises(UserError, match=r"^footage: it has 39 cuts.* only 5 frames, 0.1 s apart"):
        choose_for_footage(recipe, footage_of(200, tuple(range(5, 200, 5))), free)
    with pytest.raises(UserError, match="a clip needs 32 frames"):
        choose_for_footage(recipe, cut, free - {"data.seq_len"})


def test_what_is_too_short_or_does_not_move_is_refused(tmp_path: Path) -> None:
    recipe, free = load_recipe("lava"), free_settings("lava", ())
    frames = lamp_in_a_room(20, 10)
    with pytest.raises(UserError, match=r"short.mp4 is 0.9 s long; at least a second is needed"):
        choose_before_preparing(recipe, [write(tmp_path / "short.mp4", frames[:9])], free)
    with pytest.raises(UserError, match=r"nothing moves in .*still.mp4"):
        choose_before_preparing(recipe, [write(tmp_path / "still.mp4", frames[:1] * 20)], free)


def test_short_pieces_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    scenes = [
        np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(10)
    ]
    pieces = write(tmp_path / "pieces.mp4", [each for each in scenes for _ in range(3)])
    choose_before_preparing(load_recipe("lava"), [pieces], free_settings("lava", ()))
    assert "cut into short pieces?" in capsys.readouterr().err
