"""Layers of networks: dense layers, convolutions with their biases, and initial weights."""

from __future__ import annotations

import math

from mlxlava.backend import Tree, mx
from mlxlava.backend.ops import biased_leaky_relu, conv3, conv4_stride2

HE_GAIN = math.sqrt(2)  # gain with which leaky ReLUs keep the variance (He 2015)


def dense(weights: Tree, x: mx.array) -> mx.array:
    """A dense layer: (…, I) → (…, O)."""
    return mx.addmm(weights["bias"], x, weights["weight"].T)


def init_dense(key: mx.array, inputs: int, outputs: int, gain: float = HE_GAIN) -> Tree:
    """Normal weights of variance gain² / inputs, zero bias."""
    scale = gain / math.sqrt(inputs)
    return {"weight": scale * mx.random.normal((outputs, inputs), key=key), "bias": mx.zeros((outputs,))}


def init_conv(key: mx.array, side: int, inputs: int, outputs: int, gain: float = HE_GAIN) -> Tree:
    """Weights (O, side, side, I) of variance gain² / (side² I), zero bias."""
    scale = gain / math.sqrt(side * side * inputs)
    weight = scale * mx.random.normal((outputs, side, side, inputs), key=key)
    return {"weight": weight, "bias": mx.zeros((outputs,))}


def init_shuffle_conv(key: mx.array, inputs: int, outputs: int) -> Tree:
    """Weights (4 O, 3, 3, I) of a convolution before a pixel shuffle, zero bias.

    The four phases of the shuffle start with equal weights (ICNR, Aitken 2017), so there is no checkerboard.
    """
    conv = init_conv(key, 3, inputs, outputs)
    return {name: mx.concatenate([value] * 4) for name, value in conv.items()}


def glorot_gain(inputs: int, outputs: int) -> float:
    """The gain of Glorot 2010, the default of TensorFlow and duralava: variance 2 / (inputs + outputs)."""
    return math.sqrt(2 * inputs / (inputs + outputs))


def conv3_with_bias(weights: Tree, x: mx.array) -> mx.array:
    """3×3 convolution with its bias: (N, H, W, I) → (N, H, W, O)."""
    bias: mx.array = weights["bias"]
    return conv3(x, weights["weight"]) + bias


def conv4_leaky_relu(weights: Tree, x: mx.array, weight_gradient_first: bool = True) -> mx.array:
    """4×4 convolution of stride 2 with its bias, and leaky ReLU: (N, H, W, I) → (N, H/2, W/2, O).

    :func:`mlxlava.backend.ops.conv4_stride2` explains ``weight_gradient_first``.
    """
    return biased_leaky_relu(conv4_stride2(x, weights["weight"], weight_gradient_first), weights["bias"])


def average_pool_to_size(frames: mx.array, size: tuple[int, int]) -> mx.array:
    """Frames (…, H, W, C) → (…, h, w, C): means of blocks. ``size`` (h, w) must divide (H, W)."""
    *rest, height, width, channels = frames.shape
    if (height, width) == size:
        return frames
    blocks = frames.reshape(*rest, size[0], height // size[0], size[1], width // size[1], channels)
    return blocks.mean((-4, -2))
