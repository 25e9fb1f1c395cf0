"""C++ that is compiled where it runs: what is kept, what is loaded, and what happens when that is wrong."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mlxlava
from mlxlava.backend import PRELOADED_BLAS, on_cpu
from mlxlava.backend.cpu import native
from mlxlava.paths import cache_folder
from tests.backend.conftest import python

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("g++") is None, reason="only Linux compiles C++"
)

ANSWER = 'extern "C" int answer() { return 42; }'


def answer(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def compiler(folder: Path, script: str) -> str:
    """A PATH on which g++ is a shell script; in it, $real is the compiler."""
    folder.mkdir()
    file = folder / "g++"
    file.write_text(f"#!/bin/sh\nreal={shutil.which('g++')}\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


# --- the cache ---


def test_a_library_is_kept_for_this_user_alone(cache: Path, open_umask: None) -> None:
    library = native.build_library("answer", ANSWER)
    assert answer(library) == 42
    for path in (cache.parent, cache, *cache.iterdir()):
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_it_is_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = native.build_library("answer", ANSWER)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.build_library("answer", ANSWER) == library
    with pytest.raises(OSError, match=r"g\+\+"):
        native.build_library("answer", ANSWER, depends_on="another machine")


def link(library: Path) -> None:
    library.rename(library.with_name("elsewhere.so"))
    library.symlink_to("elsewhere.so")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda library: os.truncate(library, 1000),
    "empty": lambda library: os.truncate(library, 0),
    "gone": lambda library: library.unlink(),
    "of someone else's making": lambda library: shutil.copy("/bin/sh", library),
    "a link": link,
    "open to all": lambda library: library.chmod(0o777),
    "with no record": lambda library: library.with_suffix(".json").unlink(),
    "with half a record": lambda library: library.with_suffix(".json").write_text('{"sha2'),
    "with a record that all can write": lambda library: library.with_suffix(".json").chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_not_what_was_built_is_built_again(
    cache: Path, damage: Callable[[Path], object]
) -> None:
    library = native.build_library("answer", ANSWER)
    whole = library.read_bytes()
    damage(library)
    again = native.build_library("answer", ANSWER)
    assert again == library and not library.is_symlink()
    assert library.read_bytes() == whole and answer(library) == 42
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


def test_a_library_that_was_put_there_is_not_loaded(cache: Path) -> None:
    """Not even with the name of the right one, before that was ever built."""
    name = native.build_library("answer", ANSWER).name
    shutil.rmtree(cache)
    cache.mkdir(mode=0o700)
    other = 'extern "C" int answer() { return 13; }'
    subprocess.run(
        ["g++", "-shared", "-x", "c++", "-", "-o", cache / name], input=other, text=True, check=True
    )
    assert answer(native.build_library("answer", ANSWER)) == 42


@pytest.mark.parametrize("whose", ["open to all", "another user's"])
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: Path, whose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir(parents=True)
    if whose == "open to all":
        cache.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(cache, 12345, 12345)
    else:
        pytest.skip("only root can give a folder to another user")
    library = native.build_library("answer", ANSWER)
    assert answer(library) == 42
    assert not list(cache.iterdir())
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    (line,) = capsys.readouterr().err.splitlines()
    assert str(cache) in line and "XDG_CACHE_HOME" in line
    # Within this process nothing is compiled or said again.
    assert native.build_library("answer", ANSWER) == library
    assert not capsys.readouterr().err


@pytest.mark.parametrize("given", ["", ".", "cache", "~/cache"])
def test_a_cache_folder_that_is_not_absolute_counts_as_not_set(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cache_folder() == tmp_path / "home" / ".cache" / "mlxlava"
    native.build_library("answer", ANSWER)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_what_a_killed_process_has_left_is_removed(cache: Path) -> None:
    library = native.build_library("answer", ANSWER)
    left = library.with_suffix(".1.tmp")
    library.replace(left)
    native.build_library("answer", ANSWER)
    assert library.is_file() and not left.exists()


def test_processes_that_build_at_once_compile_once(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = compiler(tmp_path / "bin", f'echo ran >> {log}\nsleep 0.3\nexec "$real" "$@"')
    code = f"""
