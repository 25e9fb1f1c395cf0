"""Trees of arrays on disk: safetensors; names, shapes, kinds and values are checked when they are read."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.backend import Tree, mx, named_arrays
from mlxlava.errors import UserError
from mlxlava.failures import explain
from mlxlava.paths import whole_folder

FORMAT = 1  # of runs and of weights
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)


@contextlib.contextmanager
def array_folder(folder: Path, what: str) -> Iterator[Path]:
    """``whole_folder`` for a folder of arrays: a failure of the device is not taken for one of the disk."""
    with whole_folder(folder, what, lambda error: not explain(error)) as draft:
        yield draft


def save_arrays(path: Path, tree: Tree) -> None:
    """Write a tree of arrays; OSError where the disk is full."""
    arrays = named_arrays(tree)
    size = sum(array.nbytes for array in arrays.values())
    # MLX's writer maps a full disk to a vague message: ask first, and check afterwards.
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(28, f"{size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
    mx.save_safetensors(str(path), arrays)
    if path.stat().st_size < size:
        raise OSError(28, "the disk is full")


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a file under their names; UserError where it is missing or damaged."""
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


def compare(arrays: Mapping[str, mx.array], tree: Tree, where: str) -> None:
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


def fill(like: Tree, arrays: Mapping[str, mx.array]) -> Tree:
    """``like`` with its arrays replaced; empty tables, which have no name in a file, stay."""

    def walk(branch: Any, path: str) -> Any:
        if isinstance(branch, dict):
            return {key: walk(value, f"{path}{key}.") for key, value in branch.items()}
        return arrays[path[:-1]].astype(branch.dtype)

    tree: Tree = walk(like, "")
    mx.eval(tree)
    return tree


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _shape(array: mx.array) -> str:
    return "×".join(map(str, array.shape)) or "scalar"
