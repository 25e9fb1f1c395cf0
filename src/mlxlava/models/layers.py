"""What networks are made of: dense layers, convolutions with their biases, initial weights."""

from __future__ import annotations

import math

from mlxlava.backend import Tree, mx
from mlxlava.backend.ops import biased_leaky_relu, conv3, conv4_stride2

HE = math.sqrt(2)  # gain that keeps the variance through leaky ReLUs (He 2015)


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


def convolve(weights: Tree, x: mx.array) -> mx.array:
    """3×3 convolution with its bias: (N, H, W, I) → (N, H, W, O)."""
    bias: mx.array = weights["bias"]
    return conv3(x, weights["weight"]) + bias


def downsample(weights: Tree, x: mx.array, weight_gradient_first: bool = True) -> mx.array:
    """4×4 convolution of stride 2 with its bias, and leaky ReLU: (N, H, W, I) → (N, H/2, W/2, O).

    ``weight_gradient_first`` is that of :func:`mlxlava.backend.ops.conv4_stride2`.
    """
    return biased_leaky_relu(conv4_stride2(x, weights["weight"], weight_gradient_first), weights["bias"])
