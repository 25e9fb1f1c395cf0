"""Files and folders that only this user may write to. Compiled code lies there: it is run as this user.

MLX is not imported here, since BLAS has to be loaded before it (backend/device.py).
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from mlxlava.errors import UserError
from mlxlava.paths import cache_folder, make_private_folder


def private_code_folder() -> Path:
    """The folder of compiled code: the cache folder, or a temporary one if others may write to that.

    The folders above it are not checked: a user who may write to those can replace any program anyway.
    """
    try:
        folder = cache_folder()
    except UserError:
        return make_temporary_folder("no home folder is known")
    try:
        problem = why_not_private(make_private_folder(folder).stat())
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
    return make_temporary_folder(f"{folder} {problem}") if problem else folder


def why_not_private(status: os.stat_result, is_kind: Callable[[int], bool] = stat.S_ISDIR) -> str:
    """Why others than this user may write to a folder or a file; empty if only this user may."""
    if not is_kind(status.st_mode):
        return "is not a folder" if is_kind is stat.S_ISDIR else "is not a plain file"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by other users (chmod go-w mends that)"
    return ""


# With such a folder every start compiles for some 10 s. MLX's own operations would need no compiling. But a
# training runs for hours, and each of its steps would be slower. The printed line says how to avoid the
# compiling.
@functools.cache
def make_temporary_folder(why: str) -> Path:
    """A temporary folder of this process, removed when the process ends."""
    say_line(f"mlxlava: {why}, so C++ is compiled anew at each start; XDG_CACHE_HOME can name another folder")
    folder = Path(tempfile.mkdtemp(prefix="mlxlava-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_private_file(path: Path) -> bytes:
    """The content of a plain file that only this user may write to. OSError if it is any other file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if problem := why_not_private(os.fstat(file.fileno()), stat.S_ISREG):
            raise OSError(f"{path} {problem}")
        return file.read()


def write_private_file(path: Path, data: bytes) -> None:
    """Write a file that only this user may read or write. It has its name only once it is complete."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        sync_to_disk(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def say_line(line: str) -> None:
    """Print a line on stderr."""
    from mlxlava.console import say  # late: it loads rich

    say(line)
