"""Folders and files: the cache, runs, what an operating system adds by itself, and writing all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlxlava.errors import UserError

_NAMES = {".ds_store", ".localized", "thumbs.db", "desktop.ini"}
# AppleDouble: "._NAME" holds what macOS knows of NAME, on disks that cannot keep it (exFAT, SMB).
_APPLE_DOUBLE = "._"


def is_systems_own(name: str) -> bool:
    """Whether a file of this name was made by macOS or Windows and not by the user or a program of theirs."""
    return name.startswith(_APPLE_DOUBLE) or name.lower() in _NAMES


def names_in(folder: Path) -> set[str]:
    """The names in a folder, without the system's own; none where there is no folder."""
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not is_systems_own(path.name)}


def is_taken(path: Path) -> bool:
    """Whether something is there that must not be written over: a file, or a folder that is not empty.

    Opening a folder in the Finder leaves a ``.DS_Store`` in it; that one is empty all the same.
    """
    return bool(names_in(path)) if path.is_dir() else path.exists()


def cache_folder() -> Path:
    """Where things that can be made again are kept between runs. It may not exist yet.

    An empty or relative XDG_CACHE_HOME counts as not set, as the XDG Base Directory specification demands:
    the folder would lie in the working folder, where others may have put files of the same names.

    Raises:
        UserError: There is neither XDG_CACHE_HOME nor a home folder.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "mlxlava"
    with contextlib.suppress(RuntimeError):  # no HOME, and no entry for this user
        home = Path.home()
        if home.is_absolute():
            return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "mlxlava"
    raise UserError("cache: no home folder is known; set XDG_CACHE_HOME to a folder of yours")


def make_private(folder: Path) -> Path:
    """Make a folder, and those above it that are missing, for this user alone (mode 0700)."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("[0-9]*/progress.json"))


def latest_checkpoint(run: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    found = checkpoints(run)
    return found[-1] if found else None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; ``what`` stands before the error."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{what}: {path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{what}: {path} must hold an object")
    return values


def write_whole(path: Path, text: str) -> None:
    """Write a text file (UTF-8): the new text is there as a whole and on disk, or the old file stays.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
    folder: Path,
    what: str,
    is_ours: Callable[[Exception], bool] = lambda error: True,
    *,
    advice: str = "what was there before is kept",
    private: bool = False,
) -> Iterator[Path]:
    """Give a folder under a temporary name; it takes its real name on the way out, when all is on disk.

    Args:
        folder: its real name.
        what: stands before an error.
        is_ours: whether an error is one of writing; others go on as they are.
        advice: stands after an error.
        private: make missing folders above it for this user alone.

    Raises:
        UserError: it cannot be written; what was there before is kept.
    """
    # Random, since containers give every process the same number.
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    old = draft.with_suffix(".old")
    try:
        if private:
            make_private(folder.parent)
        draft.mkdir(parents=True)
        yield draft
        for file in draft.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        _sync_folder(folder.parent)
        # Errors are no matter: on some disks macOS removes "._NAME" itself as soon as NAME is gone.
        shutil.rmtree(old, ignore_errors=True)
    # MLX reports a failed write as a RuntimeError.
    except (OSError, RuntimeError) as error:
        if not is_ours(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what}: cannot write {folder}: {reason}; {advice}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system syncs a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
