"""What networks are made of: dense layers, convolutions with their biases, leaky ReLU, initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from mlxlava.backend import Tree, current_stream, mx, stream_of
from mlxlava.backend.ops import Convolution, conv_down

SLOPE = 0.2  # of every leaky ReLU (duralava; R3GAN, Huang 2024)
HE = math.sqrt(2)  # gain that keeps the variance through leaky ReLUs (He 2015)


def leaky_relu(x: mx.array) -> mx.array:
    """x where positive, else 0.2 x; as a maximum it is one fused pass."""
    return mx.maximum(x, SLOPE * x)


def dense(weights: Tree, x: mx.array) -> mx.array:
    """(…, I) → (…, O)."""
    return mx.addmm(weights["bias"], x, weights["weight"].T)


def init_dense(key: mx.array, inputs: int, outputs: int, gain: float = HE) -> Tree:
    """Normal weights of variance gain² / inputs, zero bias."""
    scale = gain / math.sqrt(inputs)
    return {"weight": scale * mx.random.normal((outputs, inputs), key=key), "bias": mx.zeros((outputs,))}


def init_conv(key: mx.array, side: int, inputs: int, outputs: int, gain: float = HE) -> Tree:
    """Weights (O, side, side, I) of variance gain² / (side² I), zero bias."""
    scale = gain / math.sqrt(side * side * inputs)
    weight = scale * mx.random.normal((outputs, side, side, inputs), key=key)
    return {"weight": weight, "bias": mx.zeros((outputs,))}


def glorot(inputs: int, outputs: int) -> float:
    """The gain of Glorot 2010, TensorFlow's default and so duralava's: variance 2 / (inputs + outputs)."""
    return math.sqrt(2 * inputs / (inputs + outputs))


def convolve(form: Convolution, weights: Tree, x: mx.array) -> mx.array:
    """A convolution of conv.py with its bias."""
    bias: mx.array = weights["bias"]
    return form(x, weights["weight"]) + bias


def halve(weights: Tree, x: mx.array) -> mx.array:
    """4×4 convolution of stride 2 with its bias, and leaky ReLU: (N, H, W, I) → (N, H/2, W/2, O)."""
    return biased_relu(weights["bias"], conv_down(x, weights["weight"]))


def biased_relu(bias: mx.array, x: mx.array) -> mx.array:
    """Leaky ReLU of x (…, C) + bias (C,)."""
    return scaled_relu(current_stream())(x, mx.ones_like(bias), bias)


@cache
def scaled_relu(stream: int) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    """Leaky ReLU of x · scale + shift, whose gradient needs only x and the result (MLX would keep three).

    Of x in half precision the result is too; sums over the batch are float32.
    """

    def apply(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
        return leaky_relu(x * scale.astype(x.dtype) + shift.astype(x.dtype))

    custom: Any = mx.custom_function(apply)

    def vjp(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        x, scale, shift = primals
        axes = tuple(range(x.ndim - 1))
        with mx.stream(stream_of(stream)):
            slope = SLOPE + (1 - SLOPE) * (output > 0).astype(x.dtype)
            cotangent = cotangent * slope
            exact, exact_x = cotangent.astype(mx.float32), x.astype(mx.float32)
            by_scale, by_shift = (exact * exact_x).sum(axes), exact.sum(axes)
            return (
                cotangent * scale.astype(x.dtype),
                by_scale.astype(scale.dtype),
                by_shift.astype(shift.dtype),
            )

    custom.vjp(vjp)
    wrapped: Callable[[mx.array, mx.array, mx.array], mx.array] = custom
    return wrapped


def split(x: mx.array, count: int) -> list[mx.array]:
    """``x`` cut into ``count`` parts along its first axis, alike in length but for one."""
    cuts = [len(x) * i // count for i in range(1, count)]
    return list(mx.split(x, cuts)) if cuts else [x]
