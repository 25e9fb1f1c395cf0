"""Learned lamps on disk: shipped weights, folders of weights, and runs.

Weights are a folder: ``weights.safetensors`` (averaged G and R and their statistics), ``config.json`` (the
recipe and ``step_fps``), ``README.md`` and ``sample.png``. Pickle is not used.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mlxlava.backend import Tree, mx
from mlxlava.config import (
    Recipe,
    did_you_mean,
    recipe_from_dict,
    recipe_to_dict,
)
from mlxlava.errors import UserError
from mlxlava.integrity import check_digests, read_last_intact_checkpoint, read_progress, write_digests
from mlxlava.models.array_files import (
    FORMAT_VERSION,
    atomic_array_folder,
    check_arrays,
    fill_tree,
    load_arrays,
    save_arrays,
)
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.paths import (
    SMALL_LAMP_FOLDER,
    is_taken,
    known_lamps,
    latest_checkpoint_folder,
    read_json,
    shipped_weights_folders,
)
from mlxlava.records import WEIGHTS_CONFIG
from mlxlava.schema import show

_MAX_TRAININGS = 100  # that are kept of a history


@dataclasses.dataclass(frozen=True)
class Weights:
    """A learned lamp.

    Attributes:
        recipe: recipe that it was trained with; the networks are built from it.
        step_fps: learned steps per second of true time.
        arrays: weights of ``generator`` and ``dynamics``, and ``stats`` of both.
        about: all other entries of ``config.json``: footage, steps, seconds, hardware; and under ``initial``
            the history (:func:`training_history`) of the weights that the training started from, if it did.
    """

    recipe: Recipe
    step_fps: float
    arrays: Tree
    about: dict[str, Any]


def save_weights(weights: Weights, folder: Path, *, card: str = "", sample: bytes = b"") -> None:
    """Write a folder of weights. An older one is replaced once the new one is complete.

    Args:
        weights: weights to write.
        folder: folder to write.
        card: text of ``README.md``.
        sample: content of ``sample.png``.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    if is_taken(folder) and not (folder / "config.json").is_file():
        raise UserError(
            f"export: {folder} holds something that is not weights; give an empty or a new folder"
        )
    config = {
        "format": FORMAT_VERSION,
        "step_fps": weights.step_fps,
        "recipe": recipe_to_dict(weights.recipe),
        **weights.about,
    }
    with atomic_array_folder(folder, "weights") as draft:
        save_arrays(draft / "weights.safetensors", weights.arrays)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if card:
            (draft / "README.md").write_text(card, encoding="utf-8")
        if sample:
            (draft / "sample.png").write_bytes(sample)
        write_digests(draft, ["weights.safetensors", "config.json"])


def load_weights(name_or_path: str | Path | None = None) -> Weights:
    """Read shipped weights by name, weights from their folder, or the latest weights of a run.

    Args:
        name_or_path: ``lava``, a weights folder or a run folder; the shipped ``lava`` when None.

    Raises:
        UserError: there are no weights, or a tensor is missing, not expected, misshapen or not finite, or a
            file is not as it was written.
    """
    folder = find_weights_folder(name_or_path)
    if (folder / "checkpoints").is_dir():
        return load_weights_of_run(folder)
    check_digests(folder, "weights")
    return _load_weights(folder, folder / "weights.safetensors", "")


def load_weights_of_run(run: Path) -> Weights:
    """Read the averaged weights of the last checkpoint of a run that is intact.

    Returns:
        The weights. ``about`` also has the steps and the seconds of the checkpoint.

    Raises:
        UserError: there is no checkpoint, or none is intact.
    """
    if latest_checkpoint_folder(run) is None:
        raise UserError(f"weights: {run} is a run without a checkpoint yet; let it train on")

    def read(checkpoint: Path) -> Weights:
        check_digests(checkpoint, "checkpoint")
        weights = _load_weights(run, checkpoint / "state.safetensors", "ema.")
        made = read_progress(checkpoint)
        about = {**weights.about, "steps": made["step"], "seconds": made["seconds"]}
        return dataclasses.replace(weights, about=about)

    return read_last_intact_checkpoint(run, read)[1]


def training_history(weights: Weights) -> list[dict[str, Any]]:
    """How weights were trained, and before that the weights that their training started from.

    Returns:
        A row for each training, the latest one first, as JSON. It has the recipe's name, the size of frames,
        the clips of a batch and the footage, and as far as they are known the steps, the seconds and the
        command.
    """
    recipe, about = weights.recipe, weights.about
    latest: dict[str, Any] = {
        "recipe": recipe.name,
        "size": list(recipe.data.size),
        "batch_size": recipe.data.batch_size,
        "footage": footage_without_folders(weights),
        **{name: about[name] for name in ("steps", "seconds", "command") if name in about},
    }
    return [latest, *about.get("initial", [])][:_MAX_TRAININGS]


def footage_without_folders(weights: Weights) -> dict[str, Any]:
    """The ``sources`` and ``frames`` that weights were learned from.

    Only file names are kept, since folders have a meaning only on the machine that trained.
    """
    footage = weights.about.get("footage", {})
    sources = [Path(source).name for source in footage.get("sources", [])]
    return {"sources": sources, "frames": footage.get("frames")}


def _load_weights(folder: Path, file: Path, prefix: str) -> Weights:
    """The weights in a file of a folder; those of a run have a prefix."""
    config = read_json(folder / "config.json", "weights")
    if config.get("format") != FORMAT_VERSION:
        raise UserError(
            f"weights: {folder} has format {show(config.get('format'))}; this version reads {FORMAT_VERSION}"
        )
    config = read_json(folder / "config.json", "weights", WEIGHTS_CONFIG)
    recipe, step_fps = recipe_from_dict(config.pop("recipe")), float(config.pop("step_fps"))
    arrays = load_arrays(file)
    if prefix:
        names = (name for name in arrays if name.startswith((prefix, "stats.")))
        arrays = {name.removeprefix(prefix): arrays[name] for name in names}
    check_arrays(arrays, _expected_arrays(recipe), f"weights: {folder}")
    config.pop("format")
    tree = fill_tree(_expected_arrays(recipe), arrays)
    return Weights(recipe, step_fps, tree, config)


def find_weights_folder(name_or_path: str | Path | None) -> Path:
    """The folder of shipped weights by name, or a weights or run folder by path.

    Raises:
        UserError: there is no such folder.
    """
    shipped = {path.name: path for path in shipped_weights_folders()}
    name = str(name_or_path or "lava")
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    # A run that grows plays its smaller lamp until the larger one begins.
    for folder in (path, path / SMALL_LAMP_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    why = "is neither a folder of weights nor a run" if path.exists() else "is not there"
    known = known_lamps()
    advice = did_you_mean(name, known) if known else "train a lamp with mlxlava train"
    raise UserError(f"weights: {name} {why}; {advice}")


def _expected_arrays(recipe: Recipe) -> Tree:
    """A tree with the names, shapes and types of a recipe's weights. Its arrays are never computed."""
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    key = mx.random.key(0)
    return {
        "generator": generator.init(key),
        "dynamics": dynamics.init(key),
        "stats": {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()},
    }
