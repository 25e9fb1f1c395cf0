"""Growing: a lamp for larger pictures begins with what was learned from smaller ones (after Karras 2018).

New layers are added next to the pictures: after the old layers of the generator, and before those of the
discriminator. The state step and the encoder do not change: the encoder still sees pictures of the small
size. So the motion is learned at the small size, where a training step is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxlava.backend import Tree, arrays_by_name, mx, tree_map
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.models.storage import load_arrays
from mlxlava.paths import latest_checkpoint_folder

# Deviation of the noise that is added to new layers, relative to He's initial weights.
_NEW_LAYER_NOISE = 0.1
# Parts of a run state that a lamp takes over, in addition to the averaged weights.
_COPIED_SUBTREES = ("stats", "discriminator", "encoder", "encoded_covariance")


def growth_factor(small: Recipe, size: tuple[int, int]) -> int:
    """How many times higher and wider pictures of ``size`` are than those of the recipe ``small``.

    Raises:
        UserError: the factor is not 1, 2, 4 …, or the networks cannot grow.
    """
    (height, width), (old_height, old_width) = size, small.data.size
    factor = height // old_height
    if (factor * old_height, factor * old_width) != (height, width) or factor & (factor - 1) or not factor:
        raise UserError(
            f"train: a lamp of {old_height}x{old_width} (HxW) grows to 2, 4, 8 … times that; "
            f"give --size {2 * old_height}x{2 * old_width}, for example"
        )
    if factor > 1 and small.generator.kind != "shuffle":
        raise UserError(f"train: a lamp with a generator of kind {small.generator.kind} cannot grow")
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
    """The recipe with the generator and the state step of other weights, whose frames are as large."""
    return override(
        recipe,
        {
            **_settings_of_section(weights, "generator"),
            **_settings_of_section(weights, "dynamics"),
            "data.size": weights.data.size,
            "encoder.size": weights.encoder_input_size if recipe.encoder.context_frames else (0, 0),
        },
    )


def recipe_of_smaller_lamp(recipe: Recipe) -> Recipe:
    """The recipe of the smaller lamp that a recipe grows from; it learns the same footage."""
    small = load_recipe(recipe.growth.start_recipe)
    same = ("every_nth", "source_fps", "crop", "lamp_minutes", "lamp_fps", "lamp_theme")
    settings = {f"data.{name}": getattr(recipe.data, name) for name in same}
    seed = recipe.training.seed
    found = override(small, {**settings, "data.size": recipe.growth.start_size, "training.seed": seed})
    growth_factor(found, recipe.data.size)
    return found


def grown_recipe(recipe: Recipe, small: Recipe, learned: Tree, size: tuple[int, int]) -> Recipe:
    """The recipe with the networks of a smaller lamp, and new layers for pictures of ``size``.

    Args:
        recipe: recipe that says how to train, and how wide the new layers are.
        small: recipe of the smaller lamp.
        learned: arrays of the smaller lamp.
        size: height and width of the new pictures.
    """
    factor = growth_factor(small, size)
    levels = _doubling_count(factor)
    generator, discriminator = small.generator, recipe.discriminator
    new_widths = [generator.last_width] * levels
    # Each new layer has half the channels of the layer after it, as the old layers do.
    front = [max(8, discriminator.widths[0] >> (levels - i)) for i in range(levels)]
    rest = [name for name in recipe.growth.rest if name in learned]
    return override(
        recipe,
        {
            "data.size": size,
            "generator.state_size": generator.state_size,
            "generator.widths": [*generator.widths, *new_widths],
            "generator.last_width": generator.last_width,
            "generator.background": generator.background,
            **_settings_of_section(small, "dynamics"),
            **_settings_of_section(small, "encoder"),
            "encoder.size": small.encoder_input_size,
            "discriminator.widths": [*front, *discriminator.widths],
            # The squared error is summed over a frame. A larger sigma keeps its weight in the loss the same.
            "loss.sigma": recipe.loss.sigma * factor,
            # A difference that is seen has factor² times as many pixels, so D needs shorter gradients for the
            # same logits. With the old weight it soon won; with factor² times as much it saw nothing.
            "loss.gamma": recipe.loss.gamma * factor,
            "growth.factor": factor,
            "growth.rest": rest,
        },
    )


def arrays_learned_by_run(run: Path) -> Tree:
    """All arrays that a run has learned: its averaged weights and statistics, its encoder and discriminator.

    Raises:
        UserError: the run has no checkpoint, or it is damaged.
    """
    latest = latest_checkpoint_folder(run)
    if latest is None:
        raise UserError(f"train: {run} has no checkpoint to grow from")
    learned: Tree = {}
    for name, array in load_arrays(latest / "state.safetensors").items():
        path = name.removeprefix("ema.").split(".")
        if name.startswith("ema.") or path[0] in _COPIED_SUBTREES:
            _put_array(learned, path, array)
    return learned


def grow_state(state: Tree, learned: Tree, recipe: Recipe) -> None:
    """Put what a smaller lamp has learned into a new run state; new layers begin near the identity.

    Args:
        state: run state at step 0 of the grown recipe; it is changed in place.
        learned: arrays of weights, or arrays from :func:`arrays_learned_by_run`.
        recipe: recipe from :func:`grown_recipe`.

    Raises:
        UserError: the networks are not those that the recipe was grown from.
    """
    levels = _doubling_count(recipe.growth.factor)
    _copy_arrays(state["dynamics"], learned["dynamics"], "dynamics")
    _copy_arrays(state["stats"], learned["stats"], "stats")
    for name in (*names_of_old_layers(recipe), "out"):
        _copy_arrays(state["generator"][name], learned["generator"].get(name, {}), f"generator.{name}")
    layers = len(recipe.generator.widths)
    for level in range(layers - levels, layers):
        layer = state["generator"][f"up{level}"]
        layer["weight"] = _near_identity_weights(layer["weight"])
    if "encoder" in learned and "encoder" in state:
        _copy_arrays(state["encoder"], learned["encoder"], "encoder")
        if "encoded_covariance" in learned and "encoded_covariance" in state:
            state["encoded_covariance"] = mx.array(learned["encoded_covariance"])
    if "discriminator" in learned:
        _grow_discriminator(state["discriminator"], learned["discriminator"], levels)
    for name in state["ema"]:
        # Copies: one array at two places of the run state could not be given away by a step.
        state["ema"][name] = tree_map(mx.array, state[name])


def names_of_old_layers(recipe: Recipe) -> list[str]:
    """Names of the generator's layers that a grown lamp has learned at its smaller size."""
    levels = _doubling_count(recipe.growth.factor)
    return ["dense", *(f"up{i}" for i in range(len(recipe.generator.widths) - levels))]


