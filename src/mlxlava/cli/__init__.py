"""The command line: it parses options, calls the library and prints; each group of commands has a file.

May import everything. Start here, with ``cli`` and ``main``. Commands import MLX, NumPy and what plays inside
their functions, so that ``--help`` loads none of them.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

import click

from mlxlava import __version__
from mlxlava.cli.benchmark import bench
from mlxlava.cli.completion import COMPLETION_VARIABLE, completion
from mlxlava.cli.files import export, footage, info, report
from mlxlava.cli.help import CommandGroup, example
from mlxlava.cli.judging import check, drift, score
from mlxlava.cli.options import debug_option
from mlxlava.cli.playing import lamp, loop
from mlxlava.cli.training import plan, train
from mlxlava.errors import UserError
from mlxlava.failures import DeviceFailed, explain_device_failure
from mlxlava.text import clean_text

_MAX_LINE = 2000  # characters of an error


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("mlxlava loop", "play a learned lamp until q"),
    invoke_without_command=True,
    subcommand_metavar="[COMMAND] [ARGS]...",
)
@click.version_option(__version__)
@debug_option
@click.pass_context
def cli(context: click.Context) -> None:
    """Learn a lava lamp from footage and play it for ever."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    bench,
    check,
    completion,
    drift,
    export,
    footage,
    info,
    lamp,
    loop,
    plan,
    report,
    score,
    train,
):
    cli.add_command(_command)


def main(ctrl_c_handler: Any = None) -> None:
    """Run the command line.

    A user's mistake is one line on stderr and exit status 2. So is a file that the system does not let us
    use. A failure of MLX's device is one line and exit status 1. If the reader of stdout has closed it, the
    command ends with 1 and without a line.

    Args:
        ctrl_c_handler: what handles SIGINT from now on; None leaves it as it is.
    """
    try:
        if ctrl_c_handler is not None:
            signal.signal(signal.SIGINT, ctrl_c_handler)
        cli.main(standalone_mode=False, complete_var=COMPLETION_VARIABLE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        sys.exit(1)
    except (UserError, click.ClickException, KeyboardInterrupt, click.Abort, OSError) as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, (KeyboardInterrupt, click.Abort)):
            sys.exit(130)
        _end_with_line(error.format_message() if isinstance(error, click.ClickException) else str(error), 2)
    except (DeviceFailed, RuntimeError, MemoryError) as error:
        failure = explain_device_failure(error)
        if "--debug" in sys.argv or (failure is None and not isinstance(error, DeviceFailed)):
            raise
        _end_with_line(f"{failure.what}; {failure.advice}" if failure else str(error), 1)


def _end_with_line(text: str, status: int) -> NoReturn:
    """Say on one line of stderr why the command ends. Names in it may come from anyone's files."""
    print(f"mlxlava: {clean_text(' '.join(text.split()), _MAX_LINE)}", file=sys.stderr)
    sys.exit(status)
