"""Trees of arrays on disk (safetensors). Names, shapes, types and values are checked when they are read."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.backend import Tree, arrays_by_name, mx
from mlxlava.errors import UserError
from mlxlava.failures import explain_device_failure
from mlxlava.models.safetensors_header import check_header
from mlxlava.paths import atomic_folder

FORMAT_VERSION = 1  # of the files of runs and weights
_FLOAT_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


@contextlib.contextmanager
def atomic_array_folder(folder: Path, what: str) -> Iterator[Path]:
    """``atomic_folder`` for arrays. A failure of MLX's device is not reported as a failure of the disk."""
    with atomic_folder(folder, what, lambda error: not explain_device_failure(error)) as draft:
        yield draft


def save_arrays(path: Path, tree: Tree) -> None:
    """Write a tree of arrays; OSError where the disk is full."""
    arrays = arrays_by_name(tree)
    size = sum(array.nbytes for array in arrays.values())
    # MLX reports a full disk in a vague message. So the free space is checked before, and the size
    # afterwards.
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
        check_header(path)
        arrays = mx.load(str(path), format="safetensors")
        mx.eval(arrays)
    except (OSError, RuntimeError, ValueError) as error:
        if explain_device_failure(error):
            raise
        raise UserError(f"weights: {path} is damaged or not a safetensors file ({error})") from error
    assert isinstance(arrays, dict)
    return arrays


def check_arrays(arrays: Mapping[str, mx.array], tree: Tree, where: str) -> None:
    """Refuse arrays whose names, shapes or types differ from those of ``tree``, or that are not finite."""
    expected = arrays_by_name(tree)
    missing = [name for name in expected if name not in arrays]
    extra = [name for name in arrays if name not in expected]
    if missing and extra:
        raise UserError(
            f"{where} does not match the recipe in its config.json: it has {_first_name_and_count(extra)} "
            f"and does not have {_first_name_and_count(missing)}"
        )
    if missing:
        raise UserError(f"{where} does not have {_first_name_and_count(missing)}")
    if extra:
        raise UserError(
            f"{where} has {_first_name_and_count(extra)}, which its config.json does not describe"
        )
    misshapen = [name for name, array in arrays.items() if array.shape != expected[name].shape]
    if misshapen:
        name = misshapen[0]
        raise UserError(
            f"{where} does not match the recipe in its config.json: {name} is "
            f"{_format_shape(arrays[name])}, not {_format_shape(expected[name])}"
            + (f" ({len(misshapen) - 1} more differ)" if misshapen[1:] else "")
        )
    for name, array in arrays.items():
        floating = expected[name].dtype in _FLOAT_DTYPES
        if (array.dtype in _FLOAT_DTYPES) != floating or (
            not floating and array.dtype != expected[name].dtype
        ):
            raise UserError(f"{where}: {name} is {array.dtype}, not {expected[name].dtype}")
    bad = find_non_finite(arrays)
    if bad:
        raise UserError(f"{where}: {bad} contains numbers that are not finite")


def find_non_finite(tree: Mapping[str, Any]) -> str | None:
    """The name of the first array with a NaN or an infinity, if there is one."""
    arrays = arrays_by_name(tree)
    names = [name for name, array in arrays.items() if array.dtype in _FLOAT_DTYPES]
    if not names:
        return None
    finite = np.array(mx.stack([mx.isfinite(arrays[name]).all() for name in names]))
    return next((name for name, good in zip(names, finite, strict=True) if not good), None)


def fill_tree(example: Tree, arrays: Mapping[str, mx.array]) -> Tree:
    """A copy of ``example`` with its arrays replaced. Empty tables, which have no name in a file, stay."""

    def walk(branch: Any, path: str) -> Any:
        if isinstance(branch, dict):
            return {key: walk(value, f"{path}{key}.") for key, value in branch.items()}
        return arrays[path[:-1]].astype(branch.dtype)

    tree: Tree = walk(example, "")
    mx.eval(tree)
    return tree


def _first_name_and_count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _format_shape(array: mx.array) -> str:
    return "×".join(map(str, array.shape)) or "scalar"
