"""Frames from states for playing: the generator's function, arranged for few frames and no gradients."""

from __future__ import annotations

from collections.abc import Callable

from mlxlava.backend import Tree, mx
from mlxlava.backend.cpu import convolution
from mlxlava.backend.cpu.convolution import Kind
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.generator import ShuffleGenerator, to_bytes
from mlxlava.models.layers import dense
from mlxlava.models.registry import make_generator

# States (N, Z) → frames, uint8 (N, H, W, 3), not evaluated.
Draw = Callable[[mx.array], mx.array]


def make_draw(recipe: Recipe, weights: Tree, stats: Tree) -> Draw:
    """How frames are drawn with these weights of the recipe's generator, fastest on this device."""
    if recipe.generator.kind == "shuffle" and convolution.available():
        return _Shuffled(ShuffleGenerator(recipe), weights)
    generator = make_generator(recipe)
    return lambda states: to_bytes(generator(weights, states, stats)[0])


class _Shuffled:
    """:class:`ShuffleGenerator` on the CPU; weights are prepared once."""

    def __init__(self, generator: ShuffleGenerator, weights: Tree) -> None:
        self._base = (*generator.base, generator.widths[0])
        self._dense = weights["dense"]
        ups = [weights[f"up{i}"] for i in range(len(generator.widths) - 1)]
        self._ups = [_Weighed(Kind.GROW, up["weight"], up["bias"]) for up in ups]
        self._out = _Weighed(Kind.KEEP, weights["out"]["weight"])
        self._gate = weights.get("gate", mx.ones((1, 1, 3)))
        self._offset = weights.get("background", mx.zeros((1, 1, 3))) + self._gate * weights["out"]["bias"]
        mx.eval(self._offset, self._gate)

    def __call__(self, states: mx.array) -> mx.array:
        x = leaky_relu(dense(self._dense, states)).reshape(-1, *self._base)
        for up in self._ups:
            x = up(x)
        return to_bytes(mx.sigmoid(self._offset + self._gate * self._out(x)))


class _Weighed:
    """A convolution whose weight (O, 3, 3, I) and bias (O,) do not change."""

    def __init__(self, kind: Kind, weight: mx.array, bias: mx.array | None = None) -> None:
        self._kind, self._weight, self._bias = kind, weight, bias
        self._weighed: dict[int, mx.array] = {}  # by way; how many planes there are at once decides on it

    def __call__(self, x: mx.array) -> mx.array:
        outputs = len(self._weight)
        way = convolution.choose(self._kind, x.shape, outputs)
        if way not in self._weighed:
            self._weighed[way] = convolution.weigh(self._kind, way, self._weight)
            mx.eval(self._weighed[way])
        weighed = self._weighed[way]
        return convolution.convolve_weighed(self._kind, way, x, weighed, outputs, self._bias)
