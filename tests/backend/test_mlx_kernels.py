"""Kernels that MLX compiles on Linux: only whole ones are loaded, which this user has written."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest

from tests.backend.conftest import python

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("g++") is None, reason="only Linux compiles C++"
)

COMPILES = """
import tempfile
from mlxlava.backend import mx
f = mx.compile(lambda x: mx.exp(x) * 2 + x)
print(f(mx.ones((3,))).sum().item(), tempfile.gettempdir())
"""


def kernels(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.so") if path.parent.name == "cpu"]


def test_mlx_keeps_its_kernels_where_only_this_user_writes(
    cache: Path, tmp_path: Path, open_umask: None
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    ended = python(COMPILES, TMPDIR=str(folder))
    assert ended.stdout.split()[1] == str(folder), ended.stderr
    assert kernels(folder) and not kernels(cache)
    assert stat.S_IMODE((folder / "mlx").stat().st_mode) == 0o700


def test_a_kernel_is_compiled_once_and_again_if_it_was_not_written_to_its_end(
    cache: Path, tmp_path: Path
) -> None:
    """A loss of power leaves a part of it. MLX would load it: an error, or SIGBUS."""
    expected = python(COMPILES, TMPDIR=str(tmp_path))
    (kernel,) = kernels(tmp_path)
    before = kernel.stat()
    python(COMPILES, TMPDIR=str(tmp_path))
    after = kernel.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for left in (0, 100, 8000, "no pages"):
        os.truncate(kernel, left if isinstance(left, int) else 0)
        if left == "no pages":  # the file system knew the length only
            os.truncate(kernel, before.st_size)
        ended = python(COMPILES, TMPDIR=str(tmp_path))
        assert (ended.returncode, ended.stdout) == (0, expected.stdout), (left, ended.stderr)
        assert kernel.stat().st_size == before.st_size, left


@pytest.mark.parametrize("open_one", ["mlx", "mlx/0.32.4/cpu"])
def test_mlx_takes_no_kernels_from_where_others_write(cache: Path, tmp_path: Path, open_one: str) -> None:
    folder = tmp_path / "tmp"
    (folder / "mlx/0.32.4/cpu").mkdir(parents=True)
    (folder / open_one).chmod(0o777)
    ended = python(COMPILES, TMPDIR=str(folder))
    # Python's own temporary files stay where the user wants them.
    assert ended.stdout.split()[1] == str(folder), ended.stderr
    assert kernels(cache) and not kernels(folder)


def test_what_a_killed_process_has_left_is_removed(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mlx/0.32.4/cpu"
    folder.mkdir(parents=True, mode=0o700)
    left, busy = (folder / f"tmp_{name}.cpp" for name in ("0000cafe", "0000beef"))
    for file in (left, left.with_suffix(".so"), busy):
        file.touch()
    two_hours_ago = time.time() - 7200
    for file in (left, left.with_suffix(".so")):
        os.utime(file, (two_hours_ago, two_hours_ago))
    python("import mlxlava.backend", TMPDIR=str(tmp_path))
    assert list(folder.iterdir()) == [busy]  # another process may be compiling it
