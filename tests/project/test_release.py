"""What a release repeats agrees, and commits are held to what `make check` runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlxlava

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/release.py"

pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="needs a checkout")


def answer(tag: str) -> tuple[int, str]:
    ended = subprocess.run([sys.executable, TOOL, tag], capture_output=True, text=True)
    return ended.returncode, ended.stderr


def test_a_tag_is_a_release_if_everything_has_its_version() -> None:
    assert answer(f"v{mlxlava.__version__}") == (0, "")
    status, said = answer("v99.0")
    assert status == 1 and f"the tag v99.0 is not v{mlxlava.__version__}" in said


def test_the_version_stands_in_one_place_of_the_code() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text and not re.search(r"^version = ", text, re.MULTILINE)


def test_commits_are_held_to_what_make_check_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    # `make test` hands its own flags on, and a make within a make says where it is.
    outside = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    asked = subprocess.run(
        ["make", "-n", "check", "-o", ".venv/.dev"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE) == asked.stdout.splitlines()
