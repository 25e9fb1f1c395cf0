"""The log of a run, ``log.jsonl``: a line of JSON for each training step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mlxlava.errors import UserError
from mlxlava.paths import write_text_atomically
from mlxlava.records import LOG_LINE
from mlxlava.schema import read_lines
from mlxlava.training.callbacks import Callbacks, StepReport


class LogWriter(Callbacks):
    """Writes a line for each step."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def on_step(self, report: StepReport) -> None:
        """Write the line of a step."""
        self._file.write(json.dumps(log_line(report)) + "\n")


def log_line(report: StepReport) -> dict[str, float]:
    """The line of a step: its number, the time spent in all sessions, every term, pace and memory."""
    line = {"step": report.step, "seconds": round(report.seconds, 3), **report.terms}
    line["clips_per_second"] = report.clips_per_second
    return line | {f"peak_{name}_gb": round(value, 3) for name, value in report.peaks_gb.items()}


@contextlib.contextmanager
def open_log(run: Path, step: int) -> Iterator[LogWriter]:
    """Open the log of a run to append to it after ``step``.

    An interrupted run may have logged steps after its last checkpoint. These lines are deleted, since the
    steps will be made again.

    Raises:
        UserError: the log cannot be written.
    """
    path = run / "log.jsonl"
    try:
        kept = []
        if path.exists():
            kept = [text + "\n" for text, line in read_lines(path, LOG_LINE) if line["step"] <= step]
        write_text_atomically(path, "".join(kept))
        # Written line by line. So the log has every step of a checkpoint, however the process ends.
        with path.open("a", buffering=1, encoding="utf-8") as file:
            yield LogWriter(file)
    except OSError as error:
        raise UserError(f"train: cannot write {path}: {error.strerror}; the checkpoints are kept") from error
