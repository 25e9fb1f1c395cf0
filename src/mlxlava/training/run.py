"""Begins and resumes runs: makes the folder, fits the recipe to memory, prepares the footage.

folder.py reads and writes the files in the folder of a run; loop.py trains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxlava.backend import Tree, has_slow_blas, memory_budget_gb, on_gpu_path, system_memory_gb
from mlxlava.backend.ranks import max_over_ranks, rank, rank_count, run_on_first_rank_first
from mlxlava.config import Recipe, recipe_from_dict, recipe_to_dict
from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage, reopen_footage
from mlxlava.footage.from_settings import prepare_from_settings
from mlxlava.paths import RUNS_FOLDER, SMALL_LAMP_FOLDER, read_json
from mlxlava.records import RUN_CONFIG
from mlxlava.training.batches import clips_of_this_rank
from mlxlava.training.checkpoint import load_last_intact_checkpoint
from mlxlava.training.choices import Choice, choose_for_footage, say_choices
from mlxlava.training.folder import checkpoint_folder_to_resume, make_run_folder, write_config
from mlxlava.training.lock import lock_run
from mlxlava.training.memory_plan import predict_peak_gb, require_memory, split_to_fit_memory
from mlxlava.training.schedule import Schedule, d_start
from mlxlava.training.trainer import make_trainer


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to be trained.

    Attributes:
        folder: folder of the run.
        recipe: recipe of the run, with micro-batches that fit into memory.
        footage: footage that it learns from.
    """

    folder: Path
    recipe: Recipe
    footage: Footage


def next_run_folder(name: str) -> Path:
    """The first folder of ``runs/name-001``, ``runs/name-002`` … that does not exist yet."""
    return next(path for n in range(1, 10**6) if not (path := RUNS_FOLDER / f"{name}-{n:03d}").exists())


def latest_run_folder() -> Path:
    """The run in ``runs/`` whose log was written to last.

    Raises:
        UserError: there is none.
    """
    logs = [*RUNS_FOLDER.glob("*/log.jsonl"), *RUNS_FOLDER.glob(f"*/{SMALL_LAMP_FOLDER}/log.jsonl")]
    if not logs:
        raise UserError("train: there is no run in runs/ to resume; give its folder with -o")
    newest = max(logs, key=lambda path: path.stat().st_mtime).parent
    return newest.parent if newest.name == SMALL_LAMP_FOLDER else newest


def fit_to_memory(recipe: Recipe, gigabytes: float | None) -> Recipe:
    """Split a recipe's batches so that a training step fits into memory, and print what was chosen.

    Args:
        recipe: recipe to be trained.
        gigabytes: GB (10⁹ bytes) for MLX's arrays. If None, the memory of the GPU is the limit (the smallest
            of all processes that train together). On a CPU, None means that the recipe stays as it is.

    Returns:
        The recipe with ``training.micro_batches`` and ``training.recompute`` set so that a step fits.

    Raises:
        UserError: the step does not fit with any number of micro-batches, or on a CPU into all its memory.
    """
    gpu, asked = on_gpu_path(), gigabytes is not None
    if gigabytes is None:
        if not gpu:
            require_memory(recipe, system_memory_gb(), rank_count())
            return recipe
        gigabytes = -max_over_ranks(-int(1000 * memory_budget_gb())) / 1000
    try:
        fitted = split_to_fit_memory(recipe, gigabytes, rank_count(), gpu=gpu)
    except UserError as error:
        if asked:
            raise
        raise UserError(f"{error}; or try it anyway with a larger --memory") from error
    if asked or fitted != recipe:
        training = fitted.training
        again = ", frames recomputed" if training.recompute else ""
        split = f"{training.micro_batches} micro-batch{'es' * (training.micro_batches > 1)}"
        peak = predict_peak_gb(fitted, rank_count(), gpu=gpu)
        estimated = ", estimated" if gpu else ""
        say(f"train: a step in {split}{again}: about {peak:.2f} of {gigabytes:.3g} GB{estimated}")
    return fitted


def begin_run(
    folder: Path,
    recipe: Recipe,
    sources: Sequence[str | Path],
    *,
    initial_arrays: Tree | None = None,
    memory: float | None = None,
    command: str = "",
    free: Collection[str] = (),
    choices: Sequence[Choice] = (),
    minutes: float | None = None,
    initial_history: Sequence[Mapping[str, Any]] = (),
) -> Run:
    """Prepare the footage of a new run, and make its folder with the state at step 0.

    Args:
        folder: folder of the new run; it must be empty or not exist.
        recipe: recipe of the run.
        sources: videos, folders of images, or one folder of prepared footage; the built-in lamp when empty.
        initial_arrays: arrays of weights whose generator and state step to start from; random weights when
            None.
        memory: GB for MLX's arrays (``fit_to_memory``).
        command: command that began the run, for its config and its model card.
        free: settings that may be chosen for this footage.
        choices: what was chosen before, for its config.
        minutes: time that the run may take, this preparing included.
        initial_history: how the weights of ``initial_arrays`` were trained, for its config.

    Raises:
        UserError: the recipe does not fit into memory, the footage cannot be read or is shorter than a clip,
            the folder holds something, or ``initial_arrays`` is of other networks.
    """
    recipe = fit_to_memory(recipe, memory)
    footage = _prepare_footage(sources, recipe)
    recipe, more = choose_for_footage(recipe, footage, free)
    say_choices(more)
    footage, _ = footage.split(recipe.data.held_out)
    make_run_folder(
        folder,
        recipe,
        footage,
        absolute_paths(sources),
        command,
        initial_arrays,
        [*choices, *more],
        minutes,
        initial_history,
    )
    return _announce_run(folder, recipe, footage)


