"""Write docs/reference.md: every command, setting, key and variable, as the code has them.

    python tools/reference.py            # write it (make reference)
    python tools/reference.py --check    # exit 1 if it is not what the code says

tests/project/test_reference.py holds it. Nothing in that page is written by hand but the short texts below.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from mlxlava.cli import cli
from mlxlava.config import load_recipe, recipe_names, setting_rows
from mlxlava.playback.keys import KEYS
from mlxlava.playback.writers import WRITER_OF_FORMAT

TARGET = Path(__file__).parents[1] / "docs/reference.md"

HEAD = """# Reference

Every command, setting, format, key and variable. This page is generated from the code by `make reference`,
and a test holds it: change the code, not this page.

[Commands](#commands) · [Settings](#settings) · [Formats](#formats) · [Keys](#keys) · [Variables](#variables)
"""

SETTINGS_HEAD = """
## Settings

Each recipe has all of them. `mlxlava train --set section.name=value` changes one, and so does the argument
`settings` of `mlxlava.train`. `mlxlava info --recipe NAME` shows the values of a recipe. A TOML file with
`extends = "lava"` and the settings that differ is a recipe too: `mlxlava train --recipe mine.toml`.

A value in the tables is that of the recipe `lava`. Behind it stand other recipes whose value differs.
"""

# What the package reads. Variables of other programs (TERM, DISPLAY, SSH_CONNECTION …) are not listed.
VARIABLES = {
    "MLXLAVA_CORES": "how many cores are used on a Linux CPU; all when not set",
    "MLXLAVA_TERMINAL": "how a terminal shows pictures: auto, kitty, iterm2, sixel, blocks or 256",
    "MLXLAVA_GPU_PATH": "1: compute on a CPU with the code that is written for GPUs, to test it",
    "MLXLAVA_BLAS": "0: do not load a faster library for matrix products on Linux",
    "XDG_CACHE_HOME": "folder for the package's cache: footage, pictures of the built-in lamp, compiled code",
    "MLX_ENABLE_TF32": "the package sets 0: products in float32 are exact; with 1 states drift on some GPUs",
    "SDL_VIDEODRIVER": "how a window is shown; dummy: not at all, for tests",
}


def page() -> str:
    """The text of the page."""
    parts = [HEAD, "\n## Commands"]
    parts += map(_command, [cli, *(cli.commands[name] for name in sorted(cli.commands))])
    parts.append(SETTINGS_HEAD)
    parts += _settings()
    parts += ["\n## Formats\n\n", *_formats(), "\n## Keys\n\n", *_keys(), "\n## Variables\n\n", *_variables()]
    return "\n".join(part.removesuffix("\n") for part in parts) + "\n"


def _command(command: click.Command) -> str:
    """A command: what it does, its arguments and options, its example."""
    is_group = isinstance(command, click.Group)
    title = "mlxlava" if is_group else f"mlxlava {command.name}"
    arguments = [_argument(each) for each in command.params if isinstance(each, click.Argument)]
    usage = " ".join([title, "[OPTIONS]", *(["COMMAND …"] if is_group else arguments)])
    text = inspect.cleandoc(command.help or "")
    lines = [f"\n### {title}\n", text, f"\n    {usage}\n"]
    options = [each for each in command.params if isinstance(each, click.Option)]
    lines += _table(("option", "what it does"), map(_option, options))
    example = inspect.cleandoc((command.epilog or "").replace("\b\n", ""))
    what, _, line = example.partition("\n")
    return "\n".join([*lines, f"\n{what}:\n\n    {line.strip()}\n"])


def _argument(argument: click.Argument) -> str:
    return argument.metavar or f"[{_kind(argument.type)}]"


def _option(option: click.Option) -> tuple[str, str]:
    """The cells of an option. click's own texts are not used, since they differ from version to version."""
    value = "" if option.is_flag else f" {option.metavar or _kind(option.type)}"
    names = ", ".join(f"`{name}{value}`" for name in option.opts)
    more = [_range(option.type)] if isinstance(option.type, (click.IntRange, click.FloatRange)) else []
    if option.show_default and not option.is_flag:
        more.append(f"{option.default} when not given")
    if option.multiple:
        more.append("may be given several times")
    text = (option.help or "").rstrip(".")
    return names, f"{text}. {'; '.join(more).capitalize()}." if more else f"{text}."


def _kind(kind: click.ParamType) -> str:  # type: ignore[type-arg,unused-ignore]  # generic in newer clicks
    if isinstance(kind, click.Choice):
        return "|".join(kind.choices)
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        return "N" if isinstance(kind, click.IntRange) else "X"
    return str(kind.name)


def _range(kind: Any) -> str:
    """The values that a number may have."""
    what = "a whole number" if isinstance(kind, click.IntRange) else "a number"
    low = f" above {kind.min}" if kind.min_open else f", at least {kind.min}"
    return what + low + ("" if kind.max is None else f", at most {kind.max}")


def _settings() -> Iterator[str]:
    """A table for each section of a recipe."""
    others = {name: _values(name) for name in recipe_names() if name != "lava"}
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for name, value, text in setting_rows(load_recipe("lava")):
        differing = [
            f"{each}: `{found[name]}`" for each, found in others.items() if found[name] != _toml(value)
        ]
        cell = "; ".join([f"`{_toml(value)}`", *differing])
        rows.setdefault(name.partition(".")[0], []).append((f"`{name}`", cell, text))
    for section, found in rows.items():
        yield f"\n### {section}\n\n"
        yield from _table(("setting", "value", "what it is"), found)


def _values(recipe: str) -> dict[str, str]:
    return {name: _toml(value) for name, value, _ in setting_rows(load_recipe(recipe))}


def _toml(value: Any) -> str:
    """A value as it is typed behind ``--set name=``."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _formats() -> Iterator[str]:
    yield "What `-o FILE` and `--format` of `loop` and `lamp` write.\n\n"
    rows = [
        (f"`{name}`", ", ".join(f"`.{each}`" for each in kind.endings))
        for name, kind in WRITER_OF_FORMAT.items()
    ]
    yield from _table(("format", "endings of files"), rows)


def _keys() -> Iterator[str]:
    rows = [(f"{each.label}", each.help, ", ".join(each.screens)) for each in KEYS]
    yield "`web` is the page of `--screen web`, `page` the page that `mlxlava export --web` writes.\n\n"
    yield from _table(("keys", "what they do", "where"), rows)


def _variables() -> Iterator[str]:
    yield from _table(("variable", "what it does"), [(f"`{name}`", text) for name, text in VARIABLES.items()])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="Write docs/reference.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    text = page()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/reference.md is not what the code says: make reference")


if __name__ == "__main__":
    main()
