"""``python -m mlxlava``, and the start of the command ``mlxlava``."""

import signal


def main() -> None:
    """Load the command line and run it.

    Loading takes some tenths of a second. A Ctrl-C in that time ends the process by the signal's own default,
    without a traceback. Afterwards the commands handle it themselves.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mlxlava.cli import main as run_command_line

    run_command_line(handler)


if __name__ == "__main__":
    main()
