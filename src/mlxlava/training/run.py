"""Beginning a run and resuming one: its folder, its recipe fitted to memory, its footage, its length.

folder.py knows what is inside the folder of a run; loop.py trains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlxlava.backend import Tree, has_slow_blas, memory_budget, on_gpu_path
from mlxlava.backend.ranks import any_rank, first_rank_first, rank, ranks
from mlxlava.config import Recipe, override, recipe_from_dict, recipe_to_dict
from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.footage.from_settings import prepare_from_settings
from mlxlava.paths import SMALL, read_json
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.folder import checkpoint_to_resume, locked, start_run, write_config
from mlxlava.training.loop import clips_of_this_rank
from mlxlava.training.plan import fit_into, predict
from mlxlava.training.step import Trainer

RUNS = Path("runs")  # in the working folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to be trained.

    Attributes:
        folder: where it is.
        recipe: what it trains and how, with micro-batches that fit into memory.
        footage: what it learns from.
    """

    folder: Path
    recipe: Recipe
    footage: Footage


def next_folder(name: str) -> Path:
    """The first folder of ``runs/name-001``, ``runs/name-002`` … that does not exist yet."""
    return next(path for n in range(1, 10**6) if not (path := RUNS / f"{name}-{n:03d}").exists())


def latest_folder() -> Path:
    """The run in ``runs/`` whose log was written to last.

    Raises:
        UserError: there is none.
    """
    logs = [*RUNS.glob("*/log.jsonl"), *RUNS.glob(f"*/{SMALL}/log.jsonl")]
    if not logs:
        raise UserError("train: there is no run in runs/ to resume; give its folder with -o")
    newest = max(logs, key=lambda path: path.stat().st_mtime).parent
    return newest.parent if newest.name == SMALL else newest


def fit_to_memory(recipe: Recipe, gigabytes: float | None) -> Recipe:
    """Split a recipe's batches so that a training step fits into memory; says what was chosen.

    Args:
        recipe: what to train.
        gigabytes: GB (10⁹ bytes) for MLX's arrays. If None, a GPU's memory is the limit (the smallest one of
            all processes that train together); a recipe for a CPU stays as it is then.

    Returns:
        The recipe with ``training.micro_batches`` and ``training.recompute`` set so that a step fits.

    Raises:
        UserError: it does not fit, whatever the micro-batches.
    """
    gpu, asked = on_gpu_path(), gigabytes is not None
    if gigabytes is None:
        if not gpu:
            return recipe
        gigabytes = -any_rank(-int(1000 * memory_budget())) / 1000
    try:
        fitted = fit_into(recipe, gigabytes, ranks(), gpu=gpu)
    except UserError as error:
        if asked:
            raise
        raise UserError(f"{error}; or try it all the same, with a larger --memory") from error
    if asked or fitted != recipe:
        training = fitted.training
        again = ", frames recomputed" if training.recompute else ""
        split = f"{training.micro_batches} micro-batch{'es' * (training.micro_batches > 1)}"
        say(
            f"train: a step in {split}{again}: "
            f"about {predict(fitted, ranks(), gpu=gpu):.2f} of {gigabytes:.3g} GB" + ", estimated" * gpu
        )
    return fitted


def begin(
    folder: Path,
    recipe: Recipe,
    sources: Sequence[str | Path],
    *,
    warm: Tree | None = None,
    memory: float | None = None,
    command: str = "",
) -> Run:
    """Prepare the footage of a new run, and make its folder with the state at step 0.

    Args:
        folder: where the run goes; a new or an empty folder.
        recipe: what to train and how.
        sources: videos, folders of images, or one folder of prepared footage; the built-in lamp when empty.
        warm: arrays of weights whose generator and state step to start from; random ones when None.
        memory: GB for MLX's arrays (``fit_to_memory``).
        command: what began the run, for its config and its model card.

    Raises:
        UserError: the recipe does not fit into memory, the footage cannot be read or is shorter than a clip,
            the folder holds something, or ``warm`` is of other networks.
    """
    recipe = fit_to_memory(recipe, memory)
    footage = _prepare(sources, recipe)
    absolute = [str(Path(source).expanduser().resolve()) for source in sources]
    start_run(folder, recipe, footage, absolute, command, warm)
    return _ready(folder, recipe, footage)


def resume(folder: Path, *, steps: int | None = None, memory: float | None = None) -> Run:
    """Take up a run as it began; only its length and the split of its batches may change.

    A changed recipe or length is written to the run's config last, when all else is accepted: a run that
    cannot be resumed stays as it was.

    Args:
        folder: the run.
        steps: training steps in all from now on; as many as before when None.
        memory: GB for MLX's arrays (``fit_to_memory``).

    Raises:
        UserError: there is no such run, it has no checkpoint, its footage has changed, it does not fit into
            memory, or another process trains it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"train: {folder} is no run; leave --resume out to begin one")
    before = read_json(folder / "config.json", "run")
    try:
        recipe = recipe_from_dict(before["recipe"])
        sources, key = list(before["footage"]["sources"]), before["footage"]["key"]
        length = int(before["total_steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"train: {folder}/config.json lacks {error}; it is no run") from error
    if steps is not None:
        recipe = change_length(recipe, length, steps)
        length = steps
    recipe = fit_to_memory(recipe, memory)
    footage = _prepare(sources, recipe)
    if footage.key != key:
        raise UserError(
            f"train: the footage of {folder} has changed since it began; begin a new run (--init {folder})"
        )
    clips_of_this_rank(recipe)
    config = {**before, "recipe": recipe_to_dict(recipe), "total_steps": length}
    if rank() == 0 and config != before:
        with locked(folder):
            # Only to check that it can be read; the loop reads it again.
            load_checkpoint(checkpoint_to_resume(folder), Trainer(recipe, length).init())
            write_config(folder, config)
    if steps is not None and recipe.training.schedule != "constant":
        say(f"train: the learning rate falls to 0 at step {steps} from now on")
    return _ready(folder, recipe, footage)


def change_length(recipe: Recipe, before: int, after: int) -> Recipe:
    """The recipe of a run whose number of training steps changes from ``before`` to ``after``.

    ``loss.d_start`` is a fraction of all steps. It is changed so that the discriminator joins in at
    the step at which it would have.

    Raises:
        UserError: ``after`` is less than 1.
    """
    if after < 1:
        raise UserError(f"train: steps must be at least 1, not {after}")
    return override(recipe, {"loss.d_start": min(1.0, recipe.loss.d_start * before / after)})


def _ready(folder: Path, recipe: Recipe, footage: Footage) -> Run:
    """The run; says what is about to be trained."""
    say(f"train: {folder}: {len(footage.frames)} frames, {footage.step_fps:g} learned steps a second")
    if has_slow_blas():
        say('train: this will be many times slower than it could be; install "mlxlava[cpu]" and g++')
    return Run(folder, recipe, footage)


def _prepare(sources: Sequence[str | Path], recipe: Recipe) -> Footage:
    """Footage for a recipe; of processes that train together, the first one prepares it."""
    return first_rank_first(lambda: prepare_from_settings(sources, recipe.data, seed=recipe.training.seed))
