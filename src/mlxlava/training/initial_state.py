"""The state at step 0 of a run: random weights or those of other weights, and the footage's background."""

from __future__ import annotations

import numpy as np

from mlxlava.backend import Tree, arrays_by_name, mx, tree_map
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.training.trainer import make_trainer

_MAX_BACKGROUND_FRAMES = 1000  # at most so many frames are averaged for the generator's background
# Pixels whose deviation over time exceeds this share of the largest deviation have a variance mask of 1.
_VARIANCE_MASK_DEVIATION_SHARE = 0.2


def make_initial_state(
    recipe: Recipe, total_steps: int, footage: Footage, initial_arrays: Tree | None = None
) -> Tree:
    """The run state at step 0.

    Args:
        recipe: recipe of the run.
        total_steps: training steps of the run.
        footage: footage to learn from, for the generator's background.
        initial_arrays: arrays of weights whose generator and state step to begin with, or of the smaller lamp
            that a grown recipe begins with; random weights when None.

    Raises:
        UserError: ``initial_arrays`` belongs to other networks than the recipe's.
    """
    state = make_trainer(recipe, total_steps).init()
    if initial_arrays is not None:
        if recipe.generator.upsampler_widths:
            _put_smaller_lamp(state, initial_arrays)
        else:
            _put_networks(state, initial_arrays)
    if recipe.generator.background:
        _set_background(state, footage)
    return state


def _put_networks(state: Tree, initial_arrays: Tree) -> None:
    """Put the G and R of other weights into a new run state."""
    for part in ("generator", "dynamics"):
        _require_same_shapes(state[part], initial_arrays[part], part)
        for tree in (state, state["ema"]):
            tree[part] = _copy_tree(initial_arrays[part])
        state["stats"][part] = _copy_tree(initial_arrays["stats"][part])


def _copy_tree(tree: Tree) -> Tree:
    """Copies of arrays. A step gives the arrays of its run state away, so none may be in it twice."""
    copied: Tree = tree_map(mx.array, tree)
    return copied


def _put_smaller_lamp(state: Tree, small_arrays: Tree) -> None:
    """Put the networks of a smaller lamp into a new run state.

    The upsampling network begins at random, or as it is in the weights of a lamp that has grown already.

    Args:
        state: run state at step 0 of the grown recipe; it is changed in place.
        small_arrays: arrays of the smaller lamp's weights, or of those of the lamp that has grown.

    Raises:
        UserError: the networks are not those that the recipe was grown from.
    """
    upsampler = small_arrays["generator"].get("upsampler", state["generator"]["upsampler"])
    own = {**small_arrays["generator"], "upsampler": upsampler}
    _require_same_shapes(state["generator"], own, "generator")
    _require_same_shapes(state["dynamics"], small_arrays["dynamics"], "dynamics")
    _require_same_shapes(state["stats"], small_arrays["stats"], "stats")
    for tree in (state, state["ema"]):
        tree["generator"] = _copy_tree(own)
        tree["dynamics"] = _copy_tree(small_arrays["dynamics"])
    state["stats"] = _copy_tree(small_arrays["stats"])


def _set_background(state: Tree, footage: Footage) -> None:
    """Set the background of drawn frames to the footage's mean, and the variance mask to 1 where it moves.

    So glass and room are right from the first step on. Pixels that never change in the footage never change
    in drawn frames either.
    """
    stride = -(-len(footage.frames) // _MAX_BACKGROUND_FRAMES)
    frames = footage.frames[::stride].astype(np.float32) / 255
    mean, deviation = frames.mean(axis=0, dtype=np.float64), frames.std(axis=0, dtype=np.float64)
    mean = np.clip(mean, 1 / 255, 1 - 1 / 255)
    variance_mask = np.minimum(
        1, deviation / max(_VARIANCE_MASK_DEVIATION_SHARE * float(deviation.max()), 1e-6)
    )
    for tree in (state, state["ema"]):
        # The generator of a lamp that grows keeps its own small background.
        network = tree["generator"].get("upsampler", tree["generator"])
        network["background"] = mx.array(np.log(mean / (1 - mean)).astype(np.float32))
        network["gate"] = mx.array(variance_mask.astype(np.float32))


def _require_same_shapes(new: Tree, old: Tree, network: str) -> None:
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
