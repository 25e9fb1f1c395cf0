"""The lock of a run: one process at a time begins it, trains it, and writes its files.

It is an flock on the file ``lock`` in the folder of the run. The system frees it when the process ends,
however that happens. The file itself stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

from mlxlava.backend.ranks import rank
from mlxlava.errors import UserError
from mlxlava.paths import LOCK_FILE, is_run, make_folder

# Open lock files of this thread, by the folders of their runs. flock would not let a thread lock a run twice.
_held_locks: ContextVar[Mapping[Path, int]] = ContextVar("held_locks", default={})  # noqa: B039 (never changed)


class RunIsLocked(UserError):
    """Another process trains the run."""


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Lock a run inside a block; inside another such block of the same run, do nothing.

    Of several processes that train together, the first one locks it.

    Raises:
        RunIsLocked: another process has locked it.
        UserError: it cannot be written.
    """
    folder, held = run.resolve(), _held_locks.get()
    if folder in held or rank():
        yield
        return
    lock = _open_locked(run)
    token = _held_locks.set({**held, folder: lock})
    try:
        yield
    finally:
        _held_locks.reset(token)
        os.close(lock)


@contextlib.contextmanager
def lock_new_run(run: Path) -> Iterator[None]:
    """Make the folder of a run that is to begin, and lock it. If no run begins, remove what was made.

    Raises:
        RunIsLocked: another process has locked it.
        UserError: it cannot be written.
    """
    if rank():
        yield
        return
    missing = [each for each in (run, *run.parents) if not each.exists()]
    try:
        make_folder(run)
    except OSError as error:
        raise UserError(f"train: cannot write {run}: {error.strerror}") from error
    with lock_run(run):
        try:
            yield
        finally:
            if not is_run(run):
                with contextlib.suppress(OSError):
                    (run / LOCK_FILE).unlink()
                    for each in missing:
                        each.rmdir()


def require_run_folder(run: Path) -> None:
    """Raise UserError if the folder of a locked run was removed or renamed, or if another one lies there."""
    lock = _held_locks.get().get(run.resolve())
    if lock is not None and not _is_file_at(lock, run / LOCK_FILE):
        raise UserError(
            f"train: {run} was removed or renamed while it was trained, so nothing can be saved any more"
        )


def _open_locked(run: Path) -> int:
    path = run / LOCK_FILE
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"train: cannot write {run}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            what = "is being trained by another process; wait for it, or stop it"
            raise RunIsLocked(f"train: {run} {what}") from error
        except OSError as error:
            os.close(lock)
            raise UserError(f"train: cannot lock {path}: {error.strerror}") from error
        if _is_file_at(lock, path):
            return lock
        os.close(lock)  # another process, whose start failed, has removed the file in the meantime


def _is_file_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that lies at a path now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
