"""The commands that write and describe files: footage, export, info."""

from __future__ import annotations

import json
import platform
import shlex
from pathlib import Path
from typing import Any

import click

from mlxlava import __version__
from mlxlava.cli.options import cutting, debug
from mlxlava.config import Data, check_size, describe_settings, format_size, load_recipe
from mlxlava.errors import UserError


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="FOOTAGE...")
@click.option(
    "-o", "folder", required=True, metavar="DATA", type=click.Path(path_type=Path), help="Folder to write."
)
@cutting
@debug
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
@debug
def export(run: Path, folder: Path, half: bool, scored: Path | None) -> None:
    """Write the weights of a run, with a model card and a sample picture."""
    from mlxlava.console import say
    from mlxlava.paths import read_json
    from mlxlava.rollout.export import export as export_run

    score = None if scored is None else read_json(scored, "export")
    weights = export_run(run, folder, half=half, score=score)
    if "pace" not in weights.about:
        say("export: the run's footage is gone, so the lamp's pace is as learned")
    say(f"export: {folder}: step {weights.about['steps']}; play it: mlxlava loop --weights {folder}")


@click.command()
@click.argument("name", required=False, metavar="[WEIGHTS|RUN]")
@click.option("--recipe", metavar="NAME|FILE", help="Show every setting of a recipe, for train --set.")
@debug
def info(name: str | None, recipe: str | None) -> None:
    """Show the machine, what weights were learned from and how, or a recipe's settings."""
    from mlxlava.console import table

    if recipe is not None:
        if name is not None:
            raise UserError("info: give weights or --recipe, not both")
        settings = describe_settings(load_recipe(recipe))
        rows = {f"{key} = {json.dumps(value)}": text for key, value, text in settings}
    elif name is None:
        from mlxlava.backend import describe
        from mlxlava.paths import cache_folder
        from mlxlava.rollout.weights import shipped_weights

        rows = {"mlxlava": __version__, "python": platform.python_version(), "system": platform.platform()}
        rows |= describe()
        rows |= {"cache": str(cache_folder())}
        rows |= {"weights": ", ".join(path.name for path in shipped_weights()) or "none"}
    else:
        from mlxlava.rollout.export import describe_weights
        from mlxlava.rollout.weights import load_weights

        rows = describe_weights(load_weights(name))
    table(rows)
