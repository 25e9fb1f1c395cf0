"""Frames from states for playing: the generator's function, arranged for few frames and no gradients.

On Metal and CUDA this is the generator as it was trained. On the CPU the time of a frame is that of its
matrix products, and they can be made smaller: see :class:`_Winograd`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlxlava.backend import mx, on_cpu
from mlxlava.config import Recipe
from mlxlava.nets import ShuffleGenerator, Tree, leaky_relu, make_generator, to_bytes
from mlxlava.winograd import AFTER, BEFORE, WEIGH, Matrix, padded, tiles

# States (N, Z) → frames, uint8 (N, H, W, 3), not evaluated.
Draw = Callable[[mx.array], mx.array]


def make_draw(recipe: Recipe, weights: Tree, stats: Tree) -> Draw:
    """How frames are drawn with these weights of the recipe's generator, fastest on this device."""
    generator = make_generator(recipe)
    if on_cpu() and isinstance(generator, ShuffleGenerator):
        return _Shuffled(generator, weights)
    return lambda states: to_bytes(generator(weights, states, stats)[0])


class _Shuffled:
    """:class:`ShuffleGenerator` on the CPU; weights are rearranged once."""

    def __init__(self, generator: ShuffleGenerator, weights: Tree) -> None:
        self._base = (*generator.base, generator.widths[0])
        self._dense = {
            "weight": mx.contiguous(weights["dense"]["weight"].T),
            "bias": weights["dense"]["bias"],
        }
        self._ups = [_Winograd(weights[f"up{i}"]) for i in range(len(generator.widths) - 1)]
        self._taps = weights["out"]["weight"].transpose(2, 1, 0, 3).flatten(0, 2)  # (9 taps · 3, I)
        gate = weights.get("gate", mx.ones((1, 1, 3)))
        offset = weights.get("background", mx.zeros((1, 1, 3))) + gate * weights["out"]["bias"]
        # (H, W, 3) -> (3, 1, H, W)
        self._gate, self._offset = (mx.contiguous(a.transpose(2, 0, 1))[:, None] for a in (gate, offset))
        mx.eval(self._dense, self._taps, self._offset, self._gate)

    def __call__(self, states: mx.array) -> mx.array:
        x = leaky_relu(mx.addmm(self._dense["bias"], states, self._dense["weight"])).reshape(-1, *self._base)
        for up in self._ups:
            x = up(x)
        count, height, width, channels = x.shape
        # The last convolution has three outputs, too few for a fast product: all taps are one product,
        # colours first, and their sum is one of long rows.
        rows = padded(x).reshape(-1, channels)
        taps = (self._taps @ rows.T).reshape(
            3, 3, 3, count, height + 2, width + 2
        )  # (column, row, colour, …)
        columns = taps[:, 0, ..., :height, :] + taps[:, 1, ..., 1:-1, :] + taps[:, 2, ..., 2:, :]
        x = columns[0, ..., :width] + columns[1, ..., 1:-1] + columns[2, ..., 2:]  # (3, N, H, W)
        return to_bytes(mx.sigmoid(self._offset + self._gate * x)).transpose(1, 2, 3, 0)


class _Winograd:
    """3×3 convolution, bias, leaky ReLU and pixel shuffle: (N, H, W, I) → (N, 2H, 2W, O / 4).

    Tiles of 4×4 pixels become 16 numbers each, which are multiplied by weights that were transformed before,
    and 16 numbers become 2×2 results (winograd.py). Both changes are matrix products, of all tiles at once:
    of few frames, fewer and larger steps are faster than sums.

    Args:
        weights: ``weight`` (O, 3, 3, I) and ``bias`` (O,).
    """

    def __init__(self, weights: Tree) -> None:
        outputs, _, _, inputs = weights["weight"].shape
        taps = weights["weight"].transpose(1, 2, 3, 0).reshape(9, -1)
        self._filter = (_both_sides(WEIGH) @ taps).reshape(16, inputs, outputs)
        self._bias = weights["bias"]
        self._before, self._after = _both_sides(BEFORE), _both_sides(AFTER)
        mx.eval(self._filter, self._before, self._after)

    def __call__(self, x: mx.array) -> mx.array:
        height, width, inputs = x.shape[1:]
        seen = tiles(x)
        count, down, across = seen.shape[2:5]
        x = (self._before @ seen.reshape(16, -1)).reshape(16, -1, inputs) @ self._filter
        outputs = x.shape[-1]
        x = leaky_relu((self._after @ x.reshape(16, -1)).reshape(-1, outputs) + self._bias)
        # (row and column of a tile's results, N, down, across, row and column of the shuffle, O / 4)
        x = x.reshape(2, 2, count, down, across, 2, 2, outputs // 4).transpose(2, 3, 0, 5, 4, 1, 6, 7)
        return x.reshape(count, 4 * down, 4 * across, outputs // 4)[:, : 2 * height, : 2 * width]


def _both_sides(one: Matrix) -> mx.array:
    """A matrix along one side of a tile, along both: of flat tiles."""
    return mx.array(np.kron(one, one).astype(np.float32))
