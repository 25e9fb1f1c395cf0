"""The folder of kernels that MLX compiles for CPUs on Linux (mx.compile): private, and without damaged ones.

MLX is not imported here: this is done before it computes (backend/device.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import tempfile
import time
from pathlib import Path

from mlxlava.backend.cpu.private_files import (
    make_temporary_folder,
    private_code_folder,
    sync_to_disk,
    why_not_private,
)
from mlxlava.paths import make_private_folder

_LITTER_SECONDS = 3600.0  # a kernel is compiled in seconds

# Of the header of a 64-bit ELF file: magic, where the section table is, size and number of its entries.
_ELF_HEADER = struct.Struct("<4s36xQ10xHH2x")


def prepare_kernel_folder() -> None:
    """Let MLX find only kernels that this user has written, and that are whole. Call it before MLX computes.

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
        folder = private_code_folder()
        if not os.access(folder, os.W_OK):
            folder = make_temporary_folder(f"{folder} cannot be written to")
        tempfile.gettempdir()  # tempfile remembers its folder from now on, and does not follow this change
        base = make_private_folder(folder / "tmp")
        os.environ["TMPDIR"] = str(base)
        kernels = base / "mlx"
    _remove_damaged_kernels(kernels)
    _remove_litter(kernels)
    atexit.register(_sync_kernels, kernels, time.time())


def _is_private_tree(kernels: Path) -> bool:
    """Whether only this user may write to MLX's folder and to those in it. It is made if there is none."""
    try:
        kernels.mkdir(mode=0o700)
    except FileExistsError:
        try:
            below = [path for pattern in ("*", "*/*") for path in kernels.glob(pattern) if path.is_dir()]
            return not any(why_not_private(os.lstat(path)) for path in [kernels, *below])
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


def _remove_litter(kernels: Path) -> None:
    """Remove what a process has left that was killed while it compiled.

    MLX compiles under random names, which do not say whose process it is. So old files are taken.
    """
    for path in kernels.glob("*/cpu/tmp_*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LITTER_SECONDS:
                path.unlink()


def _sync_kernels(kernels: Path, since: float) -> None:
    """Write kernels that were compiled after a moment to the disk. It takes milliseconds, once."""
    for path in kernels.glob("*/cpu/lib*.so"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= since:
                sync_to_disk(path)
