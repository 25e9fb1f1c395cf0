"""Convolutions in the form that is fast and small on the device; channels last, one weight layout.

On Metal and CUDA they are MLX's own. MLX's CPU back end writes every patch out before its matrix
product (kernel² times the input), and has no fast path for dilated convolutions, which the gradients of
strided and the passes of transposed ones are. So there, where planes are large, a convolution is a sum
of one matrix product a tap: flattened to rows of channels, a plane shifted by a tap is the same rows
from another start, a view that BLAS takes as it is. A few rows at the planes' edges are computed for
nothing; on planes of a few pixels that costs more than patches do.

A convolution, its gradient by the input and that by the weights are each linear in two of one another,
so that the three are each other's gradients, to any order: :class:`_Halving` for 4×4 at stride 2,
:class:`_Keeping` for 3×3.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from mlxlava.backend import mx, on_cpu

_WORTH_SHIFTING = 2**20  # floats of patches, below which a call more costs more than they do
_MAX_WASTE = 1.3  # of the rows that are computed to those that are wanted

Convolution = Callable[[mx.array, mx.array], mx.array]


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    count, height, width, inputs = x.shape
    places = height * width
    if on_cpu() and _is_large(count * places * 9 * inputs, (height + 1) * (width + 1), places):
        return _keeping(_stream()).apply(x, weight)
    return mx.conv2d(x, weight, padding=1)


def conv_down(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, H/2, W/2, O)."""
    if not on_cpu():
        return mx.conv2d(x, weight, stride=2, padding=1)
    return _halving(_stream()).down(x, weight)


