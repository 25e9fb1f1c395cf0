"""Draws frames from states for playing. It is faster than the generator for few frames without gradients."""

from __future__ import annotations

from collections.abc import Callable

from mlxlava.backend import Tree, mx
from mlxlava.backend.cpu import convolution
from mlxlava.backend.cpu.convolution import ConvolutionKind
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.generator import ShuffleGenerator, to_uint8_frames
from mlxlava.models.layers import dense
from mlxlava.models.registry import make_generator
from mlxlava.models.upsampler import INPUT_GAIN, Upsampler

# States (N, Z) → frames, uint8 (N, H, W, 3), not evaluated.
DrawFunction = Callable[[mx.array], mx.array]


def make_draw_function(recipe: Recipe, weights: Tree, stats: Tree) -> DrawFunction:
    """The fastest function on this device that draws frames with the weights of a recipe's generator."""
    if recipe.generator.kind != "shuffle" or not convolution.is_available():
        generator = make_generator(recipe)
        return lambda states: to_uint8_frames(generator(weights, states, stats)[0])
    draw = _FastShuffleGenerator(ShuffleGenerator(recipe), weights)
    if not recipe.generator.upsampler_widths:
        return lambda states: to_uint8_frames(draw(states))
    enlarge = _FastUpsampler(Upsampler(recipe), weights["upsampler"])
    return lambda states: to_uint8_frames(enlarge(draw(states)))


class _FastShuffleGenerator:
    """Draws pictures like :class:`ShuffleGenerator` on the CPU, with weights that are transformed once."""

    def __init__(self, generator: ShuffleGenerator, weights: Tree) -> None:
        self._base = (*generator.base, generator.widths[0])
        self._dense = weights["dense"]
        self._finish = _FixedLastLayers(weights, len(generator.widths) - 1)

    def __call__(self, states: mx.array) -> mx.array:
        return self._finish(leaky_relu(dense(self._dense, states)).reshape(-1, *self._base))


class _FastUpsampler:
    """Enlarges pictures like :class:`Upsampler` on the CPU, with weights that are transformed once."""

    def __init__(self, upsampler: Upsampler, weights: Tree) -> None:
        # The gain of the input goes into the first convolution.
        self._in = _FixedConvolution(ConvolutionKind.CONV3, INPUT_GAIN * weights["in"]["weight"])
        self._bias = weights["in"]["bias"]
        self._centre = upsampler.centre(weights)
        self._finish = _FixedLastLayers(weights, len(upsampler.widths) - 1)
        mx.eval(self._centre)

    def __call__(self, pictures: mx.array) -> mx.array:
        return self._finish(leaky_relu(self._in(pictures - self._centre) + self._bias))


class _FixedLastLayers:
    """The layers that two networks end with: convolutions with pixel shuffle, background and sigmoid."""

    def __init__(self, weights: Tree, doublings: int) -> None:
        ups = [weights[f"up{i}"] for i in range(doublings)]
        self._ups = [_FixedConvolution(ConvolutionKind.CONV3_SHUFFLE, up["weight"], up["bias"]) for up in ups]
        self._out = _FixedConvolution(ConvolutionKind.CONV3, weights["out"]["weight"])
        self._variance_mask = weights.get("gate", mx.ones((1, 1, 3)))
        self._offset = (
            weights.get("background", mx.zeros((1, 1, 3))) + self._variance_mask * weights["out"]["bias"]
        )
        mx.eval(self._offset, self._variance_mask)

    def __call__(self, x: mx.array) -> mx.array:
        for up in self._ups:
            x = up(x)
        return mx.sigmoid(self._offset + self._variance_mask * self._out(x))


class _FixedConvolution:
    """A convolution with constant weight (O, 3, 3, I) and bias (O,). The weight is transformed only once."""

    def __init__(self, kind: ConvolutionKind, weight: mx.array, bias: mx.array | None = None) -> None:
        self._kind, self._weight, self._bias = kind, weight, bias
        self._transformed: dict[int, mx.array] = {}  # by algorithm, which depends on the number of frames

    def __call__(self, x: mx.array) -> mx.array:
        outputs = len(self._weight)
        algorithm = convolution.choose_algorithm(self._kind, x.shape, outputs)
        if algorithm not in self._transformed:
            self._transformed[algorithm] = convolution.transform_filter(self._kind, algorithm, self._weight)
            mx.eval(self._transformed[algorithm])
        transformed = self._transformed[algorithm]
        return convolution.convolve_transformed(self._kind, algorithm, x, transformed, outputs, self._bias)
