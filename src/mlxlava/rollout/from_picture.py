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
_KEPT = 2  # of them, the nearest, which gradient descent starts from
_AT_ONCE = 8  # frames that are drawn together; more fall out of the processor's cache
_ROUNDS = 150
_RATE = 0.1  # of Adam, falling to 0 as a cosine


@dataclasses.dataclass(frozen=True)
class Found:
    """A state, and how much its frame is like the picture.

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
    """The likeliest state that drew a picture: descent through G from the nearest of many random states.

    Minimised is the negative log posterior: squared error / (2 sigma²) + ‖z‖² / 2, with ``loss.sigma`` of the
    recipe. It is that of the evidence bound in training (Kingma 2014). Last, the norm is clipped to what is
    likely under N(0, I), since G was trained on no others.

    Args:
        weights: a learned lamp.
        picture: uint8 (H, W, 3) of the lamp's size.
        seed: of the random states.
        on_progress: called with the rounds done and all there are.
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
    """The states of least cost (2, Z), of (N, Z)."""
    costs = []
    for at in range(0, len(states), _AT_ONCE):
        costs.append(cost(states[at : at + _AT_ONCE]))
        mx.eval(costs[-1])
    return states[mx.argsort(mx.concatenate(costs))[:_KEPT]]


def _on_shell(states: mx.array) -> mx.array:
    """States (B, Z), scaled where their norm is more than three deviations from what N(0, I) has."""
    # The norm of N(0, I) has mean √Z and deviation √½ nearly, whatever Z.
    norms, typical = mx.linalg.norm(states, axis=-1, keepdims=True), math.sqrt(states.shape[-1])
    wide = 3 * math.sqrt(0.5)
    return states * (mx.clip(norms, max(typical - wide, typical / 2), typical + wide) / norms)