def conv_up(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, 2H, 2W, O)."""
    if not on_cpu():
        return mx.conv_transpose2d(x, weight, stride=2, padding=1)
    return _halving(_stream()).up(x, weight.transpose(3, 1, 2, 0))


class _Halving:
    """4×4 convolution of stride 2, padded by one, and the gradients that belong to it.

    Pixels of a padded plane in squares of two are one pixel of four times the channels (space to depth),
    and the convolution is one of 2×2 taps on those.

    Attributes:
        down: planes (N, 2H, 2W, I), weight (O, 4, 4, I) → (N, H, W, O).
        up: (N, H, W, O), weight → planes: its gradient by the planes, a transposed convolution.
        by_weight: planes, (N, H, W, O) → its gradient by the weight.
    """

    def __init__(self, stream: mx.Stream) -> None:
        self.down = _bilinear(_down, lambda x, w, y: (self.up(y, w), self.by_weight(x, y)), stream)
        self.up = _bilinear(_up, lambda y, w, x: (self.down(x, w), self.by_weight(x, y)), stream)
        self.by_weight = _bilinear(_down_by_weight, lambda x, y, w: (self.up(y, w), self.down(x, w)), stream)


class _Keeping:
    """3×3 convolution, padded by one, and its gradient by the weights.

    Its gradient by the input is itself, with the weight turned about.

    Attributes:
        apply: (N, H, W, I), weight (O, 3, 3, I) → (N, H, W, O).
        by_weight: (N, H, W, I), (N, H, W, O) → weight.
    """

    def __init__(self, stream: mx.Stream) -> None:
        self.apply = _bilinear(
            _keep, lambda x, w, y: (self.apply(y, _turned(w)), self.by_weight(x, y)), stream
        )
        self.by_weight = _bilinear(
            _keep_by_weight, lambda x, y, w: (self.apply(y, _turned(w)), self.apply(x, w)), stream
        )


# Gradients are made when they are asked for, which is not where the convolution was; so it has to remember
# its stream.
_halving = functools.cache(_Halving)
_keeping = functools.cache(_Keeping)


def _stream() -> mx.Stream:
    return mx.default_stream(mx.default_device())


def _bilinear(
    function: Convolution,
    gradients: Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]],
    stream: mx.Stream,
) -> Convolution:
    """``function`` with ``gradients(first, second, cotangent)`` as its two gradients."""
    custom: Any = mx.custom_function(function)

    def vjp(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
        with mx.stream(stream):
            first, second = gradients(primals[0], primals[1], cotangent)
            if _weights_first:
                # Else all of them may wait, and keep what they need, until the way back is gone to its end.
                (first,) = mx.depends([first], [second])
            return first, second

    custom.vjp(vjp)
    wrapped: Convolution = custom
    return wrapped


_weights_first = True


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """For gradients by the input alone: do not compute those by the weights as well (CPU)."""
    global _weights_first
    before, _weights_first = _weights_first, False
    try:
        yield
    finally:
        _weights_first = before


def _is_large(patches: int, rows: int, places: int) -> bool:
    """Whether products of shifted ``rows`` beat ``patches`` floats for ``places`` pixels of each plane."""
    return patches >= _WORTH_SHIFTING and rows <= _MAX_WASTE * places


# --- 4×4, stride 2 ---


def _down(x: mx.array, weight: mx.array) -> mx.array:
    planes, taps = _space_to_depth(x), _weight_to_taps(weight)
    count, height, width, inputs = planes.shape
    if not _down_is_large(planes.shape):
        return mx.conv2d(planes, taps)
    rows, outputs = planes.reshape(-1, inputs), len(taps)
    starts = _starts(2, width)
    size = len(rows) - starts[-1]
    y = _sum_of_products(
        [(rows[start : start + size], tap.T) for start, tap in zip(starts, _each(taps), strict=True)]
    )
    strides = (height * width * outputs, width * outputs, outputs, 1)
    return mx.as_strided(y, (count, height - 1, width - 1, outputs), strides)


def _up(y: mx.array, weight: mx.array) -> mx.array:
    count, height, width, outputs = y.shape
    taps = _weight_to_taps(weight)  # (O, 2, 2, 4 I)
    places = (height + 1) * (width + 1)
    if not _is_large(count * places * 4 * outputs, places, places):
        planes = mx.conv2d(y, _turned(taps), padding=1)
        return depth_to_space(planes)[:, 1:-1, 1:-1]
    starts = _starts(2, width + 1)
    rows, size = _edged(y), count * places
    planes = _sum_of_products(
        [
            (rows[starts[-1] - start : starts[-1] - start + size], tap)
            for start, tap in zip(starts, _each(taps), strict=True)
        ]
    )
    return depth_to_space(planes.reshape(count, height + 1, width + 1, -1))[:, 1:-1, 1:-1]


def _down_by_weight(x: mx.array, y: mx.array) -> mx.array:
    planes = _space_to_depth(x)
    width, inputs = planes.shape[2:]
    outputs = y.shape[-1]
    if not _down_is_large(planes.shape):
        zeros = mx.zeros((outputs, 2, 2, inputs), planes.dtype)
        taps = mx.vjp(lambda taps: mx.conv2d(planes, taps), [zeros], [y])[1][0]
    else:
        rows = planes.reshape(-1, inputs)
        starts = _starts(2, width)
        size = len(rows) - starts[-1]
        turned = _edged(y)[starts[-1] : starts[-1] + size].T
        taps = mx.stack([turned @ rows[start : start + size] for start in starts], axis=1)
    # (O, 2, 2, 4 I) -> (O, 4, 4, I)
    taps = taps.reshape(outputs, 2, 2, 2, 2, inputs // 4).transpose(0, 1, 3, 2, 4, 5)
    return taps.reshape(outputs, 4, 4, inputs // 4)


def _down_is_large(shape: tuple[int, ...]) -> bool:
    count, height, width, inputs = shape
    places = (height - 1) * (width - 1)
    return _is_large(count * places * 4 * inputs, height * width, places)


def _space_to_depth(x: mx.array) -> mx.array:
    """Pad by one pixel, and make a pixel of each square: (N, 2H, 2W, C) → (N, H + 1, W + 1, 4 C)."""
    count, height, width, channels = x.shape
    x = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    x = x.reshape(count, height // 2 + 1, 2, width // 2 + 1, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, height // 2 + 1, width // 2 + 1, 4 * channels)


def _weight_to_taps(weight: mx.array) -> mx.array:
    """(O, 4, 4, I) → (O, 2, 2, 4 I): tap 2a + p of the kernel is tap a of phase p."""
    outputs, _, _, inputs = weight.shape
    weight = weight.reshape(outputs, 2, 2, 2, 2, inputs).transpose(0, 1, 3, 2, 4, 5)
    return weight.reshape(outputs, 2, 2, 4 * inputs)


def _edged(y: mx.array) -> mx.array:
    """Rows of planes with an empty edge before each line and above each plane, and an empty plane behind."""
    return mx.pad(y, [(0, 1), (1, 0), (1, 0), (0, 0)]).reshape(-1, y.shape[-1])


# --- 3×3 ---


def _keep(x: mx.array, weight: mx.array) -> mx.array:
    count, height, width, _ = x.shape
    plane = (height + 1) * (width + 1)
    rows, size, outputs = _shared_edges(x), count * plane, len(weight)
    y = _sum_of_products(
        [
            (rows[start : start + size], tap.T)
            for start, tap in zip(_starts_about(x), _each(weight), strict=True)
        ]
    )
    strides = (plane * outputs, (width + 1) * outputs, outputs, 1)
    return mx.as_strided(y, (count, height, width, outputs), strides)


def _keep_by_weight(x: mx.array, y: mx.array) -> mx.array:
    rows = _shared_edges(x)
    turned = mx.pad(y, [(0, 0), (0, 1), (0, 1), (0, 0)]).reshape(-1, y.shape[-1]).T
    size = turned.shape[1]
    taps = mx.stack([turned @ rows[start : start + size] for start in _starts_about(x)], axis=1)
    return taps.reshape(y.shape[-1], 3, 3, x.shape[-1])


def _shared_edges(x: mx.array) -> mx.array:
    """Rows of planes with an empty edge after each line and below each plane, and empty planes at both ends.

    The edge after a line is the edge before the next as well.
    """
    return mx.pad(x, [(1, 1), (0, 1), (0, 1), (0, 0)]).reshape(-1, x.shape[-1])


def _starts_about(x: mx.array) -> list[int]:
    """Where each tap's view of ``_shared_edges(x)`` begins."""
    height, width = x.shape[1] + 1, x.shape[2] + 1
    return [height * width - width - 1 + start for start in _starts(3, width)]


# --- both ---


def _starts(side: int, width: int) -> list[int]:
    """The row at which each tap's view of planes of ``width`` begins."""
    return [row * width + column for row in range(side) for column in range(side)]


def _each(weight: mx.array) -> list[mx.array]:
    """(O, k, k, I) → k² taps (O, I)."""
    taps = weight.flatten(1, 2)
    return [taps[:, t] for t in range(taps.shape[1])]


def _turned(weight: mx.array) -> mx.array:
    """The weight of a stride-1 convolution's gradient by its input: (O, k, k, I) → (I, k, k, O)."""
    return weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)


def _sum_of_products(pairs: list[tuple[mx.array, mx.array]]) -> mx.array:
    """Σ a @ b; MLX hands each sum on in place."""
    a, b = pairs[0]
    total = a @ b
    for a, b in pairs[1:]:
        total = mx.addmm(total, a, b)
    return total


def depth_to_space(x: mx.array) -> mx.array:
    """Pixel shuffle: (N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)
