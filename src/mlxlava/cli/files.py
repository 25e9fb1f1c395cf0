"""The commands that write and describe files: footage, export, report, info."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

import mlxlava
from mlxlava.cli.completion import complete_recipes, complete_weights
from mlxlava.cli.help import example
from mlxlava.cli.options import cropping_options, debug_option
from mlxlava.config import Data, check_size, format_size
from mlxlava.errors import UserError
from mlxlava.text import clean_text


@click.command(epilog=example("mlxlava footage lamp.mp4 -o data", "a video as footage for several runs"))
@click.argument("sources", nargs=-1, required=True, metavar="FOOTAGE...", type=click.Path())
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


@click.command(
    epilog=example("mlxlava export lava --web lamp.html", "a page that plays the lamp in any browser")
)
@click.argument("weights", metavar="RUN|NAME", shell_complete=complete_weights)
@click.option(
    "-o", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Folder of weights to write."
)
@click.option("--half", is_flag=True, help="Store the weights as float16: half the size.")
@click.option(
    "--score",
    "scored",
    metavar="FILE.json",
    type=click.Path(path_type=Path),
    help="What score --json printed of the run, for the card.",
)
@click.option(
    "--web",
    metavar="FILE.html",
    type=click.Path(path_type=Path),
    help="Web page to write: one file that plays in any browser.",
)
@click.option(
    "--onnx",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of ONNX graphs to write, with an example that plays them.",
)
@debug_option
def export(
    weights: str, folder: Path | None, half: bool, scored: Path | None, web: Path | None, onnx: Path | None
) -> None:
    """Write a lamp: weights with a model card, a web page, or ONNX graphs.

    RUN is a folder that train made. All but -o also take the NAME of shipped weights, or a folder of weights.
    """
    from mlxlava.console import say
    from mlxlava.paths import read_json

    score = None if scored is None else read_json(scored, "export")
    written = mlxlava.export(weights, folder, half=half, score=score, web=web, onnx=onnx)
    if folder is not None:
        if "pace" not in written.about:
            say("export: the run's footage is gone, so the lamp's pace is as learned")
        say(f"export: {folder}: step {written.about['steps']}; play it: mlxlava loop --weights {folder}")
    if web is not None:
        say(f"export: {web}: {web.stat().st_size / 1e6:.1f} MB; open it in a browser")
    if onnx is not None:
        say(f"export: {onnx}: generator.onnx and state_step.onnx; play them: python {onnx / 'play.py'}")


@click.command(epilog=example("mlxlava report runs/mine", "write the page again"))
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@debug_option
def report(run: Path) -> None:
    """Write RUN/report.html anew: curves, previews, choices, messages, commands.

    train writes it by itself; this is for runs of older versions and for runs that were copied.
    """
    click.echo(clean_text(str(mlxlava.report(run))))


@click.command(epilog=example("mlxlava info lava", "what the shipped lamp was learned from, and how"))
@click.argument("name", required=False, metavar="[WEIGHTS|RUN]", shell_complete=complete_weights)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipes,
    help="Show every setting of a recipe, for train --set.",
)
@click.option("--verify", is_flag=True, help="Check whether weights, or all checkpoints of RUN, are intact.")
@debug_option
def info(name: str | None, recipe: str | None, verify: bool) -> None:
    """Show the machine, what weights were learned from and how, or a recipe's settings.

    With --verify the exit status is 1 if something is damaged.
    """
    from mlxlava.console import print_rows

    if verify:
        if recipe is not None:
            raise UserError("info: --verify is for weights and runs, not for --recipe")
        rows = mlxlava.info(name, verify=True)
        print_rows(rows)
        if any(verdict.startswith("damaged") for verdict in rows.values()):
            sys.exit(1)
        return
    if recipe is not None:
        if name is not None:
            raise UserError("info: give weights or --recipe, not both")
        rows = {f"{key} = {json.dumps(value)}": text for key, value, text in mlxlava.settings(recipe)}
    else:
        rows = mlxlava.info(name)
    print_rows(rows)
