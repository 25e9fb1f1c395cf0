"""A clip of a flame, drawn by rule: something to learn that is no lamp.

    python -m benchmarks.flame -o flame.mp4 [--seconds 600] [--size 64] [--fps 15] [--seed 0]

Smooth noise that rises (a sum of travelling waves of random direction and phase) bends and tears a tongue of
fire over a bed of embers; colours are those of a black body, roughly. Endless and seeded: a frame is a
function of time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_WAVES = 24
_COLOURS = np.array(  # from cold to hot, evenly spaced
    [(6, 4, 8), (60, 8, 6), (160, 30, 6), (232, 92, 16), (255, 170, 50), (255, 232, 150), (255, 250, 232)],
    np.float32,
)


class _Noise:
    """Smooth noise over (x, y, t) of about unit variance that rises at ``speed`` heights a second."""

    def __init__(self, rng: np.random.Generator, scale: float, speed: float, churn: float) -> None:
        self.k = rng.normal(0, scale, (_WAVES, 2))
        self.omega = rng.normal(0, churn, _WAVES) + self.k[:, 1] * speed
        self.phase = rng.uniform(0, 2 * np.pi, _WAVES)

    def __call__(self, x: Array, y: Array, t: float) -> Array:
        waves = np.cos(
            x[..., None] * self.k[:, 0] + y[..., None] * self.k[:, 1] - self.omega * t + self.phase
        )
        noise: Array = waves.sum(-1) * np.sqrt(2 / _WAVES)
        return noise


def frames(size: int, fps: float, seed: int) -> Iterator[Array]:
    """Endless frames, uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    sway, bend, tear, reach, glow = (
        _Noise(rng, *shape)
        for shape in ((1.5, 0.9, 0.7), (6, 0.9, 1.0), (11, 1.1, 1.5), (2.5, 0.0, 1.6), (9, 0.0, 0.8))
    )
    side = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(2 * side - 1, 1 - side)  # y runs up
    number = 0
    while True:
        t = number / fps
        up = np.clip(y - 0.1, 0, 1)
        across = x + up * (0.35 * sway(0 * x, y, t) + 0.18 * bend(x, y, t))
        height = 0.62 + 0.10 * reach(x, 0 * y, t)
        width = 0.34 * np.clip(1 - up / (height + 0.25), 0.04, 1) ** 0.8
        heat = np.exp(-((across / width) ** 2)) * np.clip(1.25 * (height - up) / height, 0, 1) ** 0.7
        heat = heat * np.clip(1 + 0.35 * up * tear(x, y, t), 0, 2)
        embers = np.exp(-(((y - 0.07) / 0.05) ** 2) - (x / 0.62) ** 4) * (0.42 + 0.12 * glow(x, y, t))
        heat = np.clip(np.maximum(heat * (y > 0.08), embers), 0, 0.999) * (len(_COLOURS) - 1)
        low = heat.astype(int)
        share = (heat - low)[..., None].astype(np.float32)
        yield ((1 - share) * _COLOURS[low] + share * _COLOURS[low + 1] + 0.5).astype(np.uint8)
        number += 1


def write_clip(target: Path, seconds: float, size: int = 64, fps: float = 15, seed: int = 0) -> None:
    """Write a clip, ``seconds`` long."""
    # Quality 9: what a camera's codec adds is not to be learned.
    writer = imageio_ffmpeg.write_frames(str(target), (size, size), fps=fps, quality=9, macro_block_size=16)
    writer.send(None)
    for frame in islice(frames(size, fps, seed), round(seconds * fps)):
        writer.send(frame)
    writer.close()


def main() -> None:
    """Write the clip."""
    parser = argparse.ArgumentParser(description="Write a clip of a flame.")
    parser.add_argument("-o", dest="target", type=Path, default=Path("flame.mp4"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--fps", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_clip(args.target, args.seconds, args.size, args.fps, args.seed)


if __name__ == "__main__":
    main()
