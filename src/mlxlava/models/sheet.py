"""Sheets of frames: the preview pictures of a run, and the sample picture of weights."""

from __future__ import annotations

import numpy as np

from mlxlava.backend import Tree, mx
from mlxlava.config import Recipe
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import fixed_bases, make_dynamics

_PREVIEW_LAMP_COUNT = 4
_MAX_COLUMNS = 8
_PREVIEW_SEED = 2**40  # no training step has this seed


def preview_columns_and_gap(recipe: Recipe) -> tuple[int, int]:
    """The number of frames in a row, and the learned steps between two of them."""
    columns = min(_MAX_COLUMNS, recipe.data.seq_len)
    return columns, recipe.data.seq_len // columns


def draw_sheet(recipe: Recipe, arrays: Tree, real_frames: np.ndarray | None = None) -> np.ndarray:
    """A sheet of frames, uint8 (H', W', 3): a row of real frames, then a row for each lamp. Time runs right.

    Args:
        recipe: The recipe of the networks.
        arrays: Trees ``generator``, ``dynamics`` and ``stats`` (training/checkpoint.py, ``playable_arrays``).
        real_frames: Frames (C, H, W, 3) of the first row; there is no such row when None.
    """
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    columns, gap = preview_columns_and_gap(recipe)
    stats = arrays["stats"]
    bases = dynamics.basis_changes(fixed_bases(arrays))
    keys = mx.random.split(mx.random.key(_PREVIEW_SEED), columns * gap)
    shape = (max(_PREVIEW_LAMP_COUNT, dynamics.minimum_batch), recipe.generator.state_size)
    states = mx.random.normal(shape, key=keys[0])
    path = []
    for index in range(columns * gap):
        noise = mx.random.normal(shape, key=keys[index])
        states = dynamics.step(arrays["dynamics"], bases, states, noise)
        if index % gap == 0:
            path.append(states[:_PREVIEW_LAMP_COUNT])
    frames, _ = generator(arrays["generator"], mx.concatenate(path), stats["generator"])
    drawn = np.array(to_uint8_frames(frames))
    # (columns * lamps, H, W, 3) -> (lamps, columns, H, W, 3)
    rows = drawn.reshape(columns, _PREVIEW_LAMP_COUNT, *drawn.shape[1:]).swapaxes(0, 1)
    if real_frames is not None:
        rows = np.concatenate([real_frames[None], rows])
    return contact_sheet(rows)


def contact_sheet(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """Frames (R, C, H, W, 3) as one picture with black lines of ``gap`` pixels between them."""
    padded = np.pad(frames, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)])
    count, columns, height, width, _ = padded.shape
    # (R, C, H, W, 3) -> (R H, C W, 3)
    sheet: np.ndarray = padded.swapaxes(1, 2).reshape(count * height, columns * width, 3)
    return sheet[:-gap, :-gap]
