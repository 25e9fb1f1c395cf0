"""Preview pictures of a run, ``previews/000100.png``: film strips of real and of drawn frames."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.backend import Tree, mx
from mlxlava.backend.ranks import rank_count
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.models.sheet import draw_random_lamps, draw_states, film_strip, preview_columns_and_gap
from mlxlava.paths import sync_folder, write_bytes_atomically
from mlxlava.training.callbacks import Callbacks
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.trainer import AnyTrainer
from mlxlava.training.upsampling import UpsamplerTrainer


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
        picture = io.BytesIO()
        Image.fromarray(sheet).save(picture, "png")
        try:
            path.parent.mkdir(exist_ok=True)  # without parents: a run that was removed is not made again
            sync_folder(self._folder.parent)
            write_bytes_atomically(path, picture.getvalue())
        except OSError as error:
            raise UserError(f"train: cannot write {path}: {error}; the checkpoints are kept") from error


def draw_preview(trainer: AnyTrainer, state: Tree, footage: Footage) -> npt.NDArray[np.uint8]:
    """A film strip (H, W, 3): a real clip, the same clip drawn again, and lamps drawn from noise.

    All drawn frames are drawn by the averaged weights. The clip is the first one of the footage. It is drawn
    again from the state that the encoder finds in it; a recipe without an encoder has no such row. For a lamp
    that grows it is made small, and enlarged again.
    """
    recipe, arrays = trainer.recipe, playable_arrays(state)
    start = footage.clip_starts(recipe.data.seq_len)[0]
    columns, gap = preview_columns_and_gap(recipe)
    real = footage.frames[start : start + columns * gap : gap]
    groups = {"real": real[None]}
    if isinstance(trainer, UpsamplerTrainer):
        groups["made small, and enlarged again"] = np.array(trainer.enlarge(state, mx.array(real)))[None]
    # With several processes, encoding needs all of them, but only the first one draws previews.
    elif recipe.encoder.context_frames and rank_count() == 1:
        path = trainer.encode_and_roll(state, _context_frames_of_batch(recipe, footage), mx.random.key(0))[:1]
        groups["drawn again"] = draw_states(recipe, arrays, path[:, : columns * gap : gap])
    groups["drawn from noise"] = draw_random_lamps(recipe, arrays)
    return film_strip(groups)


def _context_frames_of_batch(recipe: Recipe, footage: Footage) -> mx.array:
    """Context frames of as many clips as a batch has, uint8 (B, V, H, W, 3). The first clip comes first.

    The others are evenly spaced. They are needed since encoded states are standardised over a batch.
    """
    data = recipe.data
    starts = footage.clip_starts(data.seq_len)
    chosen = starts[np.linspace(0, len(starts) - 1, data.batch_size).astype(int)]
    times = np.linspace(0, data.seq_len - 1, recipe.encoder.context_frames).round().astype(int)
    return mx.array(footage.frames[chosen[:, None] + times])
