"""Files of a run that are damaged, missing or left over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mlxlava
from mlxlava.backend import Tree
from mlxlava.cli import main
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.paths import checkpoint_folders, write_text_atomically
from mlxlava.rollout.weights import load_weights
from mlxlava.training.checkpoint import load_last_intact_checkpoint, save_checkpoint
from mlxlava.training.folder import make_run_folder
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda folder: flip_a_bit(folder / "state.safetensors"),
    "half": lambda folder: os.truncate(folder / "state.safetensors", 1000),
    "empty": lambda folder: os.truncate(folder / "state.safetensors", 0),
    "gone": lambda folder: (folder / "state.safetensors").unlink(),
    "progress, a bit": lambda folder: flip_a_bit(folder / "progress.json"),
    "progress, empty": lambda folder: os.truncate(folder / "progress.json", 0),
    "digests, empty": lambda folder: os.truncate(folder / "SHA256SUMS", 0),
}


@pytest.fixture
def run(tiny: Recipe, footage: Footage, tmp_path: Path) -> Path:
    """A run with checkpoints at the steps 0, 2 and 4."""
    folder = tmp_path / "run"
    make_run_folder(folder, tiny, footage, [], "mlxlava train", None)
    state = example(tiny)
    for step in (2, 4):
        save_checkpoint(folder, state, {"step": step, "seconds": 1.0}, 3)
    return folder


def example(recipe: Recipe) -> Tree:
    return Trainer(recipe, 6).init()


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    how: str, run: Path, tiny: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[how](checkpoint_folders(run)[-1])
    load_weights(run)
    said = capsys.readouterr().err
    assert "00000004" in said and "00000002" in said and said.count("\n") == 1
    assert mlxlava.info(run, verify=True)["checkpoints/00000004"].startswith("damaged")
    assert load_last_intact_checkpoint(run, example(tiny))[1]["step"] == 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "00000000",
        "00000002",
        "damaged-00000004",
    ]
    load_last_intact_checkpoint(run, example(tiny))
    assert capsys.readouterr().err.count("00000004") == 1  # it is said once


def test_where_all_are_damaged_none_is_touched(run: Path, tiny: Recipe) -> None:
    for folder in checkpoint_folders(run):
        flip_a_bit(folder / "state.safetensors")
    with pytest.raises(UserError, match=r"00000004.*damaged"):
        load_last_intact_checkpoint(run, example(tiny))
    assert len(checkpoint_folders(run)) == 3


def test_checkpoints_of_older_versions_have_no_digests_and_are_read(run: Path, tiny: Recipe) -> None:
    for folder in checkpoint_folders(run):
        (folder / "SHA256SUMS").unlink()
    assert load_last_intact_checkpoint(run, example(tiny))[1]["step"] == 4
    assert mlxlava.info(run, verify=True)["checkpoints/00000004"] == "no digests, but readable"


def test_verify_says_what_is_damaged_and_the_exit_status_too(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mlxlava", "info", str(run), "--verify"])
    main()
    assert capsys.readouterr().out.count(" intact\n") == 3
    flip_a_bit(run / "checkpoints/00000002/state.safetensors")
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "checkpoints/00000002  damaged" in capsys.readouterr().out
    assert set(mlxlava.info(verify=True).values()) == {"intact"}  # the shipped weights


def test_what_dead_processes_left_is_taken_away(tmp_path: Path) -> None:
    """By the first version: its drafts had no locks, so their process or their age tells."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    key = "0123456789abcdef" * 2
    gone = [f".00000100.{ended.pid}.tmp", f".{key}.0123abcd.partial"]
    kept = [f".00000200.{os.getpid()}.tmp", f".{key}.89abcdef.partial", ".notes.tmp"]
    for name in (*gone, *kept):
        (tmp_path / name).mkdir()
    day_before_yesterday = time.time() - 2 * 86400
    os.utime(tmp_path / gone[1], (day_before_yesterday, day_before_yesterday))
    write_text_atomically(tmp_path / "any", "")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "any"}
