"""The state of a run on disk, ``checkpoints/00000100/``: written all or nothing, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxlava.backend import Tree, arrays_by_name, mx
from mlxlava.integrity import check_digests, read_last_intact_checkpoint, read_progress, write_digests
from mlxlava.models.array_files import atomic_array_folder, check_arrays, fill_tree, load_arrays, save_arrays
from mlxlava.paths import checkpoint_folders, remove_folder

# An array of the sums of feature matching that only older checkpoints have.
_OLD_FEATURE_SUMS = "features.steps"


def playable_arrays(state: Tree) -> Tree:
    """The part of a run state that is played: the averaged weights and the statistics."""
    return {**state["ema"], "stats": state["stats"]}


def save_checkpoint(run: Path, state: Tree, progress: Mapping[str, Any], checkpoints_to_keep: int) -> Path:
    """Write the whole run state as ``checkpoints/<step>``; delete all but the last checkpoints.

    Args:
        run: folder of the run.
        state: run state (training/step.py), evaluated and finite.
        progress: ``step`` and ``seconds``, which resuming needs too.
        checkpoints_to_keep: number of checkpoints that stay.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it cannot be written. Earlier checkpoints stay.
    """
    folder = run / "checkpoints" / f"{progress['step']:08d}"
    with atomic_array_folder(folder, "checkpoint") as draft:
        save_arrays(draft / "state.safetensors", state)
        (draft / "progress.json").write_text(json.dumps(dict(progress)), encoding="utf-8")
        write_digests(draft, ["state.safetensors", "progress.json"])
    for old in checkpoint_folders(run)[:-checkpoints_to_keep]:
        remove_folder(old)
    return folder


def load_checkpoint(folder: Path, example: Tree) -> tuple[Tree, dict[str, Any]]:
    """Read a checkpoint.

    Args:
        folder: folder of the checkpoint.
        example: a run state of the same recipe at its first step; the checkpoint must have the same names
            and shapes. Sums of feature matching that an older version has written begin anew.

    Returns:
        The run state and its progress.

    Raises:
        UserError: it is damaged or belongs to other networks.
    """
    check_digests(folder, "checkpoint")
    arrays = _with_present_feature_sums(load_arrays(folder / "state.safetensors"), example)
    check_arrays(arrays, example, f"checkpoint: {folder}")
    return fill_tree(example, arrays), read_progress(folder)


def load_last_intact_checkpoint(run: Path, example: Tree) -> tuple[Tree, dict[str, Any]]:
    """Read the latest checkpoint that is intact, to go on from it.

    Damaged ones that are later are renamed to ``damaged-…``, since the run will make those steps again.

    Args:
        run: folder of the run, which this process has locked.
        example: see :func:`load_checkpoint`.

    Returns:
        The run state and its progress.

    Raises:
        UserError: none is intact. All of them stay.
    """
    folder, found = read_last_intact_checkpoint(run, lambda folder: load_checkpoint(folder, example))
    for later in checkpoint_folders(run):
        if later.name > folder.name:
            aside = later.with_name(f"damaged-{later.name}")
            remove_folder(aside)
            later.rename(aside)
    return found


def _with_present_feature_sums(arrays: Mapping[str, mx.array], example: Tree) -> dict[str, mx.array]:
    """Arrays of a checkpoint; if its sums are of other features than those of ``example``, with those there.

    The sums are averages over some hundred steps, so a run that goes on with new ones loses little.
    """
    if _OLD_FEATURE_SUMS not in arrays or "features" not in example:
        return dict(arrays)
    kept = {name: array for name, array in arrays.items() if not name.startswith("features.")}
    return kept | {f"features.{name}": array for name, array in arrays_by_name(example["features"]).items()}
