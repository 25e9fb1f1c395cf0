"""The commands that train a lamp and that predict what fits into memory: train, plan."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mlxlava
from mlxlava.cli.completion import complete_recipes, complete_settings, complete_weights
from mlxlava.cli.help import example
from mlxlava.cli.options import SIZE_TYPE, cropping_options, debug_option, positive_number
from mlxlava.config import WATCH_SCREENS, format_size, parse_settings
from mlxlava.errors import UserError

if TYPE_CHECKING:
    from mlxlava.training.memory_plan import PlanRow


_recipe_option = click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipes,
    help="What to train and how; lava when not given.",
)
_settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_settings,
    help="Any setting of the recipe; mlxlava info --recipe lava lists them.",
)


@click.command(
    epilog=example("mlxlava train lamp.mp4 --minutes 60 -o runs/mine", "learn a video within an hour")
)
@click.argument("sources", nargs=-1, metavar="[FOOTAGE]...", type=click.Path())
@click.option("-o", "run", metavar="RUN", type=click.Path(path_type=Path), help="Folder of the run.")
@_recipe_option
@cropping_options
@click.option("--seq-len", type=click.IntRange(1), help="Learned steps a clip spans.")
@click.option("--batch-size", type=click.IntRange(1), help="Clips a training step looks at.")
@click.option(
    "--init",
    metavar="WEIGHTS",
    shell_complete=complete_weights,
    help="Weights to start from; smaller ones grow to --size.",
)
@click.option("--steps", type=click.IntRange(1), help="Training steps in all.")
@click.option("--minutes", type=positive_number(), help="Be finished after so many minutes.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of weights, clips and states.")
@_settings_option
@click.option(
    "--memory",
    type=positive_number(),
    metavar="GB",
    help="Work on a batch in parts so that MLX's arrays stay below this; see mlxlava plan. "
    "On a GPU the device's memory when not given.",
)
@click.option("--resume", is_flag=True, help="Go on with RUN, or with the latest one in runs/.")
@click.option("--tensorboard", is_flag=True, help="Write scalars, previews and states for TensorBoard too.")
@click.option(
    "--watch",
    type=click.Choice(WATCH_SCREENS),
    help="Play the lamp as it is now, in a window or on a web page, while it learns.",
)
@debug_option
def train(
    sources: tuple[str, ...],
    run: Path | None,
    init: str | None,
    minutes: float | None,
    resume: bool,
    tensorboard: bool,
    watch: str | None,
    **changes: Any,
) -> None:
    """Learn a lamp: from videos or folders of images, or the built-in lamp.

    For your own video, train chooses crop, size, frames a step and more, and says why. With --minutes the run
    is finished in that time. Ctrl-C saves the run; --resume goes on exactly where it stopped. With --steps or
    --minutes as well, the run becomes longer.
    """
    from mlxlava.api.watching import open_viewer
    from mlxlava.console import say
    from mlxlava.training.failures import Diverged, ProcessLost

    steps, memory = changes.pop("steps"), changes.pop("memory")
    if resume:
        _require_no_changes(sources, {**changes, "init": init})
    settings = _changed_settings(changes)
    try:
        with open_viewer(watch) as callbacks:
            if resume:
                done = mlxlava.resume(
                    run,
                    steps=steps,
                    minutes=minutes,
                    memory=memory,
                    tensorboard=tensorboard,
                    callbacks=callbacks,
                )
            else:
                done = mlxlava.train(
                    sources,
                    changes["recipe"] or "lava",
                    run=run,
                    settings=settings,
                    steps=steps,
                    minutes=minutes,
                    memory=memory,
                    init=init,
                    tensorboard=tensorboard,
                    callbacks=callbacks,
                    command="mlxlava " + shlex.join(sys.argv[1:]),
                )
    except (Diverged, ProcessLost) as error:
        say(f"mlxlava: {error}")
        sys.exit(1)
    _say_what_next(done)
    if done.signal is not None:
        sys.exit(128 + done.signal)


def _say_what_next(done: mlxlava.TrainedRun) -> None:
    """Say how far a run is, what it scores if it is finished, and the commands that go on from here."""
    from mlxlava.api.ending import is_finished, score_finished_run
    from mlxlava.console import format_duration, say
    from mlxlava.paths import read_json
    from mlxlava.training.report import find_report
    from mlxlava.training.report_page import next_commands

    say(f"train: {done.run} is at step {done.step} after {format_duration(done.seconds)}")
    if done.signal is None and is_finished(done):
        say(f"train: {score_finished_run(done.run)}")
    else:
        say(f"train: go on: mlxlava train --resume -o {shlex.quote(str(done.run))}")
    path = done.run / "config.json"  # a run that has not grown yet has none
    config = read_json(path, "run") if path.is_file() else {}
    for name, command in next_commands(shlex.quote(str(done.run)), config).items():
        if name != "report":
            say(f"train: {name} it: {command}")
    if done.signal is None:
        say(f"train: train it longer: mlxlava train --resume -o {shlex.quote(str(done.run))} --minutes 60")
    say(f"train: report: {find_report(done.run)}")


def _changed_settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recipe that the options and ``--set`` change."""
    settings = parse_settings(changes["settings"])
    for name in ("size", "crop", "every_nth", "source_fps", "seq_len", "batch_size"):
        if changes[name] is not None:
            settings[f"data.{name}"] = changes[name]
    if changes["seed"] is not None:
        settings["training.seed"] = changes["seed"]
    return settings


