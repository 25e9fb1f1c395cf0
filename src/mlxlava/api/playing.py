"""Load a lamp and play it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlxlava.api.arguments import require_integer, require_positive
from mlxlava.errors import UserError
from mlxlava.rollout.from_picture import crop_to_frame, find_state
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.seamless import SeamlessLoop
from mlxlava.rollout.weights import Weights, load_weights

Frame = npt.NDArray[np.uint8]
State = npt.NDArray[np.float32]


class LavaLamp:
    """A learned lamp.

    Attributes:
        weights: the learned weights, with their recipe.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.weights.recipe.data.size

    @property
    def step_fps(self) -> float:
        """Learned steps per second of true time. Frames at other rates are drawn from states in between."""
        return self.weights.step_fps

    def frames(
        self,
        fps: float = 30.0,
        seed: int = 0,
        speed: float = 1.0,
        seconds: float | None = None,
        start: State | None = None,
        seamless: bool = False,
    ) -> Iterator[Frame]:
        """Yield frames one after the other, as fast as the caller takes them.

        Args:
            fps: frames a second of play time.
            seed: seed of the lamp; the same seed gives the same lamp.
            speed: how many times faster than true time the lamp moves.
            seconds: play time; without end when None.
            start: state (Z,) to begin with, from ``from_picture``.
            seamless: whether the clip ends where it begins, so that it can be repeated; needs ``seconds``.

        Yields:
            Frames, uint8 (H, W, 3).

        Raises:
            UserError: fps, speed or seconds are not positive and finite, ``start`` is not a state of this
                lamp, or a seamless clip cannot be made.
        """
        require_positive("frames: fps", fps)
        require_positive("frames: speed", speed)
        if seconds is not None:
            require_positive("frames: seconds", seconds, "; leave it out to play for ever")
        require_integer("frames: seed", seed)
        if start is not None:
            start = _as_state(start, self.weights.recipe.generator.state_size)
        count = None if seconds is None else max(1, math.ceil(seconds * fps - 1e-6))
        times = (tick / fps * speed for tick in (itertools.count() if count is None else range(count)))
        if not seamless:
            return (frame for _, frame in Rollout(self.weights, seed, start=start).play(times))
        if count is None:
            raise UserError("frames: a seamless clip has an end; give seconds")
        loop = SeamlessLoop(self.weights, count / fps * speed, seed, start)
        return (frame for _, frame in loop.play(times))

    def from_picture(self, picture: Frame | str | Path, seed: int = 0) -> State:
        """The state whose frame is nearest to a picture. ``frames(start=…)`` plays on from this state.

        Args:
            picture: an array, uint8 (H, W, 3), of any size. The middle of it is used.
            seed: seed of the random states that are tried first.

        Returns:
            The state, float32 (Z,).

        Raises:
            UserError: the picture is not such an array.
        """
        _require_picture(picture)
        require_integer("from_picture: seed", seed)
        return find_state(self.weights, crop_to_frame(picture, self.size), seed).state


def load(name_or_path: str | Path | None = None) -> LavaLamp:
    """Load a lamp: shipped weights by name, or a weights or run folder by path.

    Args:
        name_or_path: name of shipped weights, a folder of weights, or a run; ``lava`` when None.

    Raises:
        UserError: there are no such weights, or they are damaged.
    """
    return LavaLamp(load_weights(name_or_path))


def _require_picture(picture: object) -> None:
    """Raise UserError unless a picture is an RGB array of bytes. The message says how to make one."""
    wanted = "from_picture: the picture must be a NumPy array, uint8 (H, W, 3)"
    if not isinstance(picture, np.ndarray):
        raise UserError(
            f"{wanted}, not a {type(picture).__name__}; "
            "read a file with numpy.asarray(PIL.Image.open(path).convert('RGB'))"
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UserError(f"{wanted}, not of shape {picture.shape}; convert('RGB') of Pillow makes one")
    if picture.dtype != np.uint8:
        raise UserError(f"{wanted}, not {picture.dtype}; scale it to 0 … 255 and take astype('uint8')")


def _as_state(start: object, size: int) -> State:
    """The start state as float32 (Z,). Raises UserError if it is not a state."""
    wanted = f"frames: start must be a state of {size} numbers, as from_picture gives"
    try:
        state = np.asarray(start, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{wanted}, not a {type(start).__name__}") from None
    if state.shape != (size,):
        raise UserError(f"{wanted}, not of shape {state.shape}")
    if not np.isfinite(state).all():
        raise UserError("frames: start contains numbers that are not finite")
    return state
