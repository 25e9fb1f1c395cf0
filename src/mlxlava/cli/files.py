"""The commands that write and describe files: footage, export, report, info."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

import mlxlava
from mlxlava.cli.options import cropping_options, debug_option
from mlxlava.config import Data, check_size, format_size
from mlxlava.errors import UserError


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="FOOTAGE...")
@click.option(
    "-o", "folder", required=True, metavar="DATA", type=click.Path(path_type=Path), help="Folder to write."
)
@cropping_options
@debug_option
def footage(sources: tuple[str, ...], folder: Path, **changes: Any) -> None:
    """Prepare footage for training: videos or folders of images.

    train does the same by itself; DATA can be given to it in place of FOOTAGE.
    """
    from mlxlava.console import say
    from mlxlava.footage.from_settings import prepare_from_settings

    data = Data(**{name: value for name, value in changes.items() if value is not None})
    check_size(data.size)
    prepared = prepare_from_settings(sources, data, folder=folder)
    say(
        f"footage: {prepared.path}: {len(prepared.frames)} frames of {format_size(prepared.size)}, "
        f"{prepared.step_fps:g} a second; train: mlxlava train {shlex.quote(str(folder))}"
    )


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write."
)
@click.option("--half", is_flag=True, help="Store float16: half the size.")
@click.option(
    "--score",
    "scored",
    metavar="FILE.json",
    type=click.Path(path_type=Path),
    help="What score --json printed of the run, for the card.",
)
@debug_option
def export(run: Path, folder: Path, half: bool, scored: Path | None) -> None:
    """Write the weights of a run, with a model card and a sample picture."""
    from mlxlava.console import say
    from mlxlava.paths import read_json

    score = None if scored is None else read_json(scored, "export")
    weights = mlxlava.export(run, folder, half=half, score=score)
    if "pace" not in weights.about:
        say("export: the run's footage is gone, so the lamp's pace is as learned")
    say(f"export: {folder}: step {weights.about['steps']}; play it: mlxlava loop --weights {folder}")


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@debug_option
def report(run: Path) -> None:
    """Write RUN/report.html anew: curves, previews, choices, messages, commands.

    train writes it by itself; this is for runs of older versions and for runs that were copied.
    """
    click.echo(mlxlava.report(run))


@click.command()
@click.argument("name", required=False, metavar="[WEIGHTS|RUN]")
@click.option("--recipe", metavar="NAME|FILE", help="Show every setting of a recipe, for train --set.")
@debug_option
def info(name: str | None, recipe: str | None) -> None:
    """Show the machine, what weights were learned from and how, or a recipe's settings."""
    from mlxlava.console import print_rows

    if recipe is not None:
        if name is not None:
            raise UserError("info: give weights or --recipe, not both")
        rows = {f"{key} = {json.dumps(value)}": text for key, value, text in mlxlava.settings(recipe)}
    else:
        rows = mlxlava.info(name)
    print_rows(rows)
