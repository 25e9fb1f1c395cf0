"""Draws docs/how-it-works.png: a real clip, the same clip drawn from one state, and two random lamps.

    python tools/how_it_works_picture.py [-o FILE]

The real clip is one of the built-in lamp, with a seed that the shipped weights were not trained on. Weights
have no encoder. So the state in the middle of the clip is found by gradient descent, on the bound that the
encoder is trained on (docs/how-it-works.md). It takes half a minute of one core.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.backend import mx
from mlxlava.footage.simulated_lamp import SimulatedLamp
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.registry import make_generator
from mlxlava.models.sheet import film_strip
from mlxlava.models.state_step import StationaryStep, fixed_bases, make_dynamics
from mlxlava.resize import resize
from mlxlava.rollout.descent import descend
from mlxlava.rollout.weights import Weights, load_weights

Array = npt.NDArray[Any]

ROOT = Path(__file__).parents[1]
_FRAME_COUNT, _GAP = 8, 4  # frames in a row, and learned steps from one to the next
_MIDDLE = _GAP * (_FRAME_COUNT - 1) // 2  # learned step of the state that is searched for
_REAL_SEED, _FIRST_FRAME = 5, 400  # the weights were trained on seed 0
_RANDOM_LAMP_COUNT = 2
_RANDOM_STATE_COUNT, _DESCENT_START_COUNT, _DESCENT_ROUNDS = 128, 4, 150
_SHOWN_SIZE = (160, 80)  # height and width of a frame in the picture
_COLOURS = 128


def paths_of(weights: Weights, states: mx.array, before: int) -> mx.array:
    """The states (B, K, Z) of the frames in a row. ``states`` (B, Z) are ``before`` steps after the first."""
    dynamics, arrays = make_dynamics(weights.recipe), weights.arrays
    if not isinstance(dynamics, StationaryStep):
        raise SystemExit("how_it_works_picture: the weights need a stationary state step")
    bases = dynamics.basis_changes(fixed_bases(arrays))
    path = [states]
    for _ in range(before):
        path.insert(0, dynamics.inverse_transport(arrays["dynamics"], bases, path[0]))
    for _ in range(_GAP * (_FRAME_COUNT - 1) - before):
        path.append(dynamics.transport(arrays["dynamics"], bases, path[-1]))
    return mx.stack(path[::_GAP], axis=1)


def find_state(weights: Weights, clip: Array) -> mx.array:
    """The state (1, Z) in the middle of a clip, uint8 (K, H, W, 3), that explains all its frames best.

    Small frames are compared, which the generator draws before they are upsampled.
    """
    generator: Any = make_generator(weights.recipe)
    generator = getattr(generator, "generator", generator)
    small = np.stack([resize(frame, weights.recipe.drawn_size) for frame in clip])
    real = mx.array(small.astype(np.float32) / 255)
    sigma = weights.recipe.loss.sigma

    def cost(states: mx.array) -> mx.array:  # (B, Z) -> (B,)
        path = paths_of(weights, states, _MIDDLE)
        drawn = generator(weights.arrays["generator"], path.flatten(0, 1))[0]
        error: mx.array = ((drawn.reshape(len(states), *real.shape) - real) ** 2).sum((2, 3, 4)).mean(1)
        return error / (2 * sigma**2) + (states * states).sum(-1) / 2

    size = weights.recipe.generator.state_size
    states = mx.random.normal((_RANDOM_STATE_COUNT, size), key=mx.random.key(0))
    states = states[mx.argsort(cost(states))[:_DESCENT_START_COUNT]]
    states = descend(lambda states: cost(states).sum(), states, rounds=_DESCENT_ROUNDS, rate=0.1)
    return states[mx.argsort(cost(states))[:1]]


def draw_rows(weights: Weights, paths: mx.array) -> Array:
    """Frames (B, K, H, W, 3), uint8, of paths of states (B, K, Z)."""
    frames, _ = make_generator(weights.recipe)(weights.arrays["generator"], paths.flatten(0, 1))
    return np.array(to_uint8_frames(frames)).reshape(*paths.shape[:2], *weights.recipe.data.size, 3)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw the picture of docs/how-it-works.md.")
    parser.add_argument("-o", dest="target", type=Path, default=ROOT / "docs/how-it-works.png")
    target: Path = parser.parse_args().target

    weights = load_weights("lava")
    lamp = SimulatedLamp(weights.recipe.data.size, fps=weights.step_fps, seed=_REAL_SEED)
    last = _FIRST_FRAME + _GAP * (_FRAME_COUNT - 1) + 1
    clip = np.stack(list(itertools.islice(lamp, _FIRST_FRAME, last, _GAP)))
    again = draw_rows(weights, paths_of(weights, find_state(weights, clip), _MIDDLE))
    shape = (_RANDOM_LAMP_COUNT, weights.recipe.generator.state_size)
    random = draw_rows(weights, paths_of(weights, mx.random.normal(shape, key=mx.random.key(1)), 0))
    error = float(np.sqrt(np.mean((again[0].astype(np.float64) - clip) ** 2)))
    print(f"the clip drawn from one state: {error:.1f} of 255 grey levels from the real one")

    rows = {
        "a real clip; time runs right": clip[None],
        "the same clip, drawn from one state": again,
        "two lamps from random states": random,
    }
    strip = film_strip(
        {
            name: np.stack([[resize(frame, _SHOWN_SIZE) for frame in row] for row in group])
            for name, group in rows.items()
        }
    )
    Image.fromarray(strip).quantize(_COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
