"""The folder of a run: starting a run, locking it, and opening it at its latest checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.backend import Tree, device_facts, mx
from mlxlava.backend.ranks import copy_from_first_rank, max_over_ranks, rank
from mlxlava.config import Recipe, recipe_from_dict, recipe_to_dict
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.models.array_files import FORMAT_VERSION
from mlxlava.paths import (
    GROWTH_PLAN_FILE,
    LOCK_FILE,
    SMALL_LAMP_FOLDER,
    checkpoint_folders,
    latest_checkpoint_folder,
    list_names,
    make_folder,
    read_json,
    write_text_atomically,
)
from mlxlava.records import RUN_CONFIG
from mlxlava.training.checkpoint import load_last_intact_checkpoint, save_checkpoint
from mlxlava.training.choices import Choice
from mlxlava.training.initial_state import make_initial_state
from mlxlava.training.schedule import Decision, Schedule
from mlxlava.training.trainer import AnyTrainer, make_trainer


def make_run_folder(
    run: Path,
    recipe: Recipe,
    footage: Footage,
    sources: list[str],
    command: str,
    initial_arrays: Tree | None,
    choices: Sequence[Choice] = (),
    minutes: float | None = None,
    initial_history: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Make the folder of a new run, with its config and its state at step 0; on the first rank only.

    Args:
        run: The folder.
        recipe: Recipe of the run.
        footage: Footage to learn from.
        sources: Files that the footage was prepared from; resuming reads them again.
        command: The command that began the run, for its config.
        initial_arrays: Arrays of weights whose G and R to begin with, or of the smaller lamp that a grown
            recipe begins with; random weights when None.
        choices: What was chosen for the footage, for its config.
        minutes: Time that the run may take. Its number of steps follows from that once they are measured.
        initial_history: How the weights of ``initial_arrays`` were trained, for its config.

    Raises:
        UserError: the folder is a run already or holds something else, the footage is shorter than a
            clip, or ``initial_arrays`` belongs to other networks than the recipe's.
    """
    if rank():
        return
    require_free_folder(run)
    footage.require_clip(recipe.data.seq_len)
    total = count_steps(recipe, footage)
    state = make_initial_state(recipe, total, footage, initial_arrays)
    config = {
        "format": FORMAT_VERSION,
        "step_fps": footage.step_fps,
        "recipe": recipe_to_dict(recipe),
        **Schedule((Decision(0, total),), minutes).to_config(),
        "choices": [dataclasses.asdict(choice) for choice in choices],
        "footage": {
            "sources": sources,
            "prepared": str(footage.path.resolve()),
            "frames": len(footage.frames),
            "key": footage.key,
        },
        "command": command,
        "machine": {"system": platform.platform(), **device_facts()},
    }
    if initial_history:
        config["initial"] = list(initial_history)
    try:
        make_folder(run)
    except OSError as error:
        raise UserError(f"train: cannot write {run}: {error.strerror}") from error
    write_config(run, config)
    save_checkpoint(run, state, {"step": 0, "seconds": 0.0}, recipe.training.keep_checkpoints)


def require_free_folder(run: Path) -> None:
    """Raise UserError unless a run can begin in a folder: it does not exist, or holds no other files."""
    if checkpoint_folders(run):
        raise UserError(f"train: {run} is a run already; add --resume to go on, or give another -o")
    if list_names(run) - {"config.json", "checkpoints", GROWTH_PLAN_FILE, LOCK_FILE, SMALL_LAMP_FOLDER}:
        raise UserError(f"train: {run} holds something that is not a run; give another -o")


def count_steps(recipe: Recipe, footage: Footage) -> int:
    """Number of training steps of a recipe. In an epoch as many frames are used as the footage has."""
    training, data = recipe.training, recipe.data
    if training.steps:
        return training.steps
    clips = len(footage.frames) / data.seq_len
    return max(1, math.ceil(training.epochs * clips / data.batch_size))


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write the config of a run. If that fails, the old config stays.

    Raises:
        UserError: it cannot be written.
    """
    path = run / "config.json"
    try:
        write_text_atomically(path, json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"train: cannot write {path}: {error.strerror}") from error


def recipe_of_run(run: Path) -> Recipe:
    """The recipe in the config of a run.

    Raises:
        UserError: the config cannot be read, or has none.
    """
    return recipe_from_dict(read_json(run / "config.json", "run", RUN_CONFIG)["recipe"])


def change_recipe(run: Path, recipe: Recipe, choices: Sequence[Choice] = ()) -> None:
    """Replace the recipe of a run by one that fits its checkpoints; on the first rank only.

    ``choices`` say why; they replace those of the same settings.
    """
    if rank() == 0:
        config = read_json(run / "config.json", "run", RUN_CONFIG)
        write_config(run, {**_with_choices(config, choices), "recipe": recipe_to_dict(recipe)})


def _with_choices(config: Mapping[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
    """The config of a run with choices that replace those of the same settings."""
    chosen = {each["setting"]: each for each in config.get("choices", [])}
    chosen |= {choice.setting: dataclasses.asdict(choice) for choice in choices}
    return {**config, "choices": list(chosen.values())}


def checkpoint_folder_to_resume(run: Path) -> Path:
    """The folder of the latest checkpoint.

    Raises:
        UserError: there is none.
    """
    found = latest_checkpoint_folder(run)
    if found is None:
        raise UserError(f"train: {run} has no checkpoint to resume from; start it anew with another -o")
    return found


def change_schedule(run: Path, schedule: Schedule, choices: Sequence[Choice] = ()) -> None:
    """Replace the schedule of a run, and choices of the same settings; on the first rank only."""
    if rank():
        return
    config = read_json(run / "config.json", "run", RUN_CONFIG)
    write_config(run, {**_with_choices(config, choices), **schedule.to_config()})


def schedule_of_run(run: Path) -> Schedule:
    """The schedule of a run, on every rank as the first one reads it."""
    numbers, minutes = [0], 0.0
    if rank() == 0:
        found = Schedule.from_config(read_json(run / "config.json", "run", RUN_CONFIG))
        numbers = [int(number) for each in found.decisions for number in each]
        minutes = -1.0 if found.minutes is None else found.minutes
    count = max_over_ranks(len(numbers))
    mine = mx.array((numbers + count * [0])[:count])
    shared, limit = copy_from_first_rank((mine, mx.array(minutes)))
    flat = [int(number) for number in np.array(shared)]
    decisions = tuple(Decision(flat[at], flat[at + 1], bool(flat[at + 2])) for at in range(0, count, 3))
    minutes = minutes if rank() == 0 else float(limit.item())
    return Schedule(decisions, None if minutes < 0 else minutes)


def open_run(run: Path, recipe: Recipe) -> tuple[AnyTrainer, Tree, int, float]:
    """Open a run at its latest checkpoint that is intact. The first rank reads it and sends it to the others.

    Returns:
        The trainer, the run state, the training steps made, and the seconds they took.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    seconds, step = 0.0, 0
    if rank() == 0:
        checkpoint_folder_to_resume(run)
    trainer = make_trainer(recipe, schedule_of_run(run))
    state = trainer.init()
    if rank() == 0:
        state, kept = load_last_intact_checkpoint(run, state)
        step, seconds = int(kept["step"]), float(kept["seconds"])
    state, at = copy_from_first_rank((state, mx.array(step)))
    return trainer, state, int(at.item()), seconds
