"""Convolutions in the form that is fast and small on the device; channels last, one weight layout.

On Metal and CUDA they are MLX's own. MLX's CPU back end writes every patch out before its matrix
product (kernel² times the input), and has no fast path for dilated convolutions, which the gradients of
strided and the passes of transposed ones are. So there each is one of three:

- Many channels and many pixels: in fewer products than taps (winograd.py).
- Few channels on one side, as next to pictures: patches are written of the side with few channels only;
  where that is the result, products with all taps at once are summed, each shifted by its tap.
- Else stride 1 and patches, where they are small. Pixels in squares of two as one pixel of four times the
  channels (space to depth) make a convolution of 4×4 at stride 2 one of 2×2.

A convolution, its gradient by the input and that by the weights are each linear in two of one another,
so that the three are each other's gradients, to any order: :class:`_Halving` for 4×4 at stride 2,
:class:`_Keeping` for 3×3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from mlxlava import winograd
from mlxlava.backend import mx, on_cpu

# Below these, see _is_worth:
_ROWS = 128  # of a matrix product, one for each tile of 2×2 results
_CHANNELS = 16

Convolution = Callable[[mx.array, mx.array], mx.array]


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    if not on_cpu():
        return mx.conv2d(x, weight, padding=1)
    return _keeping(_stream()).apply(x, weight)


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
        if not _wanted.again:
            # MLX runs the forward pass on what this gives. On the same arrays, mx.compile finds that both
            # passes prepare them alike, and does so once: 4 % of a step of duralava.
            primals = [mx.stop_gradient(primal) for primal in primals]
        with mx.stream(stream):
            first, second = gradients(primals[0], primals[1], cotangent)
            if _wanted.by_weights:
                # Else all of them may wait, and keep what they need, until the way back is gone to its end.
                (first,) = mx.depends([first], [second])
            return first, second

    custom.vjp(vjp)
    wrapped: Convolution = custom
    return wrapped


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """Of gradients: whether by the weights, too, and whether they are differentiated again."""

    by_weights: bool = True
    again: bool = True


_wanted = _Wanted()


@contextlib.contextmanager
def _wanting(**changes: bool) -> Iterator[None]:
    global _wanted
    before, _wanted = _wanted, dataclasses.replace(_wanted, **changes)
    try:
        yield
    finally:
        _wanted = before


def without_weights() -> contextlib.AbstractContextManager[None]:
    """For gradients by the input alone: do not compute those by the weights as well (CPU)."""
    return _wanting(by_weights=False)


def first_order() -> contextlib.AbstractContextManager[None]:
    """For gradients of which nobody takes another: they share work with the forward pass (CPU)."""
    return _wanting(again=False)


def _is_worth(x: mx.array, pixels: int, outputs: int) -> bool:
    """Whether winograd.py is faster for planes ``x``, whose results have so many ``pixels`` each.

    A product of few rows takes longer to prepare its weights than to multiply, and sums of few channels
    longer than the products that they spare (docs/decisions.md, "Fewer products").
    """
    return len(x) * pixels >= 4 * _ROWS and min(x.shape[-1], outputs) >= _CHANNELS


# --- 4×4, stride 2 ---


def _down(x: mx.array, weight: mx.array) -> mx.array:
    taps = _weight_to_taps(weight)
    if _is_worth(x, x.shape[1] * x.shape[2] // 4, len(weight)):
        return winograd.down(x, taps.transpose(1, 2, 0, 3))
    return mx.conv2d(_space_to_depth(x), taps)


def _up(y: mx.array, weight: mx.array) -> mx.array:
    if _is_worth(y, y.shape[1] * y.shape[2], weight.shape[-1]):
        # Tap 3 − 2 a − p of the kernel is tap a of pixel p of the result's squares.
        taps = weight[:, ::-1, ::-1].reshape(len(weight), 2, 2, 2, 2, -1).transpose(1, 3, 2, 4, 0, 5)
        return winograd.up(y, taps)
    if weight.shape[-1] < _CHANNELS:
        return _up_to_few(y, weight)
    planes = mx.conv2d(y, _turned(_weight_to_taps(weight)), padding=1)
    return depth_to_space(planes)[:, 1:-1, 1:-1]


def _up_to_few(y: mx.array, weight: mx.array) -> mx.array:
    (count, height, width), outputs = y.shape[:3], weight.shape[-1]
    taps = _products_of_taps(y, weight.transpose(1, 2, 3, 0)).reshape(4, 4, outputs, -1)
    line = width + 2
    # Pixel 2 a + q of the result sees pixel a by tap 1 + q, and its neighbour on that side by 3 or 0.
    ways = (((1, 0), (3, -1)), ((2, 0), (0, 1)))
    size = taps.shape[-1] - 2 * line - 2
    sums = [
        _total([_from(taps[i, j], (1 + a) * line + 1 + b, size) for i, a in rows for j, b in columns])
        for rows in ways
        for columns in ways
    ]
    # (row and column of a square, O, …) -> (N, H, 2, W, 2, O)
    shape, plane = (count, height, 2, width, 2, outputs), (height + 2) * line
    strides = (plane, line, 2 * outputs * size, 1, outputs * size, size)
    return mx.as_strided(mx.stack(sums), shape, strides).reshape(count, 2 * height, 2 * width, outputs)


def _down_by_weight(x: mx.array, y: mx.array) -> mx.array:
    outputs, inputs = y.shape[-1], x.shape[-1]
    if _is_worth(x, y.shape[1] * y.shape[2], outputs):
        taps = winograd.down_by_weight(x, y).reshape(2, 2, outputs, 2, 2, inputs)
        return taps.transpose(2, 0, 3, 1, 4, 5).reshape(outputs, 4, 4, inputs)
    return (y.reshape(-1, outputs).T @ _patches(x, 4, 2)).reshape(outputs, 4, 4, inputs)


def _space_to_depth(x: mx.array) -> mx.array:
    """Pad by one pixel, and make a pixel of each square: (N, 2H, 2W, C) → (N, H + 1, W + 1, 4 C)."""
    count, height, width, channels = x.shape
    x = winograd.padded(x)
    x = x.reshape(count, height // 2 + 1, 2, width // 2 + 1, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, height // 2 + 1, width // 2 + 1, 4 * channels)


def _weight_to_taps(weight: mx.array) -> mx.array:
    """(O, 4, 4, I) → (O, 2, 2, 4 I): tap 2a + p of the kernel is tap a of phase p."""
    outputs, _, _, inputs = weight.shape
    weight = weight.reshape(outputs, 2, 2, 2, 2, inputs).transpose(0, 1, 3, 2, 4, 5)
    return weight.reshape(outputs, 2, 2, 4 * inputs)


# --- 3×3 ---


def _keep(x: mx.array, weight: mx.array) -> mx.array:
    if _is_worth(x, x.shape[1] * x.shape[2], len(weight)):
        return winograd.keep(x, weight.transpose(1, 2, 3, 0))
    if len(weight) < min(_CHANNELS, x.shape[-1]):
        return _keep_to_few(x, weight)
    return mx.conv2d(x, weight, padding=1)


def _keep_to_few(x: mx.array, weight: mx.array) -> mx.array:
    count, height, width = x.shape[:3]
    outputs, line = len(weight), width + 2
    taps = _products_of_taps(x, weight.transpose(1, 2, 0, 3)).reshape(3, 3, outputs, -1)
    size = taps.shape[-1] - 2 * line - 2
    y = _total([_from(taps[i, j], i * line + j, size) for i in range(3) for j in range(3)])
    return mx.as_strided(y, (count, height, width, outputs), ((height + 2) * line, line, 1, size))


def _keep_by_weight(x: mx.array, y: mx.array) -> mx.array:
    inputs, outputs = x.shape[-1], y.shape[-1]
    if _is_worth(x, x.shape[1] * x.shape[2], outputs):
        return winograd.keep_by_weight(x, y).transpose(2, 0, 1, 3)
    if outputs < inputs:  # seen from y, taps are turned about
        taps = _patches(y, 3, 1).T @ x.reshape(-1, inputs)
        return taps.reshape(3, 3, outputs, inputs)[::-1, ::-1].transpose(2, 0, 1, 3)
    return (y.reshape(-1, outputs).T @ _patches(x, 3, 1)).reshape(outputs, 3, 3, inputs)


# --- both ---


def _patches(x: mx.array, side: int, stride: int) -> mx.array:
    """What each result of a convolution padded by one sees: (N, H, W, C) → (N H/stride W/stride, side² C)."""
    count, height, width, channels = x.shape
    x = winograd.padded(x)
    line = (width + 2) * channels
    shape = (count, height // stride, width // stride, side, side * channels)
    strides = ((height + 2) * line, stride * line, stride * channels, line, 1)
    return mx.as_strided(x, shape, strides).reshape(-1, side * side * channels)


def _products_of_taps(x: mx.array, taps: mx.array) -> mx.array:
    """Each of (…, I) taps with each pixel of edged planes, in long rows: (taps, N (H + 2) (W + 2))."""
    inputs = x.shape[-1]
    return taps.reshape(-1, inputs) @ winograd.padded(x).reshape(-1, inputs).T


def _from(rows: mx.array, start: int, size: int) -> mx.array:
    return rows[:, start : start + size]


def _total(arrays: list[mx.array]) -> mx.array:
    return functools.reduce(lambda a, b: a + b, arrays)


def _turned(weight: mx.array) -> mx.array:
    """The weight of a stride-1 convolution's gradient by its input: (O, k, k, I) → (I, k, k, O)."""
    return weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)


def depth_to_space(x: mx.array) -> mx.array:
    """Pixel shuffle: (N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)
