"""Weights with their card, and the full state of a run: written at once or not at all, checked when read.

Weights are a folder: ``weights.safetensors`` (averaged G and R and their statistics), ``config.json``
(the recipe and ``step_fps``), ``README.md`` and ``sample.png``. A run keeps ``checkpoints/00000100/``
with everything that training changes. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.backend import mx, named_arrays
from mlxlava.config import Recipe, UserError, nearest, recipe_from_dict, recipe_to_dict
from mlxlava.dynamics import make_dynamics
from mlxlava.failures import explain
from mlxlava.folders import is_taken
from mlxlava.nets import Tree, make_generator

FORMAT = 1
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A learned lamp.

    Attributes:
        recipe: what it was trained with; the networks are rebuilt from it.
        step_fps: learned steps a second of true time.
        arrays: ``generator`` and ``dynamics`` weights, and ``stats`` of both.
        about: the rest of ``config.json``: footage, steps, seconds, hardware.
    """

    recipe: Recipe
    step_fps: float
    arrays: Tree
    about: dict[str, Any]


# --- weights ---


def playable(state: Tree) -> Tree:
    """What is played of a run state: the averaged weights and the statistics."""
    return {**state["ema"], "stats": state["stats"]}


def save_weights(weights: Weights, folder: Path, *, card: str = "", sample: bytes = b"") -> None:
    """Write a weights folder; a folder that is there is replaced once the new one is whole.

    Args:
        weights: what to write.
        folder: where to.
        card: text of ``README.md``.
        sample: PNG of frames.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    if is_taken(folder) and not (folder / "config.json").is_file():
        raise UserError(f"export: {folder} holds something that is no weights; give an empty or a new folder")
    config = {
        "format": FORMAT,
        "step_fps": weights.step_fps,
        "recipe": recipe_to_dict(weights.recipe),
        **weights.about,
    }
    with _whole_folder(folder, "weights") as draft:
        _save_arrays(draft / "weights.safetensors", weights.arrays)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if card:
            (draft / "README.md").write_text(card, encoding="utf-8")
        if sample:
            (draft / "sample.png").write_bytes(sample)


def load_weights(name_or_path: str | Path | None = None) -> Weights:
    """Read weights by name (shipped ones), from their folder, or the latest of a run.

    Args:
        name_or_path: ``lava``, a weights folder or a run folder; the shipped ``lava`` when None.

    Raises:
        UserError: nothing is there, or a tensor is missing, not expected, misshapen or not finite.
    """
    folder = find_weights(name_or_path)
    config = read_json(folder / "config.json", "weights")
    if config.get("format") != FORMAT:
        raise UserError(f"weights: {folder} has format {config.get('format')!r}; this version reads {FORMAT}")
    try:
        recipe = recipe_from_dict(config.pop("recipe"))
        step_fps = float(config.pop("step_fps"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"weights: {folder}/config.json lacks or misstates {error}") from error
    if not (0 < step_fps < 1e4):
        raise UserError(f"weights: {folder}/config.json has step_fps {step_fps}; it must be positive")
    file, prefix = folder / "weights.safetensors", ""
    if (folder / "checkpoints").is_dir():
        latest = latest_checkpoint(folder)
        if latest is None:
            raise UserError(f"weights: {folder} is a run without a checkpoint yet; let it train on")
        file, prefix = latest / "state.safetensors", "ema."
    arrays = _load_arrays(file)
    if prefix:
        names = (name for name in arrays if name.startswith((prefix, "stats.")))
        arrays = {name.removeprefix(prefix): arrays[name] for name in names}
    _compare(arrays, _expected(recipe), f"weights: {folder}")
    config.pop("format")
    tree = _fill(_expected(recipe), arrays)
    return Weights(recipe, step_fps, tree, config)


def shipped_weights() -> list[Path]:
    """The weights that come with the package, sorted by name."""
    package = Path(__file__).parent / "weights"  # in a wheel
    root = package if package.is_dir() else Path(__file__).parents[2] / "weights"  # in a checkout
    return sorted(path.parent for path in root.glob("*/config.json"))


def find_weights(name_or_path: str | Path | None) -> Path:
    """The folder of shipped weights by name, or a weights or run folder by path.

    Raises:
        UserError: there is none.
    """
    shipped = {path.name: path for path in shipped_weights()}
    name = str(name_or_path or "lava")
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path
    why = "is no folder of weights and no run" if path.exists() else "is not there"
    advice = nearest(name, list(shipped)) if shipped else "train a lamp with mlxlava train"
    raise UserError(f"weights: {name} {why}; {advice}")


def _expected(recipe: Recipe) -> Tree:
    """The tree that weights of this recipe have; lazy arrays that are never computed."""
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    key = mx.random.key(0)
    return {
        "generator": generator.init(key),
        "dynamics": dynamics.init(key),
        "stats": {"generator": generator.init_stats(), "dynamics": dynamics.init_stats()},
    }


# --- runs ---


def save_checkpoint(run: Path, state: Tree, progress: Mapping[str, Any], keep: int) -> Path:
    """Write the whole run state as ``checkpoints/<step>``, then drop all but the last ``keep``.

    Args:
        run: folder of the run.
        state: run state (step.py), evaluated and finite.
        progress: what else resuming needs: ``step`` and ``seconds``.
        keep: checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it cannot be written; checkpoints before it stay.
    """
    folder = run / "checkpoints" / f"{progress['step']:08d}"
    with _whole_folder(folder, "checkpoint") as draft:
        _save_arrays(draft / "state.safetensors", state)
        (draft / "progress.json").write_text(json.dumps(dict(progress)), encoding="utf-8")
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("[0-9]*/progress.json"))


def latest_checkpoint(run: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    found = checkpoints(run)
    return found[-1] if found else None


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
    arrays = _load_arrays(folder / "state.safetensors")
    _compare(arrays, like, f"checkpoint: {folder}")
    return _fill(like, arrays), read_json(folder / "progress.json", "checkpoint")


# --- files ---


@contextlib.contextmanager
def _whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """Give a folder under a temporary name; it takes its real name on the way out, when all is on disk."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = draft.with_suffix(".old")
    try:
        draft.mkdir(parents=True)
        yield draft
        for file in draft.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        _sync_folder(folder.parent)
        # Errors are no matter: on some disks macOS removes "._NAME" itself as soon as NAME is gone.
        shutil.rmtree(old, ignore_errors=True)
    # MLX reports a failed write as a RuntimeError.
    except (OSError, RuntimeError) as error:
        if explain(error):
            raise  # it was the device, not the disk
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what}: cannot write {folder}: {reason}; what was there before is kept") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _save_arrays(path: Path, tree: Tree) -> None:
    arrays = named_arrays(tree)
    size = sum(array.nbytes for array in arrays.values())
    # MLX's writer maps a full disk to a vague message: ask first, and check afterwards.
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(28, f"{size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
    mx.save_safetensors(str(path), arrays)
    if path.stat().st_size < size:
        raise OSError(28, "the disk is full")


def _load_arrays(path: Path) -> dict[str, mx.array]:
    if not path.is_file():
        raise UserError(f"weights: {path} is missing")
    try:
        arrays = mx.load(str(path))
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        if explain(error):
            raise
        raise UserError(f"weights: {path} is damaged or no safetensors file ({error})") from error
    assert isinstance(arrays, dict)
    return arrays


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; ``what`` stands before the error."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{what}: {path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{what}: {path} must hold an object")
    return values


