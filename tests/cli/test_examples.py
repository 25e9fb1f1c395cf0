"""The example below each command's options works: a user may copy it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlxlava.cli import cli
from tests.conftest import run_command

# In the order in which a newcomer would try them: later ones use files of earlier ones. Of an option that is
# given twice the last one counts, so what is added here makes the same command quick.
_SMALL_NETWORKS = [f"--set={net}.widths=[8, 8]" for net in ("generator", "discriminator", "encoder")]
ADDED: dict[str, list[str]] = {
    "lamp": ["--size=16", "--fps=5", "--seconds=40"],
    "footage": ["--size=16"],
    "train": ["--minutes=0.02", "--size=16", "--seq-len=8", "--batch-size=2", *_SMALL_NETWORKS],
    "loop": ["--seconds=0.2"],
    "export": [],
    "report": [],
    "info": [],
    "plan": ["--seq-len=20", "--batch-size=8"],
    "check": ["--only=^the machine.*memory"],
    "completion": ["bash"],
}
ADDED_SLOW = {
    "score": ["--frames=64"],
    "drift": ["--frames=1000"],
    "bench": ["--only=^rate"],
}
WRITTEN = ("lamp.mp4", "data/frames.npy", "runs/mine/report.html", "lava.mp4", "lamp.html")


pytestmark = pytest.mark.usefixtures("eager")


def example_of(command: str) -> list[str]:
    """The example in the help of a command, as words."""
    shown = re.findall(r"^ +(mlxlava .+)$", cli.commands[command].epilog or "", re.MULTILINE)
    assert len(shown) == 1, command
    words = shlex.split(shown[0])
    assert words[1] == command
    return words[1:]


@pytest.fixture
def follow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., None]:
    """Runs the examples of commands, one after the other, in a folder that was empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    def call(added: Mapping[str, list[str]]) -> None:
        for name, options in added.items():
            status, _, errors = run_command(monkeypatch, capsys, *example_of(name), *options)
            assert status == 0, (name, errors)

    return call


def test_each_command_has_an_example() -> None:
    assert ADDED.keys() | ADDED_SLOW.keys() == cli.commands.keys()
    for name in cli.commands:
        example_of(name)


def test_the_examples_work_one_after_the_other(follow: Callable[..., None], tmp_path: Path) -> None:
    follow(ADDED)
    for name in WRITTEN:
        assert (tmp_path / name).is_file(), name


@pytest.mark.slow
@pytest.mark.skipif(None in (find_spec("matplotlib"), find_spec("scipy")), reason="needs the extra `score`")
def test_the_examples_of_commands_that_measure_work(follow: Callable[..., None], tmp_path: Path) -> None:
    follow({name: ADDED[name] for name in ("lamp", "train")})
    follow(ADDED_SLOW)
    assert (tmp_path / "score.png").is_file() and (tmp_path / "drift.png").is_file()
