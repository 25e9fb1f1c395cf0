"""The command that runs the benchmarks: bench."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from mlxlava.cli.options import debug
from mlxlava.errors import UserError


@click.command()
@click.option("--quick", is_flag=True, help="Fewer repeats, training at 64×64 alone: under two minutes.")
@click.option("--only", metavar="PATTERN", default="", help="Measurements whose name this pattern matches.")
@click.option(
    "--save", is_flag=True, help="Write the result, and a chart, to the benchmarks' results folder."
)
@click.option(
    "--memory",
    metavar="GB",
    type=click.FloatRange(0, min_open=True),
    help="Skip what would take more; the machine's memory when not given.",
)
@debug
def bench(quick: bool, only: str, save: bool, memory: float | None) -> None:
    """Measure training, playing, preparing and scoring on this machine.

    Where PyTorch is installed, the same training steps run in it as well.
    """
    sys.path.insert(0, str(_benchmarks()))
    importlib.import_module("suite").main(quick=quick, only=only, save=save, memory=memory)


def _benchmarks() -> Path:
    """The benchmark suite: beside this file in a wheel, at the top of a checkout."""
    folders = (Path(__file__).parents[1] / "benchmarks", Path(__file__).parents[3] / "benchmarks")
    found = next((folder for folder in folders if (folder / "suite.py").is_file()), None)
    if found is None:
        raise UserError("bench: the benchmark suite is not installed; install the wheel or a checkout")
    return found
