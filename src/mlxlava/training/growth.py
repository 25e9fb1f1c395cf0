"""Growing: a lamp of small pictures becomes a lamp of large ones.

The motion is learned at a small size, where a training step is cheap. Then nothing of the small lamp changes
any more. A network is trained that enlarges its pictures (training/upsampling.py).
"""

from __future__ import annotations

from typing import Any

from mlxlava.backend import Tree
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError


def growth_factor(small: Recipe, size: tuple[int, int]) -> int:
    """How many times higher and wider pictures of ``size`` are than those of the recipe ``small``.

    Raises:
        UserError: the factor is not 1, 2, 4 …, or the lamp has grown already.
    """
    (height, width), (old_height, old_width) = size, small.data.size
    factor = height // old_height
    if (factor * old_height, factor * old_width) != (height, width) or factor & (factor - 1) or not factor:
        raise UserError(
            f"train: a lamp of {old_height}x{old_width} (HxW) grows to 2, 4, 8 … times that; "
            f"give --size {2 * old_height}x{2 * old_width}, for example"
        )
    if factor > 1 and small.generator.upsampler_widths:
        raise UserError("train: this lamp has grown already; let the lamp that it grew from grow")
    return factor


def start_size_for(recipe: Recipe, size: tuple[int, int]) -> tuple[int, int]:
    """The size of the smaller lamp for frames of ``size``: as many times smaller as in the recipe, or fewer.

    The recipe's own where none is made of multiples of 16.
    """
    factor = max(1, recipe.data.size[0] // recipe.growth.start_size[0])
    while factor > 1:
        if not any(side % (16 * factor) for side in size):
            return size[0] // factor, size[1] // factor
        factor //= 2
    return recipe.growth.start_size


def with_networks_of(recipe: Recipe, weights: Recipe) -> Recipe:
    """The recipe with the generator and the state step of other weights.

    Of weights that have grown, these are the networks of the smaller lamp, at its size.
    """
    has_size = any(weights.encoder.size) and recipe.encoder.context_frames
    return override(
        recipe,
        {
            **_settings_of_section(weights, "generator"),
            **_settings_of_section(weights, "dynamics"),
            "generator.upsampler_widths": (),
            "data.size": weights.drawn_size,
            "encoder.size": weights.encoder.size if has_size else (0, 0),
        },
    )


def without_upsampler(arrays: Tree) -> Tree:
    """The arrays of weights without those of the upsampling network, if they have one."""
    own = {name: layer for name, layer in arrays["generator"].items() if name != "upsampler"}
    return {**arrays, "generator": own}


def recipe_of_smaller_lamp(recipe: Recipe) -> Recipe:
    """The recipe of the smaller lamp that a recipe grows from; it learns the same footage."""
    small = load_recipe(recipe.growth.start_recipe)
    same = ("every_nth", "source_fps", "crop", "lamp_minutes", "lamp_fps", "lamp_theme", "held_out")
    settings = {f"data.{name}": getattr(recipe.data, name) for name in same}
    settings |= {"data.size": recipe.growth.start_size, "training.seed": recipe.training.seed}
    if recipe.growth.start_steps:
        settings |= {"training.steps": recipe.growth.start_steps, "training.epochs": 0}
    found = override(small, settings)
    growth_factor(found, recipe.data.size)
    return found


def grown_recipe(recipe: Recipe, small: Recipe, size: tuple[int, int]) -> Recipe:
    """The recipe with the networks of a smaller lamp, and an upsampling network for pictures of ``size``.

    A lamp that has grown to ``size`` already keeps its upsampling network.

    Args:
        recipe: recipe that says how to train.
        small: recipe of the smaller lamp.
        size: height and width of the new pictures.
    """
    levels = growth_factor(small, size).bit_length() - 1
    growth, frames_of_clip = recipe.growth, small.data.drawn_frames or small.data.seq_len
    return override(
        recipe,
        {
            **_settings_of_section(small, "generator"),
            **_settings_of_section(small, "dynamics"),
            **_settings_of_section(small, "discriminator"),
            "generator.upsampler_widths": small.generator.upsampler_widths or [growth.width] * levels,
            "data.size": size,
            "data.every_nth": small.data.every_nth,  # the state step has learned how much time a step spans
            "data.seq_len": small.data.seq_len,
            "data.held_out": small.data.held_out,
            "data.drawn_frames": small.data.drawn_frames,
            "data.batch_size": max(1, round(growth.frames / frames_of_clip)),
            # Only the upsampling network learns. It needs neither an encoder nor a discriminator.
            "encoder.context_frames": 0,
            "encoder.size": [0, 0],
            "encoder.whitening": 0.0,
            "loss.kind": small.loss.kind,
            "loss.elbo_weight": 0.0,
            "loss.feature_matching": 0.0,
            "loss.d_start": 0.0,
            "training.micro_batches": 1,
            "training.learning_rate": growth.learning_rate,
            "training.steps": growth.steps,
            "training.epochs": 0,
        },
    )


def _settings_of_section(recipe: Recipe, section: str) -> dict[str, Any]:
    """The settings of a recipe's section, by their dotted names."""
    return {f"{section}.{name}": value for name, value in vars(getattr(recipe, section)).items()}
