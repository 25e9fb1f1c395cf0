"""What networks are made of, fast on each device: convolutions, pixel shuffle, leaky ReLU; channels last.

Each operation has one implementation for each device. Convolutions are those of cpu/convolution.py on Linux
CPUs, and MLX's own elsewhere.

A convolution and its two gradients, with respect to the input and to the weight, are bilinear. So each of the
three has the other two as its gradients, to any order. That is set by hand on every device: left to MLX, the
gradient of a transposed convolution with respect to its weight is a convolution whose kernel is the picture.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial

from mlxlava.backend import mx, on_gpu_path
from mlxlava.backend.cpu import convolution
from mlxlava.backend.cpu.convolution import Kind
from mlxlava.backend.gradients import with_gradient

Convolution = Callable[[mx.array, mx.array], mx.array]

SLOPE = 0.2  # of every leaky ReLU, where negative (duralava; R3GAN, Huang 2024)

# Bytes of patches that MLX writes out at once for a gradient with respect to a weight, at most. It writes
# kernel² times the input: 1.4 GB for a layer of 128×128 pictures. Chunks of the batch keep that flat.
PATCH_BYTES = 2**28
_FEW = 4  # output channels, at most, for which a transposed convolution is made of a 2×2 one


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    return _convolutions().conv3(x, weight)


def conv4_stride2(x: mx.array, weight: mx.array, weight_gradient_first: bool = True) -> mx.array:
    """4×4 convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, H/2, W/2, O).

    Args:
        x: Feature maps.
        weight: Kernels.
        weight_gradient_first: Whether the backward pass goes on only when the gradient with respect to the
            weight is computed, which saves memory. Without it, a backward pass that takes gradients with
            respect to ``x`` alone computes none with respect to the weight.
    """
    convolutions = _convolutions()
    return (convolutions.stride2 if weight_gradient_first else convolutions.stride2_unordered)(x, weight)


def conv4_transposed(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, 2H, 2W, O)."""
    return _convolutions().transposed(x, weight.transpose(3, 1, 2, 0))


