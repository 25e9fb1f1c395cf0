"""Growing: what was learned at a small size is there at a larger one, and only what is new has to learn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxlava
from mlxlava.backend import Tree, arrays_by_name, mx
from mlxlava.config import Recipe, override, recipe_from_dict, recipe_to_dict
from mlxlava.errors import UserError
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.paths import latest_checkpoint_folder, read_json
from mlxlava.rollout.weights import load_weights, save_weights
from mlxlava.training.callbacks import Callbacks
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.step import Trainer
from tests.conftest import StopAtNextStep

pytestmark = pytest.mark.device

LAMP = {"data.lamp_minutes": 0.1, "data.size": [16, 16]}


@pytest.fixture(autouse=True, scope="module")
def _eager() -> Iterator[None]:
    """Compiling costs seconds of g++ a run; that compiled equals eager is test_step's."""
    mx.disable_compile()
    yield
    mx.enable_compile()


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
    recipe = override(tiny, {**LAMP, "growth.rest_steps": 2, **(settings or {})})
    changes = {"data.size": size}
    return mlxlava.train(
        recipe=recipe, run=run, init=small, steps=steps, callbacks=callbacks, settings=changes
    ).run


def state_of(run: Path) -> Tree:
    recipe = recipe_from_dict(read_json(run / "config.json", "run")["recipe"])
    latest = latest_checkpoint_folder(run)
    assert latest is not None
    return load_checkpoint(latest, Trainer(recipe, recipe.training.steps).init())[0]


def changed(one: Tree, other: Tree) -> set[str]:
    """Layers in which two trees differ."""
    arrays = arrays_by_name(other)
    return {
        name.split(".")[0]
        for name, array in arrays_by_name(one).items()
        if not mx.array_equal(array, arrays[name]).item()
    }


def test_a_grown_lamp_begins_as_the_small_one_enlarged(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    run = grow(tiny, small, tmp_path / "grown", steps=1)
    begun = load_weights(run)
    assert begun.recipe.data.size == (64, 64)
    was = next(mlxlava.load(small).frames(seed=3)).astype(float)
    now = next(mlxlava.load(run).frames(seed=3)).astype(float)
    averaged = now.reshape(16, 4, 16, 4, 3).mean((1, 3))
    other = next(mlxlava.load(small).frames(seed=4)).astype(float)
    # Where the small lamps differ, the grown one is like the one that it grew from.
    moving = np.abs(was - other) > np.quantile(np.abs(was - other), 0.9)
    assert np.abs(averaged - was)[moving].mean() < 0.5 * np.abs(averaged - other)[moving].mean()


def test_state_step_and_encoder_rest_and_old_layers_wait(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    before = state_of(small)
    waiting = state_of(grow(tiny, small, tmp_path / "waiting", steps=2))
    learning = state_of(grow(tiny, small, tmp_path / "learning", steps=4))
    # What is played of a run is its averaged weights, and a grown lamp begins with those.
    for state in (waiting, learning):
        assert not changed(before["ema"]["dynamics"], state["dynamics"])
        assert not changed(before["encoder"], state["encoder"])
    old = {name: before["ema"]["generator"][name] for name in ("dense", "up0", "up1")}
    assert not changed(old, waiting["generator"])
    assert changed(old, learning["generator"]) == {"dense", "up0", "up1"}
    new = {name: waiting["generator"][name] for name in ("up2", "up3", "out")}
    assert changed(new, learning["generator"]) == {"up2", "up3", "out"}


def test_networks_rest_only_if_the_recipe_says_so(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    before = state_of(small)
    run = grow(tiny, small, tmp_path / "grown", 3, settings={"growth.rest": []})
    assert changed(before["encoder"], state_of(run)["encoder"])
    assert changed(before["ema"]["dynamics"], state_of(run)["dynamics"])


def test_a_discriminator_grows_in_front(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    # Until it joins in it rests; of the old one only the first layer, which saw the small pictures, is new.
    run = grow(tiny, small, tmp_path / "grown", 2, settings={"loss.d_start": 1.0})
    old, new = state_of(small)["discriminator"], state_of(run)["discriminator"]
    assert not changed({"down3": old["down1"], "out": old["out"], "joint": old["joint"]}, new)


def test_a_grown_run_resumes_exactly(tiny: Recipe, small: Path, tmp_path: Path) -> None:
    whole = state_of(grow(tiny, small, tmp_path / "whole", steps=5))
    grow(tiny, small, tmp_path / "cut", steps=5, callbacks=[StopAtNextStep()])
    assert 0 < state_of(tmp_path / "cut")["step"].item() < 5
    mlxlava.resume(tmp_path / "cut")
    assert not changed(whole, state_of(tmp_path / "cut"))


def test_weights_without_an_encoder_grow_too_and_a_new_one_learns(
    tiny: Recipe, small: Path, tmp_path: Path
) -> None:
    weights = load_weights(small)
    save_weights(weights, tmp_path / "weights")
    run = grow(tiny, tmp_path / "weights", tmp_path / "grown", steps=1)
    first = state_of(run)
    assert not changed(weights.arrays["dynamics"], first["dynamics"])
    again = state_of(grow(tiny, tmp_path / "weights", tmp_path / "longer", steps=2))
    assert changed(first["encoder"], again["encoder"])


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


# --- in two stages ---

STAGES = """
extends = "{small}"
[data]
size = [64, 64]
[growth]
start_recipe = "{small}"
start_size = [16, 16]
rest_steps = 1
[training]
steps = 3
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


def test_a_recipe_learns_the_small_lamp_and_grows(staged: Path, tmp_path: Path) -> None:
    done = mlxlava.train(recipe=staged, run=tmp_path / "run")
    assert (done.run, done.step) == (tmp_path / "run", 3)
    assert mlxlava.load(done.run).size == (64, 64)
    assert mlxlava.load(done.run / "small").size == (16, 16)
    assert not changed(state_of(done.run / "small")["ema"]["dynamics"], state_of(done.run)["dynamics"])


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
    settings = {"training.steps": 1, "generator.last_width": 6}
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


def test_stages_share_the_minutes(staged: Path, tmp_path: Path) -> None:
    done = mlxlava.train(recipe=staged, run=tmp_path / "run", minutes=0.1)
    small, large = (
        json.loads((tmp_path / "run" / name / "config.json").read_text()) for name in ("small", ".")
    )
    assert small["schedule"]["minutes"] == pytest.approx(0.045)
    assert large["schedule"]["minutes"] <= 0.1
    assert done.step == done.total_steps == large["total_steps"]
