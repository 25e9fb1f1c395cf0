"""Sheets of frames: the preview pictures of a run, and the sample picture of weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlxlava.backend import Tree, mx
from mlxlava.config import Recipe
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import fixed_bases, make_dynamics

_PREVIEW_LAMP_COUNT = 4
_MAX_COLUMNS = 8
_PREVIEW_SEED = 2**40  # far from the seeds that people choose
_SMALLEST_LETTERS = 10  # pixels
_LETTERS_PER_WIDTH = 36  # a film strip is at least so many times as wide as its letters are high
_LABEL_COLOUR, _GROUND_COLOUR = (236, 232, 242), (16, 14, 20)


def preview_columns_and_gap(recipe: Recipe) -> tuple[int, int]:
    """The number of frames in a row, and the learned steps between two of them."""
    columns = min(_MAX_COLUMNS, recipe.data.seq_len)
    return columns, recipe.data.seq_len // columns


def draw_sheet(recipe: Recipe, arrays: Tree) -> np.ndarray:
    """A sheet of drawn frames, uint8 (H', W', 3): a row for each lamp. Time runs right.

    Args:
        recipe: The recipe of the networks.
        arrays: Trees ``generator``, ``dynamics`` and ``stats`` (training/checkpoint.py, ``playable_arrays``).
    """
    return contact_sheet(draw_random_lamps(recipe, arrays))


def draw_random_lamps(recipe: Recipe, arrays: Tree) -> np.ndarray:
    """Frames of lamps that start from random states, uint8 (lamps, C, H, W, 3). Arguments: ``draw_sheet``."""
    dynamics = make_dynamics(recipe)
    columns, gap = preview_columns_and_gap(recipe)
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
    return draw_states(recipe, arrays, mx.stack(path, axis=1))


def draw_states(recipe: Recipe, arrays: Tree, states: mx.array) -> np.ndarray:
    """Frames, uint8 (R, C, H, W, 3), of states (R, C, Z)."""
    generator = make_generator(recipe)
    # (R, C, Z) -> (C R, Z): neighbours in time are apart, so that any batch statistics see all lamps alike.
    flat = states.swapaxes(0, 1).flatten(0, 1)
    frames, _ = generator(arrays["generator"], flat, arrays["stats"]["generator"])
    drawn = np.array(to_uint8_frames(frames))
    rows: np.ndarray = drawn.reshape(states.shape[1], states.shape[0], *drawn.shape[1:]).swapaxes(0, 1)
    return rows


def film_strip(groups: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of frames below their names, as one picture, uint8 (H', W', 3).

    Args:
        groups: By the name of a group, its rows of frames, uint8 (R, C, H, W, 3). C, H and W are the same in
            all groups.
    """
    parts = []
    for name, rows in groups.items():
        sheet = contact_sheet(rows)
        parts += [_label(name, sheet.shape[1]), sheet]
    return np.concatenate(parts)


def _label(text: str, width: int) -> np.ndarray:
    """A text on a band, uint8 (h, width, 3). It is made smaller if it is too wide."""
    size = max(_SMALLEST_LETTERS, width // _LETTERS_PER_WIDTH)
    font = ImageFont.load_default(size)
    while size > 6 and font.getlength(text) > width - 2:
        size -= 1
        font = ImageFont.load_default(size)
    band = Image.new("RGB", (width, round(1.6 * size)), _GROUND_COLOUR)
    ImageDraw.Draw(band).text((size // 4, 0.8 * size), text, _LABEL_COLOUR, font, anchor="lm")
    return np.asarray(band)


def contact_sheet(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """Frames (R, C, H, W, 3) as one picture with black lines of ``gap`` pixels between them."""
    padded = np.pad(frames, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)])
    count, columns, height, width, _ = padded.shape
    # (R, C, H, W, 3) -> (R H, C W, 3)
    sheet: np.ndarray = padded.swapaxes(1, 2).reshape(count * height, columns * width, 3)
    return sheet[:-gap, :-gap]