def resume_run(
    folder: Path, *, steps: int | None = None, minutes: float | None = None, memory: float | None = None
) -> Run:
    """Continue a run with its own settings. Only its length and the split of its batches may change.

    If the discriminator has joined in, it stays. A run that gets longer after that has the learning rates of
    one that was as long from its beginning.

    A changed recipe or length is written to the run's config last, after all other checks. So a run that
    cannot be resumed stays as it was.

    Args:
        folder: folder of the run.
        steps: training steps in all from now on; as many as before when None.
        minutes: time that the run may take from now on; what it was given before when None.
        memory: GB for MLX's arrays (``fit_to_memory``).

    Raises:
        UserError: there is no such run, it has no checkpoint, its footage has changed, it does not fit into
            memory, or another process trains it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"train: {folder} is not a run; leave --resume out to begin one")
    with lock_run(folder):
        return _resume_locked_run(folder, steps, minutes, memory)


def _resume_locked_run(folder: Path, steps: int | None, minutes: float | None, memory: float | None) -> Run:
    """:func:`resume_run` for a run that this process has locked."""
    before = read_json(folder / "config.json", "run", RUN_CONFIG)
    recipe, kept = recipe_from_dict(before["recipe"]), before["footage"]
    sources, key, prepared = kept["sources"], kept["key"], kept["prepared"]
    schedule = Schedule.from_config(before)
    made = run_on_first_rank_first(lambda: _read_progress_made(folder, recipe, schedule))
    if steps is not None:
        if steps < made["step"]:
            raise UserError(
                f"train: {folder} has made {made['step']} steps, more than --steps {steps}; "
                "give more, or leave --steps out"
            )
        longer = schedule.lengthen(made["step"], steps, d_start(recipe))
        schedule = dataclasses.replace(longer, minutes=None)
    if minutes is not None:
        schedule = dataclasses.replace(schedule, minutes=made["seconds"] / 60 + minutes)
    recipe = fit_to_memory(recipe, memory)
    # What the run has learned from counts, even if its source was moved, or is read in another way now.
    footage = reopen_footage(prepared, key) or _prepare_footage(sources, recipe)
    if footage.key != key:
        raise UserError(
            f"train: the footage of {folder} has changed since it began; begin a new run (--init {folder})"
        )
    footage, _ = footage.split(recipe.data.held_out)
    clips_of_this_rank(recipe)
    config = {**before, "recipe": recipe_to_dict(recipe)}
    if steps is not None or minutes is not None:
        config |= schedule.to_config()
    if rank() == 0 and config != before:
        write_config(folder, config)
    if steps is not None and recipe.training.schedule != "constant":
        say(f"train: the learning rate falls to 0 at step {steps} from now on")
    return _announce_run(folder, recipe, footage)


def _read_progress_made(folder: Path, recipe: Recipe, schedule: Schedule) -> dict[str, Any]:
    """The progress of the last intact checkpoint. It is read as a whole, as the loop will read it again."""
    checkpoint_folder_to_resume(folder)
    return load_last_intact_checkpoint(folder, make_trainer(recipe, schedule).init())[1]


def _announce_run(folder: Path, recipe: Recipe, footage: Footage) -> Run:
    """Print what is about to be trained, and return the run."""
    say(f"train: {folder}: {len(footage.frames)} frames, {footage.step_fps:g} learned steps a second")
    if has_slow_blas():
        say('train: this will be many times slower than it could be; install "mlxlava[cpu]" and g++')
    return Run(folder, recipe, footage)


def absolute_paths(sources: Sequence[str | Path]) -> list[str]:
    """The paths of footage as a run stores them: it may be resumed from another folder."""
    return [str(Path(source).expanduser().resolve()) for source in sources]


def _prepare_footage(sources: Sequence[str | Path], recipe: Recipe) -> Footage:
    """The footage of a recipe. If several processes train together, the first one prepares it."""
    return run_on_first_rank_first(
        lambda: prepare_from_settings(sources, recipe.data, seed=recipe.training.seed)
    )
