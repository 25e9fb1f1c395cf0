"""Preview pictures of a run, ``previews/000100.png``: a row of real frames, then rows of lamps."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.backend import Tree
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.models.sheet import draw_sheet, preview_columns_and_gap
from mlxlava.training.callbacks import Callbacks
from mlxlava.training.checkpoint import playable_arrays


class PreviewWriter(Callbacks):
    """Writes each preview to a file.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "previews"

    def on_preview(self, step: int, sheet: npt.NDArray[np.uint8], states: npt.NDArray[np.float32]) -> None:
        """Write the picture."""
        path = self._folder / f"{step:06d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(sheet).save(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise UserError(f"train: cannot write {path}: {error}; the checkpoints are kept") from error


def draw_preview(recipe: Recipe, state: Tree, footage: Footage) -> npt.NDArray[np.uint8]:
    """A preview (H, W, 3): the first frames of the footage, and lamps drawn by the present run state."""
    start = footage.clip_starts(recipe.data.seq_len)[0]
    columns, gap = preview_columns_and_gap(recipe)
    real = footage.frames[start : start + columns * gap : gap]
    return draw_sheet(recipe, playable_arrays(state), real)
