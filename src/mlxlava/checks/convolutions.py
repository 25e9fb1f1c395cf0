"""Checks of convolutions with their gradients, and of half precision in convolutions and BatchNorm."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from mlxlava.backend import Tree, arrays_by_name, mx, on_cpu, tree_map
from mlxlava.backend.cpu.chunks import Chunks
from mlxlava.backend.ops import Convolution, conv3, conv4_stride2, conv4_transposed
from mlxlava.checks.base import (
    CHECKED_RECIPES,
    Check,
    at_most_check,
    largest_value,
    on_checked_device,
    on_reference_device,
    relative_error,
)
from mlxlava.config import Recipe, load_recipe
from mlxlava.models.duralava import batch_norm_leaky_relu
from mlxlava.models.encoder import Encoder
from mlxlava.models.registry import make_discriminator, make_generator

_MIN_WINOGRAD_PIXELS = 4096  # with fewer pixels Metal does not use Winograd (MLX, backend/metal/conv.cpp)


# --- float32 ---


@dataclasses.dataclass(frozen=True)
class _ConvolutionLayer:
    """A convolution of a network: its function, the size of its input, and the shape of its weight."""

    convolution: Convolution
    input_size: tuple[int, int]
    weight_shape: tuple[int, ...]  # (O, k, k, I)

    @property
    def uses_winograd(self) -> bool:
        """Whether Metal uses Winograd for many pixels, which is faster and less exact (MLX, conv.cpp)."""
        outputs, side, _, inputs = self.weight_shape
        aligned = inputs % 32 == 0 and outputs % 32 == 0 and inputs + outputs >= 256
        return not on_cpu() and side == 3 and aligned

    @property
    def name(self) -> str:
        return f"{self.input_size[0]}×{self.input_size[1]} {self.weight_shape[3]}→{self.weight_shape[0]}"


def convolution_checks() -> list[Check]:
    """Checks of each convolution of both recipes, with its gradients."""
    meaning = (
        "Convolutions or their gradients are not as exact here as they should be. Pictures may be wrong, and "
        "training may fail. Report it."
    )
    checks = []
    for recipe in CHECKED_RECIPES:
        for part, layers in _layers_of_networks(load_recipe(recipe)).items():
            for winograd in (False, True):
                chosen = [layer for layer in layers if layer.uses_winograd == winograd]
                if chosen:
                    name = f"{recipe}, {part}" + (", by Winograd" if winograd else "")
                    checks.append(
                        at_most_check(
                            name, 1e-3 if winograd else 1e-4, meaning, partial(_worst_layer_error, chosen)
                        )
                    )
    return checks


def _layers_of_networks(recipe: Recipe) -> dict[str, list[_ConvolutionLayer]]:
    """The convolutions of a recipe's networks. Their shapes are read from untrained weights."""
    size, key = recipe.data.size, mx.random.key(0)
    height, width = (side >> len(recipe.generator.widths) for side in size)
    up = conv3 if recipe.generator.kind == "shuffle" else conv4_transposed
    layers = {
        "generator": [
            _ConvolutionLayer(up, (height << i, width << i), shape)
            for i, shape in enumerate(_convolution_weight_shapes(make_generator(recipe).init(key)))
        ]
    }
    downs = {"discriminator": (make_discriminator(recipe).init(key), len(recipe.discriminator.widths))}
    if recipe.encoder.context_frames:
        downs["encoder"] = (Encoder(recipe).init(key), len(recipe.encoder.widths))
    for part, (weights, halvings) in downs.items():
        # After the trunk, a discriminator of frames has two layers that see the same map.
        layers[part] = [
            _ConvolutionLayer(
                conv4_stride2, (size[0] >> min(i, halvings), size[1] >> min(i, halvings)), shape
            )
            for i, shape in enumerate(_convolution_weight_shapes(weights))
        ]
    return layers


def _convolution_weight_shapes(weights: Tree) -> list[tuple[int, ...]]:
    """Shapes of the weights of all convolutions, in the order of the layers."""
    return [array.shape for array in arrays_by_name(weights).values() if array.ndim == 4]


def _worst_layer_error(layers: list[_ConvolutionLayer]) -> tuple[float, str]:
    """The largest error of values, gradients and second gradients of layers, and the layer that has it."""
    return largest_value(_layer_errors(layers))


def _layer_errors(layers: list[_ConvolutionLayer]) -> Iterator[tuple[float, str]]:
    for layer in layers:
        with on_reference_device():
            given = _random_inputs(layer)
            exact = _values_and_gradients(layer, *given)
        with on_checked_device():
            found = _values_and_gradients(layer, *given)
        for name in exact:
            yield relative_error(found[name], exact[name]), layer.name


