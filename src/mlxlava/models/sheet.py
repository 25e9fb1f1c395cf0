"""Sheets of frames: what a preview of a run and the sample picture of weights show."""

from __future__ import annotations

import numpy as np

from mlxlava.backend import Tree, mx
from mlxlava.config import Recipe
from mlxlava.models.generator import to_bytes
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import fixed_bases, make_dynamics

_LAMPS = 4
_COLUMNS = 8
_SEED = 2**40  # no training step has it


def preview_columns(recipe: Recipe) -> tuple[int, int]:
    """How many frames stand in a row, and learned steps between two of them."""
    columns = min(_COLUMNS, recipe.data.seq_len)
    return columns, recipe.data.seq_len // columns


def preview(recipe: Recipe, arrays: Tree, real: np.ndarray | None = None) -> np.ndarray:
    """A sheet of frames, uint8 (H', W', 3): a row of real ones, then one row a lamp, time to the right.

    Args:
        recipe: what the networks are built from.
        arrays: ``generator``, ``dynamics`` and ``stats`` (training/checkpoint.py, ``playable``).
        real: frames (C, H, W, 3) of the first row; no such row when None.
    """
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    columns, gap = preview_columns(recipe)
    stats = arrays["stats"]
    bases = dynamics.prepare(fixed_bases(arrays))
    keys = mx.random.split(mx.random.key(_SEED), columns * gap)
    shape = (max(_LAMPS, dynamics.minimum_batch), recipe.generator.state_size)
    states = mx.random.normal(shape, key=keys[0])
    path = []
    for index in range(columns * gap):
        noise = mx.random.normal(shape, key=keys[index])
        states = dynamics.step(arrays["dynamics"], bases, states, noise)
        if index % gap == 0:
            path.append(states[:_LAMPS])
    frames, _ = generator(arrays["generator"], mx.concatenate(path), stats["generator"])
    drawn = np.array(to_bytes(frames))
    # (columns * lamps, H, W, 3) -> (lamps, columns, H, W, 3)
    rows = drawn.reshape(columns, _LAMPS, *drawn.shape[1:]).swapaxes(0, 1)
    if real is not None:
        rows = np.concatenate([real[None], rows])
    return contact_sheet(rows)


def contact_sheet(rows: np.ndarray, gap: int = 2) -> np.ndarray:
    """Frames (R, C, H, W, 3) as one picture with black lines of ``gap`` pixels between them."""
    padded = np.pad(rows, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)])
    count, columns, height, width, _ = padded.shape
    # (R, C, H, W, 3) -> (R H, C W, 3)
    sheet: np.ndarray = padded.swapaxes(1, 2).reshape(count * height, columns * width, 3)
    return sheet[:-gap, :-gap]
