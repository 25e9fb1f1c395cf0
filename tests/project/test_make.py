"""`make` as a stranger meets it, before anything is installed: on old Pythons and on foreign systems."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "tools/check_python.py"

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not CHECK.is_file(), reason="needs make and a checkout"
)


def check_python() -> Any:
    spec = importlib.util.spec_from_file_location("check_python", CHECK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _not_inside_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` runs these: what it hands on to a make below it would change what that prints."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV"):
        monkeypatch.delenv(name, raising=False)


def test_help_lists_every_target_with_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert [name for name, _ in lines] == targets[1].split()
    for name, what in lines:
        assert re.search(rf"^{name}:.*## *{re.escape(what)}$", text, re.MULTILINE)
    # Where each text begins, to the column: a tab that some tool does not know would show as a letter.
    assert len({line.index(what) for line, (_, what) in zip(shown.splitlines(), lines, strict=True)}) == 1


# --- which Pythons can have MLX ---

MAC = {
    "python": (3, 12, 1),
    "system": "Darwin",
    "machine": "arm64",
    "release": (14, 5),
    "apple_silicon": True,
}
LINUX = {"python": (3, 10, 0), "system": "Linux", "machine": "x86_64", "release": (2, 36)}


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (MAC, {}),
        (MAC, {"release": (26, 1)}),
        (MAC, {"release": ()}),  # it does not tell: pip will
        (MAC, {"python": (3, 15, 0)}),
        (LINUX, {}),
        (LINUX, {"machine": "aarch64", "release": (2, 35)}),
    ],
)
def test_pythons_that_can_have_it(base: dict[str, Any], changes: dict[str, Any]) -> None:
    check = check_python()
    assert check.why_not(check.Facts(**{"implementation": "CPython", **base, **changes})) == ""


@pytest.mark.parametrize(
    ("base", "changes", "said"),
    [
        (MAC, {"python": (3, 9, 6)}, r"needs Python 3\.10 or newer and this is Python 3\.9; .*make PYTHON="),
        (MAC, {"python": (3, 16, 0)}, r"no packages for Python 3\.16 yet.*3\.15; .*make PYTHON="),
        (LINUX, {"implementation": "PyPy"}, r"this is PyPy; .*make PYTHON="),
        (MAC, {"release": (13, 7, 1)}, r"macOS 14 or newer and this is macOS 13\.7\.1; update macOS"),
        (MAC, {"machine": "x86_64"}, "Rosetta.*make PYTHON=/opt/homebrew/bin/python3"),
        (MAC, {"machine": "x86_64", "apple_silicon": False}, "Apple silicon .*Intel"),
        (LINUX, {"machine": "armv7l"}, "x86_64 and aarch64 on Linux and this is armv7l"),
        (LINUX, {"release": (2, 31)}, r"glibc 2\.35 or newer .*this system has 2\.31"),
        (LINUX, {"release": ()}, r"glibc 2\.35 or newer .*this system has none"),
        (LINUX, {"system": "FreeBSD"}, "macOS and Linux and this is FreeBSD"),
    ],
)
def test_pythons_that_cannot_have_it_are_told_why(
    base: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    check = check_python()
    why = check.why_not(check.Facts(**{"implementation": "CPython", **base, **changes}))
    assert re.search(said, why), why
    assert "\n" not in why


def test_old_pythons_can_read_the_check() -> None:
    ast.parse(CHECK.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_the_oldest_python_is_that_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={".".join(map(str, check_python().OLDEST))}"' in text


def test_this_python_can_have_it() -> None:
    subprocess.run([sys.executable, str(CHECK)], check=True)


# --- through make ---

# A python3 that runs the check as if on another system, notes what else it is asked for, and fails at it.
PYTHON = """#!/bin/sh
echo "$*" >> "{folder}/asked"
case "$1" in tools/check_python.py) exec "{real}" "{folder}/pretend.py" "$1" ;; esac
exit 1
"""
PRETEND = """
import json, os, platform, runpy, sys
pretended = json.loads(os.environ["PRETENDED"])
sys.version_info = tuple(pretended["python"])
platform.system = lambda: pretended["system"]
platform.machine = lambda: pretended["machine"]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[str]]]:
    """Runs `make setup` as if on another system: what it says, and what python3 was asked for."""

    def program(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def call(python: tuple[int, ...], system: str, machine: str, **answers: str) -> tuple[str, list[str]]:
        program("python3", PYTHON.format(folder=tmp_path, real=sys.executable))
        (tmp_path / "pretend.py").write_text(PRETEND)
        program("sw_vers", f'#!/bin/sh\necho "{answers.get("sw_vers", "")}"\n')
        cases = "".join(f'"-n {name}") echo {value} ;;\n' for name, value in answers.items())
        program("sysctl", f'#!/bin/sh\ncase "$*" in\n{cases}*) echo "unknown oid" >&2; exit 1 ;;\nesac\n')
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        pretended = {"python": python, "system": system, "machine": machine}
        monkeypatch.setenv("PRETENDED", json.dumps(pretended))
        command = ["make", "setup", "PYTHON=python3", f"VENV={tmp_path}/venv"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode != 0
        assert not (tmp_path / "venv").exists()
        return ended.stderr + ended.stdout, (tmp_path / "asked").read_text().splitlines()

    return call


@pytest.mark.parametrize(
    ("python", "machine", "answers", "said"),
    [
        ((3, 9, 6), "arm64", {"sw_vers": "15.1"}, "needs Python 3.10 or newer and this is Python 3.9"),
        ((3, 16, 0), "arm64", {"sw_vers": "26.0"}, "no packages for Python 3.16"),
        ((3, 12, 0), "arm64", {"sw_vers": "13.6.9"}, "this is macOS 13.6.9"),
        ((3, 12, 0), "x86_64", {"sw_vers": "15.1", "sysctl.proc_translated": "1"}, "Rosetta"),
        ((3, 12, 0), "x86_64", {"sw_vers": "15.1", "hw.optional.arm64": "1"}, "Rosetta"),
        ((3, 12, 0), "x86_64", {"sw_vers": "14.7", "sysctl.proc_translated": "0"}, "an Intel processor"),
    ],
)
def test_a_mac_that_cannot_have_it_is_told_before_pip_is_called(
    make: Callable[..., tuple[str, list[str]]],
    python: tuple[int, ...],
    machine: str,
    answers: dict[str, str],
    said: str,
) -> None:
    text, asked = make(python, "Darwin", machine, **answers)
    first, *rest = [line for line in text.splitlines() if line]
    assert said in first
    assert all(line.startswith("make") for line in rest), text  # its own "Error 1"
    assert asked == ["tools/check_python.py"]


def test_a_mac_that_can_have_it_goes_on(make: Callable[..., tuple[str, list[str]]]) -> None:
    text, asked = make((3, 12, 0), "Darwin", "arm64", sw_vers="14.0")
    assert asked[0] == "tools/check_python.py" and asked[1].startswith("-m venv")
    assert "MLX" not in text


def test_a_python_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = ["make", "setup", "PYTHON=python3.99", f"VENV={tmp_path}/venv"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "there is no python3.99" in ended.stdout + ended.stderr
    assert not (tmp_path / "venv").exists()
