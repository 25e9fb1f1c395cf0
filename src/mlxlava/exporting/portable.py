"""A learned lamp as plain NumPy arrays, in the layout that programs other than MLX need."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.backend import Tree
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.models.generator import ShuffleGenerator
from mlxlava.models.state_step import PenalisedStep, StationaryStep, fixed_bases
from mlxlava.models.upsampler import INPUT_GAIN, Upsampler
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.rollout.export import averaged_weights
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.schema import show

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A dense layer or a 3×3 convolution.

    Attributes:
        weight: (O, I) of a dense layer, (O, 3, 3, I) of a convolution.
        bias: (O,).
    """

    weight: Floats
    bias: Floats


@dataclasses.dataclass(frozen=True)
class Convolutions:
    """The convolutions from a feature map to a picture.

    Attributes:
        ups: convolutions, each followed by a pixel shuffle that doubles height and width, and a leaky ReLU.
        out: the convolution to colours.
        background: offset of the colours before the sigmoid (H, W, 3), or (1, 1, 3) zeros.
        gate: factor of the colours before the offset, in the same shape.
    """

    ups: tuple[Layer, ...]
    out: Layer
    background: Floats
    gate: Floats


@dataclasses.dataclass(frozen=True)
class Upsampling:
    """The upsampling network of a lamp that has grown: small pictures (h, w, 3) → frames.

    Attributes:
        centre: what is subtracted from a small picture (h, w, 3), or (1, 1, 3).
        first: the convolution of the difference. A leaky ReLU follows. Its weights include the input gain.
        convolutions: what makes a frame of the result.
    """

    centre: Floats
    first: Layer
    convolutions: Convolutions


@dataclasses.dataclass(frozen=True)
class PortableLamp:
    """All numbers of a lamp with the generator ``shuffle`` and the state step ``stationary``.

    Attributes:
        size: height and width of a frame.
        step_fps: learned steps per second of true time.
        base: height, width and channels (h, w, C) of the first feature map. ``dense`` makes it.
        dense: the layer from a state to the first feature map.
        convolutions: what makes a picture of that map: a frame, or a small picture in a lamp that has grown.
        upsampling: what makes a frame of a small picture. None for a lamp that has not grown.
        changes: changes of basis (Z, Z), one more than there are couplings.
        couplings: for each coupling its hidden layers and, as the last one, the layer of its angles.
        noise_angle: angle between a state and its noise in a whole learned step, float64 (Z,) or (1,). None
            for a lamp without noise, whose step keeps the norm of a state.
    """

    size: tuple[int, int]
    step_fps: float
    base: tuple[int, int, int]
    dense: Layer
    convolutions: Convolutions
    upsampling: Upsampling | None
    changes: tuple[Floats, ...]
    couplings: tuple[tuple[Layer, ...], ...]
    noise_angle: npt.NDArray[np.float64] | None

    @property
    def state_size(self) -> int:
        """How many numbers a state has."""
        return len(self.changes[0])


def load_portable_weights(name_or_run: str | Path) -> Weights:
    """Read the weights of a lamp that is to be written.

    A run's are those that ``mlxlava export -o`` would write: averaged, and slowed to the pace of its footage.

    Args:
        name_or_run: shipped weights by name, a folder of weights, or a run.

    Raises:
        UserError: there are no such weights.
    """
    run = Path(name_or_run)
    return load_weights(name_or_run) if latest_checkpoint_folder(run) is None else averaged_weights(run)


def make_portable(weights: Weights, name: str = "these weights") -> PortableLamp:
    """Take the numbers of a lamp out of its weights.

    Args:
        weights: a learned lamp.
        name: what a message calls the weights.

    Raises:
        UserError: its networks are of a kind that cannot be written.
    """
    recipe, arrays = weights.recipe, weights.arrays
    refused = f"export: {name} cannot be written as a page or as graphs"
    if recipe.dynamics.kind != "stationary":
        raise UserError(
            f"{refused}: the state step is {recipe.dynamics.kind} (recipe {show(recipe.name)}), and moves a "
            f"batch of at least {PenalisedStep.minimum_batch} lamps to play one; give weights with a "
            "stationary state step (recipe lava)"
        )
    if recipe.generator.kind != "shuffle":
        raise UserError(
            f"{refused}: the generator is {recipe.generator.kind} (recipe {show(recipe.name)}), whose layers "
            "have no such form; give weights with the generator shuffle (recipe lava)"
        )
    generator, step = ShuffleGenerator(recipe), StationaryStep(recipe)
    changes = step.basis_changes(fixed_bases(arrays))
    height, width = generator.base
    drawing: Tree = arrays["generator"]
    return PortableLamp(
        size=recipe.data.size,
        step_fps=weights.step_fps,
        base=(height, width, generator.widths[0]),
        dense=_dense_layer(drawing["dense"]),
        convolutions=_convolutions(drawing, len(generator.widths) - 1),
        upsampling=_upsampling(recipe, drawing) if recipe.generator.upsampler_widths else None,
        changes=tuple(_to_float32(changes[f"change{n}"]) for n in range(step.couplings + 1)),
        couplings=tuple(
            _coupling(arrays["dynamics"][f"coupling{n}"], len(step.hidden)) for n in range(step.couplings)
        ),
        noise_angle=None if step.keeps_norm else _noise_angle(step, arrays["dynamics"]),
    )


def _convolutions(weights: Tree, ups: int) -> Convolutions:
    flat = np.zeros((1, 1, 3), np.float32)
    return Convolutions(
        ups=tuple(_dense_layer(weights[f"up{i}"]) for i in range(ups)),
        out=_dense_layer(weights["out"]),
        background=_to_float32(weights["background"]) if "background" in weights else flat,
        gate=_to_float32(weights["gate"]) if "gate" in weights else flat + 1,
    )


def _upsampling(recipe: Recipe, drawing: Tree) -> Upsampling:
    upsampler, weights = Upsampler(recipe), drawing["upsampler"]
    first = _dense_layer(weights["in"])
    centre = _to_float32(upsampler.centre(weights))
    return Upsampling(
        centre=centre if recipe.generator.background else centre[:1, :1],
        first=dataclasses.replace(first, weight=np.float32(INPUT_GAIN) * first.weight),
        convolutions=_convolutions(weights, len(upsampler.widths) - 1),
    )


def _coupling(weights: Tree, hidden: int) -> tuple[Layer, ...]:
    return (*(_dense_layer(weights[f"hidden{i}"]) for i in range(hidden)), _dense_layer(weights["angles"]))


def _noise_angle(step: StationaryStep, weights: Tree) -> npt.NDArray[np.float64]:
    """The angle whose cosine is rho (models/state_step.py), in float64: rho is too near one for float32."""
    rate = np.exp(_to_float32(weights["log_rate"]).astype(np.float64)) if step.learn_rho else None
    exact = np.array([-math.log(step.rho)]) if rate is None else rate
    return np.asarray(np.arcsin(np.sqrt(-np.expm1(-2 * exact))))


def _dense_layer(weights: Tree) -> Layer:
    return Layer(_to_float32(weights["weight"]), _to_float32(weights["bias"]))


def _to_float32(array: Any) -> Floats:
    return np.array(array).astype(np.float32)
