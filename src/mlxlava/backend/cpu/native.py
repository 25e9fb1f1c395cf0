"""C++ that is compiled where it runs, kept between runs, and checked each time before it is loaded.

It is compiled once, with the g++ that mx.compile needs as well. A library is code that runs as this user. So
libraries lie in a folder that only this user may write to, each with a record of its digest. A file that does
not match its record is built again: a full disk or a loss of power can leave such files.

MLX is not imported here, since BLAS has to be loaded before it (backend/device.py).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlxlava.errors import UserError
from mlxlava.paths import cache_folder, make_private


def build(name: str, source: str, options: Sequence[str] = (), of: str = "", announce: str = "") -> Path:
    """A shared library of ``source``, built unless there is one already.

    Args:
        name: How its file begins.
        source: C++.
        options: For g++, behind those that every library needs.
        of: What else the result depends on, such as the processor.
        announce: A line for stderr before it is built.

    Raises:
        OSError: There is no g++, or no place to write to.
        subprocess.CalledProcessError: It does not compile.
    """
    key = hashlib.sha256("\0".join([source, *options, of]).encode()).hexdigest()[:16]
    library = private_folder() / f"{name}-{key}.so"
    if _is_intact(library):
        return library
    if not os.access(library.parent, os.W_OK):
        library = _temporary_folder(f"{library.parent} cannot be written to") / library.name
    with _locked(library):
        if not _is_intact(library):  # another process may have built it meanwhile
            if announce:
                _say(announce)
            _compile(library, source, options)
    return library


def failure(library: Path, test: Callable[[], str]) -> str:
    """What is wrong with a library; empty if nothing is.

    Args:
        library: What :func:`build` has returned.
        test: Tests it, and says what is wrong. It is called once for a build, and its answer is kept beside
            the library. If it raises an exception, nothing is kept.
    """
    found = _record(library).get("failure")
    if found is None:
        with _locked(library):
            record = _record(library)
            found = record.get("failure")
            if found is None:
                found = test()
                with contextlib.suppress(OSError):  # a folder that is read-only: tested at each start
                    _write(_record_path(library), json.dumps({**record, "failure": found}).encode())
    return str(found)


def load(library: Path) -> ctypes.CDLL:
    """The library, its symbols before those of libraries that are loaded later."""
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def run(
    command: Sequence[str], text: str = "", timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; if this process is interrupted meanwhile, end the command and all its children.

    It runs in a session of its own. A terminal sends Ctrl-C to every process of its session, and a compiler
    that dies of it looks like one that failed.

    Raises:
        OSError: It cannot be started.
        subprocess.TimeoutExpired: It took longer than ``timeout`` seconds.
    """
    pipe = subprocess.PIPE
    process = None
    try:
        with _ctrl_c_held_back():
            process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        output, errors = process.communicate(text, timeout)
    except BaseException:
        if process is not None:
            _end(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C act after this block: within Popen, it would leave a process that nobody knows of."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


def _end(process: subprocess.Popen[str]) -> None:
    """End a command of :func:`run`; SIGTERM lets g++ remove its temporary files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            break
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def private_folder() -> Path:
    """Where libraries are kept: the cache folder, or one of this process alone if others may write there.

    Folders above it are not looked at: who may write to those can replace a user's programs as well.
    """
    try:
        folder = cache_folder()
    except UserError:
        return _temporary_folder("no home folder is known")
    try:
        problem = _problem(make_private(folder).stat())
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
    return _temporary_folder(f"{folder} {problem}") if problem else folder


def keep_kernels_private() -> None:
    """Keep MLX from loading kernels that another user may have written. Call it before MLX computes.

    On Linux MLX keeps what mx.compile builds in TMPDIR/mlx/VERSION and loads what it finds there, whoever
    owns it (MLX's backend/cpu/compiled.cpp). If that folder is another user's, MLX cannot compile at all.
    TMPDIR is its only setting. So the folder is made first, for this user alone. If it is there already and
    others may write to it, MLX gets a TMPDIR in the private folder. The cost: kernels are compiled there once
    more, and child processes have that TMPDIR as well. Python's own tempfile stays where it is.
    """
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # in the order of C++'s temp_directory_path
    base = Path(next(filter(None, map(os.environ.get, names)), "/tmp"))
    kernels = base / "mlx"
    try:
        kernels.mkdir(mode=0o700)
        return
    except FileExistsError:
        with contextlib.suppress(OSError):
            below = [path for pattern in ("*", "*/*") for path in kernels.glob(pattern) if path.is_dir()]
            if not any(_problem(os.lstat(path)) for path in [kernels, *below]):
                return
    except OSError:  # there is no such TMPDIR: MLX says so when it compiles
        return
    folder = private_folder()
    if not os.access(folder, os.W_OK):
        folder = _temporary_folder(f"{folder} cannot be written to")
    tempfile.gettempdir()  # remembered by tempfile, so it does not see the change
    os.environ["TMPDIR"] = str(make_private(folder / "tmp"))


def _problem(status: os.stat_result, kind: Callable[[int], bool] = stat.S_ISDIR) -> str:
    """Why a folder or file is not this user's alone to write; empty if it is."""
    if not kind(status.st_mode):
        return "is not a folder" if kind is stat.S_ISDIR else "is not a plain file"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by other users (chmod go-w mends that)"
    return ""


# Compiling takes some 10 s a start then. MLX's own operations would take none, but a training runs for hours,
# and each of its steps would be slower. The line says how to mend it.
@functools.cache
def _temporary_folder(why: str) -> Path:
    """A folder of this process alone, removed when it ends."""
    _say(f"mlxlava: {why}, so C++ is compiled anew at each start; XDG_CACHE_HOME can name another folder")
    folder = Path(tempfile.mkdtemp(prefix="mlxlava-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(library: Path, source: str, options: Sequence[str]) -> None:
    """Build a library and its record. At no time does either name stand for half a file."""
    draft = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        command = ["g++", "-O3", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(draft), *options]
        ended = run(command, source)
        ended.check_returncode()
        draft.chmod(0o700)  # the umask may have let others write
        data = _read(draft)
        _sync(draft)
        draft.replace(library)
        _write(_record_path(library), json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode())
    finally:
        draft.unlink(missing_ok=True)


def _is_intact(library: Path) -> bool:
    """Whether this is the file that :func:`_compile` left."""
    try:
        return bool(_record(library).get("sha256") == hashlib.sha256(_read(library)).hexdigest())
    except OSError:
        return False


def _record(library: Path) -> dict[str, Any]:
    try:
        record = json.loads(_read(_record_path(library)))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record_path(library: Path) -> Path:
    return library.with_suffix(".json")


def _read(path: Path) -> bytes:
    """What is in a plain file that only this user may write to; OSError if it is anything else."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if problem := _problem(os.fstat(file.fileno()), stat.S_ISREG):
            raise OSError(f"{path} {problem}")
        return file.read()


def _write(path: Path, data: bytes) -> None:
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(library: Path) -> Iterator[None]:
    """One process at a time. Where a file system has no locks two may build, and either library is good."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path = library.with_suffix(".lock")
            lock = stack.enter_context(os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)))
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in library.parent.glob(f"{library.stem}.*.tmp"):  # by a process that was killed
                left.unlink()
        yield


def _say(line: str) -> None:
    from mlxlava.console import say  # late: it loads rich

    say(line)
