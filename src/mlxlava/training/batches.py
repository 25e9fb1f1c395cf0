"""Batches of real clips for training steps: which clips this process works on, and reading them ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np

from mlxlava.backend import mx
from mlxlava.backend.ranks import rank, rank_count
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage


def clips_of_this_rank(recipe: Recipe) -> slice:
    """Which clips of a batch this process works on.

    Raises:
        UserError: the processes cannot share a batch evenly.
    """
    batch, micro_batches = recipe.data.batch_size, recipe.training.micro_batches
    count, rest = divmod(batch, rank_count())
    if rest or count % micro_batches:
        raise UserError(
            f"train: a batch of {batch} clips cannot be shared by {rank_count()} processes"
            f" of {micro_batches} micro-batches each; give another --batch-size"
        )
    return slice(rank() * count, (rank() + 1) * count)


def read_batches(
    recipe: Recipe, footage: Footage, clips: slice, start: int, reader: Executor
) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield frames and times of each batch from step ``start`` on. The next batch is read during a step."""
    upcoming = reader.submit(_read_numbers, recipe, footage, clips, start)
    while True:
        frames, times = upcoming.result()
        start += 1
        upcoming = reader.submit(_read_numbers, recipe, footage, clips, start)
        yield mx.array(frames), mx.array(times)


def read_batch(recipe: Recipe, footage: Footage, clips: slice, step: int) -> tuple[mx.array, mx.array]:
    """Frames and times of the batch of a step."""
    frames, times = _read_numbers(recipe, footage, clips, step)
    return mx.array(frames), mx.array(times)


def _read_numbers(recipe: Recipe, footage: Footage, clips: slice, step: int) -> tuple[np.ndarray, np.ndarray]:
    data, context = recipe.data, recipe.encoder.context_frames
    return footage.batch(
        recipe.training.seed, step, data.batch_size, data.seq_len, data.drawn_frames, context, clips
    )
