"""Checkpoints: whole or not there, and checked when read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxlava.backend import Tree, arrays_by_name, mx
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.paths import checkpoint_folders
from mlxlava.training.checkpoint import load_checkpoint, save_checkpoint
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def state(tiny: Recipe) -> Tree:
    return Trainer(tiny, 6).init()


def test_a_checkpoint_comes_back_and_only_the_last_are_kept(
    tiny: Recipe, state: Tree, tmp_path: Path
) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, state, {"step": step, "seconds": 1.5}, checkpoints_to_keep=2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["00000003", "00000004"]
    read, progress = load_checkpoint(checkpoint_folders(tmp_path)[-1], Trainer(tiny, 6).init())
    assert progress == {"step": 4, "seconds": 1.5}
    before = arrays_by_name(state)
    for name, array in arrays_by_name(read).items():
        assert np.array_equal(np.array(array), np.array(before[name])), name


@pytest.mark.parametrize(
    "fail",
    [
        lambda patch: patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0)),
        lambda patch: patch.setattr(mx, "save_safetensors", _fails),
    ],
    ids=["full disk", "failed write"],
)
def test_a_write_that_fails_leaves_the_checkpoints_before(
    state: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None]
) -> None:
    save_checkpoint(tmp_path, state, {"step": 1, "seconds": 0.0}, checkpoints_to_keep=1)
    fail(monkeypatch)
    with pytest.raises(UserError, match=r"cannot write .*; what was there before is kept"):
        save_checkpoint(tmp_path, state, {"step": 2, "seconds": 0.0}, checkpoints_to_keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def _fails(path: str, arrays: dict[str, mx.array]) -> None:
    Path(path).write_bytes(b"half")
    raise RuntimeError("[save_safetensors] failed to write")


def test_a_damaged_checkpoint_is_named(tiny: Recipe, state: Tree, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, state, {"step": 1, "seconds": 0.0}, checkpoints_to_keep=1)
    (folder / "state.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="00000001"):
        load_checkpoint(folder, state)
