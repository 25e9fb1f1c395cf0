"""Whether files are as they were written: digests beside them, and the last checkpoint that is intact.

A checkpoint and a folder of weights hold ``SHA256SUMS``, in the format of the command ``sha256sum``. So
``sha256sum --check SHA256SUMS`` checks them without mlxlava too. Folders of older versions have no digests.
They are read without this check.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.paths import checkpoint_folders, read_json, write_text_atomically
from mlxlava.records import PROGRESS

DIGESTS_FILE = "SHA256SUMS"

_DIGEST_LINE_PATTERN = re.compile(r"([0-9a-f]{64}) [ *]([^/\0]+)")
_MAX_DIGESTS_BYTES = 100_000

Read = TypeVar("Read")


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of the files ``names`` in a folder.

    Raises:
        OSError: a file cannot be read or written.
    """
    lines = [f"{_digest(folder / name)}  {name}\n" for name in names]
    write_text_atomically(folder / DIGESTS_FILE, "".join(lines))


def check_digests(folder: Path, what: str) -> bool:
    """Check the files in a folder that have a digest there.

    Args:
        folder: the folder.
        what: text before an error message.

    Returns:
        Whether there are digests. Folders of older versions have none.

    Raises:
        UserError: a file is not as it was written, or cannot be read.
    """
    path = folder / DIGESTS_FILE
    if not path.exists():
        return False
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_DIGESTS_BYTES).decode(errors="replace")
        lines = text.splitlines()
        found = [line for line in map(_DIGEST_LINE_PATTERN.fullmatch, lines) if line]
        if not found or len(found) < len(lines):
            raise UserError(f"{what}: {path} is damaged")
        for line in found:
            if _digest(folder / line[2]) != line[1]:
                raise UserError(
                    f"{what}: {folder / line[2]} is damaged: it is not as it was written (SHA-256 differs); "
                    f"if you have changed it yourself, remove {DIGESTS_FILE} there"
                )
    except FileNotFoundError as error:
        raise UserError(f"{what}: {error.filename} is missing") from error
    except OSError as error:
        raise UserError(f"{what}: cannot read {error.filename}: {error.strerror}") from error
    return True


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What ``progress.json`` of a checkpoint says: ``step`` (int) and ``seconds`` (float).

    Raises:
        UserError: it cannot be read, or makes no sense.
    """
    return read_json(checkpoint / "progress.json", "checkpoint", PROGRESS)


def read_last_intact_checkpoint(run: Path, read: Callable[[Path], Read]) -> tuple[Path, Read]:
    """Read the latest checkpoint. If it is damaged, say so and read the one before.

    Args:
        run: folder of the run.
        read: reads the folder of a checkpoint; raises UserError if it is damaged.

    Returns:
        The folder of the checkpoint, and what ``read`` returns.

    Raises:
        UserError: there is no checkpoint, or all of them are damaged. The text is that of the latest one.
    """
    problems: list[UserError] = []
    for folder in reversed(checkpoint_folders(run)):
        try:
            found = read(folder)
        except UserError as error:
            problems.append(error)
            continue
        if problems:
            say(f"{problems[0]}; the checkpoint before is taken: {folder.name}")
        return folder, found
    if problems:
        raise problems[0]
    raise UserError(f"checkpoint: {run} has none")


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
