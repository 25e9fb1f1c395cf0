"""C++ that is compiled on the user's machine, kept between runs, and checked each time before it is loaded.

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
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlxlava.errors import UserError
from mlxlava.paths import cache_folder, make_private_folder

# Of the header of a 64-bit ELF file: magic, where the section table is, size and number of its entries.
_ELF_HEADER = struct.Struct("<4s36xQ10xHH2x")


def build_library(
    name: str, source: str, options: Sequence[str] = (), depends_on: str = "", announce: str = ""
) -> Path:
    """A shared library of ``source``, built unless there is one already.

    Args:
        name: First part of the file's name.
        source: C++ code.
        options: Options for g++, in addition to those that every library needs.
        depends_on: Text that names what else the result depends on, such as the processor.
        announce: A line to print on stderr before the library is built.

    Raises:
        OSError: There is no g++, or no place to write to.
        subprocess.CalledProcessError: The code does not compile.
    """
    key = hashlib.sha256("\0".join([source, *options, depends_on]).encode()).hexdigest()[:16]
    library = private_library_folder() / f"{name}-{key}.so"
    if _is_intact_library(library):
        return library
    if not os.access(library.parent, os.W_OK):
        library = _make_temporary_folder(f"{library.parent} cannot be written to") / library.name
    with _one_builder_at_a_time(library):
        if not _is_intact_library(library):  # another process may have built it meanwhile
            if announce:
                _print_line(announce)
            _compile_library(library, source, options)
    return library


def run_library_test_once(library: Path, test: Callable[[], str]) -> str:
    """What is wrong with a library; empty if nothing is.

    Args:
        library: A file that :func:`build_library` has returned.
        test: A function that tests the library and returns what is wrong. It is called once for a build, and
            its answer is kept beside the library. If it raises an exception, nothing is kept.
    """
    found = _read_library_record(library).get("failure")
    if found is None:
        with _one_builder_at_a_time(library):
            record = _read_library_record(library)
            found = record.get("failure")
            if found is None:
                found = test()
                with contextlib.suppress(OSError):  # a folder that is read-only: tested at each start
                    _write_private_file(
                        _library_record_path(library), json.dumps({**record, "failure": found}).encode()
                    )
    return str(found)


def load_globally(library: Path) -> ctypes.CDLL:
    """Load a library. Its symbols come before those of libraries that are loaded later."""
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def run_command(
    command: Sequence[str], text: str = "", timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command. If this process is interrupted meanwhile, the command and all its children are ended.

    The command runs in a session of its own. Otherwise a terminal would send Ctrl-C to the compiler too, and
    a compiler that is ended by Ctrl-C looks like one that failed.

    Raises:
        OSError: The command cannot be started.
        subprocess.TimeoutExpired: The command took longer than ``timeout`` seconds.
    """
    pipe = subprocess.PIPE
    process = None
    try:
        with _delay_ctrl_c():
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
            _end_process(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def _delay_ctrl_c() -> Iterator[None]:
    """Delay Ctrl-C until the end of this block. Inside Popen it would leave a process that nobody ends."""
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


def _end_process(process: subprocess.Popen[str]) -> None:
    """End a command of :func:`run_command`. SIGTERM comes first, so that g++ removes its temporary files."""
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


def private_library_folder() -> Path:
    """The folder of libraries: the cache folder, or a temporary one if others may write to the cache folder.

    The folders above it are not checked: a user who may write to those can replace any program anyway.
    """
    try:
        folder = cache_folder()
    except UserError:
        return _make_temporary_folder("no home folder is known")
    try:
        problem = _why_not_private(make_private_folder(folder).stat())
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
    return _make_temporary_folder(f"{folder} {problem}") if problem else folder


def keep_mlx_kernels_private() -> None:
    """Keep MLX from loading kernels that another user may have written. Call it before MLX computes.

    On Linux MLX keeps the kernels of mx.compile in TMPDIR/mlx/VERSION. It loads every file that it finds
    there, whoever owns it (MLX's backend/cpu/compiled.cpp). If the folder belongs to another user, MLX cannot
    compile at all. The folder can be changed only by TMPDIR. So it is made here first, for this user alone.
    If it exists already and other users may write to it, MLX gets a TMPDIR in the private folder. The cost:
    kernels are compiled there once more, and child processes get that TMPDIR as well. Python's tempfile is
    not affected.
    """
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # in the order of C++'s temp_directory_path
    base = Path(next(filter(None, map(os.environ.get, names)), "/tmp"))
    kernels = base / "mlx"
    if not _is_private_tree(kernels):
        folder = private_library_folder()
        if not os.access(folder, os.W_OK):
            folder = _make_temporary_folder(f"{folder} cannot be written to")
        tempfile.gettempdir()  # tempfile remembers its folder from now on, and does not follow this change
        base = make_private_folder(folder / "tmp")
        os.environ["TMPDIR"] = str(base)
        kernels = base / "mlx"
    _remove_damaged_kernels(kernels)
    atexit.register(_sync_kernels, kernels, time.time())


def _is_private_tree(kernels: Path) -> bool:
    """Whether only this user may write to MLX's folder and to those in it. It is made if there is none."""
    try:
        kernels.mkdir(mode=0o700)
    except FileExistsError:
        try:
            below = [path for pattern in ("*", "*/*") for path in kernels.glob(pattern) if path.is_dir()]
            return not any(_why_not_private(os.lstat(path)) for path in [kernels, *below])
        except OSError:
            return False
    except OSError:  # TMPDIR does not exist: MLX reports that when it compiles
        pass
    return True


def _remove_damaged_kernels(kernels: Path) -> None:
    """Remove kernels that were not written to their end, so that MLX compiles them again.

    MLX does not sync what it has compiled, and takes every file of the right name. After a loss of power or
    on a full disk, one that is empty would end every command with an error, and half a one with SIGBUS.
    """
    for path in kernels.glob("*/cpu/lib*.so"):
        with contextlib.suppress(OSError):
            if not _is_whole_library(path):
                path.unlink()


def _is_whole_library(path: Path) -> bool:
    """Whether a shared library (ELF, 64 bits) is there to its end: compilers put the section table there."""
    file = os.open(path, os.O_RDONLY)  # there may be a thousand of them: open() would take twice as long
    try:
        head = os.pread(file, _ELF_HEADER.size, 0)
        if len(head) < _ELF_HEADER.size:
            return False
        magic, table, entry_bytes, entries = _ELF_HEADER.unpack(head)
        if magic != b"\x7fELF" or not table or not entries:
            return False
        last = os.pread(file, entry_bytes, table + entry_bytes * (entries - 1))
    finally:
        os.close(file)
    return len(last) == entry_bytes and any(last)


def _sync_kernels(kernels: Path, since: float) -> None:
    """Write kernels that were compiled after a moment to the disk. It takes milliseconds, once."""
    for path in kernels.glob("*/cpu/lib*.so"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= since:
                _sync_to_disk(path)


def _why_not_private(status: os.stat_result, is_kind: Callable[[int], bool] = stat.S_ISDIR) -> str:
    """Why others than this user may write to a folder or a file; empty if only this user may."""
    if not is_kind(status.st_mode):
        return "is not a folder" if is_kind is stat.S_ISDIR else "is not a plain file"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by other users (chmod go-w mends that)"
    return ""


# Then every start compiles for some 10 s. MLX's own operations would need no compiling. But a training runs
# for hours, and each of its steps would be slower. The printed line says how to avoid the compiling.
@functools.cache
def _make_temporary_folder(why: str) -> Path:
    """A temporary folder of this process, removed when the process ends."""
    _print_line(
        f"mlxlava: {why}, so C++ is compiled anew at each start; XDG_CACHE_HOME can name another folder"
    )
    folder = Path(tempfile.mkdtemp(prefix="mlxlava-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile_library(library: Path, source: str, options: Sequence[str]) -> None:
    """Build a library and its record. Both files appear under their names only when they are complete."""
    draft = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        command = ["g++", "-O3", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(draft), *options]
        ended = run_command(command, source)
        ended.check_returncode()
        draft.chmod(0o700)  # the umask may have let others write
        data = _read_private_file(draft)
        _sync_to_disk(draft)
        draft.replace(library)
        _write_private_file(
            _library_record_path(library), json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode()
        )
    finally:
        draft.unlink(missing_ok=True)


def _is_intact_library(library: Path) -> bool:
    """Whether the file is the one that :func:`_compile_library` has written."""
    try:
        return bool(
            _read_library_record(library).get("sha256")
            == hashlib.sha256(_read_private_file(library)).hexdigest()
        )
    except OSError:
        return False


def _read_library_record(library: Path) -> dict[str, Any]:
    try:
        record = json.loads(_read_private_file(_library_record_path(library)))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _library_record_path(library: Path) -> Path:
    return library.with_suffix(".json")


def _read_private_file(path: Path) -> bytes:
    """The content of a plain file that only this user may write to. OSError if it is any other file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if problem := _why_not_private(os.fstat(file.fileno()), stat.S_ISREG):
            raise OSError(f"{path} {problem}")
        return file.read()


def _write_private_file(path: Path, data: bytes) -> None:
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        _sync_to_disk(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _sync_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _one_builder_at_a_time(library: Path) -> Iterator[None]:
    """Let one process at a time build a library. Without file locks two may build it, which does no harm."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path = library.with_suffix(".lock")
            lock = stack.enter_context(os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)))
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in library.parent.glob(f"{library.stem}.*.tmp"):  # left by a process that was killed
                left.unlink()
        yield


def _print_line(line: str) -> None:
    from mlxlava.console import say  # late: it loads rich

    say(line)
