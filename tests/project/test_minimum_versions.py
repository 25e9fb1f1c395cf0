"""The oldest dependencies that are allowed can be installed, so that they can be tried."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/minimum_versions.py"

pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="needs a checkout")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return subprocess.run(
        [sys.executable, TOOL], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_every_line_holds_one_version(lines: list[str]) -> None:
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\d.]+(; .+)?", line), line


def test_what_is_in_an_extra_and_what_is_for_some_systems_is_held_too(lines: list[str]) -> None:
    held = {line.partition("==")[0]: line for line in lines}
    assert {"mlx", "numpy", "pillow", "matplotlib", "aiohttp", "pygame-ce", "pytest"} <= held.keys()
    assert held["tomli"].endswith("; python_version < '3.11'")


def test_a_dependency_has_a_lower_bound(lines: list[str]) -> None:
    held = {line.partition("==")[0] for line in lines}
    tables = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\ndependencies = [")[2]
    tables = re.sub(r"^\s*#.*$", "", tables.partition("\n[project.scripts]")[0], flags=re.MULTILINE)
    named = {re.split(r"[>=<;\[ ]", text)[0] for text in re.findall(r'"([^"]+)"', tables)}
    # Extras of the package itself; and what is for processors on which no oldest version has been tried.
    assert named - held == {"mlxlava", "scipy-openblas32"}
