"""Runs in two stages: a smaller lamp is learned first, in the folder ``small`` of the run, and then grows.

Each stage is a run of its own, with checkpoints, a log and previews. Until the second one begins, the file
``growth.json`` says what it will be.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxlava.config import Recipe, recipe_from_dict, recipe_to_dict
from mlxlava.errors import UserError
from mlxlava.paths import SMALL, latest_checkpoint, names_in, read_json, write_whole
from mlxlava.training.growth import grown_recipe, learned_by_run, start_recipe
from mlxlava.training.run import Run, begin, resume

_PLAN = "growth.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the second stage will be.

    Attributes:
        recipe: as the user asked for it.
        sources: footage; the built-in lamp when empty.
        memory: GB for MLX's arrays, or None.
        command: what began the run.
    """

    recipe: Recipe
    sources: Sequence[str]
    memory: float | None
    command: str


def begin_first_stage(folder: Path, plan: Plan) -> Run:
    """Make the folder of a run in two stages, and the run of the first stage in it.

    Raises:
        UserError: the folder holds something, or the smaller lamp cannot be begun or cannot grow.
    """
    if names_in(folder):
        raise UserError(f"train: {folder} holds something; give another -o, or --resume")
    run = begin(
        folder / SMALL, start_recipe(plan.recipe), plan.sources, memory=plan.memory, command=plan.command
    )
    sources = [str(Path(source).expanduser().resolve()) for source in plan.sources]
    values = {**dataclasses.asdict(plan), "recipe": recipe_to_dict(plan.recipe), "sources": sources}
    write_whole(folder / _PLAN, json.dumps(values, indent=2) + "\n")
    return run


def is_in_first_stage(folder: Path) -> bool:
    """Whether a run of two stages has not begun its second one."""
    return (folder / _PLAN).is_file() and latest_checkpoint(folder) is None


def resume_first_stage(folder: Path, memory: float | None) -> Run:
    """Take up the first stage; it may have made all its steps already."""
    return resume(folder / SMALL, memory=memory)


def begin_second_stage(folder: Path, memory: float | None) -> Run:
    """Begin the run that grows from the first stage, which has made all its steps.

    Raises:
        UserError: the plan is damaged, or the footage has changed or cannot be read.
    """
    values: dict[str, Any] = read_json(folder / _PLAN, "run")
    try:
        recipe, sources = recipe_from_dict(values["recipe"]), list(values["sources"])
        memory = values["memory"] if memory is None else memory
        command = str(values["command"])
    except (KeyError, TypeError) as error:
        raise UserError(f"train: {folder / _PLAN} lacks {error}; begin the run anew") from error
    small = recipe_from_dict(read_json(folder / SMALL / "config.json", "run")["recipe"])
    learned = learned_by_run(folder / SMALL)
    grown = grown_recipe(recipe, small, learned, recipe.data.size)
    return begin(folder, grown, sources, warm=learned, memory=memory, command=command)
