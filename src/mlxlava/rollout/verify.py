"""Checks whether weights and checkpoints are as they were written (``mlxlava info --verify``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlxlava.errors import UserError
from mlxlava.integrity import check_digests, read_progress
from mlxlava.models.array_files import find_non_finite, load_arrays
from mlxlava.paths import SMALL_LAMP_FOLDER, checkpoint_folders, read_json, shipped_weights_folders
from mlxlava.rollout.weights import find_weights_folder


def verify_weights(name_or_path: str | Path | None = None) -> dict[str, str]:
    """A verdict on weights, or on each checkpoint of a run and of its smaller lamp.

    Args:
        name_or_path: shipped weights by name, a folder of weights, or a run; all shipped weights when None.

    Returns:
        By folder: ``intact``, ``no digests, but readable`` (written by an older version), or ``damaged: …``.

    Raises:
        UserError: there are no such weights.
    """
    if name_or_path is None:
        return {folder.name: _verdict(_check_weights, folder) for folder in shipped_weights_folders()}
    given = Path(name_or_path).expanduser()
    runs = [run for run in (given, given / SMALL_LAMP_FOLDER) if (run / "checkpoints").is_dir()]
    if not runs:
        folder = find_weights_folder(name_or_path)
        return {str(name_or_path): _verdict(_check_weights, folder)}
    verdicts = {}
    for run in runs:
        name = str(run.relative_to(given) / "config.json")
        verdicts[name] = _verdict(_check_config, run)
        for checkpoint in checkpoint_folders(run):
            name = str(checkpoint.relative_to(given))
            verdicts[name] = _verdict(_check_checkpoint, checkpoint)
    return verdicts


def _verdict(check: Callable[[Path], bool], folder: Path) -> str:
    try:
        return "intact" if check(folder) else "no digests, but readable"
    except UserError as error:
        return f"damaged: {error}"


def _check_weights(folder: Path) -> bool:
    has_digests = check_digests(folder, "weights")
    _check_config(folder)
    _check_arrays(folder / "weights.safetensors")
    return has_digests


def _check_checkpoint(checkpoint: Path) -> bool:
    has_digests = check_digests(checkpoint, "checkpoint")
    read_progress(checkpoint)
    _check_arrays(checkpoint / "state.safetensors")
    return has_digests


def _check_config(folder: Path) -> bool:
    """Check a config. That of a run changes as it trains, so it has no digest: the answer is always False."""
    read_json(folder / "config.json", "weights")
    return False


def _check_arrays(path: Path) -> None:
    bad = find_non_finite(load_arrays(path))
    if bad:
        raise UserError(f"weights: {path}: {bad} contains numbers that are not finite")
