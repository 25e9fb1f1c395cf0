"""Messages, tables, and the progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

Update = Callable[[float, "float | None", str], None]

_LINE_EVERY = 10.0  # seconds between plain lines


_quiet = False


def mute() -> None:
    """Print no more messages in this process. Of several that do the same work, one is enough."""
    global _quiet
    _quiet = True


def say(text: str) -> None:
    """Print a line on stderr, above the progress bar if there is one."""
    if _quiet:
        return
    _console().print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Update]:
    """Show the progress of long work.

    Args:
        what: its name, at the start of the line.

    Yields:
        A function of the amount done, the total amount (None if unknown) and a text.
    """
    if _quiet or not _console().is_terminal:
        yield _lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=_console(), transient=True, expand=True) as shown:
        task = shown.add_task(what, total=None, text="")

        def update(done: float, total: float | None, text: str) -> None:
            shown.update(task, completed=done, total=total, text=text)

        yield update


def table(rows: Mapping[str, str]) -> None:
    """Names and values on stdout, in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table on stdout, cut only on a terminal. All columns but the first ``left`` are aligned right."""
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    Console(width=console.width if console.is_terminal else 200, highlight=False).print(shown)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _lines(what: str) -> Update:
    last = -_LINE_EVERY

    def update(done: float, total: float | None, text: str) -> None:
        nonlocal last
        finished = total is not None and done >= total
        if finished or time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            percent = f"{done / total:4.0%} " if total else ""
            say(f"{what} {percent}{text}")

    return update


def _console() -> Console:
    global _stderr
    # Messages and a bar must use the same console. A new one is made where sys.stderr was replaced.
    if _stderr is None or _stderr.file is not sys.stderr:
        _stderr = Console(file=sys.stderr)
    return _stderr


_stderr: Console | None = None
