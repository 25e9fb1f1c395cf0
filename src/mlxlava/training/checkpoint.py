"""The state of a run on disk, ``checkpoints/00000100/``: written all or nothing, checked when it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxlava.backend import Tree
from mlxlava.models.storage import array_folder, compare, fill, load_arrays, save_arrays
from mlxlava.paths import checkpoints, read_json


def playable(state: Tree) -> Tree:
    """What playing needs of a run state: the averaged weights and the statistics."""
    return {**state["ema"], "stats": state["stats"]}


def save_checkpoint(run: Path, state: Tree, progress: Mapping[str, Any], keep: int) -> Path:
    """Write the whole run state as ``checkpoints/<step>``, then drop all but the last ``keep``.

    Args:
        run: folder of the run.
        state: run state (training/step.py), evaluated and finite.
        progress: the rest that resuming needs: ``step`` and ``seconds``.
        keep: checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it cannot be written. Earlier checkpoints stay.
    """
    folder = run / "checkpoints" / f"{progress['step']:08d}"
    with array_folder(folder, "checkpoint") as draft:
        save_arrays(draft / "state.safetensors", state)
        (draft / "progress.json").write_text(json.dumps(dict(progress)), encoding="utf-8")
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Read a checkpoint.

    Args:
        folder: its folder.
        like: a run state of the same recipe, for names and shapes.

    Returns:
        The run state and its progress.

    Raises:
        UserError: it is damaged or belongs to other networks.
    """
    arrays = load_arrays(folder / "state.safetensors")
    compare(arrays, like, f"checkpoint: {folder}")
    return fill(like, arrays), read_json(folder / "progress.json", "checkpoint")
