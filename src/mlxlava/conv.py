"""Convolutions with their gradients, fast on each device; channels last, one weight layout.

On Metal and CUDA they are MLX's own; on a CPU those of convolution.py. A convolution, its gradient by
the input and that by the weights are each linear in two of one another, so that the three are each other's
gradients, to any order: :class:`_Halving` for 4×4 at stride 2, :class:`_Keeping` for 3×3.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mlxlava import convolution
from mlxlava.backend import mx
from mlxlava.convolution import Kind

Convolution = Callable[[mx.array, mx.array], mx.array]


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    if not convolution.available():
        return mx.conv2d(x, weight, padding=1)
    return _in_float32(_keeping(_stream()).apply, x, weight)


def conv_down(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, H/2, W/2, O)."""
    if not convolution.available():
        return mx.conv2d(x, weight, stride=2, padding=1)
    return _in_float32(_halving(_stream()).down, x, weight)


def conv_up(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, 2H, 2W, O)."""
    if not convolution.available():
        return mx.conv_transpose2d(x, weight, stride=2, padding=1)
    return _in_float32(_halving(_stream()).up, x, weight.transpose(3, 1, 2, 0))


def _in_float32(form: Convolution, x: mx.array, weight: mx.array) -> mx.array:
    """A CPU has no faster format."""
    return form(x.astype(mx.float32), weight.astype(mx.float32)).astype(x.dtype)


class _Halving:
    """4×4 convolution of stride 2, padded by one, and the gradients that belong to it.

    Attributes:
        down: planes (N, 2H, 2W, I), weight (O, 4, 4, I) → (N, H, W, O).
        up: (N, H, W, O), weight → planes: its gradient by the planes, a transposed convolution.
        by_weight: planes, (N, H, W, O) → its gradient by the weight.
    """

    def __init__(self, stream: mx.Stream) -> None:
        down, up = (partial(convolution.convolve, kind) for kind in (Kind.DOWN, Kind.UP))
        by_weight = partial(convolution.by_weight, Kind.DOWN)
        self.down = _bilinear(down, lambda x, w, y: (self.up(y, w), self.by_weight(x, y)), stream)
        self.up = _bilinear(up, lambda y, w, x: (self.down(x, w), self.by_weight(x, y)), stream)
        self.by_weight = _bilinear(by_weight, lambda x, y, w: (self.up(y, w), self.down(x, w)), stream)


class _Keeping:
    """3×3 convolution, padded by one, and its gradient by the weights.

    Its gradient by the input is itself, with the weight turned about.

    Attributes:
        apply: (N, H, W, I), weight (O, 3, 3, I) → (N, H, W, O).
        by_weight: (N, H, W, I), (N, H, W, O) → weight.
    """

    def __init__(self, stream: mx.Stream) -> None:
        apply, by_weight = partial(convolution.convolve, Kind.KEEP), partial(convolution.by_weight, Kind.KEEP)
        self.apply = _bilinear(
            apply, lambda x, w, y: (self.apply(y, _turned(w)), self.by_weight(x, y)), stream
        )
        self.by_weight = _bilinear(
            by_weight, lambda x, y, w: (self.apply(y, _turned(w)), self.apply(x, w)), stream
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
            if _by_weights:
                # Else all of them may wait, and keep what they need, until the way back is gone to its end.
                (first,) = mx.depends([first], [second])
            return first, second

    custom.vjp(vjp)
    wrapped: Convolution = custom
    return wrapped


_by_weights = True


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """For gradients by the input alone: do not compute those by the weights as well (CPU)."""
    global _by_weights
    before, _by_weights = _by_weights, False
    try:
        yield
    finally:
        _by_weights = before


def _turned(weight: mx.array) -> mx.array:
    """The weight of a stride-1 convolution's gradient by its input: (O, k, k, I) → (I, k, k, O)."""
    return weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)


def depth_to_space(x: mx.array) -> mx.array:
    """Pixel shuffle: (N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)
