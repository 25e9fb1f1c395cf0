"""The report of a run, ``report.html``: one page with curves, previews, choices, messages and commands.

The page is one file that asks for nothing from anywhere. It is written anew while the run trains, from what
is in the run's folder: ``config.json``, ``log.jsonl``, ``previews/``, ``messages.jsonl``, ``scores.jsonl``.
So a run of an older version has a report too (``mlxlava report``). report.html beside this file is the
template. Everything that comes from files is escaped before it is put in.

With 20 previews of 1038×1290 pixels in it, a page takes 0.1 s to write, most of that for the new preview.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import html
import io
import json
import shlex
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.config import format_size
from mlxlava.console import format_duration, say, take_messages
from mlxlava.errors import UserError
from mlxlava.footage.pictures import read_picture
from mlxlava.paths import (
    GROWTH_PLAN_FILE,
    SMALL_LAMP_FOLDER,
    append_lines,
    read_json,
    write_text_atomically,
)
from mlxlava.records import MESSAGE_LINE, SCORE_LINE
from mlxlava.schema import Check, read_lines
from mlxlava.text import clean_text
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.curves import Curves, read_curves
from mlxlava.training.log import log_line
from mlxlava.training.schedule import Schedule

REPORT_FILE, MESSAGES_FILE, SCORES_FILE = "report.html", "messages.jsonl", "scores.jsonl"

_MAX_PREVIEWS = 24
_MAX_PREVIEW_BYTES = 1_500_000  # of all previews of a page together
_PREVIEW_SIDE = 1056  # pixels; a longer side is made smaller
_PREVIEW_QUALITY = 80
_MAX_CELL = 5000  # characters
_MAX_KEPT_LINES = 300  # of messages and of scores
# A page is written anew only if so many times its own writing time has passed since the last time.
_WRITING_TIMES_BETWEEN_WRITES = 50
_QUIET_SHARE_OF_STEPS = 0.25  # the share of the steps, at the beginning, in which no warning sign is said
_JUDGED_SHARE_OF_STEPS = (
    0.05  # the share of the steps, at the end, whose means are judged by ``_warning_signs``
)


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


@dataclasses.dataclass(frozen=True)
class Status:
    """How a training stands, as far as the folder of the run does not tell.

    Attributes:
        text: whether it trains, or how it ended.
        live: whether the page will be written again.
        report: figures of the last step of this session, if there was one.
    """

    text: str
    live: bool = False
    report: StepReport | None = None


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
        for name, text in _warning_signs(self._curves).items():
            if name not in self._said:
                self._said.add(name)
                say(f"train: {text} (step {report.step}; docs/training.md says what may help)")

    def write(self, status: Status) -> None:
        """Write the page now."""
        began = time.monotonic()
        _add_lines(self._run / MESSAGES_FILE, [_message_line(text) for text in take_messages()])
        _write_page(self._run, self._curves, self._pictures, status)
        self._written = time.monotonic()
        self._cost = self._written - began

    def finish(self, error: BaseException | None) -> None:
        """Write the page for the last time, after the training has ended, perhaps by an error."""
        if error is not None:
            with contextlib.suppress(UserError):  # the error itself is what the user has to know
                _add_lines(self._run / MESSAGES_FILE, [_message_line(str(error) or type(error).__name__)])
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
            total = _as_int(read_json(folder / "config.json", "report").get("total_steps"))
            finished = 0 < total <= curves.last_step
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
    _add_lines(run / SCORES_FILE, [{**line, "ratios": ratios}])


def _add_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    if not lines:
        return
    try:
        append_lines(path, [json.dumps(line) for line in lines])
    except OSError as error:
        raise UserError(f"train: cannot write {path}: {error.strerror}; the checkpoints are kept") from error


def _message_line(text: str) -> dict[str, str]:
    return {"time": _now(), "text": text}


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def _last_lines(path: Path, check: Check) -> list[dict[str, Any]]:
    """The objects in the last lines of a file; lines that cannot be read are left out."""
    found: deque[dict[str, Any]] = deque(maxlen=_MAX_KEPT_LINES)
    with contextlib.suppress(OSError):
        found.extend(line for _, line in read_lines(path, check))
    return list(found)


def _as_int(value: object) -> int:
    return value if isinstance(value, int) else 0


# The page.


def _write_page(run: Path, curves: Curves, pictures: Pictures, status: Status) -> None:
    config = read_json(run / "config.json", "report")
    page = _render(run, config, curves, pictures.choose(), status)
    try:
        write_text_atomically(run / REPORT_FILE, page)
    except OSError as error:
        where = run / REPORT_FILE
        raise UserError(f"train: cannot write {where}: {error.strerror}; the checkpoints are kept") from error


def _render(
    run: Path, config: Mapping[str, Any], curves: Curves, pictures: Mapping[int, bytes], status: Status
) -> str:
    """The page as text."""
    scores, recipe = _last_lines(run / SCORES_FILE, SCORE_LINE), _dict_or_empty(config.get("recipe"))
    total = _as_int(config.get("total_steps"))
    parts = {
        "TITLE": html.escape(clean_text(_name_of(run))),
        "SUMMARY": _summary(config, recipe, curves, total, status),
        "PROGRESS": f"{min(1.0, curves.last_step / total) if total else 0:.4f}",
        "WARNINGS": _list_section("Warnings", list(_warning_signs(curves).values())),
        "SCORES": _score_section(scores),
        "CHOICES": _choice_section(config.get("choices")),
        "COMMANDS": _command_section(run, config),
        "MESSAGES": _message_section(_last_lines(run / MESSAGES_FILE, MESSAGE_LINE)),
        "FOOTAGE": _rows_section("Footage", _footage_rows(config)),
        "MACHINE": _rows_section("Hardware", _dict_or_empty(config.get("machine"))),
        "SETTINGS": _settings_section(recipe),
        "DATA": _as_script_data(
            {
                "total": total,
                "dStart": _first_step_with_d(config, total),
                "steps": curves.steps,
                "terms": {name: list(map(_rounded, means)) for name, means in curves.terms().items()},
                "previews": {
                    str(step): "data:image/webp;base64," + base64.b64encode(data).decode()
                    for step, data in pictures.items()
                },
                "scores": [{name: line.get(name) for name in ("step", "image", "motion")} for line in scores],
            }
        ),
    }
    page = (files("mlxlava.training") / "report.html").read_text(encoding="utf-8")
    # Split, so that a part that holds the mark of another part is left alone.
    pieces = page.split("%%")
    return "".join(parts[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _as_script_data(values: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: no text in it can end that element or begin a comment."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _name_of(run: Path) -> str:
    whole = run.resolve()
    return f"{whole.parent.name}/{whole.name}" if whole.name == SMALL_LAMP_FOLDER else whole.name


def _dict_or_empty(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _summary(
    config: Mapping[str, Any], recipe: Mapping[str, Any], curves: Curves, total: int, status: Status
) -> str:
    """The lines at the top."""
    size = _dict_or_empty(recipe.get("data")).get("size")
    size = format_size((size[0], size[1])) if isinstance(size, list) and len(size) == 2 else "?"
    first = [
        f"step {curves.last_step} of {total}: {status.text}",
        f"recipe {recipe.get('name', '?')}, {size}",
    ]
    second = []
    seconds = status.report.seconds if status.report else curves.latest("seconds")
    if seconds is not None:
        second.append(f"{format_duration(seconds)} of training")
    pace = curves.latest("clips_per_second")
    if pace is not None:
        second.append(f"{pace:.1f} clips a second")
    if status.live and status.report is not None:
        second.append(f"about {format_duration(status.report.seconds_left)} left")
    second.append(f"written {_now()}")
    if status.live:
        second.append("load this page again for news")
    return "".join(
        f"<p>{html.escape(clean_text(' · '.join(line), _MAX_CELL))}</p>" for line in (first, second)
    )


def _first_step_with_d(config: Mapping[str, Any], total: int) -> int | None:
    """The step at which the discriminator joins in; None if it never does, or does from the start."""
    recipe = _dict_or_empty(config.get("recipe"))
    if _dict_or_empty(recipe.get("generator")).get("upsampler_widths"):  # such a network learns without it
        return None
    try:
        schedule = Schedule.from_config(config)
        step = schedule.first_step_at(float(_dict_or_empty(recipe.get("loss")).get("d_start", 0)))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):  # a damaged config
        return None
    return step if 0 < step < total else None


def _warning_signs(curves: Curves) -> dict[str, str]:
    """What is wrong in the last steps, by name, in words (the table in docs/training.md)."""
    count = max(1, round(_JUDGED_SHARE_OF_STEPS * len(curves.steps)))
    if len(curves.steps) < 2 or curves.last_step < 100:
        return {}
    terms = curves.terms()

    def last(name: str) -> float | None:
        found = [value for value in terms.get(name, [])[-count:] if value is not None]
        return sum(found) / len(found) if found else None

    warnings = {}
    loss, spread, drawn, real = map(last, ("loss_d", "state_spread", "motion_drawn", "motion_real"))
    if loss is not None and loss < 0.01:
        warnings["loss_d"] = (
            "The discriminator is always right (loss_d below 0.01), so the generator learns nothing any more."
        )
    if spread is not None and spread < 0.1:
        warnings["state_spread"] = "All lamps show the same (state_spread near 0)."
    if drawn is not None and real and drawn / real < 0.3:
        warnings["motion"] = f"The lamp hardly moves: {drawn / real:.2f} times the motion of the footage."
    errors = [value for value in terms.get("reconstruction", []) if value is not None]
    error = last("reconstruction")
    if error is not None and error > 2 * min(errors):
        warnings["reconstruction"] = (
            f"The reconstruction error has risen from {min(errors):.3g} to {error:.3g}."
        )
    return warnings


def _section(title: str, body: str, *, closed: bool = False) -> str:
    if closed:
        return f"<details><summary><h2>{html.escape(title)}</h2></summary>{body}</details>"
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _list_section(title: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return _section(title, f'<ul class="warnings">{items}</ul>')


def _html_table(rows: Iterable[Sequence[object]], heading: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heading)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_as_text(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>'


def _as_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return clean_text(text, _MAX_CELL)


def _rows_section(title: str, rows: Mapping[str, Any]) -> str:
    return _section(title, _html_table(rows.items())) if rows else ""


def _choice_section(choices: object) -> str:
    rows = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    if not rows:
        return ""
    names = ("setting", "value", "reason")
    return _section(
        "What was chosen, and why",
        _html_table(([row.get(name, "") for name in names] for row in rows), names),
    )


def _score_section(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    names = ("step", "image", "motion", "against")
    about = (
        "<p>The distance of the lamp from real footage, divided by the distance between two parts of real "
        "footage. 1 is as good as real footage.</p>"
    )
    table = _html_table(([_with_two_decimals(line.get(name)) for name in names] for line in scores), names)
    ratios = _dict_or_empty(scores[-1].get("ratios"))
    each = _html_table(
        ((name, _with_two_decimals(value)) for name, value in ratios.items()), ("measure", "ratio")
    )
    return _section("Score", about + table + f"<details><summary>Each measure</summary>{each}</details>")


def _with_two_decimals(value: object) -> object:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else value


def _footage_rows(config: Mapping[str, Any]) -> dict[str, Any]:
    found = _dict_or_empty(config.get("footage"))
    sources = found.get("sources")
    names = [str(each) for each in sources] if isinstance(sources, list) else []
    rows: dict[str, Any] = {"footage": ", ".join(names) or "the built-in lamp"}
    if "frames" in found:
        rows["frames"] = found["frames"]
    if "step_fps" in config:
        rows["learned steps a second"] = config["step_fps"]
    return rows


def _message_section(messages: Sequence[Mapping[str, Any]]) -> str:
    rows = [(str(each.get("time", "")), str(each.get("text", ""))) for each in messages]
    return _section("Messages", _html_table(rows)) if rows else ""


def _settings_section(recipe: Mapping[str, Any]) -> str:
    rows = [
        (f"{section}.{name}", value)
        for section, settings in recipe.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
    ]
    return _section("All settings", _html_table(rows), closed=True) if rows else ""


def _command_section(run: Path, config: Mapping[str, Any]) -> str:
    # A run that grows is resumed as a whole, also while its smaller lamp is trained.
    grows = run.name == SMALL_LAMP_FOLDER and (run.parent / GROWTH_PLAN_FILE).is_file()
    whole, this = shlex.quote(str(run.parent if grows else run)), shlex.quote(str(run))
    rows = {
        "started by": str(config.get("command", "")),
        "continue": f"mlxlava train --resume -o {whole}",
        **next_commands(this, config),
    }
    body = "".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(clean_text(command, _MAX_CELL))}</code></dd>"
        for name, command in rows.items()
        if command
    )
    small = run / SMALL_LAMP_FOLDER / REPORT_FILE
    link = f'<p><a href="{SMALL_LAMP_FOLDER}/{REPORT_FILE}">The smaller lamp that it grew from</a></p>'
    return _section("Commands", f'<dl class="commands">{body}</dl>' + (link if small.is_file() else ""))


def find_report(run: Path) -> Path:
    """Where the report of a run is: in ``small`` while the smaller lamp of a run that grows is trained."""
    small = run / SMALL_LAMP_FOLDER / REPORT_FILE
    return small if small.is_file() and not (run / REPORT_FILE).is_file() else run / REPORT_FILE


def next_commands(run: str, config: Mapping[str, Any]) -> dict[str, str]:
    """What can be done with a run, by what it is for.

    Args:
        run: folder of the run, quoted for a shell.
        config: config of the run; it names the footage that ``score`` needs.
    """
    sources = _dict_or_empty(config.get("footage")).get("sources")
    first = next(iter(sources), None) if isinstance(sources, list) else None
    footage = f" --footage {shlex.quote(str(first))}" if first else ""
    return {
        "play": f"mlxlava loop --weights {run}",
        "score": f"mlxlava score {run}{footage}",
        "export": f"mlxlava export {run} -o my-lamp",
        "report": f"mlxlava report {run}",
    }