def _compare(arrays: Mapping[str, mx.array], tree: Tree, where: str) -> None:
    """Refuse arrays whose names, shapes, kinds or values cannot be those of ``tree``."""
    expected = named_arrays(tree)
    missing = [name for name in expected if name not in arrays]
    extra = [name for name in arrays if name not in expected]
    if missing and extra:
        raise UserError(
            f"{where} is of another recipe than its config.json: it has {_names(extra)} too many "
            f"and lacks {_names(missing)}"
        )
    if missing:
        raise UserError(f"{where} lacks {_names(missing)}")
    if extra:
        raise UserError(f"{where} has {_names(extra)}, which its config.json does not describe")
    misshapen = [name for name, array in arrays.items() if array.shape != expected[name].shape]
    if misshapen:
        name = misshapen[0]
        raise UserError(
            f"{where} is of another recipe than its config.json: {name} is {_shape(arrays[name])}, "
            f"not {_shape(expected[name])}"
            + (f" ({len(misshapen) - 1} more differ)" if misshapen[1:] else "")
        )
    for name, array in arrays.items():
        floating = expected[name].dtype in _FLOATS
        if (array.dtype in _FLOATS) != floating or (not floating and array.dtype != expected[name].dtype):
            raise UserError(f"{where}: {name} is {array.dtype}, not {expected[name].dtype}")
    bad = find_non_finite(arrays)
    if bad:
        raise UserError(f"{where}: {bad} holds numbers that are not finite")


def find_non_finite(tree: Mapping[str, Any]) -> str | None:
    """The name of the first array with a NaN or an infinity, if there is one."""
    arrays = named_arrays(tree)
    names = [name for name, array in arrays.items() if array.dtype in _FLOATS]
    if not names:
        return None
    finite = np.array(mx.stack([mx.isfinite(arrays[name]).all() for name in names]))
    return next((name for name, good in zip(names, finite, strict=True) if not good), None)


def _fill(like: Tree, arrays: Mapping[str, mx.array]) -> Tree:
    """``like`` with its arrays replaced; empty tables, which have no name in a file, stay."""

    def fill(branch: Any, path: str) -> Any:
        if isinstance(branch, dict):
            return {key: fill(value, f"{path}{key}.") for key, value in branch.items()}
        return arrays[path[:-1]].astype(branch.dtype)

    tree: Tree = fill(like, "")
    mx.eval(tree)
    return tree


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _shape(array: mx.array) -> str:
    return "×".join(map(str, array.shape)) or "scalar"


__all__ = [
    "Weights",
    "checkpoints",
    "find_non_finite",
    "find_weights",
    "latest_checkpoint",
    "load_checkpoint",
    "load_weights",
    "playable",
    "read_json",
    "save_checkpoint",
    "save_weights",
    "shipped_weights",
]
