"""A training that goes wrong: numbers that are not finite or explode, a lamp that collapses, no memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxlava.backend import Tree, mx
from mlxlava.config import Recipe, override
from mlxlava.footage.dataset import Footage
from mlxlava.training.failures import Diverged
from mlxlava.training.folder import make_run_folder, recipe_of_run
from mlxlava.training.loop import train
from mlxlava.training.recovery import MAX_TRIES, ExplosionDetector
from mlxlava.training.step import Trainer

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("eager")]


@contextlib.contextmanager
def changed_steps(change: Callable[[Trainer, int, Tree, Any], tuple[Tree, Any]]) -> Iterator[None]:
    """A trainer whose steps give what ``change(trainer, index, state, terms)`` makes of them."""
    original = Trainer.__call__

    def call(self: Trainer, state: Tree, frames: mx.array, times: mx.array, index: int, **more: Any) -> Any:
        return change(self, index, *original(self, state, frames, times, index, **more))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__call__", call)
        yield


def begin(run: Path, recipe: Recipe, footage: Footage) -> None:
    make_run_folder(run, recipe, footage, ["lamp.mov"], "mlxlava train lamp.mov", None)


def with_nan(state: Tree) -> Tree:
    """The state with a weight of the generator that is not a number."""
    layers = dict(state["generator"])
    layers["background"] = layers["background"] + float("nan")
    return {**state, "generator": layers}


def test_a_rate_that_is_too_high_is_halved_until_the_run_goes_on(
    tiny: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tiny.training.learning_rate

    def spoil(trainer: Trainer, index: int, state: Tree, terms: Any) -> tuple[Tree, Any]:
        too_high = index == 3 and trainer.recipe.training.learning_rate > 0.3 * full
        return (with_nan(state) if too_high else state), terms

    begin(tmp_path, tiny, footage)
    with changed_steps(spoil):
        assert train(tmp_path, tiny, footage).step == 6
    said = capsys.readouterr().err
    assert said.count("back to step 2, with half the learning rate") == 2 and "try 2 of 3" in said
    assert recipe_of_run(tmp_path).training.learning_rate == pytest.approx(full / 4)
    choices = json.loads((tmp_path / "config.json").read_text())["choices"]
    assert [each["setting"] for each in choices] == ["training.learning_rate"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_after_three_tries_a_run_stops_and_says_why(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    def spoil(trainer: Trainer, index: int, state: Tree, terms: Any) -> tuple[Tree, Any]:
        return (with_nan(state) if index == 3 else state), terms

    begin(tmp_path, tiny, footage)
    with changed_steps(spoil), pytest.raises(Diverged) as raised:
        train(tmp_path, tiny, footage)
    said = str(raised.value)
    assert f"{MAX_TRIES} tries" in said and "hardly the cause" in said and "00000002" in said
    assert "\n" not in said
    assert recipe_of_run(tmp_path) == tiny  # as it was before the tries
    assert train(tmp_path, tiny, footage).step == 6


@pytest.mark.slow
def test_an_explosion_is_found_before_it_is_saved(
    tiny: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"training.steps": 26, "training.checkpoint_every": 20, "training.preview_every": 26}
    recipe = override(tiny, few)
    times: list[int] = []

    def spoil(trainer: Trainer, index: int, state: Tree, terms: Any) -> tuple[Tree, Any]:
        if index == 22 and not times:
            times.append(index)
            terms = {**terms, "reconstruction": mx.array(3e9)}
        return state, terms

    begin(tmp_path, recipe, footage)
    with changed_steps(spoil):
        assert train(tmp_path, recipe, footage).step == 26
    assert "reconstruction has exploded (3e+09" in capsys.readouterr().err


def test_values_that_rise_as_in_a_healthy_run_are_no_explosion() -> None:
    detector = ExplosionDetector()
    for step in range(200):
        assert detector.find({"loss": 1.05**step, "r1": 1e-9 if step < 100 else 1e2}) is None
    assert detector.find({"loss": 1.05**200 * 1e5, "r1": 1.0}) is not None


@pytest.mark.slow
def test_a_lamp_that_stands_still_is_said_once(
    tiny: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The generator draws one picture for ever, as after a collapse."""
    few = {"training.steps": 120, "training.checkpoint_every": 20, "training.preview_every": 60}
    recipe = override(tiny, few)

    def spoil(trainer: Trainer, index: int, state: Tree, terms: Any) -> tuple[Tree, Any]:
        generator = {**state["generator"], "gate": mx.zeros_like(state["generator"]["gate"])}
        return {**state, "generator": generator}, terms

    begin(tmp_path, recipe, footage)
    with changed_steps(spoil):
        train(tmp_path, recipe, footage)
    said = capsys.readouterr().err
    assert said.count("The lamp hardly moves: 0.00 times") == 1
    assert "The lamp hardly moves" in (tmp_path / "report.html").read_text()


def test_without_memory_micro_batches_are_halved_and_the_steps_repeated(
    tiny: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Trainer.__call__

    def call(self: Trainer, state: Tree, frames: mx.array, times: mx.array, index: int) -> Any:
        if index == 3 and self.recipe.training.micro_batches < 2:
            raise RuntimeError("[malloc] Unable to allocate 99999999999 bytes.")
        return original(self, state, frames, times, index)

    begin(tmp_path, tiny, footage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__call__", call)
        assert train(tmp_path, tiny, footage).step == 6
    assert "back to step 2, with a batch worked on in 2 micro-batches, not 1" in capsys.readouterr().err
    assert recipe_of_run(tmp_path).training.micro_batches == 2