def _require_no_changes(sources: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Raise UserError for options that a run cannot be resumed with."""
    given = [name for name, value in changes.items() if value not in (None, ())]
    if sources or given:
        what = "footage" if sources else "--" + given[0].replace("_", "-")
        raise UserError(f"train: --resume goes on as the run began, so {what} cannot be given")


@click.command(epilog=example("mlxlava plan --memory 8 --size 128", "what fits into 8 GB at 128×128"))
@click.option("--memory", type=positive_number(), metavar="GB", help="This machine's when not given.")
@_recipe_option
@click.option("--size", "sizes", type=SIZE_TYPE, multiple=True, help="Sizes to plan for; 64, 128 and 256.")
@click.option("--seq-len", "lengths", type=click.IntRange(1), multiple=True, help="Lengths; 20 and 200.")
@click.option("--batch-size", "batches", type=click.IntRange(1), multiple=True, help="Batches; 8, 16 and 32.")
@_settings_option
@debug_option
def plan(
    memory: float | None,
    recipe: str | None,
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
    from mlxlava.backend import memory_budget_gb, on_gpu_path
    from mlxlava.console import print_table

    name = recipe or "lava"
    gigabytes = memory_budget_gb() if memory is None else memory
    rows = mlxlava.plan(
        name,
        sizes=sizes or ((64, 64), (128, 128), (256, 256)),
        seq_lens=lengths or (20, 200),
        batch_sizes=batches or (8, 16, 32),
        settings=parse_settings(settings),
        memory=gigabytes,
    )
    columns = ("size", "sequence", "batch", "peak, GB", "to fit", "peak then, GB", "headroom, GB")
    title = f"{name}, {gigabytes:.1f} GB for MLX"
    if on_gpu_path():
        title += "; estimated, as nothing was measured on a GPU"
    print_table(title, columns, [_plan_cells(row, gigabytes) for row in rows])


def _plan_cells(row: PlanRow, gigabytes: float) -> tuple[str, ...]:
    """The cells of a row of the plan's table."""
    data = row.recipe.data
    head = (format_size(data.size), str(data.seq_len), str(data.batch_size), f"{row.peak:.2f}")
    if row.fitted is None or row.fitted_peak is None:
        return (*head, "does not fit", "", "")
    training = row.fitted.training
    split = "as it is" if training.micro_batches == 1 else f"{training.micro_batches} micro-batches"
    again = ", recomputed" if training.recompute else ""
    return (*head, split + again, f"{row.fitted_peak:.2f}", f"{gigabytes - row.fitted_peak:.1f}")
