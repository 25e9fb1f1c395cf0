"""Folders and files: the cache folder, runs, files made by the operating system, and atomic writing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mlxlava.errors import UserError
from mlxlava.schema import Check, read_object, table

_SYSTEM_FILE_NAMES = {".ds_store", ".localized", "thumbs.db", "desktop.ini"}
# AppleDouble: "._NAME" holds what macOS knows of NAME, on disks that cannot keep it (exFAT, SMB).
_APPLE_DOUBLE_PREFIX = "._"
# The name of a draft (``Draft``), or of the old folder that a draft replaces.
_DRAFT_NAME_PATTERN = re.compile(r"\.(?P<name>.+)\.mlxlava-[0-9a-f]{8}\.(?P<kind>tmp|old)")
# Names of drafts of the first version: checkpoints with the number of their process, and footage.
_FIRST_DRAFT_NAME_PATTERN = re.compile(r"\.\d{8}\.(?P<process>\d+)\.tmp|\.[0-9a-f]{32}\.[0-9a-f]{8}\.partial")
_FIRST_DRAFT_SECONDS = 86400.0  # an older draft of footage was left by a process that is gone

LOCK_FILE = "lock"  # in the folder of a run: locked while a process begins or trains it

RUNS_FOLDER = Path("runs")  # in the working folder
SMALL_LAMP_FOLDER = "small"  # in the folder of a run that grows: the run of the smaller lamp
GROWTH_PLAN_FILE = "growth.json"  # in the same folder: what the larger lamp will be

_OBJECT = table()


def is_system_file(name: str) -> bool:
    """Whether a file of this name was made by macOS or Windows, and not by the user."""
    return name.startswith(_APPLE_DOUBLE_PREFIX) or name.lower() in _SYSTEM_FILE_NAMES


def list_names(folder: Path) -> set[str]:
    """The names in a folder, without system files and drafts; empty if there is no such folder."""
    if not folder.is_dir():
        return set()
    names = (path.name for path in folder.iterdir())
    return {name for name in names if not is_system_file(name) and not _DRAFT_NAME_PATTERN.fullmatch(name)}


def is_taken(path: Path) -> bool:
    """Whether a path has something that must not be overwritten: a file, or a folder that is not empty.

    Opening a folder in the Finder leaves a ``.DS_Store`` in it. Such a folder counts as empty.
    """
    return bool(list_names(path)) if path.is_dir() else path.exists()


def cache_folder() -> Path:
    """The cache folder, for files that can be made again at any time. It may not exist yet.

    An empty or relative XDG_CACHE_HOME counts as not set, as the XDG Base Directory specification demands. A
    relative one would lie in the working folder, where others may have put files of the same names.

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


def make_private_folder(folder: Path) -> Path:
    """Make a folder and its missing parents, for this user alone (mode 0700)."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
    return folder


def shipped_weights_folders() -> list[Path]:
    """The weights that come with the package, sorted by name."""
    package = Path(__file__).parent / "weights"  # in a wheel
    root = package if package.is_dir() else Path(__file__).parents[2] / "weights"  # in a checkout
    return sorted(path.parent for path in root.glob("*/config.json"))


def known_lamps() -> list[str]:
    """What can be played without a search: names of shipped weights, and the runs in ``runs/``."""
    runs = sorted({path.parent for path in RUNS_FOLDER.glob("*/log.jsonl")})
    return [*(path.name for path in shipped_weights_folders()), *map(str, runs)]


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, on the disk: after a loss of power they are still there.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def require_space(place: Path | int, needed: float, what: str, advice: str) -> None:
    """Refuse to begin what would fill a disk.

    Args:
        place: a folder on the disk, or the descriptor of an open file.
        needed: bytes to be written.
        what: what is to be written, in the plural; the message begins with it.
        advice: how the user can write less.

    Raises:
        UserError: the disk has less room.
        OSError: there is no such place.
    """
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(f"{what} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; {advice}")


def remove_folder(folder: Path) -> None:
    """Remove a folder. A process that is killed meanwhile leaves all of it, or a draft, which is not seen.

    The rest of such a folder is removed by the next ``Draft`` beside it.
    """
    with contextlib.suppress(OSError):
        folder = folder.rename(folder.with_name(f".{folder.name}.mlxlava-{secrets.token_hex(4)}.tmp"))
    _remove_path(folder)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run that has begun, perhaps in its first stage."""
    return any((folder / name).is_file() for name in ("config.json", GROWTH_PLAN_FILE))


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("[0-9]*/progress.json"))


