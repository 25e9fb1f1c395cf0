"""From a picture to a state: the likely state whose frame is most like the picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.backend import mx
from mlxlava.errors import UserError
from mlxlava.footage.crop import centre_box
from mlxlava.footage.pictures import read_picture
from mlxlava.models.generator import to_bytes
from mlxlava.models.registry import make_generator
from mlxlava.resize import resize
from mlxlava.rollout.descent import OnProgress, descend
from mlxlava.rollout.weights import Weights

Frame = npt.NDArray[np.uint8]

_TRIED = 128  # random states that are drawn
_DESCENDED = 2  # of them, the nearest, from which gradient descent starts
_AT_ONCE = 8  # frames that are drawn together; more do not fit into the processor's cache
_ROUNDS = 150
_RATE = 0.1  # Adam's first learning rate


@dataclasses.dataclass(frozen=True)
class Found:
    """A state, and how far its frame is from the picture.

    Attributes:
        state: float32 (Z,).
        frame: what it draws, uint8 (H, W, 3).
        picture: the picture at the same size.
        error: root mean square difference of the two, in grey levels of 255.
    """

    state: npt.NDArray[np.float32]
    frame: Frame
    picture: Frame
    error: float


def start_picture(picture: str | Path | Frame, size: tuple[int, int]) -> Frame:
    """A picture's middle, in the aspect of ``size`` (H, W) and resized to it: uint8 (H, W, 3).

    Args:
        picture: a file, or uint8 (H′, W′, 3).
        size: height and width of the lamp's frames.

    Raises:
        UserError: the file cannot be read as a picture, or the array is none.
    """
    if isinstance(picture, (str, Path)):
        image = read_picture(picture, what="picture", advice="give another PNG or JPEG")
    else:
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(
                f"picture: give a file, or uint8 of shape (H, W, 3), not {array.dtype} of shape {array.shape}"
            )
        image = Image.fromarray(array)
    return resize(image, size, centre_box(image.size, size))


def find_state(
    weights: Weights, picture: Frame, seed: int = 0, on_progress: OnProgress | None = None
) -> Found:
    """The most likely state of a picture: gradient descent through G from the nearest of many random states.

    The negative log posterior is minimised: squared error / (2 sigma²) + ‖z‖² / 2, with ``loss.sigma`` of the
    recipe, as in the evidence bound of the training (Kingma 2014). Last, the norm is clipped to what is
    likely under N(0, I), since G was trained on such states only.

    Args:
        weights: a learned lamp.
        picture: uint8 (H, W, 3) of the lamp's size.
        seed: of the random states.
        on_progress: called with the number of rounds done and the number of all rounds.
    """
    generator, arrays = make_generator(weights.recipe), weights.arrays
    sigma, size = weights.recipe.loss.sigma, weights.recipe.generator.state_size
    target = mx.array(picture.astype(np.float32) / 255)

    def draw(states: mx.array) -> mx.array:
        return generator(arrays["generator"], states, arrays["stats"]["generator"])[0]

    def cost(states: mx.array) -> mx.array:  # (B, Z) -> (B,)
        error = ((draw(states) - target) ** 2).sum((1, 2, 3))
        return error / (2 * sigma**2) + (states * states).sum(-1) / 2

    states = _nearest(cost, mx.random.normal((_TRIED, size), key=mx.random.key(seed)))
    states = descend(
        lambda states: cost(states).sum(), states, rounds=_ROUNDS, rate=_RATE, on_progress=on_progress
    )
    states = _on_shell(states)
    state = states[int(np.argmin(np.array(cost(states))))]
    frame = np.array(to_bytes(draw(state[None])))[0]
    error = float(np.sqrt(np.mean((frame.astype(np.float64) - picture) ** 2)))
    return Found(np.array(state), frame, picture, error)


def _nearest(cost: Callable[[mx.array], mx.array], states: mx.array) -> mx.array:
    """Of states (N, Z), the two with the least cost (2, Z)."""
    costs = []
    for at in range(0, len(states), _AT_ONCE):
        costs.append(cost(states[at : at + _AT_ONCE]))
        mx.eval(costs[-1])
    return states[mx.argsort(mx.concatenate(costs))[:_DESCENDED]]


def _on_shell(states: mx.array) -> mx.array:
    """States (B, Z), scaled where their norm is more than three deviations from what N(0, I) has."""
    # The norm under N(0, I) has a mean of about √Z, and a deviation of about √½ for any Z.
    norms, typical = mx.linalg.norm(states, axis=-1, keepdims=True), math.sqrt(states.shape[-1])
    wide = 3 * math.sqrt(0.5)
    return states * (mx.clip(norms, max(typical - wide, typical / 2), typical + wide) / norms)