def pixel_shuffle(x: mx.array) -> mx.array:
    """(N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C) (Shi 2016)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)


def leaky_relu(x: mx.array) -> mx.array:
    """x where positive, else 0.2 x. As a maximum it is one fused pass."""
    return mx.maximum(x, SLOPE * x)


def _scaled_leaky_relu(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return leaky_relu(x * scale.astype(x.dtype) + shift.astype(x.dtype))


def _gradient_of_scaled_leaky_relu(
    inputs: list[mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, ...]:
    x, scale, shift = inputs
    axes = tuple(range(x.ndim - 1))
    slope = SLOPE + (1 - SLOPE) * (output > 0).astype(x.dtype)
    cotangent = cotangent * slope
    exact, exact_x = cotangent.astype(mx.float32), x.astype(mx.float32)
    scale_gradient, shift_gradient = (exact * exact_x).sum(axes), exact.sum(axes)
    return (
        cotangent * scale.astype(x.dtype),
        scale_gradient.astype(scale.dtype),
        shift_gradient.astype(shift.dtype),
    )


_scaled = with_gradient(_scaled_leaky_relu, _gradient_of_scaled_leaky_relu)


def scaled_leaky_relu(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """Leaky ReLU of x · scale + shift: (…, C), (C,), (C,) → (…, C), in the format of x.

    For its gradient only x and the result are kept; MLX's own would keep three arrays of that size. Sums over
    the batch are float32.
    """
    return _scaled(x, scale, shift)


def biased_leaky_relu(x: mx.array, bias: mx.array) -> mx.array:
    """Leaky ReLU of x + bias: (…, C), (C,) → (…, C); as :func:`scaled_leaky_relu`."""
    return _scaled(x, mx.ones_like(bias), bias)


@dataclasses.dataclass(frozen=True)
class _Convolutions:
    """The convolutions of one device, with gradients of any order.

    Attributes:
        stride2: 4×4 of stride 2, padded by one: (N, 2H, 2W, I), (O, 4, 4, I) → (N, H, W, O).
        stride2_unordered: the same. Its two gradients need not be computed in an order.
        transposed: the gradient of ``stride2`` with respect to its input, a transposed convolution:
            (N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).
        conv3: 3×3, padded by one: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O). Its gradient with respect to the
            input is itself, with the weight turned about.
    """

    stride2: Convolution
    stride2_unordered: Convolution
    transposed: Convolution
    conv3: Convolution


def _with_gradients(
    stride2: Convolution,
    transposed: Convolution,
    stride2_weight_gradient: Convolution,
    conv3: Convolution,
    conv3_weight_gradient: Convolution,
) -> _Convolutions:
    """Make raw operations each other's gradients.

    Args:
        stride2: see :class:`_Convolutions`, as are ``transposed`` and ``conv3``.
        transposed: the gradient of ``stride2`` with respect to its input.
        stride2_weight_gradient: the gradient of ``stride2`` with respect to its weight:
            (N, 2H, 2W, I), (N, H, W, O) → (O, 4, 4, I).
        conv3: the 3×3 convolution.
        conv3_weight_gradient: the gradient of ``conv3`` with respect to its weight:
            (N, H, W, I), (N, H, W, O) → (O, 3, 3, I).
    """

    def bilinear(
        function: Convolution,
        gradients: Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]],
        ordered: bool = True,
    ) -> Convolution:
        """``function`` with ``gradients(first, second, cotangent)`` as its two gradients."""

        def gradient(
            inputs: list[mx.array], cotangent: mx.array, output: mx.array
        ) -> tuple[mx.array, mx.array]:
            first, second = gradients(inputs[0], inputs[1], cotangent)
            if ordered:
                # The backward pass goes on only when the weight's gradient is computed. Otherwise all weight
                # gradients may wait until its end, and keep the feature maps that they need.
                (first,) = mx.depends([first], [second])
            return first, second

        return with_gradient(function, gradient)

    def stride2_gradients(x: mx.array, w: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        return transposed_(y, w), stride2_weight_gradient_(x, y)

    stride2_ = bilinear(stride2, stride2_gradients)
    stride2_unordered = bilinear(stride2, stride2_gradients, ordered=False)
    transposed_ = bilinear(transposed, lambda y, w, x: (stride2_(x, w), stride2_weight_gradient_(x, y)))
    stride2_weight_gradient_ = bilinear(
        stride2_weight_gradient, lambda x, y, w: (transposed_(y, w), stride2_(x, w))
    )
    conv3_ = bilinear(conv3, lambda x, w, y: (conv3_(y, _turned(w)), conv3_weight_gradient_(x, y)))
    conv3_weight_gradient_ = bilinear(
        conv3_weight_gradient, lambda x, y, w: (conv3_(y, _turned(w)), conv3_(x, w))
    )
    return _Convolutions(stride2_, stride2_unordered, transposed_, conv3_)


def _convolutions() -> _Convolutions:
    """Those of the device."""
    return _cpu() if not on_gpu_path() and convolution.available() else _native()


@functools.cache
def _cpu() -> _Convolutions:
    """Those of cpu/convolution.py."""

    def in_float32(function: Convolution) -> Convolution:
        """A CPU has no faster format."""

        def convolve(x: mx.array, weight: mx.array) -> mx.array:
            return function(x.astype(mx.float32), weight.astype(mx.float32)).astype(x.dtype)

        return convolve

    convolutions = _with_gradients(
        partial(convolution.convolve, Kind.CONV4_STRIDE2),
        partial(convolution.convolve, Kind.CONV4_TRANSPOSED),
        partial(convolution.weight_gradient, Kind.CONV4_STRIDE2),
        partial(convolution.convolve, Kind.CONV3),
        partial(convolution.weight_gradient, Kind.CONV3),
    )
    return _Convolutions(
        in_float32(convolutions.stride2),
        in_float32(convolutions.stride2_unordered),
        in_float32(convolutions.transposed),
        in_float32(convolutions.conv3),
    )


@functools.cache
def _native() -> _Convolutions:
    """MLX's own; what each costs on Metal is in docs/apple-silicon.md."""
    stride2, conv3 = partial(mx.conv2d, stride=2, padding=1), partial(mx.conv2d, padding=1)
    return _with_gradients(
        stride2, _native_transposed, partial(_by_patches, stride2, 4), conv3, partial(_by_patches, conv3, 3)
    )


def _native_transposed(y: mx.array, weight: mx.array) -> mx.array:
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
        chunk = slice(len(y) * n // count, len(y) * (n + 1) // count)
        some, cotangent = x[chunk], y[chunk]
        if total is not None:  # the patches of the chunk before are free then
            some, cotangent = mx.depends([some, cotangent], [total])
        _, (gradient,) = mx.vjp(lambda w, some=some: forward(some, w), [weight], [cotangent])
        total = gradient if total is None else total + gradient
    assert total is not None
    return total


def _turned(weight: mx.array) -> mx.array:
    """The weight of the gradient of ``conv3`` with respect to its input: (O, k, k, I) → (I, k, k, O)."""
    return weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)