def latest_checkpoint_folder(run: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    found = checkpoint_folders(run)
    return found[-1] if found else None


def read_json(path: Path, what: str, check: Check = _OBJECT) -> dict[str, Any]:
    """Read the object in a JSON file, and check what it holds (``records.py``).

    Raises:
        UserError: the file cannot be read, or holds something else. ``what`` stands before the message.
    """
    values: dict[str, Any] = read_object(path, what, check)
    return values


class Draft:
    """A file or a folder that has a temporary name while it is written, and takes its real name at the end.

    The temporary name is in the same folder: ``.NAME.mlxlava-1a2b3c4d.tmp``. A draft is locked (flock) as
    long as its process lives. So a draft without a lock was left by a process that was killed, and the next
    draft in the same folder removes it. If a file system has no locks, such a draft stays.

    A draft is a context manager. A draft that is not finished is removed at the end of the block.

    Args:
        target: the real name.
        is_folder: whether to make a folder, with its missing parents, and not a file.

    Attributes:
        path: path with the temporary name. At first it is an empty file or folder.

    Raises:
        OSError: the draft cannot be made.
    """

    def __init__(self, target: Path, *, is_folder: bool = False) -> None:
        self._target = target
        _remove_leftovers(target.parent)
        while True:
            # The name is random, since processes in different containers may have the same number.
            self.path = target.with_name(f".{target.name}.mlxlava-{secrets.token_hex(4)}.tmp")
            if is_folder:
                make_folder(self.path.parent)
                self.path.mkdir()
            else:
                self.path.touch(exist_ok=False)
            self._lock = _try_lock(self.path, wait=True)
            if self.path.exists():  # otherwise another process has removed it before it was locked
                return
            self.discard()

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def finish(self) -> None:
        """Give the draft its real name. A file or folder that had this name is replaced.

        Raises:
            OSError: the draft cannot be renamed. The old file or folder is kept.
        """
        if self.path.is_dir():
            self._replace_folder()
        else:
            self.path.replace(self._target)
            sync_folder(self._target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the draft. After ``finish`` this does nothing."""
        _remove_path(self.path)
        _unlock(self._lock)
        self._lock = None

    def _replace_folder(self) -> None:
        old, lock = self.path.with_suffix(".old"), None
        try:
            if self._target.exists():
                lock = _try_lock(self._target)
                self._target.rename(old)
            try:
                self.path.rename(self._target)
            except OSError:
                if old.exists():
                    old.rename(self._target)
                raise
            sync_folder(self._target.parent)
            _remove_path(old)
        finally:
            _unlock(lock)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file (UTF-8) to the disk. If that fails, the old file stays.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write a file to the disk. If that fails, the old file stays.

    Raises:
        OSError: the file cannot be written.
    """
    with Draft(path) as draft:
        with draft.path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.finish()


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a text file (UTF-8). A last line that was cut off does not swallow the first one.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(f"{line}\n" for line in lines).encode())


@contextlib.contextmanager
def atomic_folder(
    folder: Path,
    what: str,
    is_write_error: Callable[[Exception], bool] = lambda error: True,
    *,
    advice: str = "what was there before is kept",
    private: bool = False,
) -> Iterator[Path]:
    """Yield a folder with a temporary name. At the end of the block it takes its real name.

    All files are on the disk before the folder is renamed. So the folder is complete, or the old one stays.

    Args:
        folder: path with the real name.
        what: text before an error message.
        is_write_error: whether an error was caused by writing. Other errors are raised unchanged.
        advice: text after an error message.
        private: whether missing parents are made for this user alone.

    Raises:
        UserError: the folder cannot be written. The old folder is kept.
    """
    try:
        if private:
            make_private_folder(folder.parent)
        with Draft(folder, is_folder=True) as draft:
            yield draft.path
            for file in draft.path.iterdir():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
            sync_folder(draft.path)  # the names of the files
            draft.finish()
    # MLX reports a failed write as a RuntimeError.
    except (OSError, RuntimeError) as error:
        if not is_write_error(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what}: cannot write {folder}: {reason}; {advice}") from error


def _remove_leftovers(folder: Path) -> None:
    """Remove the drafts that killed processes have left in a folder."""
    _remove_leftovers_of_first_version(folder)
    for path in folder.glob(".*.mlxlava-*.*"):
        found = _DRAFT_NAME_PATTERN.fullmatch(path.name)
        lock = _try_lock(path) if found else None
        if not found or lock is None:  # a draft that a process is writing
            continue
        target = path.with_name(found["name"])
        if found["kind"] == "old" and not target.exists():
            # The process was killed after it had renamed the old folder and before it renamed the new one.
            with contextlib.suppress(OSError):
                path.rename(target)
        else:
            _remove_path(path)
        _unlock(lock)


def _remove_leftovers_of_first_version(folder: Path) -> None:
    """Remove the drafts that processes of the first version have left. They had no locks."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*.partial")):
        found = _FIRST_DRAFT_NAME_PATTERN.fullmatch(path.name)
        if found is None:
            continue
        with contextlib.suppress(OSError):
            process = found["process"]
            age = time.time() - path.stat().st_mtime
            if not _is_process(int(process)) if process else age > _FIRST_DRAFT_SECONDS:
                _remove_path(path)


def _is_process(number: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        # Errors are ignored: on some disks macOS itself removes "._NAME" as soon as NAME is removed.
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _try_lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file or a folder. None if another process has locked it, or if locks are not supported."""
    # A folder can only be opened to read. A file is opened to write as well, which NFS demands for a lock.
    try:
        handle = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if path.is_dir() else os.O_RDWR))
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Write to the disk which names a folder holds, where the system can."""
    with contextlib.suppress(OSError):  # not every system syncs a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
