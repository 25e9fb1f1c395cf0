"""The one reader of JSON: what a file holds is checked before anything uses it.

A check is a function of a value and its name. It returns the value, or raises :class:`Mismatch` with a text
that says what was expected. Larger checks are made of smaller ones. The checks of the package's own files are
in ``records.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlxlava.errors import UserError

Check = Callable[[Any, str], Any]

# A value that was read takes up to 25 times as many bytes in memory.
MAX_JSON_BYTES = 16 * 2**20
_MAX_LINE_CHARACTERS = 2**20  # of a line in a file of lines; a longer one is left out
_MAX_DEPTH = 32  # lists and tables in each other; files of this package have at most 6
_SHOWN_CHARACTERS = 60  # of a wrong value, in a message


class Mismatch(ValueError):
    """A value is not what its file should hold. The text is a clause for a message."""


def anything(value: Any, name: str) -> Any:
    """Take any value."""
    return value


def integer(low: int, high: int) -> Check:
    """A whole number within bounds."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise Mismatch(f"{name} must be a whole number in {low} … {high}, not {show(value)}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """A finite number within bounds."""

    def check(value: Any, name: str) -> Any:
        if type(value) not in (int, float) or not low <= value <= high:  # NaN fails the comparison
            raise Mismatch(f"{name} must be a number in {low:g} … {high:g}, not {show(value)}")
        return value

    return check


def boolean(value: Any, name: str) -> Any:
    """True or false."""
    if type(value) is not bool:
        raise Mismatch(f"{name} must be true or false, not {show(value)}")
    return value


def text(longest: int = 100_000) -> Check:
    """A text, at most so many characters long, without a zero character (no path may have one)."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not str or "\0" in value:
            raise Mismatch(f"{name} must be a text, not {show(value)}")
        if len(value) > longest:
            raise Mismatch(f"{name} has {len(value)} characters; at most {longest} are read")
        return value

    return check


def nullable(check: Check) -> Check:
    """Null, or what another check takes."""
    return lambda value, name: None if value is None else check(value, name)


def either(*checks: Check) -> Check:
    """What one of several checks takes."""

    def check(value: Any, name: str) -> Any:
        problems = []
        for each in checks:
            try:
                return each(value, name)
            except Mismatch as problem:
                problems.append(problem)
        raise problems[0]

    return check


def items(check: Check, most: int = 10_000_000) -> Check:
    """A list whose entries pass a check."""

    def check_all(value: Any, name: str) -> Any:
        if type(value) is not list or len(value) > most:
            raise Mismatch(f"{name} must be a list of at most {most} entries, not {show(value)}")
        return [check(item, f"{name}[{at}]") for at, item in enumerate(value)]

    return check_all


def row(*checks: Check) -> Check:
    """A list of fixed length, with a check for each entry."""

    def check_each(value: Any, name: str) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise Mismatch(f"{name} must be a list of {len(checks)} entries, not {show(value)}")
        return [
            check(item, f"{name}[{at}]") for at, (check, item) in enumerate(zip(checks, value, strict=True))
        ]

    return check_each


def table(
    required: Mapping[str, Check] | None = None,
    optional: Mapping[str, Check] | None = None,
    rest: Check = anything,
) -> Check:
    """An object: keys that it must have, keys that it may have, and a check of all other values."""
    needed, allowed = required or {}, optional or {}

    def check_all(value: Any, name: str) -> Any:
        if type(value) is not dict:
            raise Mismatch(f"{name or 'the file'} must hold an object, not {show(value)}")
        missing = [key for key in needed if key not in value]
        if missing:
            raise Mismatch(f"{f'{name} ' if name else ''}lacks {missing[0]}")
        return {
            key: (needed.get(key) or allowed.get(key) or rest)(item, f"{name}.{key}" if name else key)
            for key, item in value.items()
        }

    return check_all


def show(value: object) -> str:
    """A wrong value for a message, on one line and not too long."""
    if isinstance(value, (list, tuple, dict)):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, str):
        # Cut first, since it may be very long. repr writes whatever cannot be printed as an escape.
        return repr(value[:_SHOWN_CHARACTERS]) + "…" * (len(value) > _SHOWN_CHARACTERS)
    if isinstance(value, int) and value.bit_length() > 80:
        return f"a number of {value.bit_length()} bits"
    return json.dumps(value, default=repr)[:_SHOWN_CHARACTERS]


def parse_json(data: str | bytes) -> Any:
    """Parse JSON of a stranger.

    Raises:
        Mismatch: it is too long, nested too deeply, no UTF-8 or no JSON, or has a number of too many digits.
    """
    if len(data) > MAX_JSON_BYTES:
        raise Mismatch(f"is larger than {MAX_JSON_BYTES // 2**20} MiB, the most that is read")
    try:
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except RecursionError:
        raise Mismatch(f"is nested more than {_MAX_DEPTH} deep") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of more than 4300 digits
        raise Mismatch(f"is no JSON: {error}") from None
    if _is_deeper_than(value, _MAX_DEPTH):
        raise Mismatch(f"is nested more than {_MAX_DEPTH} deep")
    return value


def _is_deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and tables lie in each other more than so many times. It looks level by level."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return False
    return True


def read_bytes(path: Path, what: str, most: int = MAX_JSON_BYTES) -> bytes:
    """Read a small file.

    Raises:
        UserError: it cannot be read, or has more than ``most`` bytes. ``what`` stands before the message.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        raise UserError(f"{what}: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > most:
        raise UserError(f"{what}: {path} is larger than {most / 2**20:.3g} MiB, the most that is read")
    return data


def read_object(path: Path, what: str, check: Check) -> Any:
    """Read the object in a JSON file, and check it.

    Raises:
        UserError: it cannot be read, or is not what ``check`` wants. ``what`` stands before the message.
    """
    data = read_bytes(path, what)
    try:
        value = parse_json(data)
    except Mismatch as problem:
        raise UserError(f"{what}: {path} {problem}") from None
    try:
        return check(value, "")
    except Mismatch as problem:
        raise UserError(f"{what}: {path}: {problem}") from None


def read_lines(path: Path, check: Check) -> Iterator[tuple[str, Any]]:
    """The lines of a file of JSON lines that pass a check, as text and as value.

    Other lines are left out: a process that was killed may have left half a line.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while line := file.readline(_MAX_LINE_CHARACTERS):
            whole = line.endswith("\n") or len(line) < _MAX_LINE_CHARACTERS
            if not whole:  # the rest of a line that is too long
                while (rest := file.readline(_MAX_LINE_CHARACTERS)) and not rest.endswith("\n"):
                    pass
                continue
            try:
                yield line.rstrip("\r\n"), check(parse_json(line), "")
            except Mismatch:
                continue


def is_finite_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 and math.isfinite(value)
