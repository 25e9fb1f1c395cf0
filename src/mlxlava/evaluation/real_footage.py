"""Opens the real footage with which weights are compared, at the size and speed of the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlxlava.config import format_size
from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage, is_prepared, open_footage
from mlxlava.footage.from_settings import prepare_from_settings
from mlxlava.rollout.weights import Weights

_MAX_SPEED_DIFFERENCE = 0.05  # measures of motion do not notice a smaller relative difference of speeds


def open_real_footage(
    weights: Weights, source: str | Path | None = None, held_out: str | Path | None = None
) -> tuple[Footage, Footage | None]:
    """Prepare or open the footage with which weights are compared.

    The built-in lamp needs no source. Its held-out footage is rendered from another seed.

    Args:
        weights: a learned lamp.
        source: training footage of the weights: a video, a folder of images, or prepared footage.
        held_out: footage of the same lamp that the weights were not trained on. If None, it is the end of
            ``source``, if the weights were trained without that (``data.held_out``).

    Returns:
        The training footage, and the held-out footage or None.

    Raises:
        UserError: a source is missing or cannot be read.
    """
    data, seed = weights.recipe.data, weights.recipe.training.seed
    if source is not None:
        footage = _open_at_true_speed(weights, source)
        if held_out is not None:
            return footage, _open_at_true_speed(weights, held_out)
        if data.held_out:
            say(f"score: the last {data.held_out:.0%} of {source} is held out, as it was in training")
        return footage.split(data.held_out)
    learned = weights.about.get("footage", {}).get("sources", [])
    if learned:
        raise UserError(f"score: these weights learned from {', '.join(learned)}; give it with --footage")
    if held_out is not None:
        raise UserError("score: --held-out needs --footage")
    return prepare_from_settings([], data, seed=seed), prepare_from_settings([], data, seed=seed + 1)


def _open_at_true_speed(weights: Weights, source: str | Path) -> Footage:
    """Footage with one frame for each learned step.

    Prepared footage keeps its size; other footage is resized.
    """
    data = weights.recipe.data
    if is_prepared(Path(source)):
        found = open_footage(source)
        if found.size != data.size:
            there, wanted = format_size(found.size), format_size(data.size)
            say(f"score: {source} is {there}; it is resized to the {wanted} of the weights")
    else:
        found = prepare_from_settings([source], data)
        every = max(1, round(found.fps / weights.step_fps))
        if every != found.every_nth:
            say(f"score: one in {every} frames of {source} is taken: {weights.step_fps:g} steps a second")
            found = prepare_from_settings([source], dataclasses.replace(data, every_nth=every))
    if not abs(found.step_fps / weights.step_fps - 1) < _MAX_SPEED_DIFFERENCE:
        say(
            f"score: {source} has {found.step_fps:g} steps a second and the weights {weights.step_fps:g}: "
            "measures of motion compare different speeds"
        )
    return found
