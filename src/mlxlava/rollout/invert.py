"""From a picture to a state: the one whose frame is nearest, among those that a lamp is likely in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mlxlava.backend import mx
from mlxlava.errors import UserError
from mlxlava.models.generator import to_bytes
from mlxlava.models.registry import make_generator
from mlxlava.rollout.descent import OnProgress, descend
from mlxlava.rollout.weights import Weights

Frame = npt.NDArray[np.uint8]

_TRIED = 128  # random states that are drawn; the descent starts from the nearest
_KEPT = 2
_AT_ONCE = 8  # frames that are drawn together; more fall out of the processor's cache
_ROUNDS = 150
_RATE = 0.1  # of Adam, falling to 0 as a cosine


@dataclasses.dataclass(frozen=True)
class Found:
    """A state and how near its frame is.

    Attributes:
        state: float32 (Z,).
        frame: what it draws, uint8 (H, W, 3).
        picture: what was looked for, at the same size.
        error: root mean square difference of the two, in grey levels of 255.
    """

    state: npt.NDArray[np.float32]
    frame: Frame
    picture: Frame
    error: float


def read_picture(path: str | Path, size: tuple[int, int]) -> Frame:
    """A picture's middle, in the aspect of ``size`` (H, W) and resized to it; uint8 (H, W, 3).

    Raises:
        UserError: it is not there, or no picture.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"picture: {path} is no picture that Pillow reads; give a PNG or a JPEG") from None
    except OSError as error:
        raise UserError(f"picture: cannot read {path}: {error.strerror or error}") from None
    return fit_picture(np.asarray(upright), size)


def fit_picture(picture: Frame, size: tuple[int, int]) -> Frame:
    """The middle of a picture (H′, W′, 3) in the aspect of ``size`` (H, W), resized to it."""
    height, width = size
    fitted = ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.BOX)
    return np.asarray(fitted)


def find_state(
    weights: Weights, picture: Frame, seed: int = 0, on_progress: OnProgress | None = None
) -> Found:
    """The likeliest state that drew a picture: descent through G from the nearest of many random states.

    What falls is the negative log posterior of the evidence bound that lamps are learned by (Kingma 2014),
    squared error / (2 sigma²) + ‖z‖² / 2 with ``loss.sigma`` of the recipe. A state is put back on the shell
    where states of N(0, I) are if it left it, since G has only ever seen those.

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
    """The few of the states (N, Z) that cost least."""
    costs = []
    for at in range(0, len(states), _AT_ONCE):
        costs.append(cost(states[at : at + _AT_ONCE]))
        mx.eval(costs[-1])
    return states[mx.argsort(mx.concatenate(costs))[:_KEPT]]


def _on_shell(states: mx.array) -> mx.array:
    """States (B, Z) whose norms are within three deviations of those of N(0, I), scaled if need be."""
    # The norm of N(0, I) has mean √Z and deviation √½ nearly, whatever Z.
    norms, typical = mx.linalg.norm(states, axis=-1, keepdims=True), math.sqrt(states.shape[-1])
    wide = 3 * math.sqrt(0.5)
    return states * (mx.clip(norms, max(typical - wide, typical / 2), typical + wide) / norms)
