"""C++ that is compiled on the user's machine, kept between runs, and checked each time before it is loaded.

It is compiled once, with the g++ that mx.compile needs as well. A library lies in a folder that only this
user may write to (private_files.py), with a record of its digest. A file that does not match its record is
built again: a full disk or a loss of power can leave such files.

MLX is not imported here, since BLAS has to be loaded before it (backend/device.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlxlava.backend.cpu.private_files import (
    make_temporary_folder,
    private_code_folder,
    read_private_file,
    say_line,
    sync_to_disk,
    write_private_file,
)


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
    library = private_code_folder() / f"{name}-{key}.so"
    if _is_intact_library(library):
        return library
    if not os.access(library.parent, os.W_OK):
        library = make_temporary_folder(f"{library.parent} cannot be written to") / library.name
    with _one_builder_at_a_time(library):
        if not _is_intact_library(library):  # another process may have built it meanwhile
            if announce:
                say_line(announce)
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
                    write_private_file(
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


def _compile_library(library: Path, source: str, options: Sequence[str]) -> None:
    """Build a library and its record. Both files appear under their names only when they are complete."""
    draft = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        command = ["g++", "-O3", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(draft), *options]
        ended = run_command(command, source)
        ended.check_returncode()
        draft.chmod(0o700)  # the umask may have let others write
        data = read_private_file(draft)
        sync_to_disk(draft)
        draft.replace(library)
        write_private_file(
            _library_record_path(library), json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode()
        )
    finally:
        draft.unlink(missing_ok=True)


def _is_intact_library(library: Path) -> bool:
    """Whether the file is the one that :func:`_compile_library` has written."""
    try:
        return bool(
            _read_library_record(library).get("sha256")
            == hashlib.sha256(read_private_file(library)).hexdigest()
        )
    except OSError:
        return False


def _read_library_record(library: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_private_file(_library_record_path(library)))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _library_record_path(library: Path) -> Path:
    return library.with_suffix(".json")


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
