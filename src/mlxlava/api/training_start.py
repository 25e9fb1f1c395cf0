"""What a training starts from: its recipe, its first weights, and which settings footage may choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxlava.config import Data, Recipe, load_recipe, override
from mlxlava.footage.dataset import size_of_prepared_footage
from mlxlava.rollout.weights import Weights, load_weights, training_history

if TYPE_CHECKING:
    from mlxlava.backend import Tree


@dataclasses.dataclass(frozen=True)
class TrainingStart:
    """What is known of a training before its footage is looked at.

    Attributes:
        recipe: the recipe, with the settings that the user has given.
        sources: videos, folders of images, or one folder of prepared footage; empty for the built-in lamp.
        is_prepared: whether the source is prepared footage, whose size is fixed.
        free: settings that may be chosen for the footage.
        initial_arrays: arrays of weights whose generator and state step to start from; random weights when
            None.
        initial_history: how these weights were trained (``rollout.weights.training_history``).
    """

    recipe: Recipe
    sources: Sequence[str | Path]
    is_prepared: bool
    free: frozenset[str]
    initial_arrays: Tree | None
    initial_history: Sequence[Mapping[str, Any]]


def find_training_start(
    recipe: str | Path | Recipe,
    sources: Sequence[str | Path],
    settings: Mapping[str, Any] | None,
    *,
    steps: int | None = None,
    init: str | Path | None = None,
) -> TrainingStart:
    """Work out the recipe of a training from what the user has given.

    Args:
        recipe: name of a recipe, a TOML or JSON file, or a recipe.
        sources: the footage, as in :class:`TrainingStart`.
        settings: settings of the recipe to change.
        steps: number of training steps; the number of the recipe when None.
        init: weights whose generator and state step to start from.

    Raises:
        UserError: a setting is wrong, or the weights cannot be read or do not fit.
    """
    from mlxlava.training.choices import free_settings
    from mlxlava.training.growth import start_size_for

    changes = dict(settings or {})
    if steps is not None:
        changes |= {"training.steps": steps, "training.epochs": 0}
    free = free_settings(recipe, changes) if sources else frozenset()
    prepared_size = size_of_prepared_footage(sources)
    if prepared_size is not None:
        changes.setdefault("data.size", prepared_size)
    base = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if base.growth.start_recipe and changes.get("training.steps"):  # those of the upsampling network
        changes.setdefault("growth.steps", changes["training.steps"])
    if base.growth.start_recipe and "data.size" in changes:
        wanted = override(base, changes).data.size
        changes.setdefault("growth.start_size", start_size_for(base, wanted))
    initial_arrays, history = None, list[dict[str, Any]]()
    if init is not None:
        weights = load_weights(init)
        base, initial_arrays = _recipe_and_initial_arrays(weights, base, changes)
        history = training_history(weights)
        free -= {"data.size", "generator.state_size"}  # those of the weights
    return TrainingStart(
        override(base, changes), sources, prepared_size is not None, free, initial_arrays, history
    )


def _recipe_and_initial_arrays(
    weights: Weights, recipe: Recipe, changes: Mapping[str, Any]
) -> tuple[Recipe, Tree]:
    """The recipe and the arrays of a lamp that starts from other weights, or that grows from smaller ones."""
    from mlxlava.training.growth import grown_recipe, with_networks_of, without_upsampler

    own, small = weights.recipe.data.size, weights.recipe.drawn_size  # they differ if it has grown
    size = override(recipe, changes).data.size
    if "data.size" not in changes and size == Data().size:
        size = small
    if size == small:
        return with_networks_of(recipe, weights.recipe), without_upsampler(weights.arrays)
    if size[0] > own[0] or size == own:
        return grown_recipe(recipe, weights.recipe, size), weights.arrays
    return recipe, weights.arrays
