"""Convolutions with their gradients, fast on each device; channels last, one weight layout.

A convolution, its gradient with respect to the input and that with respect to the weight are each linear in
two of one another, so that the three are each other's gradients, to any order. On a CPU they are those of
convolution.py, on GPUs MLX's own. Closing them over one another matters there as well: left to MLX, the
gradient of a transposed convolution with respect to its weight is a convolution whose kernel is the picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mlxlava.backend import current_stream, mx, on_gpu_path, stream_of
from mlxlava.backend.cpu import convolution
from mlxlava.backend.cpu.convolution import Kind

Convolution = Callable[[mx.array, mx.array], mx.array]

# Bytes of patches that MLX writes out at once for a gradient with respect to a weight, at most. It writes
# kernel² times the input: 1.4 GB for a layer of 128×128 pictures. Chunks of the batch keep that flat.
PATCH_BYTES = 2**28
_FEW = 4  # output channels, at most, for which a transposed convolution is made of a 2×2 one


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    if on_gpu_path() or not convolution.available():
        return _native().same(x, weight)
    return _in_float32(_fast(current_stream()).same, x, weight)


def conv_down(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, H/2, W/2, O)."""
    if on_gpu_path() or not convolution.available():
        return _native().down(x, weight)
    return _in_float32(_fast(current_stream()).down, x, weight)


def conv_up(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, 2H, 2W, O)."""
    weight = weight.transpose(3, 1, 2, 0)
    if on_gpu_path() or not convolution.available():
        return _native().up(x, weight)
    return _in_float32(_fast(current_stream()).up, x, weight)


def _in_float32(form: Convolution, x: mx.array, weight: mx.array) -> mx.array:
    """A CPU has no faster format."""
    return form(x.astype(mx.float32), weight.astype(mx.float32)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Convolutions:
    """The convolutions of one device, with gradients of any order.

    Attributes:
        down: 4×4 of stride 2, padded by one: (N, 2H, 2W, I), (O, 4, 4, I) → (N, H, W, O).
        up: its gradient with respect to the input, a transposed convolution: (N, H, W, O), (O, 4, 4, I) →
            (N, 2H, 2W, I).
        same: 3×3, padded by one: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O). Its gradient with respect to the
            input is itself, with the weight turned about.
    """

    down: Convolution
    up: Convolution
    same: Convolution


def _close(
    down: Convolution,
    up: Convolution,
    down_by_weight: Convolution,
    same: Convolution,
    same_by_weight: Convolution,
    stream: int | None = None,
) -> _Convolutions:
    """Make raw operations each other's gradients.

    Args:
        down: see :class:`_Convolutions`, as are ``up`` and ``same``.
        up: the gradient of ``down`` with respect to its input.
        down_by_weight: (N, 2H, 2W, I), (N, H, W, O) → (O, 4, 4, I), that with respect to its weight.
        same: the 3×3 convolution.
        same_by_weight: (N, H, W, I), (N, H, W, O) → (O, 3, 3, I), its gradient with respect to the weight.
        stream: number of the stream on which gradients are computed. They are made when they are asked for,
            which is not where the convolution was, so it has to be remembered. None: the device's only one.
    """

    def bilinear(
        function: Convolution, gradients: Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]
    ) -> Convolution:
        """``function`` with ``gradients(first, second, cotangent)`` as its two gradients."""
        custom: Any = mx.custom_function(function)

        def vjp(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
            with contextlib.nullcontext() if stream is None else mx.stream(stream_of(stream)):
                first, second = gradients(primals[0], primals[1], cotangent)
                if _by_weights:
                    # Else all of them may wait, and keep what they need, until the backward pass ends.
                    (first,) = mx.depends([first], [second])
                return first, second

        custom.vjp(vjp)
        wrapped: Convolution = custom
        return wrapped

    down_ = bilinear(down, lambda x, w, y: (up_(y, w), down_by_weight_(x, y)))
    up_ = bilinear(up, lambda y, w, x: (down_(x, w), down_by_weight_(x, y)))
    down_by_weight_ = bilinear(down_by_weight, lambda x, y, w: (up_(y, w), down_(x, w)))
    same_ = bilinear(same, lambda x, w, y: (same_(y, _turned(w)), same_by_weight_(x, y)))
    same_by_weight_ = bilinear(same_by_weight, lambda x, y, w: (same_(y, _turned(w)), same_(x, w)))
    return _Convolutions(down_, up_, same_)


@functools.cache
def _fast(stream: int) -> _Convolutions:
    """Those of convolution.py, on one of the CPU's streams."""
    return _close(
        partial(convolution.convolve, Kind.DOWN),
        partial(convolution.convolve, Kind.UP),
        partial(convolution.by_weight, Kind.DOWN),
        partial(convolution.convolve, Kind.KEEP),
        partial(convolution.by_weight, Kind.KEEP),
        stream,
    )


