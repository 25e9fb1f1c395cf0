"""The command that runs the benchmarks: bench."""

from __future__ import annotations

import click

from mlxlava.cli.help import example
from mlxlava.cli.options import debug_option, positive_number


@click.command(
    epilog=example("mlxlava bench --quick", "training, playing and preparing, measured within two minutes")
)
@click.option("--quick", is_flag=True, help="Fewer repeats, training at 64×64 alone: under two minutes.")
@click.option("--only", metavar="PATTERN", default="", help="Measurements whose name this pattern matches.")
@click.option(
    "--save", is_flag=True, help="Write the result, and a chart, to the benchmarks' results folder."
)
@click.option(
    "--memory",
    metavar="GB",
    type=positive_number(),
    help="Skip what would take more; the machine's memory when not given.",
)
@debug_option
def bench(quick: bool, only: str, save: bool, memory: float | None) -> None:
    """Measure training, playing, preparing and scoring on this machine.

    In a checkout where PyTorch is installed, the same training steps run in it as well.
    """
    from mlxlava.bench.suite import main

    main(quick=quick, only=only, save=save, memory=memory)
