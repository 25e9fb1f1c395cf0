"""Results as a person reads them, 80 columns wide, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence

import click

from mlxlava.checks.base import Result

_NAME, _FOUND, _ALLOWED = 36, 20, 13  # columns; with the verdict 80
_INDENT = "      "


def heading() -> str:
    """What the columns hold."""
    return click.style(f"  {'':{_NAME}} {'found':{_FOUND}} allowed", bold=True)


def lines(group: str, results: Sequence[Result]) -> str:
    """A group's table, with what a failed check means below it."""
    text = [click.style(group, bold=True)]
    for each in results:
        verdict = click.style("ok", fg="green") if each.ok else click.style("FAILED", fg="red", bold=True)
        text.append(f"  {each.name:{_NAME}} {each.found:{_FOUND}} {each.allowed:{_ALLOWED}} {verdict}")
        if not each.ok:
            text.append(textwrap.fill(each.meaning, 80, initial_indent=_INDENT, subsequent_indent=_INDENT))
    return "\n".join(text)


def summary(results: Sequence[Result], seconds: float) -> str:
    """The last line: how many checks failed."""
    failed = sum(not each.ok for each in results)
    if not failed:
        return f"{len(results)} checks, all ok; {seconds:.0f} s"
    return (
        f"{failed} of {len(results)} checks failed; {seconds:.0f} s\n"
        "To report it, open an issue with the output of mlxlava check --json."
    )


def as_json(about: dict[str, str], results: Sequence[Result], seconds: float) -> str:
    """Everything, for a report."""
    return json.dumps(
        {
            "about": about,
            "ok": all(each.ok for each in results),
            "seconds": round(seconds, 1),
            "results": [dataclasses.asdict(each) for each in results],
        },
        indent=1,
        ensure_ascii=False,
    )
