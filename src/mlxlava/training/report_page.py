"""The page of a run's report as text: ``report.html`` beside this file is the template.

Everything that comes from files is escaped before it is put in.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import html
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlxlava.config import format_size
from mlxlava.console import format_duration
from mlxlava.paths import GROWTH_PLAN_FILE, SMALL_LAMP_FOLDER
from mlxlava.text import clean_text
from mlxlava.training.callbacks import StepReport
from mlxlava.training.curves import Curves
from mlxlava.training.schedule import Schedule
from mlxlava.training.warning_signs import find_warning_signs

REPORT_FILE = "report.html"

_MAX_CELL = 5000  # characters


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


def render_page(
    run: Path,
    config: Mapping[str, Any],
    curves: Curves,
    pictures: Mapping[int, bytes],
    messages: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    status: Status,
) -> str:
    """The page as text.

    Args:
        run: folder of the run.
        config: its config, which may be damaged.
        curves: curves of its log.
        pictures: previews by step, WebP.
        messages: lines of ``messages.jsonl``.
        scores: lines of ``scores.jsonl``.
        status: how the training stands.
    """
    recipe = _dict_or_empty(config.get("recipe"))
    total = _as_int(config.get("total_steps"))
    parts = {
        "TITLE": html.escape(clean_text(_name_of(run))),
        "SUMMARY": _summary(recipe, curves, total, status),
        "PROGRESS": f"{min(1.0, curves.last_step / total) if total else 0:.4f}",
        "WARNINGS": _warning_section(find_warning_signs(curves).values()),
        "SCORES": _score_section(scores),
        "CHOICES": _choice_section(config.get("choices")),
        "COMMANDS": _command_section(run, config),
        "MESSAGES": _message_section(messages),
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


def _summary(recipe: Mapping[str, Any], curves: Curves, total: int, status: Status) -> str:
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
    second.append(f"written {format_now()}")
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


def _section(title: str, body: str, *, closed: bool = False) -> str:
    if closed:
        return f"<details><summary><h2>{html.escape(title)}</h2></summary>{body}</details>"
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _warning_section(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return _section("Warnings", f'<ul class="warnings">{items}</ul>') if items else ""


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


def format_now() -> str:
    """The time, to the minute."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def _as_int(value: object) -> int:
    return value if isinstance(value, int) else 0
