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
    if (
        path.stem == "release"
    ):  # that of the package index's own developers; it alone has a release for a version
        used.remove("pypa/gh-action-pypi-publish@release/v1")
        used.remove("actions/download-artifact@v5")
    for action in used:
        assert re.fullmatch(r"actions/(checkout|setup-python|upload-artifact)@v\d+", action), action


def test_only_the_job_that_publishes_may_do_more_than_read() -> None:
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE), path.stem
        assert ": write" not in text or path.stem == "release", path.stem
    jobs = (GITHUB / "workflows/release.yml").read_text(encoding="utf-8").partition("\njobs:\n")[2]
    build, _, publish = jobs.partition("\n  publish:\n")
    assert ": write" not in build
    assert "    needs: build\n" in publish and "    environment: release\n" in publish
    assert re.findall(r"(\S+): write", publish) == ["id-token"] and "secrets." not in publish


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