import ctypes
from mlxlava.backend.cpu import native
print(ctypes.CDLL(str(native.build_library("answer", {ANSWER!r}))).answer())
"""
    environment = {**os.environ, "PATH": path, "MLXLAVA_BLAS": "0"}
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [process.communicate()[0] for process in running] == ["42\n"] * 4
    assert log.read_text().split() == ["ran"]


@pytest.mark.slow
@pytest.mark.skipif(not on_cpu(), reason="only CPUs need it")
@pytest.mark.parametrize("to_all", [True, False], ids=["from a terminal", "to the command alone"])
@pytest.mark.parametrize("first", ["BLAS", "convolutions"])
def test_a_compiler_that_is_interrupted_leaves_nothing_behind(
    cache: Path, tmp_path: Path, first: str, to_all: bool
) -> None:
    """The compiler is ended with what it has started, and the command ends with no traceback."""
    if first == "BLAS" and not (PRELOADED_BLAS and PRELOADED_BLAS[1].startswith("/")):
        pytest.skip("no BLAS that has to be compiled for")
    begun = tmp_path / "begun"
    script = 'case "$*" in *--version*) exec "$real" "$@";; esac\n'  # MLX asks whether there is a compiler
    # The draft is what a compiler has written when the user loses patience.
    script += 'for last; do case "$before" in -o) : > "$last";; esac; before=$last; done\n'
    script += f"sleep 60 & echo $! > {begun}.tmp; mv {begun}.tmp {begun}; wait"
    environment = {**os.environ, "PATH": compiler(tmp_path / "bin", script), "MLXLAVA_GPU_PATH": "0"}
    environment["MLXLAVA_BLAS"] = "1" if first == "BLAS" else "0"
    command = [sys.executable, "-m", "mlxlava", "loop", "--screen", "none", "--frames", "1", "-o", "x.y4m"]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not begun.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    # The BLAS is loaded at the start. Convolutions are needed when the lamp plays, and playing ends with 0.
    assert process.returncode == (130 if first == "BLAS" else 0) and "Traceback" not in errors
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(begun.read_text()), 0)
            time.sleep(0.05)


# --- tests of libraries ---


def test_what_a_test_finds_is_remembered_until_the_next_build(cache: Path) -> None:
    found = iter(["wrong numbers", ""])
    library = native.build_library("answer", ANSWER)

    def interrupted() -> str:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        native.run_library_test_once(library, interrupted)
    assert native.run_library_test_once(library, lambda: next(found)) == "wrong numbers"
    assert native.run_library_test_once(library, interrupted) == "wrong numbers"
    library.unlink()
    native.build_library("answer", ANSWER)
    assert native.run_library_test_once(library, lambda: next(found)) == ""
    assert native.run_library_test_once(library, interrupted) == ""


# Four functions as convolution.cpp has them; where it is loaded is written down.
STUB = """
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
#include "mlx/ops.h"
namespace mx = mlx::core;
using Array = const mx::array*;
__attribute__((constructor)) static void loaded() {{
  if (FILE* log = std::fopen("{log}", "a")) {{ std::fprintf(log, "loaded\\n"); std::fclose(log); }}
}}
extern "C" {{
int mlxlava_algorithm(int, int, int, int, int, int) {{ return 0; }}
const char* mlxlava_transform_filter(int, int, Array weight, mx::array* out) {{
  *out = *weight;
  return nullptr;
}}
const char* mlxlava_convolve(int, int, Array x, Array, int outputs, Array, mx::array* out) {{
  {convolve}
  *out = mx::zeros({{x->shape(0), x->shape(1) / 2, x->shape(2) / 2, outputs}});
  return nullptr;
}}
const char* mlxlava_weight_gradient(int, int, Array, Array, mx::array*) {{ return nullptr; }}
}}
"""

CONVOLVES = """
from mlxlava.backend.cpu import convolution
from mlxlava.backend import mx
from mlxlava.backend.ops import conv3
print(convolution.is_available(), conv3(mx.ones((1, 4, 4, 2)), mx.ones((3, 3, 3, 2))).sum().item())
"""


def with_source(folder: Path, source: str) -> str:
    """A PYTHONPATH with the package, its convolution.cpp replaced."""
    package = folder / "mlxlava"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(mlxlava.__file__).parent, package, ignore=leave_out)
    (package / "backend/cpu/convolution.cpp").write_text(source, encoding="utf-8")
    return str(folder)


@pytest.mark.skipif(not on_cpu(), reason="only CPUs need it")
@pytest.mark.parametrize(
    ("convolve", "why"),
    [
        ("*(volatile int*)nullptr = 1;", "ended by SIGSEGV"),
        ("", "CONV4_STRIDE2 WINOGRAD_2X2 is off by 1.0e+00"),
    ],
    ids=["crashes", "wrong numbers"],
)
def test_a_library_that_fails_its_test_is_not_used(
    cache: Path, tmp_path: Path, convolve: str, why: str
) -> None:
    log = tmp_path / "log"
    path = with_source(tmp_path / "site", STUB.format(log=log, convolve=convolve))
    for start in ("first", "second"):
        ended = python(CONVOLVES, PYTHONPATH=path, MLXLAVA_GPU_PATH="")
        assert ended.stdout.split() == ["False", "600.0"], ended.stderr
        said = [line for line in ended.stderr.splitlines() if "compiling" not in line]
        assert len(said) == 1 and why in said[0] and "slower" in said[0], ended.stderr
        assert log.read_text().split() == ["loaded"], f"{start} start"  # by the test's process alone


@pytest.mark.skipif(not on_cpu(), reason="only CPUs need it")
@pytest.mark.parametrize(
    ("version", "which"), [("0.99.0", "newer"), ("0.31.2", "older"), ("0.32.4.dev20260901", "not one of")]
)
def test_a_version_of_mlx_that_was_not_tested_keeps_its_own_convolutions(version: str, which: str) -> None:
    code = f"import mlx.core; mlx.core.__version__ = {version!r}\n{CONVOLVES}{CONVOLVES}"
    ended = python(code, MLXLAVA_GPU_PATH="")
    assert ended.stdout.split() == ["False", "600.0"] * 2
    (line,) = ended.stderr.splitlines()  # once
    assert f"MLX {version} is {which}" in line and "slower" in line