def _random_inputs(layer: _ConvolutionLayer) -> list[mx.array]:
    """Random input and weight; and random cotangents for the result and for both of its gradients."""
    # Few frames are enough, except where Metal uses Winograd only from some number of pixels on.
    frames = max(2, -(-_MIN_WINOGRAD_PIXELS // math.prod(layer.input_size))) if layer.uses_winograd else 2
    keys = mx.random.split(mx.random.key(0), 5)
    x = mx.random.normal((frames, *layer.input_size, layer.weight_shape[3]), key=keys[0])
    weight = mx.random.normal(layer.weight_shape, key=keys[1]) / math.sqrt(math.prod(layer.weight_shape[1:]))
    result = mx.random.normal(layer.convolution(x, weight).shape, key=keys[2])
    given = [
        x,
        weight,
        result,
        mx.random.normal(x.shape, key=keys[3]),
        mx.random.normal(weight.shape, key=keys[4]),
    ]
    mx.eval(given)
    return given


def _values_and_gradients(
    layer: _ConvolutionLayer,
    x: mx.array,
    weight: mx.array,
    back: mx.array,
    back_x: mx.array,
    back_weight: mx.array,
) -> dict[str, npt.NDArray[np.float32]]:
    """The convolution, its two gradients, and the gradients of these with respect to their three inputs."""

    def gradients(x: mx.array, weight: mx.array, back: mx.array) -> tuple[mx.array, mx.array]:
        _, (x_gradient, weight_gradient) = mx.vjp(layer.convolution, [x, weight], [back])
        return x_gradient, weight_gradient

    def weighted_gradients(x: mx.array, weight: mx.array, back: mx.array) -> mx.array:
        x_gradient, weight_gradient = gradients(x, weight, back)
        return (x_gradient * back_x).sum() + (weight_gradient * back_weight).sum()

    x_gradient, weight_gradient = gradients(x, weight, back)
    second = mx.grad(weighted_gradients, (0, 1, 2))(x, weight, back)
    found = [layer.convolution(x, weight), x_gradient, weight_gradient, *second]
    mx.eval(found)
    names = ("value", "input", "weight", "second, input", "second, weight", "second, gradient")
    return {name: np.array(array) for name, array in zip(names, found, strict=True)}


# --- half precision ---


def half_precision_checks() -> list[Check]:
    """Checks of convolutions in half precision, and of BatchNorm at the largest batch of duralava."""
    return [
        at_most_check(
            "float16 convolutions",
            5e-3,
            "Convolutions lose more in float16 than rounding takes. Set MLX_CONV_WINOGRAD_WORKING_SET=1 and "
            "check again, or train in float32.",
            _half_convolution_error,
        ),
        at_most_check(
            "float16 BatchNorm, 640×16×16",
            5e-2,
            "BatchNorm overflows in float16. duralava will learn nothing with training.precision=float16; "
            "use float32.",
            _batch_norm_error,
        ),
    ]


def _half_convolution_error() -> tuple[float, str]:
    """The largest error of a layer in float16 against the reference in float32, and the layer."""

    def errors() -> Iterator[tuple[float, str]]:
        for recipe in map(load_recipe, CHECKED_RECIPES):
            for layer in itertools.chain.from_iterable(_layers_of_networks(recipe).values()):
                with on_reference_device():
                    x, weight, *_ = _random_inputs(layer)
                    exact = np.array(layer.convolution(x, weight))
                with on_checked_device():
                    found = layer.convolution(x.astype(mx.float16), weight.astype(mx.float16))
                    yield relative_error(np.array(found.astype(mx.float32)), exact), layer.name

    return largest_value(errors())


def _batch_norm_error() -> float:
    """The largest relative error of BatchNorm's results and gradients in float16, against float32."""
    channels = 8
    x = 3 * mx.random.normal((640, 16, 16, channels), key=mx.random.key(0)) + 1
    slope = mx.random.normal(x.shape, key=mx.random.key(1)) / 64
    weights = {"scale": mx.full((channels,), 1.5), "bias": mx.full((channels,), 0.25)}
    mx.eval(x, slope, weights)

    def loss(weights: Tree, x: mx.array) -> tuple[mx.array, mx.array]:
        (y,), stats = batch_norm_leaky_relu(weights, Chunks([x]))
        return (y.astype(mx.float32) * slope).sum(), stats["var"]

    def compute(dtype: mx.Dtype) -> dict[str, npt.NDArray[np.float64]]:
        given = tree_map(lambda array: array.astype(dtype), (weights, x))
        (_, variance), (weight_gradients, x_gradient) = mx.value_and_grad(loss, (0, 1))(*given)
        found = arrays_by_name(
            {"variance": variance, "weight_gradients": weight_gradients, "x_gradient": x_gradient}
        )
        return {name: np.array(array.astype(mx.float32)).astype(float) for name, array in found.items()}

    with on_reference_device():
        exact = compute(mx.float32)
    with on_checked_device():
        found = compute(mx.float16)
    if not all(np.isfinite(array).all() for array in found.values()):
        return math.inf
    return float(
        max(np.linalg.norm(found[name] - exact[name]) / np.linalg.norm(exact[name]) for name in exact)
    )
