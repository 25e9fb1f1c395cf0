"""The commands that judge weights and machines: score, drift, check."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

import mlxlava
from mlxlava.cli.completion import complete_weights
from mlxlava.cli.help import example
from mlxlava.cli.options import combine_options, debug_option

# The options of score and drift have the names of the arguments of mlxlava.score and mlxlava.drift.
_footage_options = combine_options(
    click.argument("weights", metavar="WEIGHTS", shell_complete=complete_weights),
    click.option(
        "--footage",
        metavar="FOOTAGE",
        type=click.Path(),
        help="What they were trained on; may be left out for the built-in lamp.",
    ),
    click.option(
        "--held-out",
        metavar="FOOTAGE",
        type=click.Path(),
        help="Footage of the same lamp that they were not trained on.",
    ),
)
_output_options = combine_options(
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Which lamps."
    ),
    click.option(
        "-o", "picture", metavar="FILE.png", type=click.Path(path_type=Path), help="Picture to write."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables."),
)


@click.command(
    epilog=example("mlxlava score runs/mine --footage lamp.mp4 -o score.png", "a table, and a picture")
)
@_footage_options
@click.option(
    "--frames", type=click.IntRange(1), default=16384, show_default=True, help="Frames to draw, at most."
)
@_output_options
@debug_option
def score(as_json: bool, **arguments: Any) -> None:
    """Score learned lamps against real footage: pictures, motion, memory.

    Each figure is printed beside that of real footage, compared with other footage of the same lamp.
    """
    from mlxlava.evaluation.report import print_score_table

    result = mlxlava.score(**arguments)
    print(json.dumps(result)) if as_json else print_score_table(result)


@click.command(
    epilog=example("mlxlava drift runs/mine --footage lamp.mp4 -o drift.png", "a table, and a picture")
)
@_footage_options
@click.option(
    "--frames", type=click.IntRange(1), default=100_000, show_default=True, help="Learned steps to roll."
)
@_output_options
@debug_option
def drift(as_json: bool, **arguments: Any) -> None:
    """Follow learned lamps over a long roll-out: do pictures, motion and state stay what they are?

    32 lamps are rolled side by side; frames are drawn in windows at 1, 2 and 5 times powers of ten.
    """
    from mlxlava.evaluation.report import print_drift_table

    result = mlxlava.drift(**arguments)
    print(json.dumps(result)) if as_json else print_drift_table(result)
    if result["interrupted_at"] is not None:
        raise KeyboardInterrupt


@click.command(epilog=example("mlxlava check --json", "what to paste into an issue"))
@click.option(
    "--only", metavar="PATTERN", default="", help="Checks whose group or name this pattern matches."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables: for a report.")
@debug_option
def check(only: str, as_json: bool) -> None:
    """Check that this machine computes what it should.

    Run it first on a new machine, above all on a Mac. It compares what the GPU computes with what the CPU
    computes. The exit status is 1 if a check fails; below its line stands what that means.
    """
    from mlxlava.checks import checked_machine_facts, table
    from mlxlava.console import print_rows

    if as_json:
        report = mlxlava.check(only)
        click.echo(table.results_as_json(report.about, report.results, report.seconds))
    else:
        print_rows(checked_machine_facts())
        click.echo(f"\n{table.format_heading()}")
        report = mlxlava.check(
            only, on_group=lambda group, found: click.echo(f"{table.format_group(group, found)}\n")
        )
        click.echo(table.format_summary(report.results, report.seconds))
    if not report.ok:
        sys.exit(1)