def names_of_frozen_networks(recipe: Recipe) -> tuple[str, ...]:
    """Names of the networks that do not learn in a run."""
    return recipe.growth.rest if recipe.growth.factor > 1 else ()


def freeze_old_layers(gradients: Tree, recipe: Recipe, step: mx.array) -> Tree:
    """The gradients of the generator, with zeros for its old layers in the first steps of a grown lamp.

    So the old layers do not change while the new layers are still far from good.

    Args:
        gradients: gradients of the generator.
        recipe: recipe of the run.
        step: number of training steps made.
    """
    growth = recipe.growth
    if growth.factor == 1 or not growth.rest_steps:
        return gradients
    learns = (step >= growth.rest_steps).astype(mx.float32)
    old = {
        name: tree_map(lambda array: learns * array, gradients[name]) for name in names_of_old_layers(recipe)
    }
    return {**gradients, **old}


def _doubling_count(factor: int) -> int:
    """How often a side doubles to become ``factor`` times as long: the number of new layers."""
    return factor.bit_length() - 1


def _near_identity_weights(weight: mx.array) -> mx.array:
    """Weights (4 O, 3, 3, I) of a layer that enlarges its input by two, plus a little noise."""
    outputs, inputs = len(weight) // 4, weight.shape[-1]
    centre = mx.zeros((3, 3))
    centre[1, 1] = 1.0
    one = mx.eye(outputs, inputs)[:, None, None, :] * centre[None, :, :, None]
    return mx.concatenate([one] * 4) + _NEW_LAYER_NOISE * weight


def _grow_discriminator(new: Tree, old: Tree, levels: int) -> None:
    """Copy all layers whose shapes fit.

    New layers, and the layer that saw the pictures before, do not fit.
    """
    renamed = {
        f"down{int(name.removeprefix('down')) + levels}" if name.startswith("down") else name: layer
        for name, layer in old.items()
    }
    for name, layer in renamed.items():
        if name in new and _shapes_by_name(new[name]) == _shapes_by_name(layer):
            new[name] = tree_map(mx.array, layer)


def _copy_arrays(new: Tree, old: Tree, network: str) -> None:
    """Replace the arrays of a network, or of a layer."""
    require_same_shapes(new, old, network)
    for name, branch in old.items():
        new[name] = tree_map(mx.array, branch)


def require_same_shapes(new: Tree, old: Tree, network: str) -> None:
    """Raise UserError unless the arrays of a network to be copied have the shapes of the recipe's network."""
    have, want = _shapes_by_name(old), _shapes_by_name(new)
    for name in sorted(want.keys() | have.keys()):
        if have.get(name) != want.get(name):
            raise UserError(
                f"train: --init has another {network}: {name} is {have.get(name, 'missing')} there and "
                f"{want.get(name, 'missing')} in the recipe"
            )


def _shapes_by_name(tree: Tree) -> dict[str, str]:
    return {name: "×".join(map(str, array.shape)) for name, array in arrays_by_name(tree).items()}


def _put_array(tree: Tree, path: list[str], array: mx.array) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = array


def _settings_of_section(recipe: Recipe, section: str) -> dict[str, Any]:
    """The settings of a recipe's section, by their dotted names."""
    return {f"{section}.{name}": value for name, value in vars(getattr(recipe, section)).items()}
