"""Growing: the motion is learned at a small size, and a network learns to enlarge the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxlava
from mlxlava.backend import Tree, arrays_by_name, mx
from mlxlava.config import Recipe, load_recipe, override, recipe_from_dict, recipe_to_dict
from mlxlava.errors import UserError
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.models.layers import average_pool_to_size
from mlxlava.paths import latest_checkpoint_folder, read_json
from mlxlava.rollout.weights import load_weights, save_weights
from mlxlava.training.callbacks import Callbacks
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.growth import grown_recipe
from mlxlava.training.trainer import make_trainer
from mlxlava.training.upsampling import UpsamplerTrainer, blur_pictures
from tests.conftest import StopAtNextStep

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("eager")]

LAMP = {"data.lamp_minutes": 0.1, "data.size": [16, 16]}
GROWTH = {"growth.width": 8, "growth.frames": 4}


@pytest.fixture(scope="module")
def small(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 16×16."""
    settings = {**LAMP, "training.steps": 20, "generator.last_width": 6, "generator.widths": [16, 6]}
    run = tmp_path_factory.mktemp("small") / "run"
    return mlxlava.train(recipe=override(tiny, settings), run=run).run


def grow(
    tiny: Recipe,
    small: Path,
    run: Path,
    steps: int,
    *,
    callbacks: Sequence[Callbacks] = (),
    size: tuple[int, int] = (64, 64),
    settings: dict[str, Any] | None = None,
) -> Path:
    recipe = override(tiny, {**LAMP, **GROWTH, "growth.steps": steps, **(settings or {})})
    changes = {"data.size": size}
    return mlxlava.train(recipe=recipe, run=run, init=small, callbacks=callbacks, settings=changes).run


def state_of(run: Path) -> Tree:
    recipe = recipe_from_dict(read_json(run / "config.json", "run")["recipe"])
    latest = latest_checkpoint_folder(run)
    assert latest is not None
    return load_checkpoint(latest, make_trainer(recipe, recipe.training.steps).init())[0]


def changed(one: Tree, other: Tree) -> set[str]:
    """Layers in which two trees differ."""
    arrays = arrays_by_name(other)
    return {
        name.split(".")[0]
        for name, array in arrays_by_name(one).items()
        if not mx.array_equal(array, arrays[name]).item()
    }


def first_frame(weights: Path, seed: int) -> np.ndarray:
    frame: np.ndarray = next(mlxlava.load(weights).frames(seed=seed)).astype(float)
    return frame


