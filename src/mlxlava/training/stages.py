"""Runs in two stages: a smaller lamp is trained first, in the folder ``small`` of the run, and then grows.

Each stage is a run of its own, with checkpoints, a log and previews. The file ``growth.json`` holds the plan
for the second stage until that begins.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxlava.backend import Tree
from mlxlava.config import Recipe, recipe_from_dict, recipe_to_dict
from mlxlava.errors import UserError
from mlxlava.integrity import read_progress
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
from mlxlava.records import GROWTH_PLAN, RUN_CONFIG
from mlxlava.training.choices import Choice
from mlxlava.training.folder import checkpoint_folder_to_resume
from mlxlava.training.growth import grown_recipe, recipe_of_smaller_lamp
from mlxlava.training.run import Run, begin_run, resume_run
from mlxlava.training.schedule import Schedule

# Of the minutes of both stages: what the steps of the recipe take. 4,000 steps at 64×32 take 0.58 s of
# processor time each on average, and 1,500 of the upsampling network at 256×128 take 0.22 s each.
_FIRST_STAGE_SHARE_OF_MINUTES = 0.85


@dataclasses.dataclass(frozen=True)
class SecondStagePlan:
    """The plan for the second stage.

    Attributes:
        recipe: recipe that the user asked for.
        sources: absolute paths of the footage; the built-in lamp when empty.
        memory: GB for MLX's arrays, or None.
        command: command that began the run.
        free: settings that may be chosen for the footage.
        choices: what was chosen before the footage was prepared.
        minutes: time that both stages together may take, or None.
    """

    recipe: Recipe
    sources: Sequence[str]
    memory: float | None
    command: str
    free: Sequence[str] = ()
    choices: Sequence[Choice] = ()
    minutes: float | None = None


def begin_first_stage(folder: Path, plan: SecondStagePlan) -> Run:
    """Make the folder of a run in two stages, and the run of the first stage in it.

    Raises:
        UserError: the folder holds something, or the training of the smaller lamp cannot begin, or the lamp
            cannot grow.
    """
    small, plan_file = folder / SMALL_LAMP_FOLDER, folder / GROWTH_PLAN_FILE
    # What a start leaves that was killed before the smaller lamp had its first checkpoint.
    unfinished = set() if checkpoint_folders(small) else {SMALL_LAMP_FOLDER, GROWTH_PLAN_FILE}
    if list_names(folder) - unfinished - {LOCK_FILE}:
        raise UserError(f"train: {folder} holds something; give another -o, or --resume")
    values = {**dataclasses.asdict(plan), "recipe": recipe_to_dict(plan.recipe)}
    # The plan comes first: a run that has begun is never without it.
    make_folder(folder)
    write_text_atomically(plan_file, json.dumps(values, indent=2) + "\n")
    try:
        return begin_run(
            small,
            recipe_of_smaller_lamp(plan.recipe),
            plan.sources,
            memory=plan.memory,
            command=plan.command,
            free=plan.free,
            choices=plan.choices,
            minutes=None if plan.minutes is None else _FIRST_STAGE_SHARE_OF_MINUTES * plan.minutes,
        )
    except BaseException:
        if not checkpoint_folders(small):
            plan_file.unlink(missing_ok=True)
        raise


def is_in_first_stage(folder: Path) -> bool:
    """Whether a run of two stages has not yet begun its second stage."""
    return (folder / GROWTH_PLAN_FILE).is_file() and latest_checkpoint_folder(folder) is None


def resume_first_stage(folder: Path, memory: float | None, minutes: float | None = None) -> Run:
    """Continue the first stage. It may have made all its steps already.

    ``minutes`` is the time that both stages may take from now on; what they were given before when None.
    """
    small = folder / SMALL_LAMP_FOLDER
    if minutes is None:
        return resume_run(small, memory=memory)
    plan = read_json(folder / GROWTH_PLAN_FILE, "run", GROWTH_PLAN)
    total = Schedule.from_config(read_json(small / "config.json", "run", RUN_CONFIG)).total_steps
    finished = _progress(small)["step"] == total
    run = resume_run(
        small, memory=memory, minutes=None if finished else _FIRST_STAGE_SHARE_OF_MINUTES * minutes
    )
    plan["minutes"] = _progress(small)["seconds"] / 60 + minutes
    write_text_atomically(folder / GROWTH_PLAN_FILE, json.dumps(plan, indent=2) + "\n")
    return run


def _progress(run: Path) -> dict[str, Any]:
    """Steps that a run has made, and the seconds that they took."""
    return read_progress(checkpoint_folder_to_resume(run))


def begin_second_stage(
    folder: Path,
    small: Recipe,
    small_arrays: Tree,
    memory: float | None,
    small_history: Sequence[Mapping[str, Any]] = (),
) -> Run:
    """Begin the run that grows from the first stage, which has made all its steps.

    Args:
        folder: folder of the run of both stages.
        small: recipe of the first stage.
        small_arrays: arrays of the weights that it has learned.
        memory: GB for MLX's arrays; as the run began when None.
        small_history: how these weights were trained, for the run's config.

    Raises:
        UserError: the plan is damaged, or the footage has changed or cannot be read.
    """
    values = read_json(folder / GROWTH_PLAN_FILE, "run", GROWTH_PLAN)
    recipe, minutes = recipe_from_dict(values["recipe"]), values.get("minutes")
    choices = [Choice(each["setting"], each["value"], each["reason"]) for each in values.get("choices", ())]
    seconds = _progress(folder / SMALL_LAMP_FOLDER)["seconds"]
    return begin_run(
        folder,
        grown_recipe(recipe, small, recipe.data.size),
        values["sources"],
        initial_arrays=small_arrays,
        memory=values["memory"] if memory is None else memory,
        command=values["command"],
        free=values.get("free", ()),
        choices=choices,
        minutes=None if minutes is None else max(0.01, minutes - seconds / 60),
        initial_history=small_history,
    )
