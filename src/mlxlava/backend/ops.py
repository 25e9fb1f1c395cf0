"""Operations of networks, fast on each device: convolutions, pixel shuffle, leaky ReLU. Channels come last.

Linux CPUs use the convolutions of cpu/convolution.py. All other devices use MLX's own.

A convolution has two gradients: one with respect to its input, one with respect to its weight. All three
functions are bilinear, and each has the other two as its gradients. So gradients of any order are made from
three functions. This file sets these gradients itself on every device. MLX's own gradient of a transposed
convolution with respect to its weight is slow: it is a convolution whose kernel is as large as the picture.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial

from mlxlava.backend import mx, on_gpu_path
from mlxlava.backend.cpu import convolution
from mlxlava.backend.cpu.convolution import ConvolutionKind
from mlxlava.backend.gradients import with_gradient

Convolution = Callable[[mx.array, mx.array], mx.array]

LEAKY_SLOPE = 0.2  # slope of every leaky ReLU below zero (duralava; R3GAN, Huang 2024)

# For a gradient with respect to a weight, MLX writes out all patches of the input. They take kernel² times
# the memory of the input: 1.4 GB for a layer of 128×128 pictures. So the gradient is computed in chunks of
# the batch whose patches take at most this many bytes.
MAX_PATCH_BYTES = 2**28
# With at most so many output channels, a transposed convolution is computed by a 2×2 convolution.
_MAX_OUTPUTS_FOR_SMALL_KERNEL = 4


def conv3(x: mx.array, weight: mx.array) -> mx.array:
    """3×3 convolution that keeps the resolution: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O)."""
    return _convolutions_of_device().conv3(x, weight)


def conv4_stride2(x: mx.array, weight: mx.array, weight_gradient_first: bool = True) -> mx.array:
    """4×4 convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, H/2, W/2, O).

    Args:
        x: Feature maps.
        weight: Kernels.
        weight_gradient_first: Whether the backward pass computes the gradient with respect to the weight
            before it goes on to earlier layers. That saves memory. With False, a backward pass that needs
            only the gradient with respect to ``x`` does not compute the one with respect to the weight.
    """
    convolutions = _convolutions_of_device()
    return (convolutions.stride2 if weight_gradient_first else convolutions.stride2_unordered)(x, weight)


def conv4_transposed(x: mx.array, weight: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2: (N, H, W, I), (O, 4, 4, I) → (N, 2H, 2W, O)."""
    return _convolutions_of_device().transposed(x, weight.transpose(3, 1, 2, 0))


def pixel_shuffle(x: mx.array) -> mx.array:
    """(N, H, W, 4 C) → (N, 2H, 2W, C), channels ordered (row, column, C) (Shi 2016)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)


def leaky_relu(x: mx.array) -> mx.array:
    """x where x is positive, else 0.2 x. Written as a maximum, it is one fused operation."""
    return mx.maximum(x, LEAKY_SLOPE * x)


def _scaled_leaky_relu(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return leaky_relu(x * scale.astype(x.dtype) + shift.astype(x.dtype))


def _gradient_of_scaled_leaky_relu(
    inputs: list[mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, ...]:
    x, scale, shift = inputs
    axes = tuple(range(x.ndim - 1))
    slope = LEAKY_SLOPE + (1 - LEAKY_SLOPE) * (output > 0).astype(x.dtype)
    cotangent = cotangent * slope
    exact, exact_x = cotangent.astype(mx.float32), x.astype(mx.float32)
    scale_gradient, shift_gradient = (exact * exact_x).sum(axes), exact.sum(axes)
    return (
        cotangent * scale.astype(x.dtype),
        scale_gradient.astype(scale.dtype),
        shift_gradient.astype(shift.dtype),
    )


_scaled_leaky_relu_with_gradient = with_gradient(_scaled_leaky_relu, _gradient_of_scaled_leaky_relu)


def scaled_leaky_relu(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """Leaky ReLU of x · scale + shift: (…, C), (C,), (C,) → (…, C), in the format of x.

    Only x and the result are kept for the gradient; MLX's own gradient would keep three arrays of that size.
    Sums over the batch are float32.
    """
    return _scaled_leaky_relu_with_gradient(x, scale, shift)


def biased_leaky_relu(x: mx.array, bias: mx.array) -> mx.array:
    """Leaky ReLU of x + bias: (…, C), (C,) → (…, C). Its gradient is that of :func:`scaled_leaky_relu`."""
    return _scaled_leaky_relu_with_gradient(x, mx.ones_like(bias), bias)


@dataclasses.dataclass(frozen=True)
class _Convolutions:
    """The convolutions of one device, with gradients of any order.

    Attributes:
        stride2: 4×4 of stride 2, padded by one: (N, 2H, 2W, I), (O, 4, 4, I) → (N, H, W, O).
        stride2_unordered: the same convolution; its two gradients may be computed in any order.
        transposed: the gradient of ``stride2`` with respect to its input, a transposed convolution:
            (N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).
        conv3: 3×3, padded by one: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O). Its gradient with respect to the
            input is a 3×3 convolution too, with the weight flipped (:func:`_weight_for_input_gradient`).
    """

    stride2: Convolution
    stride2_unordered: Convolution
    transposed: Convolution
    conv3: Convolution


def _link_gradients(
    stride2: Convolution,
    transposed: Convolution,
    stride2_weight_gradient: Convolution,
    conv3: Convolution,
    conv3_weight_gradient: Convolution,
) -> _Convolutions:
    """Make raw operations each other's gradients.

    Args:
        stride2: the 4×4 convolution of stride 2. :class:`_Convolutions` has its shapes and those of
            ``transposed`` and ``conv3``.
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
                # The backward pass goes on to earlier layers only when the gradient with respect to the
                # weight is computed. Otherwise all these gradients could wait until the end of the backward
                # pass, and the feature maps that they need would stay in memory until then.
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
    conv3_ = bilinear(
        conv3, lambda x, w, y: (conv3_(y, _weight_for_input_gradient(w)), conv3_weight_gradient_(x, y))
    )
    conv3_weight_gradient_ = bilinear(
        conv3_weight_gradient, lambda x, y, w: (conv3_(y, _weight_for_input_gradient(w)), conv3_(x, w))
    )
    return _Convolutions(stride2_, stride2_unordered, transposed_, conv3_)


