"""Convolutions in the form that is fast and small on the device; channels last, one weight layout.

On Metal and CUDA they are MLX's own. MLX's CPU back end writes every patch out before its matrix
product (kernel² times the input), and has no fast path for dilated convolutions, which the gradients of
strided and the passes of transposed ones are. So there all three are stride-1 convolutions, and those on
large planes need no patches at all: :class:`_Shifted`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mlxlava.backend import mx, on_cpu

_PATCH_FLOATS = 6 * 2**20  # 24 MB: patches of a part of the batch that stay in the cache
_WORTH_SHIFTING = 2**21  # floats of patches, below which a call more costs more than they do
_MAX_WASTE = 1.3  # of a padded plane to its result

Convolution = Callable[[mx.array, mx.array], mx.array]


class _Shifted:
    """Stride-1 convolution of padded planes as one matrix product a tap, without patches.

    Flattened to rows of channels, a plane shifted by a tap is the same rows from another start: a view
    that BLAS takes as it is. The products of all taps are summed in place; at the right and the lower
    edge of the plane a few rows are computed for nothing.

    Result, gradient by the input and gradient by the weights are each linear in two of one another, so
    that gradients of gradients need no other code.

    Attributes:
        apply: planes (N, H + k − 1, W + k − 1, I), weight (O, k, k, I) → (N, H, W, O).
        by_input: result's cotangent (N, H, W, O), weight → planes.
        by_weight: planes, result's cotangent → weight.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.apply = _differentiable(self._apply, lambda a, b, c: (self.by_input(c, b), self.by_weight(a, c)))
        self.by_input = _differentiable(
            self._by_input, lambda a, b, c: (self.apply(c, b), self.by_weight(c, a))
        )
        self.by_weight = _differentiable(
            self._by_weight, lambda a, b, c: (self.by_input(b, c), self.apply(a, c))
        )

    def _starts(self, width: int) -> list[int]:
        """The row at which each tap's view of planes of ``width`` begins."""
        return [row * width + column for row in range(self.side) for column in range(self.side)]

    def _apply(self, x: mx.array, weight: mx.array) -> mx.array:
        count, height, width, inputs = x.shape
        taps = weight.flatten(1, 2)  # (O, k², I)
        rows = x.reshape(-1, inputs)
        starts = self._starts(width)
        size = rows.shape[0] - starts[-1]
        y = _sum_of_products([(rows[start : start + size], taps[:, t].T) for t, start in enumerate(starts)])
        edge = self.side - 1
        outputs = y.shape[1]
        strides = (height * width * outputs, width * outputs, outputs, 1)
        return mx.as_strided(y, (count, height - edge, width - edge, outputs), strides)

    def _pad(self, cotangent: mx.array) -> mx.array:
        """The cotangent at the last tap's place in planes, flat, with an empty plane behind."""
        edge = self.side - 1
        return mx.pad(cotangent, [(0, 1), (edge, 0), (edge, 0), (0, 0)]).reshape(-1, cotangent.shape[-1])

    def _by_input(self, cotangent: mx.array, weight: mx.array) -> mx.array:
        count, height, width, _ = cotangent.shape
        height, width = height + self.side - 1, width + self.side - 1
        taps = weight.flatten(1, 2)
        rows = self._pad(cotangent)
        size = count * height * width
        starts = self._starts(width)
        x = _sum_of_products(
            [
                (rows[starts[-1] - start : starts[-1] - start + size], taps[:, t])
                for t, start in enumerate(starts)
            ]
        )
        return x.reshape(count, height, width, -1)

    def _by_weight(self, x: mx.array, cotangent: mx.array) -> mx.array:
        width, inputs = x.shape[2:]
        rows = x.reshape(-1, inputs)
        starts = self._starts(width)
        size = rows.shape[0] - starts[-1]
        turned = self._pad(cotangent)[starts[-1] : starts[-1] + size].T
        taps = mx.stack([turned @ rows[start : start + size] for start in starts], axis=1)
        return taps.reshape(-1, self.side, self.side, inputs)


def _sum_of_products(pairs: list[tuple[mx.array, mx.array]]) -> mx.array:
    """Σ a @ b; MLX hands each sum on in place."""
    a, b = pairs[0]
    total = a @ b
    for a, b in pairs[1:]:
        total = mx.addmm(total, a, b)
    return total


def _differentiable(
    function: Convolution, by_both: Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]
) -> Convolution:
    """``function`` with ``by_both(first, second, cotangent)`` as its two gradients."""
    custom: Any = mx.custom_function(function)

    def gradients(
        primals: list[mx.array], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        return by_both(primals[0], primals[1], cotangent)

    custom.vjp(gradients)
    wrapped: Convolution = custom
    return wrapped


@functools.cache
def _shifted(side: int) -> _Shifted:
    return _Shifted(side)


def _convolve(x: mx.array, weight: mx.array) -> mx.array:
    """Stride-1 convolution of padded planes on the CPU: (N, H + k − 1, W + k − 1, I) → (N, H, W, O)."""
    count, height, width, inputs = x.shape
    side = weight.shape[1]
    places = (height - side + 1) * (width - side + 1)
    patches = count * places * side * side * inputs
    if patches >= _WORTH_SHIFTING and height * width <= _MAX_WASTE * places:
        return _shifted(side).apply(x, weight)
    parts = next((n for n in range(1, count) if count % n == 0 and patches <= n * _PATCH_FLOATS), count)
    if parts == 1:
        return mx.conv2d(x, weight)
    return mx.concatenate([mx.conv2d(part, weight) for part in mx.split(x, parts)])


def _pad(x: mx.array) -> mx.array:
    """One empty pixel around each plane."""
    return mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    if not on_cpu():
        return mx.conv2d(x, weight, padding=1)
    return _convolve(_pad(x), weight)


def conv_down(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, H/2, W/2, O)."""
    if not on_cpu():
        return mx.conv2d(x, weight, stride=2, padding=1)
    outputs, _, _, inputs = weight.shape
    count, height, width, _ = x.shape
    # The same sum over space-to-depth: (N, H/2 + 1, W/2 + 1, 4 I)
    x = _pad(x).reshape(count, height // 2 + 1, 2, width // 2 + 1, 2, inputs)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2 + 1, width // 2 + 1, 4 * inputs)
    # (O, 4, 4, I) -> (O, 2, 2, 4 I): tap 2a + p of the kernel is tap a of phase p
    weight = weight.reshape(outputs, 2, 2, 2, 2, inputs).transpose(0, 1, 3, 2, 4, 5)
    return _convolve(x, weight.reshape(outputs, 2, 2, 4 * inputs))


def conv_up(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, 2H, 2W, O)."""
    if not on_cpu():
        return mx.conv_transpose2d(x, weight, stride=2, padding=1)
    outputs, _, _, inputs = weight.shape
    # A 2×2 convolution to four phases: (O, 4, 4, I) -> (4 O, 2, 2, I), where phase p of tap a is
    # tap 2 (1 - a) + p of the kernel
    weight = weight.reshape(outputs, 2, 2, 2, 2, inputs)[:, ::-1, :, ::-1]
    weight = weight.transpose(2, 4, 0, 1, 3, 5).reshape(4 * outputs, 2, 2, inputs)
    return depth_to_space(_convolve(_pad(x), weight))[:, 1:-1, 1:-1]


def depth_to_space(x: mx.array) -> mx.array:
    """Pixel shuffle: (N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)
