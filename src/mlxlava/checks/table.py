"""Results of checks as a table of 80 columns, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence

import click

from mlxlava.checks.base import Result

_NAME_COLUMNS, _FOUND_COLUMNS, _ALLOWED_COLUMNS = 36, 20, 13  # columns; with the verdict 80
_INDENT = "      "


def format_heading() -> str:
    """The heading of the table."""
    return click.style(f"  {'':{_NAME_COLUMNS}} {'found':{_FOUND_COLUMNS}} allowed", bold=True)


def format_group(group: str, results: Sequence[Result]) -> str:
    """The table of a group. Below a failed check stands what the failure means."""
    text = [click.style(group, bold=True)]
    for each in results:
        verdict = click.style("ok", fg="green") if each.ok else click.style("FAILED", fg="red", bold=True)
        found = f"{each.found:{_FOUND_COLUMNS}} {each.allowed:{_ALLOWED_COLUMNS}}"
        text.append(f"  {each.name:{_NAME_COLUMNS}} {found} {verdict}")
        if not each.ok:
            text.append(textwrap.fill(each.meaning, 80, initial_indent=_INDENT, subsequent_indent=_INDENT))
    return "\n".join(text)


def format_summary(results: Sequence[Result], seconds: float) -> str:
    """The last line: how many checks failed."""
    failed = sum(not each.ok for each in results)
    if not failed:
        return f"{len(results)} checks, all ok; {seconds:.0f} s"
    return (
        f"{failed} of {len(results)} checks failed; {seconds:.0f} s\n"
        "To report it, open an issue with the output of mlxlava check --json."
    )


def results_as_json(about: dict[str, str], results: Sequence[Result], seconds: float) -> str:
    """All results as JSON, for a report."""
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
