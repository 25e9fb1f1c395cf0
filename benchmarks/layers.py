"""What MLX's own convolutions and those of convolution.cpp take on a CPU, layer by layer.

    MLXLAVA_CORES=1 python -m benchmarks.layers

Milliseconds for 64 frames, medians of rounds in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from mlxlava.backend import mx
from mlxlava.backend import ops as conv
from mlxlava.console import print_table

_ROUNDS = 9
_FRAMES = 64
_WAYS = ("MLX", "mlxlava")
# Form, side of the kernel, side of the input, channels of input and output.
_LAYERS = [
    ("4×4 halving", 4, 32, 32, 64),
    ("4×4 halving", 4, 16, 64, 128),
    ("4×4 halving", 4, 8, 128, 256),
    ("3×3", 3, 4, 256, 512),
    ("3×3", 3, 8, 128, 256),
    ("3×3", 3, 16, 64, 128),
    ("3×3", 3, 32, 32, 64),
]


def _passes(way: str, kernel: int, side: int, inputs: int, outputs: int) -> list[Callable[[], mx.array]]:
    """The convolution, and its gradients with respect to the input and to the weights."""
    halving = kernel == 4
    x = mx.random.normal((_FRAMES, side, side, inputs))
    y = mx.random.normal((_FRAMES, side // (1 + halving), side // (1 + halving), outputs))
    weight = mx.random.normal((outputs, kernel, kernel, inputs))
    mx.eval(x, y, weight)
    own = conv.conv4_stride2 if halving else conv.conv3

    def convolve(x: mx.array, weight: mx.array) -> mx.array:
        if way == "mlxlava":
            return own(x, weight)
        return mx.conv2d(x, weight, stride=1 + halving, padding=1)

    def loss(x: mx.array, weight: mx.array) -> mx.array:
        total: mx.array = (convolve(x, weight) * y).sum()
        return total

    def by_input() -> mx.array:
        if way != "mlxlava":
            gradient: mx.array = mx.grad(loss, 0)(x, weight)
            return gradient
        if not halving:  # the same convolution, of a weight that is turned about
            return conv.conv3(y, weight[:, ::-1, ::-1].transpose(3, 1, 2, 0))
        gradient = mx.grad(lambda x: (conv.conv4_stride2(x, weight, False) * y).sum())(x)
        return gradient

    return [lambda: convolve(x, weight), by_input, lambda: mx.grad(loss, 1)(x, weight)]


def _milliseconds(function: Callable[[], mx.array]) -> float:
    began = time.perf_counter()
    mx.eval(function())
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Print a line for each layer and way."""
    rows = []
    for name, kernel, side, inputs, outputs in _LAYERS:
        passes = {way: _passes(way, kernel, side, inputs, outputs) for way in _WAYS}
        times: dict[str, list[list[float]]] = {way: [] for way in _WAYS}
        for _ in range(_ROUNDS + 1):
            for way in _WAYS:
                times[way].append([_milliseconds(one) for one in passes[way]])
        for way, rounds in times.items():
            medians = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
            layer = f"{name}, {side}×{side}, {inputs} → {outputs}"
            rows.append((layer, way, *(f"{median:.1f}" for median in medians)))
            print(*rows[-1], file=sys.stderr, flush=True)
    print_table(
        "Convolutions, ms",
        ("layer", "way", "forward", "by the input", "by the weights"),
        rows,
        left_aligned=2,
    )


if __name__ == "__main__":
    main()
