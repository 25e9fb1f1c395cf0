"""The commands that judge weights and machines: score, drift, check."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

import mlxlava
from mlxlava.cli.options import debug, options

_judging = options(
    click.argument("name", metavar="WEIGHTS"),
    click.option(
        "--footage",
        "source",
        metavar="FOOTAGE",
        help="What they were trained on; may be left out for the built-in lamp.",
    ),
    click.option(
        "--held-out", metavar="FOOTAGE", help="Footage of the same lamp that they were not trained on."
    ),
)
_showing = options(
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Which lamps."
    ),
    click.option(
        "-o", "target", metavar="FILE.png", type=click.Path(path_type=Path), help="Picture to write."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables."),
)


@click.command()
@_judging
@click.option(
    "--frames", type=click.IntRange(1), default=16384, show_default=True, help="Frames to draw, at most."
)
@_showing
@debug
def score(
    name: str,
    source: str | None,
    held_out: str | None,
    frames: int,
    seed: int,
    target: Path | None,
    as_json: bool,
) -> None:
    """Score learned lamps against real footage: pictures, motion, memory.

    Every figure stands beside what real footage scores against real footage of the same lamp.
    """
    from mlxlava.evaluation.report import score_table

    result = mlxlava.score(name, source, held_out=held_out, frames=frames, seed=seed, picture=target)
    print(json.dumps(result)) if as_json else score_table(result)


@click.command()
@_judging
@click.option(
    "--frames", type=click.IntRange(1), default=100_000, show_default=True, help="Learned steps to roll."
)
@_showing
@debug
def drift(
    name: str,
    source: str | None,
    held_out: str | None,
    frames: int,
    seed: int,
    target: Path | None,
    as_json: bool,
) -> None:
    """Follow learned lamps over a long roll-out: do pictures, motion and state stay what they are?

    32 lamps are rolled side by side; frames are drawn in windows at 1, 2 and 5 times powers of ten.
    """
    from mlxlava.evaluation.report import drift_table

    result = mlxlava.drift(name, source, held_out=held_out, frames=frames, seed=seed, picture=target)
    print(json.dumps(result)) if as_json else drift_table(result)
    if result["interrupted_at"] is not None:
        raise KeyboardInterrupt


@click.command()
@click.option(
    "--only", metavar="PATTERN", default="", help="Checks whose group or name this pattern matches."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables: for a report.")
@debug
def check(only: str, as_json: bool) -> None:
    """Check that this machine computes what it should.

    To be run first on a new machine, above all on a Mac. What the GPU computes is compared with what the CPU
    does. The exit status is 1 if a check fails; what that means stands below its line.
    """
    from mlxlava.checks import about, table
    from mlxlava.console import table as print_rows

    if as_json:
        report = mlxlava.check(only)
        click.echo(table.as_json(report.about, report.results, report.seconds))
    else:
        print_rows(about())
        click.echo(f"\n{table.heading()}")
        report = mlxlava.check(
            only, on_group=lambda group, found: click.echo(f"{table.lines(group, found)}\n")
        )
        click.echo(table.summary(report.results, report.seconds))
    if not report.ok:
        sys.exit(1)