@functools.cache
def _native() -> _Convolutions:
    """MLX's own; what each costs on Metal is in docs/apple-silicon.md."""
    down, same = partial(mx.conv2d, stride=2, padding=1), partial(mx.conv2d, padding=1)
    return _close(down, _native_up, partial(_by_patches, down, 4), same, partial(_by_patches, same, 3))


def _native_up(y: mx.array, weight: mx.array) -> mx.array:
    """(N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).

    Metal computes at least 32 output channels of a transposed convolution, ten times too many for a picture's
    three. A 2×2 convolution makes the four pixels of each place as channels of their own; it computes 16.
    """
    outputs = weight.shape[3]
    if outputs > _FEW:
        return mx.conv_transpose2d(y, weight.transpose(3, 1, 2, 0), stride=2, padding=1)
    count, height, width, inputs = y.shape
    # Row 2i takes taps 3 and 1 of rows i − 1 and i, row 2i + 1 takes taps 2 and 0 of rows i and i + 1; so do
    # columns. So the flipped taps 3 2 1 0 are (p, a): tap p of the 2×2 kernel that makes row 2i + a.
    taps = weight[:, ::-1, ::-1].reshape(inputs, 2, 2, 2, 2, outputs)  # (O, p, a, q, b, I)
    kernel = taps.transpose(2, 4, 5, 1, 3, 0).reshape(4 * outputs, 2, 2, inputs)
    x = mx.conv2d(y, kernel, padding=1).reshape(count, height + 1, width + 1, 2, 2, outputs)
    rows = [
        mx.stack([x[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=3) for a in (0, 1)
    ]  # (N, H, W, 2, I) each
    # (N, H, 2, W, 2, I) -> (N, 2H, 2W, I)
    return mx.stack(rows, axis=2).reshape(count, 2 * height, 2 * width, outputs)


def _by_patches(forward: Convolution, side: int, x: mx.array, y: mx.array) -> mx.array:
    """The gradient of ``forward`` with respect to its weight (O, side, side, I), in chunks of the batch."""
    outputs, inputs = y.shape[3], x.shape[3]
    weight = mx.zeros((outputs, side, side, inputs), x.dtype)  # only its shape counts
    patches = 4 * math.prod(y.shape[:3]) * side**2 * inputs
    count = min(len(y), -(-patches // PATCH_BYTES))
    total: mx.array | None = None
    for n in range(count):
        part = slice(len(y) * n // count, len(y) * (n + 1) // count)
        some, cotangent = x[part], y[part]
        if total is not None:  # the patches before are free then
            some, cotangent = mx.depends([some, cotangent], [total])
        _, (gradient,) = mx.vjp(lambda w, some=some: forward(some, w), [weight], [cotangent])
        total = gradient if total is None else total + gradient
    assert total is not None
    return total


_by_weights = True


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """For gradients with respect to the input alone: do not compute those of the weights as well."""
    global _by_weights
    before, _by_weights = _by_weights, False
    try:
        yield
    finally:
        _by_weights = before


def _turned(weight: mx.array) -> mx.array:
    """The weight of the gradient of ``same`` with respect to its input: (O, k, k, I) → (I, k, k, O)."""
    return weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)


def depth_to_space(x: mx.array) -> mx.array:
    """Pixel shuffle: (N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)
