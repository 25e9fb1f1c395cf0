"""Messages, tables, and the progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mlxlava.text import clean_text

OnProgress = Callable[[float, "float | None", str], None]

_MIN_SECONDS_BETWEEN_LINES = 10.0  # of progress that is not shown on a terminal
_MAX_KEPT_MESSAGES = 200
_MAX_SHOWN = 2000  # characters of a cell or of a value

_is_muted = False
_messages: deque[str] = deque(maxlen=_MAX_KEPT_MESSAGES)
_cached_console: Console | None = None
_stream_of_cached_console: TextIO | None = None


def mute() -> None:
    """Print no more messages in this process. If several processes do the same work, one of them prints."""
    global _is_muted
    _is_muted = True


def say(text: str) -> None:
    """Print a line on stderr, above the progress bar if there is one."""
    if _is_muted:
        return
    text = clean_text(text, keep="\n")
    _messages.append(text)
    _print(text)


def take_messages() -> list[str]:
    """The lines that ``say`` has printed since the last call of this function, at most the last 200."""
    taken = list(_messages)
    _messages.clear()
    return taken


@contextlib.contextmanager
def progress(what: str) -> Iterator[OnProgress]:
    """Show the progress of long work.

    Args:
        what: name of the work, at the start of the line.

    Yields:
        A function to be called with the amount done, the total amount (None if unknown) and a text.
    """
    if _is_muted or not _stderr_console().is_terminal:
        yield _plain_line_progress(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=_stderr_console(), transient=True, expand=True) as shown:
        task = shown.add_task(what, total=None, text="")

        def update(done: float, total: float | None, text: str) -> None:
            shown.update(task, completed=done, total=total, text=text)

        yield update


def print_rows(rows: Mapping[str, str]) -> None:
    """Print names and values on stdout, in two columns."""
    shown = {clean_text(name, _MAX_SHOWN): clean_text(value, _MAX_SHOWN) for name, value in rows.items()}
    width = max(map(len, shown))
    for name, value in shown.items():
        print(f"{name:{width}}  {value}")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left_aligned: int = 1
) -> None:
    """Print a table on stdout; only a terminal cuts it.

    The first ``left_aligned`` columns are aligned left.
    """
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index < left_aligned else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(clean_text(cell, _MAX_SHOWN)) for cell in row))
    console = Console()
    Console(width=console.width if console.is_terminal else 200, highlight=False).print(shown)


def format_duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _plain_line_progress(what: str) -> OnProgress:
    last = -_MIN_SECONDS_BETWEEN_LINES

    def update(done: float, total: float | None, text: str) -> None:
        nonlocal last
        finished = total is not None and done >= total
        if finished or time.monotonic() - last >= _MIN_SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            percent = f"{done / total:4.0%} " if total else ""
            _print(f"{what} {percent}{text}")

    return update


def _print(text: str) -> None:
    if not _is_muted:
        _stderr_console().print(text, highlight=False, markup=False, soft_wrap=True)


class _LastingStream:
    """A stream whose errors are ignored: what is printed may be lost with the terminal, but no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if that is still possible."""
        with contextlib.suppress(OSError, ValueError):  # the terminal, or the program behind a pipe, is gone
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is still possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _stderr_console() -> Console:
    global _cached_console, _stream_of_cached_console
    # Messages and a bar must use the same console. A new console is made if sys.stderr was replaced, but not
    # by rich, which does so while a bar is shown.
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    if _cached_console is None or _stream_of_cached_console is not stream:
        _stream_of_cached_console = stream
        _cached_console = Console(file=cast(TextIO, _LastingStream(stream)))
    return _cached_console
