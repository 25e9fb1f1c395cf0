"""What the workflows on other machines ask for exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GITHUB = Path(__file__).parents[2] / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="needs a checkout")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_githubs_own_at_a_major_version(path: Path) -> None:
    used = re.findall(r"uses: *(\S+)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"actions/(checkout|setup-python|upload-artifact)@v\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_steps_are_those_of_the_script(path: Path) -> None:
    script = (GITHUB / "machine").read_text(encoding="utf-8")
    calls = re.findall(r"\.github/machine (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert calls
    for step in {step for call in calls for step in call.split()}:
        assert re.search(rf"^{step}\(\) {{$", script, re.MULTILINE), step


def test_the_oldest_python_of_the_package_is_tried() -> None:
    pyproject = (GITHUB.parent / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r'requires-python = ">=([\d.]+)"', pyproject)
    assert oldest is not None
    assert f"'{oldest[1]}'" in (GITHUB / "workflows/linux.yml").read_text(encoding="utf-8")


def test_the_oldest_dependencies_are_tried() -> None:
    assert "run: make test-minimum\n" in (GITHUB / "workflows/linux.yml").read_text(encoding="utf-8")
