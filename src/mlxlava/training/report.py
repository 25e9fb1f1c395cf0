"""The report of a run, ``report.html``: one page with curves, previews, choices, messages and commands.

The page is one file that asks for nothing from anywhere. It is written anew while the run trains, from what
is in the run's folder: ``config.json``, ``log.jsonl``, ``previews/``, ``messages.jsonl``, ``scores.jsonl``.
So a run of an older version has a report too (``mlxlava report``). report_page.py makes its text.

With 20 previews of 1038×1290 pixels in it, a page takes 0.1 s to write, most of that for the new preview.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.console import say, take_messages
from mlxlava.errors import UserError
from mlxlava.footage.pictures import read_picture
from mlxlava.paths import (
    SMALL_LAMP_FOLDER,
    append_lines,
    read_json,
    write_text_atomically,
)
from mlxlava.records import MESSAGE_LINE, SCORE_LINE
from mlxlava.schema import Check, read_lines
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.curves import Curves, read_curves
from mlxlava.training.log import log_line
from mlxlava.training.report_page import REPORT_FILE, Status, format_now, render_page
from mlxlava.training.warning_signs import find_warning_signs

_MESSAGES_FILE, _SCORES_FILE = "messages.jsonl", "scores.jsonl"

_MAX_PREVIEWS = 24
_MAX_PREVIEW_BYTES = 1_500_000  # of all previews of a page together
_PREVIEW_SIDE = 1056  # pixels; a longer side is made smaller
_PREVIEW_QUALITY = 80
_MAX_KEPT_LINES = 300  # of messages and of scores
# A page is written anew only if so many times its own writing time has passed since the last time.
_WRITING_TIMES_BETWEEN_WRITES = 50
_QUIET_SHARE_OF_STEPS = 0.25  # the share of the steps, at the beginning, in which no warning sign is said


class Pictures:
    """The previews of a run, compressed for the page, few and small enough."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "previews"
        self._encoded: dict[int, bytes] = {}
        self._stride = 1  # one of so many previews is chosen

    def choose(self) -> dict[int, bytes]:
        """By step, WebP pictures of the first preview, the last one, and evenly spaced ones between.

        As previews become more, every second one of those that were chosen is left out. So each preview is
        compressed only once.
        """
        found = sorted(int(path.stem) for path in self._folder.glob("*.png") if path.stem.isdigit())
        while True:
            steps = list(dict.fromkeys([*found[:: self._stride], *found[-1:]]))
            if len(steps) <= _MAX_PREVIEWS:
                self._encoded = {step: self._encode(step) for step in steps}
                if len(steps) <= 2 or sum(map(len, self._encoded.values())) <= _MAX_PREVIEW_BYTES:
                    return {step: data for step, data in self._encoded.items() if data}
            self._stride *= 2

    def _encode(self, step: int) -> bytes:
        """A preview as WebP; empty if the file cannot be read."""
        if step not in self._encoded:
            buffer = io.BytesIO()
            with contextlib.suppress(UserError, OSError, ValueError):
                picture = read_picture(self._folder / f"{step:06d}.png", "report")
                picture.thumbnail((_PREVIEW_SIDE, 2 * _PREVIEW_SIDE), Image.Resampling.BOX)
                picture.save(buffer, "WEBP", quality=_PREVIEW_QUALITY, method=2)
            self._encoded[step] = buffer.getvalue()
        return self._encoded[step]


