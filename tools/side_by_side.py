"""Writes a clip with a learned lamp on the left and the lamp that it learned from on the right.

python tools/side_by_side.py lava docs/lava.webp
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

import mlxlava
from mlxlava.footage.simulated_lamp import frames as simulated_frames
from mlxlava.playback.writers import open_writer

FPS, SPEED, GAP_PIXELS = 10.0, 2.0, 16


def main() -> None:
    """Write the clip that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="name or folder of weights of the built-in lamp, or a run")
    parser.add_argument("target", help="file to write; its ending gives the format")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lamp = mlxlava.load(arguments.weights)
    height, width = lamp.size
    learned = lamp.frames(fps=FPS, speed=SPEED, seed=arguments.seed)
    real = simulated_frames(lamp.size, fps=FPS / SPEED, seed=arguments.seed)
    gap = np.zeros((height, GAP_PIXELS, 3), np.uint8)
    pairs = itertools.islice(zip(learned, real, strict=False), round(arguments.seconds * FPS))
    with open_writer(arguments.target, size=(height, 2 * width + GAP_PIXELS), fps=FPS) as writer:
        for left, right in pairs:
            writer.write(np.concatenate([left, gap, right], axis=1))


if __name__ == "__main__":
    main()