def _convolutions_of_device() -> _Convolutions:
    """The convolutions of the present device."""
    return _cpu_convolutions() if not on_gpu_path() and convolution.is_available() else _mlx_convolutions()


@functools.cache
def _cpu_convolutions() -> _Convolutions:
    """The convolutions of cpu/convolution.py."""

    def in_float32(function: Convolution) -> Convolution:
        """Compute in float32: a CPU has no faster format."""

        def convolve(x: mx.array, weight: mx.array) -> mx.array:
            return function(x.astype(mx.float32), weight.astype(mx.float32)).astype(x.dtype)

        return convolve

    convolutions = _link_gradients(
        partial(convolution.convolve, ConvolutionKind.CONV4_STRIDE2),
        partial(convolution.convolve, ConvolutionKind.CONV4_TRANSPOSED),
        partial(convolution.weight_gradient, ConvolutionKind.CONV4_STRIDE2),
        partial(convolution.convolve, ConvolutionKind.CONV3),
        partial(convolution.weight_gradient, ConvolutionKind.CONV3),
    )
    return _Convolutions(
        in_float32(convolutions.stride2),
        in_float32(convolutions.stride2_unordered),
        in_float32(convolutions.transposed),
        in_float32(convolutions.conv3),
    )


@functools.cache
def _mlx_convolutions() -> _Convolutions:
    """MLX's own convolutions. docs/apple-silicon.md says what each costs on Metal."""
    stride2, conv3 = partial(mx.conv2d, stride=2, padding=1), partial(mx.conv2d, padding=1)
    return _link_gradients(
        stride2,
        _mlx_transposed_convolution,
        partial(_weight_gradient_in_chunks, stride2, 4),
        conv3,
        partial(_weight_gradient_in_chunks, conv3, 3),
    )


def _mlx_transposed_convolution(y: mx.array, weight: mx.array) -> mx.array:
    """The transposed convolution: (N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).

    Metal computes at least 32 output channels of a transposed convolution, ten times as many as the three of
    a picture. So few output channels are computed by a 2×2 convolution: it gives the 2×2 pixels at each place
    as separate channels, and Metal computes 16 of these.
    """
    outputs = weight.shape[3]
    if outputs > _MAX_OUTPUTS_FOR_SMALL_KERNEL:
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


def _weight_gradient_in_chunks(forward: Convolution, side: int, x: mx.array, y: mx.array) -> mx.array:
    """The gradient of ``forward`` with respect to its weight (O, side, side, I), in chunks of the batch."""
    outputs, inputs = y.shape[3], x.shape[3]
    weight = mx.zeros((outputs, side, side, inputs), x.dtype)  # only its shape counts
    patches = 4 * math.prod(y.shape[:3]) * side**2 * inputs
    count = min(len(y), -(-patches // MAX_PATCH_BYTES))
    total: mx.array | None = None
    for n in range(count):
        chunk = slice(len(y) * n // count, len(y) * (n + 1) // count)
        some, cotangent = x[chunk], y[chunk]
        if total is not None:  # start when the patches of the previous chunk are freed
            some, cotangent = mx.depends([some, cotangent], [total])
        _, (gradient,) = mx.vjp(lambda w, some=some: forward(some, w), [weight], [cotangent])
        total = gradient if total is None else total + gradient
    assert total is not None
    return total


def _weight_for_input_gradient(weight: mx.array) -> mx.array:
    """Flip a weight for the gradient with respect to the input: (O, k, k, I) → (I, k, k, O)."""
    return weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)