class ReportWriter(Callbacks):
    """Writes the report of a run at previews and checkpoints.

    Args:
        run: folder of the run; it has a config.

    Raises:
        UserError: a file cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._curves, self._pictures = run, read_curves(run), Pictures(run)
        self._report: StepReport | None = None
        self._written = -1e9  # when the page was last written
        self._cost = 0.0  # seconds that writing took
        self._said: set[str] = set()  # names of warning signs

    def on_step(self, report: StepReport) -> None:
        """Add the step to the curves."""
        self._report = report
        self._curves.add(report.step, log_line(report))

    def on_preview(self, step: int, sheet: npt.NDArray[np.uint8], states: npt.NDArray[np.float32]) -> None:
        """Write the page, if that is cheap enough."""
        self._write_if_cheap()

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Write the page, if that is cheap enough."""
        self._write_if_cheap()

    def _write_if_cheap(self) -> None:
        self._say_new_warnings()
        if time.monotonic() - self._written >= _WRITING_TIMES_BETWEEN_WRITES * self._cost:
            self.write(Status("training", True, self._report))

    def _say_new_warnings(self) -> None:
        """Say each warning sign once, so that a run that has collapsed does not go on for a night unseen.

        At the beginning of a run nothing is said: no lamp moves yet.
        """
        report = self._report
        if report is None or report.step < _QUIET_SHARE_OF_STEPS * report.total_steps:
            return
        for name, text in find_warning_signs(self._curves).items():
            if name not in self._said:
                self._said.add(name)
                say(f"train: {text} (step {report.step}; docs/training.md says what may help)")

    def write(self, status: Status) -> None:
        """Write the page now."""
        began = time.monotonic()
        _add_lines(self._run / _MESSAGES_FILE, [_message_line(text) for text in take_messages()])
        _write_page(self._run, self._curves, self._pictures, status)
        self._written = time.monotonic()
        self._cost = self._written - began

    def finish(self, error: BaseException | None) -> None:
        """Write the page for the last time, after the training has ended, perhaps by an error."""
        if error is not None:
            with contextlib.suppress(UserError):  # the error itself is what the user has to know
                _add_lines(self._run / _MESSAGES_FILE, [_message_line(str(error) or type(error).__name__)])
                self.write(Status(f"ended by an error ({type(error).__name__})", report=self._report))
            return
        done = self._report is not None and self._report.step >= self._report.total_steps
        self.write(Status("finished" if done else "stopped", report=self._report))


@contextlib.contextmanager
def open_report(run: Path) -> Iterator[ReportWriter]:
    """Keep the report of a run up to date inside the block, and write it a last time at the end."""
    writer = ReportWriter(run)
    try:
        yield writer
    except BaseException as error:
        writer.finish(error)
        raise
    writer.finish(None)


def write_report(run: Path) -> Path:
    """Write the report of a run from its folder alone.

    Returns:
        The page, ``report.html`` in the folder of the run; of a run that has not grown yet, in that of its
        smaller lamp.

    Raises:
        UserError: there is no such run, or the page cannot be written.
    """
    for folder in (run, run / SMALL_LAMP_FOLDER):
        if (folder / "config.json").is_file() and (folder / "log.jsonl").is_file():
            curves = read_curves(folder)
            total = read_json(folder / "config.json", "report").get("total_steps")
            finished = isinstance(total, int) and 0 < total <= curves.last_step
            _write_page(folder, curves, Pictures(folder), Status("finished" if finished else "not finished"))
            return folder / REPORT_FILE
    raise UserError(f"report: {run} is not a run, or it has not made a step yet")


def add_score(run: Path, step: int, result: Mapping[str, Any], against: str) -> None:
    """Keep a score of a run for its report.

    Args:
        run: folder of the run.
        step: training steps that the weights have made.
        result: result of ``mlxlava.score``.
        against: the footage that it was scored against, in words.
    """
    ratios = {name: row["ratio"] for name, row in result["measures"].items()}
    line = {"step": step, **result["headline"], "frames": result["frames"], "against": against}
    _add_lines(run / _SCORES_FILE, [{**line, "ratios": ratios}])


def _add_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    if not lines:
        return
    try:
        append_lines(path, [json.dumps(line) for line in lines])
    except OSError as error:
        raise UserError(f"train: cannot write {path}: {error.strerror}; the checkpoints are kept") from error


def _message_line(text: str) -> dict[str, str]:
    return {"time": format_now(), "text": text}


def _last_lines(path: Path, check: Check) -> list[dict[str, Any]]:
    """The objects in the last lines of a file; lines that cannot be read are left out."""
    found: deque[dict[str, Any]] = deque(maxlen=_MAX_KEPT_LINES)
    with contextlib.suppress(OSError):
        found.extend(line for _, line in read_lines(path, check))
    return list(found)


def _write_page(run: Path, curves: Curves, pictures: Pictures, status: Status) -> None:
    config = read_json(run / "config.json", "report")
    messages, scores = (
        _last_lines(run / name, check)
        for name, check in ((_MESSAGES_FILE, MESSAGE_LINE), (_SCORES_FILE, SCORE_LINE))
    )
    page = render_page(run, config, curves, pictures.choose(), messages, scores, status)
    try:
        write_text_atomically(run / REPORT_FILE, page)
    except OSError as error:
        where = run / REPORT_FILE
        raise UserError(f"train: cannot write {where}: {error.strerror}; the checkpoints are kept") from error


def find_report(run: Path) -> Path:
    """Where the report of a run is: in ``small`` while the smaller lamp of a run that grows is trained."""
    small = run / SMALL_LAMP_FOLDER / REPORT_FILE
    return small if small.is_file() and not (run / REPORT_FILE).is_file() else run / REPORT_FILE
