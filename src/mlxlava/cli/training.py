"""The commands that learn a lamp, and that say what fits into memory: train, plan."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxlava.cli.options import SIZE, cutting, debug
from mlxlava.config import (
    Recipe,
    load_recipe,
    override,
    parse_settings,
    recipe_from_dict,
    recipe_to_dict,
)
from mlxlava.errors import UserError

if TYPE_CHECKING:
    from mlxlava.footage.prepared import Footage
    from mlxlava.training.plan import Row


@click.command()
@click.argument("sources", nargs=-1, metavar="[FOOTAGE]...")
@click.option("-o", "run", metavar="RUN", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--recipe", metavar="NAME|FILE", help="What to train and how; lava when not given.")
@cutting
@click.option("--seq-len", type=click.IntRange(1), help="Learned steps a clip spans.")
@click.option("--batch-size", type=click.IntRange(1), help="Clips a training step looks at.")
@click.option("--init", metavar="WEIGHTS", help="Weights whose G and R to start from.")
@click.option("--steps", type=click.IntRange(1), help="Training steps in all.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after so many minutes.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of weights, clips and states.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of the recipe; mlxlava info --recipe lava lists them.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="Work on a batch in parts so that MLX's arrays stay below this; see mlxlava plan. "
    "On a GPU the device's memory when not given.",
)
@click.option("--resume", is_flag=True, help="Go on with RUN, or with the latest one in runs/.")
@click.option("--tensorboard", is_flag=True, help="Write scalars, previews and states for TensorBoard too.")
@debug
def train(
    sources: tuple[str, ...],
    run: Path | None,
    init: str | None,
    minutes: float | None,
    resume: bool,
    tensorboard: bool,
    **changes: Any,
) -> None:
    """Learn a lamp: from videos or folders of images, or the built-in lamp.

    Ctrl-C saves; --resume goes on exactly where it stopped.
    """
    _one_speaks()
    if resume:
        run = run or _latest_run()
        recipe, footage = _resume(run, sources, init, changes)
    else:
        run = run or _next_run(changes["recipe"] or "lava")
        recipe = _recipe(changes)
        from mlxlava.backend.ranks import first_rank_first
        from mlxlava.footage.from_settings import prepare_from_settings
        from mlxlava.rollout.weights import load_weights
        from mlxlava.training.folder import start_run

        footage = first_rank_first(
            lambda: prepare_from_settings(sources, recipe.data, seed=recipe.training.seed)
        )
        paths = [str(Path(source).expanduser().resolve()) for source in sources]
        warm = load_weights(init).arrays if init else None
        start_run(run, recipe, footage, paths, "mlxlava " + shlex.join(sys.argv[1:]), warm)

    from mlxlava.awake import keep_awake
    from mlxlava.backend import has_slow_blas
    from mlxlava.console import clock, say
    from mlxlava.training.failures import Diverged, ProcessLost
    from mlxlava.training.loop import train as train_run

    say(f"train: {run}: {len(footage.frames)} frames, {footage.step_fps:g} learned steps a second")
    if has_slow_blas():
        say('train: this will be many times slower than it could be; install "mlxlava[cpu]" and g++')
    try:
        with keep_awake():
            outcome = train_run(
                run, recipe, footage, minutes=minutes, memory=changes.get("memory"), tensorboard=tensorboard
            )
    except (Diverged, ProcessLost) as error:
        say(f"mlxlava: {error}")
        sys.exit(1)
    say(f"train: {run} is at step {outcome.step} after {clock(outcome.seconds)}")
    say(f"train: play it: mlxlava loop --weights {run}")
    if outcome.signal is not None:
        say(f"train: go on: mlxlava train --resume -o {run}")
        sys.exit(128 + outcome.signal)


def _one_speaks() -> None:
    """Of the processes that mlx.launch has started, let the first tell what goes on."""
    if "MLX_RANK" in os.environ:
        from mlxlava.backend.ranks import rank
        from mlxlava.console import mute

        if rank():
            mute()


def _recipe(changes: dict[str, Any]) -> Recipe:
    """The recipe with what the options and ``--set`` change in it."""
    settings = parse_settings(changes["settings"])
    for name in ("size", "crop", "every_nth", "seq_len", "batch_size"):
        if changes[name] is not None:
            settings[f"data.{name}"] = changes[name]
    if changes["seed"] is not None:
        settings["training.seed"] = changes["seed"]
    if changes["steps"] is not None:
        settings |= {"training.steps": changes["steps"], "training.epochs": 0}
    recipe = override(load_recipe(changes["recipe"] or "lava"), settings)
    return _fit(recipe, changes["memory"])


def _fit(recipe: Recipe, gigabytes: float | None) -> Recipe:
    """The recipe, worked on in parts so that a step fits, and says what was chosen.

    Without ``gigabytes`` it fits into what the GPU has for MLX, the smallest one of all processes; what is
    trained on a CPU, or fits as it is, stays as it is then.
    """
    from mlxlava.backend import memory_budget, on_gpu_path
    from mlxlava.backend.ranks import any_rank, ranks
    from mlxlava.console import say
    from mlxlava.training.plan import fit_into, predict

    gpu, asked = on_gpu_path(), gigabytes is not None
    if gigabytes is None:
        if not gpu:
            return recipe
        gigabytes = -any_rank(-int(1000 * memory_budget())) / 1000
    try:
        fitted = fit_into(recipe, gigabytes, ranks(), gpu=gpu)
    except UserError as error:
        raise (
            error if asked else UserError(f"{error}; or try it all the same, with a larger --memory")
        ) from error
    if asked or fitted != recipe:
        training = fitted.training
        again = ", frames recomputed" if training.recompute else ""
        say(
            f"train: a step in {training.micro_batches} part{'s' * (training.micro_batches > 1)}{again}: "
            f"about {predict(fitted, ranks(), gpu=gpu):.2f} of {gigabytes:.3g} GB" + ", estimated" * gpu
        )
    return fitted


def _resume(
    run: Path, sources: Sequence[str], init: str | None, changes: dict[str, Any]
) -> tuple[Recipe, Footage]:
    """The recipe and footage of a run; only its number of steps and the parts of a batch may change."""
    from mlxlava.backend.ranks import first_rank_first, rank
    from mlxlava.console import say
    from mlxlava.footage.from_settings import prepare_from_settings
    from mlxlava.paths import read_json
    from mlxlava.training.folder import write_config

    steps, memory = changes.pop("steps"), changes["memory"]
    changes = {name: value for name, value in changes.items() if name != "memory"}
    given = [name for name, value in changes.items() if value not in (None, ())]
    if given or sources or init:
        what = "footage" if sources else "--" + (given[0] if given else "init").replace("_", "-")
        raise UserError(f"train: --resume goes on as the run began, so {what} cannot be given")
    if not (run / "config.json").is_file():
        raise UserError(f"train: {run} is no run; leave --resume out to begin one")
    config = read_json(run / "config.json", "run")
    try:
        recipe = recipe_from_dict(config["recipe"])
        about = config["footage"]
        paths, key = list(about["sources"]), about["key"]
    except (KeyError, TypeError) as error:
        raise UserError(f"train: {run}/config.json lacks {error}; it is no run") from error
    if steps is not None:
        # D joins in at the step at which it would have.
        alone = min(1.0, recipe.loss.alone * config["total_steps"] / steps)
        recipe = override(recipe, {"loss.alone": alone})
        config |= {"total_steps": steps}
        if recipe.training.schedule != "constant":
            say(f"train: the learning rate falls to 0 at step {steps} from now on")
    recipe = _fit(recipe, memory)
    if rank() == 0 and (steps is not None or recipe_to_dict(recipe) != config["recipe"]):
        write_config(run, {**config, "recipe": recipe_to_dict(recipe)})
    footage = first_rank_first(lambda: prepare_from_settings(paths, recipe.data, seed=recipe.training.seed))
    if footage.key != key:
        raise UserError(
            f"train: the footage of {run} has changed since it began; begin a new run (--init {run})"
        )
    return recipe, footage


def _next_run(recipe: str) -> Path:
    """runs/lava-001 or the first such folder that is free."""
    name = Path(recipe).stem
    return next(path for n in range(1, 10**6) if not (path := Path("runs") / f"{name}-{n:03d}").exists())


def _latest_run() -> Path:
    """The run in runs/ that was written to last."""
    logs = sorted(Path("runs").glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise UserError("train: there is no run in runs/ to resume; give its folder with -o")
    return logs[-1].parent


@click.command()
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), metavar="GB", help="This machine's when not given."
)
@click.option(
    "--recipe", metavar="NAME|FILE", default="lava", show_default=True, help="What to train and how."
)
@click.option("--size", "sizes", type=SIZE, multiple=True, help="Sizes to plan for; 64, 128 and 256.")
@click.option("--seq-len", "lengths", type=click.IntRange(1), multiple=True, help="Lengths; 20 and 200.")
@click.option("--batch-size", "batches", type=click.IntRange(1), multiple=True, help="Batches; 8, 16 and 32.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting of the recipe.")
@debug
def plan(
    memory: float | None,
    recipe: str,
    sizes: tuple[tuple[int, int], ...],
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    settings: tuple[str, ...],
) -> None:
    """Show what fits: the memory of a training step by size, sequence and batch.

    MLX's arrays at their peak, predicted; the process takes some 20 % more. What is too large is worked on
    in parts (train --memory GB chooses the same): it takes no longer and learns the same. For GPUs all of it
    is an estimate, which train checks in its first steps.
    """
    from mlxlava.backend import memory_budget, on_gpu_path
    from mlxlava.console import print_table
    from mlxlava.training.plan import table

    gigabytes = memory_budget() if memory is None else memory
    rows = table(
        override(load_recipe(recipe), parse_settings(settings)),
        gigabytes,
        sizes or ((64, 64), (128, 128), (256, 256)),
        lengths or (20, 200),
        batches or (8, 16, 32),
        gpu=on_gpu_path(),
    )
    columns = ("size", "sequence", "batch", "peak, GB", "to fit", "peak then, GB", "headroom, GB")
    title = f"{recipe}, {gigabytes:.1f} GB for MLX"
    if on_gpu_path():
        title += "; estimated, as nothing was measured on a GPU"
    print_table(title, columns, [_planned(row, gigabytes) for row in rows])


def _planned(row: Row, gigabytes: float) -> tuple[str, ...]:
    """A line of the plan's table."""
    data = row.recipe.data
    head = ("×".join(map(str, data.size)), str(data.seq_len), str(data.batch_size), f"{row.peak:.2f}")
    if row.fitted is None or row.fitted_peak is None:
        return (*head, "does not fit", "", "")
    training = row.fitted.training
    parts = "as it is" if training.micro_batches == 1 else f"{training.micro_batches} parts"
    again = ", recomputed" if training.recompute else ""
    return (*head, parts + again, f"{row.fitted_peak:.2f}", f"{gigabytes - row.fitted_peak:.1f}")