def test_a_grown_lamp_shows_the_small_one_enlarged(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    settings = {"growth.learning_rate": 5e-3, "training.ema": 0.9}
    run = grow(tiny, small, tmp_path / "grown", steps=60, settings=settings)
    assert mlxlava.load(run).size == (64, 64)
    was, now, other = first_frame(small, 3), first_frame(run, 3), first_frame(small, 4)
    averaged = now.reshape(16, 4, 16, 4, 3).mean((1, 3))
    # Where the small lamps differ, the grown one is like the one that it grew from.
    moving = np.abs(was - other) > np.quantile(np.abs(was - other), 0.9)
    assert np.abs(averaged - was)[moving].mean() < 0.5 * np.abs(averaged - other)[moving].mean()


def test_only_the_upsampling_network_learns(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    before, after = state_of(small), state_of(grow(tiny, small, tmp_path / "grown", steps=3))
    # What is played of a run is its averaged weights, and a grown lamp has those.
    for state in (after, after["ema"]):
        assert not changed(before["ema"]["dynamics"], state["dynamics"])
        assert not changed(before["ema"]["generator"], state["generator"])
    assert not changed(before["stats"], after["stats"])
    first = state_of(grow(tiny, small, tmp_path / "first", steps=1))
    learned = changed(first["generator"]["upsampler"], after["generator"]["upsampler"])
    assert learned == {"in", "up0", "up1", "out"}


def test_any_lamp_can_grow(tiny_duralava: Recipe, tmp_path: Path) -> None:
    old = mlxlava.train(
        recipe=override(tiny_duralava, {**LAMP, "training.steps": 1}), run=tmp_path / "old"
    ).run
    run = grow(tiny_duralava, old, tmp_path / "grown", steps=1, size=(32, 32))
    assert first_frame(run, 1).shape == (32, 32, 3)


def test_steps_can_be_given(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    recipe = override(tiny, {**LAMP, **GROWTH})
    run = tmp_path / "grown"
    done = mlxlava.train(recipe=recipe, run=run, init=small, steps=2, settings={"data.size": (32, 32)})
    assert done.step == 2


def test_a_grown_run_resumes_exactly(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    whole = state_of(grow(tiny, small, tmp_path / "whole", steps=5))
    grow(tiny, small, tmp_path / "cut", steps=5, callbacks=[StopAtNextStep()])
    assert 0 < state_of(tmp_path / "cut")["step"].item() < 5
    mlxlava.resume(tmp_path / "cut")
    assert not changed(whole, state_of(tmp_path / "cut"))


def test_exported_weights_grow_and_are_exported(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    save_weights(load_weights(small), tmp_path / "weights")
    run = grow(tiny, tmp_path / "weights", tmp_path / "grown", steps=1)
    mlxlava.export(run, tmp_path / "exported")
    assert np.abs(first_frame(run, 2) - first_frame(tmp_path / "exported", 2)).max() <= 1
    card = (tmp_path / "exported/README.md").read_text(encoding="utf-8")
    (row,) = (line for line in card.splitlines() if line.startswith("| grown from |"))
    for words in ("16×16, recipe", "20 steps of 4 clips", "the built-in lamp", "`mlxlava.train(…)`"):
        assert words in row


@pytest.mark.parametrize(
    ("size", "message"),
    [((48, 48), "2, 4, 8"), ((64, 32), "2, 4, 8")],
)
def test_sizes_that_a_lamp_cannot_grow_to_are_refused(
    tiny: Recipe, small: Path, tmp_path: Path, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        grow(tiny, small, tmp_path / "grown", steps=1, size=size)
    assert not (tmp_path / "grown").exists()


def test_a_lamp_does_not_grow_twice(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    once = grow(tiny, small, tmp_path / "once", steps=1, size=(32, 32))
    with pytest.raises(UserError, match="grown already"):
        grow(tiny, once, tmp_path / "twice", steps=1)


# --- the upsampling network ---


def test_micro_batches_give_the_same_step(tiny: Recipe) -> None:
    small = override(tiny, LAMP)
    recipe = grown_recipe(override(tiny, {**GROWTH, "growth.frames": 12}), small, (32, 32))
    assert recipe.data.batch_size == 4
    frames = mx.random.randint(0, 255, (4, recipe.data.drawn_frames, 32, 32, 3), key=mx.random.key(1))
    times = mx.zeros((4, recipe.data.drawn_frames), mx.int32)
    steps = []
    for micro_batches in (1, 2):
        trainer = UpsamplerTrainer(override(recipe, {"training.micro_batches": micro_batches}), 10)
        steps.append(trainer(trainer.init(), frames.astype(mx.uint8), times, 3))
    (one, terms), (other, same) = steps
    for name, array in arrays_by_name(one["generator"]).items():
        assert mx.allclose(array, arrays_by_name(other["generator"])[name], atol=1e-5).item(), name
    assert terms["reconstruction"].item() == pytest.approx(same["reconstruction"].item(), rel=1e-4)


def test_a_picture_of_one_colour_is_not_changed_by_blur() -> None:
    grey = mx.full((2, 4, 6, 3), 0.3)
    assert mx.allclose(blur_pictures(grey, mx.array([0.0, 0.25])), grey).item()
    dot = mx.zeros((1, 5, 5, 3))
    dot[0, 2, 2] = 1.0
    soft = np.array(blur_pictures(dot, mx.array([0.25])))[0, :, :, 0]
    assert soft.sum() == pytest.approx(1) and soft[2, 2] == pytest.approx(0.25)
    assert soft[1, 2] == pytest.approx(0.125) and soft[1, 1] == pytest.approx(0.0625)


def test_edges_become_crisp(tiny: Recipe) -> None:
    """It learns what the pixels of an edge are: better than any picture that is only enlarged."""
    recipe = grown_recipe(
        override(tiny, {**GROWTH, "growth.width": 16, "growth.learning_rate": 5e-3}),
        override(tiny, LAMP),
        (32, 32),
    )
    trainer = UpsamplerTrainer(recipe, 80)
    state = trainer.init()
    rng = np.random.default_rng(0)
    times = mx.zeros((recipe.data.batch_size, recipe.data.drawn_frames), mx.int32)

    def discs() -> mx.array:
        """Clips of one disc each, at random places."""
        shape = (recipe.data.batch_size, recipe.data.drawn_frames, 1, 1)
        y, x = rng.uniform(8, 24, (2, *shape))
        rows, columns = np.mgrid[:32, :32] + 0.5
        away = np.hypot(rows - y, columns - x)
        grey = np.clip(6 - away, 0, 1)[..., None]
        return mx.array((255 * np.repeat(grey, 3, -1)).astype(np.uint8))

    errors = []
    for index in range(80):
        state, terms = trainer(state, discs(), times, index)
        mx.eval(state)
        errors.append(terms["reconstruction"].item())
    real = discs().astype(mx.float32) / 255
    small = average_pool_to_size(real, (16, 16))
    repeated = mx.repeat(mx.repeat(small, 2, -3), 2, -2)
    enlarged = ((repeated - real) ** 2).sum((2, 3, 4)).mean().item()
    assert np.mean(errors[-10:]) < 0.7 * enlarged


def test_the_shipped_recipe_grows_from_the_default_one() -> None:
    large = load_recipe("lava-256x128")
    small = override(load_recipe("lava"), {"data.size": large.growth.start_size})
    grown = grown_recipe(large, small, large.data.size)
    assert grown.generator.upsampler_widths == (32, 32) and grown.drawn_size == (64, 32)
    assert recipe_from_dict(recipe_to_dict(grown)) == grown


# --- in two stages ---

STAGES = """
extends = "{small}"
[data]
size = [64, 64]
[growth]
start_recipe = "{small}"
start_size = [16, 16]
steps = 3
width = 8
frames = 4
"""


@pytest.fixture
def staged(tiny: Recipe, tmp_path: Path) -> Path:
    """A recipe file: three steps at 16×16, then three at 64×64."""
    settings = {**LAMP, "training.steps": 3, "training.checkpoint_every": 1, "generator.last_width": 6}
    small = tmp_path / "small.json"
    small.write_text(json.dumps(recipe_to_dict(override(tiny, settings))))
    recipe = tmp_path / "staged.toml"
    recipe.write_text(STAGES.format(small=small))
    return recipe


def test_a_first_stage_that_was_killed_early_can_begin_again(staged: Path, tmp_path: Path) -> None:
    """It was killed after the plan of both stages, and before the smaller lamp had a checkpoint."""
    run = tmp_path / "run"
    (run / "small").mkdir(parents=True)
    (run / "growth.json").write_text("{}")
    assert mlxlava.train(recipe=staged, run=run).step == 3


def test_a_recipe_learns_the_small_lamp_and_grows(staged: Path, tmp_path: Path) -> None:
    done = mlxlava.train(recipe=staged, run=tmp_path / "run")
    assert (done.run, done.step) == (tmp_path / "run", 3)
    assert mlxlava.load(done.run).size == (64, 64)
    assert mlxlava.load(done.run / "small").size == (16, 16)
    assert not changed(state_of(done.run / "small")["ema"]["dynamics"], state_of(done.run)["dynamics"])
    assert mlxlava.info(done.run)["started from"].startswith("16×16, recipe lava, 3 steps of 4 clips")


def test_a_run_in_two_stages_resumes_exactly_in_both(staged: Path, tmp_path: Path) -> None:
    whole = mlxlava.train(recipe=staged, run=tmp_path / "whole").run
    cut = tmp_path / "cut"
    first = mlxlava.train(recipe=staged, run=cut, callbacks=[StopAtNextStep()])
    assert first.run == cut and 0 < first.step < 3
    assert mlxlava.load(cut).size == (16, 16)  # what there is can be played
    with pytest.raises(UserError, match="steps"):
        mlxlava.resume(cut, steps=9)
    sizes = [mlxlava.load(cut).size]
    for _ in range(6):
        mlxlava.resume(cut, callbacks=[StopAtNextStep()])
        sizes.append(mlxlava.load(cut).size)
    assert sizes[0] == (16, 16) and sizes[-1] == (64, 64)
    assert not changed(state_of(whole), state_of(cut))


def test_a_folder_that_holds_something_is_no_place_for_a_run_in_two_stages(
    staged: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something"):
        mlxlava.train(recipe=staged, run=tmp_path / "run")


def test_a_size_that_the_first_stage_cannot_grow_to_is_refused_at_once(staged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="grows to 2, 4, 8"):
        mlxlava.train(recipe=staged, run=tmp_path / "run", settings={"data.size": (48, 64)})
    assert not (tmp_path / "run").exists()


# --- with prepared footage, which has one size ---


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Four seconds of the built-in lamp at 64×64, 10 frames a second."""
    return prepare_lamp(
        tmp_path / "prepared", size=(64, 64), minutes=0.1, fps=10, every_nth=1, seed=0, theme="classic"
    ).path


def test_both_stages_learn_from_prepared_footage(staged: Path, prepared: Path, tmp_path: Path) -> None:
    done = mlxlava.train(prepared, recipe=staged, run=tmp_path / "run")
    assert mlxlava.load(done.run).size == (64, 64)
    assert mlxlava.load(done.run / "small").size == (16, 16)
    small = json.loads((done.run / "small/config.json").read_text())["footage"]
    frames = np.load(Path(small["prepared"]) / "frames.npy")
    large = np.load(prepared / "frames.npy").astype(float)
    means = large.reshape(len(large), 16, 4, 16, 4, 3).mean((2, 4))
    assert np.abs(frames - means).max() <= 1
    assert mlxlava.resume(done.run, steps=4).step == 4


def test_the_first_stage_takes_the_shape_of_the_footage(staged: Path, tmp_path: Path) -> None:
    tall = prepare_lamp(
        tmp_path / "tall", size=(128, 64), minutes=0.1, fps=10, every_nth=1, seed=0, theme="classic"
    ).path
    done = mlxlava.train(tall, recipe=staged, run=tmp_path / "run")
    assert mlxlava.load(done.run).size == (128, 64)
    assert mlxlava.load(done.run / "small").size == (32, 16)


def test_weights_grow_to_prepared_footage_or_keep_their_size(
    tiny: Recipe, prepared: Path, tmp_path: Path
) -> None:
    settings = {**GROWTH, "growth.steps": 1, "training.steps": 1, "generator.last_width": 6}
    small = mlxlava.train(recipe=override(tiny, {**LAMP, **settings}), run=tmp_path / "small").run
    recipe = override(tiny, {**settings, "data.size": [64, 64]})
    grown = mlxlava.train(prepared, recipe=recipe, run=tmp_path / "grown", init=small).run
    assert mlxlava.load(grown).size == (64, 64)
    # Footage of the weights' own size, and networks that are not those of the recipe.
    own = override(recipe, {"generator.widths": [10, 6]})
    again = mlxlava.train(prepared, recipe=own, run=tmp_path / "again", init=grown).run
    assert mlxlava.load(again).size == (64, 64)
    widths = [read_json(run / "config.json", "run")["recipe"]["generator"] for run in (again, grown)]
    assert widths[0] == widths[1]


@pytest.mark.slow
def test_stages_share_the_minutes(staged: Path, tmp_path: Path) -> None:
    done = mlxlava.train(recipe=staged, run=tmp_path / "run", minutes=0.1)
    small, large = (
        json.loads((tmp_path / "run" / name / "config.json").read_text()) for name in ("small", ".")
    )
    assert small["schedule"]["minutes"] == pytest.approx(0.085)
    assert large["schedule"]["minutes"] <= 0.1
    assert done.step == done.total_steps == large["total_steps"]


def test_steps_are_those_of_the_second_stage(staged: Path, tmp_path: Path) -> None:
    done = mlxlava.train(recipe=staged, run=tmp_path / "run", steps=2)
    assert done.step == done.total_steps == 2
    assert read_json(done.run / "small/config.json", "run")["total_steps"] == 3


def test_a_grown_lamp_is_taken_up_at_either_of_its_sizes(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    grown = grow(tiny, small, tmp_path / "grown", steps=1)
    further = grow(tiny, grown, tmp_path / "further", steps=1)
    assert mlxlava.load(further).size == (64, 64)
    assert not changed(state_of(grown)["dynamics"], state_of(further)["dynamics"])
    recipe = override(tiny, {**LAMP, "training.steps": 1})
    inside = mlxlava.train(recipe=recipe, run=tmp_path / "inside", init=grown).run
    assert mlxlava.load(inside).size == (16, 16)
    history = mlxlava.load(inside).weights.about["initial"]
    assert [(each["size"], each["steps"]) for each in history] == [([64, 64], 1), ([16, 16], 20)]
    assert changed(state_of(small)["dynamics"], state_of(inside)["dynamics"])


@pytest.mark.slow
def test_minutes_of_an_upsampling_network_give_a_finished_run(
    tiny: Recipe, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = override(tiny, {**LAMP, **GROWTH, "data.size": (32, 32)})
    done = mlxlava.train(recipe=recipe, run=tmp_path / "grown", init=small, minutes=0.05)
    config = read_json(done.run / "config.json", "run")
    assert done.step == done.total_steps == config["total_steps"]
    assert [each["setting"] for each in config["choices"]] == ["training.steps"]
    assert "discriminator" not in capsys.readouterr().err
    page = (done.run / "report.html").read_text()
    assert "What was chosen, and why" in page and "the run is finished after 0.05 minutes" in page
