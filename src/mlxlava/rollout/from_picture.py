"""Finds a likely state whose frame is similar to a picture."""

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
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.registry import make_generator
from mlxlava.resize import resize
from mlxlava.rollout.descent import OnProgress, descend
from mlxlava.rollout.weights import Weights

Frame = npt.NDArray[np.uint8]

_RANDOM_STATE_COUNT = 128  # random states that are drawn
_DESCENT_START_COUNT = 2  # gradient descent starts from the states of least cost, so many of them
_FRAMES_AT_ONCE = 8  # frames that are drawn in one call; more do not fit into the processor's cache
_DESCENT_ROUNDS = 150
_FIRST_LEARNING_RATE = 0.1  # Adam's first learning rate


@dataclasses.dataclass(frozen=True)
class FoundState:
    """A state that was found, and how far its frame is from the picture.

    Attributes:
        state: the state, float32 (Z,).
        frame: the frame that is drawn from it, uint8 (H, W, 3).
        picture: the picture at the same size.
        error: root mean square difference of frame and picture, in grey levels of 255.
    """

    state: npt.NDArray[np.float32]
    frame: Frame
    picture: Frame
    error: float


def crop_to_frame(picture: str | Path | Frame, size: tuple[int, int]) -> Frame:
    """Cut out the middle of a picture in the aspect ratio of ``size`` and resize it: uint8 (H, W, 3).

    Args:
        picture: a file, or an array, uint8 (H′, W′, 3).
        size: height and width of the lamp's frames.

    Raises:
        UserError: the file cannot be read as a picture, or the array is not a picture.
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
) -> FoundState:
    """Find the most likely state of a picture by gradient descent through G, from the best of random states.

    The negative log posterior is minimised: squared error / (2 sigma²) + ‖z‖² / 2, with ``loss.sigma`` of the
    recipe, as in the evidence bound of the training (Kingma 2014). At the end the norm is limited to values
    that are likely under N(0, I), since G was trained only on such states.

    Args:
        weights: a learned lamp.
        picture: picture of the lamp's size, uint8 (H, W, 3).
        seed: seed of the random states.
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

    states = _states_of_least_cost(
        cost, mx.random.normal((_RANDOM_STATE_COUNT, size), key=mx.random.key(seed))
    )
    states = descend(
        lambda states: cost(states).sum(),
        states,
        rounds=_DESCENT_ROUNDS,
        rate=_FIRST_LEARNING_RATE,
        on_progress=on_progress,
    )
    states = _limit_norms(states)
    state = states[int(np.argmin(np.array(cost(states))))]
    frame = np.array(to_uint8_frames(draw(state[None])))[0]
    error = float(np.sqrt(np.mean((frame.astype(np.float64) - picture) ** 2)))
    return FoundState(np.array(state), frame, picture, error)


def _states_of_least_cost(cost: Callable[[mx.array], mx.array], states: mx.array) -> mx.array:
    """The two of the given states (N, Z) that have the least cost: (2, Z)."""
    costs = []
    for at in range(0, len(states), _FRAMES_AT_ONCE):
        costs.append(cost(states[at : at + _FRAMES_AT_ONCE]))
        mx.eval(costs[-1])
    return states[mx.argsort(mx.concatenate(costs))[:_DESCENT_START_COUNT]]


def _limit_norms(states: mx.array) -> mx.array:
    """Scale states (B, Z) whose norm is more than three deviations from the mean norm under N(0, I)."""
    # The norm under N(0, I) has a mean of about √Z, and a deviation of about √½ for any Z.
    norms, typical = mx.linalg.norm(states, axis=-1, keepdims=True), math.sqrt(states.shape[-1])
    wide = 3 * math.sqrt(0.5)
    return states * (mx.clip(norms, max(typical - wide, typical / 2), typical + wide) / norms)
