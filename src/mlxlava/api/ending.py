"""The end of a training: a quick score of the run, for a line on the terminal and for its report."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from mlxlava.backend.ranks import rank
from mlxlava.console import progress
from mlxlava.errors import UserError
from mlxlava.evaluation.report import require_that_report_can_be_made
from mlxlava.evaluation.score import score, split_footage
from mlxlava.footage.dataset import Footage, open_footage
from mlxlava.footage.from_settings import prepare_from_settings
from mlxlava.paths import read_json
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.training.outcome import TrainedRun
from mlxlava.training.report import add_score, write_report

_SCORED_FRAMES = 512  # most frames of each half
_BOOTSTRAP_REPEATS = 4  # of the bootstrap
_LAMP_MINUTES = 4.0  # of the built-in lamp that are rendered to be held out


def is_finished(done: TrainedRun) -> bool:
    """Whether a run has made all its steps. Of several processes, only the first one says so."""
    if "MLX_RANK" in os.environ and rank():
        return False
    config = done.run / "config.json"
    return config.is_file() and read_json(config, "run").get("total_steps") == done.step


def score_finished_run(run: Path) -> str:
    """Score a run quickly, and put the score into its report.

    It is scored against the end of the footage, if that was held out (``data.held_out``). If not, every
    second eighth of the footage is set against the other eighths. Then the lamp has learned from all of it,
    so this is not a test on unseen footage. The built-in lamp is rendered from another seed.

    Returns:
        A sentence with the score, or why there is none.

    Raises:
        UserError: the report cannot be written.
    """
    weights = load_weights(run)
    try:
        require_that_report_can_be_made(None)
        footage, held_out, against = _real_footage(weights)
        with progress("score") as update:
            result, _, _ = score(
                weights,
                split_footage(footage, held_out, _SCORED_FRAMES),
                repeats=_BOOTSTRAP_REPEATS,
                on_progress=update,
            )
    except UserError as error:
        return f"no score: {str(error).removeprefix('score: ')}"
    step = read_json(run / "config.json", "run").get("total_steps", 0)
    add_score(run, int(step), result, against)
    write_report(run)
    image, motion = result["headline"]["image"], result["headline"]["motion"]
    return f"score, quickly, against {against}: image {image:.2f}, motion {motion:.2f}; 1 is as good as real"


def _real_footage(weights: Weights) -> tuple[Footage, Footage | None, str]:
    """The footage that a run has learned from, footage that is held out or None, and words for that."""
    about: dict[str, Any] = weights.about["footage"]
    footage = open_footage(about["prepared"])
    recipe = weights.recipe
    if recipe.data.held_out:
        return *footage.split(recipe.data.held_out), "the end of its footage, which it has not learned from"
    if about["sources"]:
        return footage, None, "every second eighth of its own footage"
    data = dataclasses.replace(recipe.data, lamp_minutes=min(_LAMP_MINUTES, recipe.data.lamp_minutes))
    held_out = prepare_from_settings([], data, seed=recipe.training.seed + 1)
    return footage, held_out, "a lamp of another seed"
