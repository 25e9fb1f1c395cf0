"""Checks of basic arithmetic: products, random numbers, states, convolutions, half precision."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
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
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.models.duralava import batch_norm_leaky_relu
from mlxlava.models.encoder import Encoder
from mlxlava.models.registry import make_discriminator, make_generator
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.rollout.weights import load_weights

_ROLLED_STEP_COUNT, _ROLLED_LAMP_COUNT = 1000, 32
_MIN_WINOGRAD_PIXELS = 4096  # with fewer pixels Metal does not use Winograd (MLX, backend/metal/conv.cpp)


# --- products ---


def matrix_product_checks() -> list[Check]:
    """Checks of matrix products."""
    return [
        at_most_check(
            "float32 products, 256×1024×256",
            1e-5,
            "Products are rounded, to TF32 most likely. States will drift in a long lamp. "
            "Set MLX_ENABLE_TF32=0 and check again.",
            _matrix_product_error,
        )
    ]


def _matrix_product_error() -> float:
    """The largest relative error of products in each orientation, against float64 (root mean square)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((256, 1024), np.float32), rng.standard_normal((1024, 256), np.float32)
    with np.errstate(all="ignore"):  # with Accelerate, NumPy warns without a reason
        exact = a.astype(np.float64) @ b.astype(np.float64)
    turned_a, turned_b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    with on_checked_device():
        left, right = mx.array(a), mx.array(b)
        found = [
            (left @ right, exact),
            (mx.array(turned_a).T @ right, exact),
            (left @ mx.array(turned_b).T, exact),
            (mx.addmm(mx.zeros((256,)), left, right), exact),
            (left[:1] @ right, exact[:1]),
        ]
        errors = [np.linalg.norm(np.array(one) - other) / np.linalg.norm(other) for one, other in found]
    return float(max(errors))


# --- random numbers and states ---


def state_checks() -> list[Check]:
    """Checks of random numbers, and of states that are rolled for a long time."""
    other = "A seed gives another lamp here than on other machines, and a run cannot be repeated elsewhere."
    return [
        Check("random bits", "0 wrong", other, _count_wrong_random_words),
        at_most_check("normal numbers", 1e-3, other, _random_normal_error),
        at_most_check(
            f"{_ROLLED_STEP_COUNT:,} state steps of {_ROLLED_LAMP_COUNT} lamps",
            1e-3,
            "The state step loses precision here. A lamp is another one after some minutes, and may drift.",
            _rolled_states_error,
        ),
        at_most_check(
            f"norms after {_ROLLED_STEP_COUNT:,} steps, rho = 1",
            1e-4,
            "Rotations do not keep the length of a state, so pictures get worse while a lamp plays for long.",
            _state_norm_error,
        ),
    ]


_KEY_HALVES = (3, 12345)  # both halves of the key differ from zero
_RANDOM_WORD_COUNT = 8192


def _random_key() -> mx.array:
    return mx.random.key((_KEY_HALVES[0] << 32) + _KEY_HALVES[1])


def threefry_words(key: tuple[int, int], count: int) -> npt.NDArray[np.uint32]:
    """The random words of MLX for a key: Threefry-2×32 with 20 rounds (Salmon 2011). ``count`` is even."""
    with np.errstate(over="ignore"):
        first = np.arange(count // 2, dtype=np.uint32)
        second = first + np.uint32(count // 2)
        keys = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0] ^ key[1] ^ 0x1BD11BDA)]
        first, second = first + keys[0], second + keys[1]
        for group in range(5):
            for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
                first = first + second
                second = (second << np.uint32(turn)) | (second >> np.uint32(32 - turn))
                second = second ^ first
            first = first + keys[(group + 1) % 3]
            second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return np.concatenate([first, second])


def _count_wrong_random_words() -> tuple[str, bool]:
    with on_checked_device():
        # Keys that are split off a key are its random words, unchanged.
        bits = np.array(mx.random.split(_random_key(), _RANDOM_WORD_COUNT // 2)).reshape(-1)
    wrong = int((bits != threefry_words(_KEY_HALVES, _RANDOM_WORD_COUNT)).sum())
    return f"{wrong} of {_RANDOM_WORD_COUNT:,} wrong", wrong == 0


def _random_normal_error() -> float:
    """The largest error of normal numbers, against the inverse distribution function of the same words."""
    with on_checked_device():
        found = np.array(mx.random.normal((_RANDOM_WORD_COUNT,), key=_random_key()))
    uniform = np.clip(threefry_words(_KEY_HALVES, _RANDOM_WORD_COUNT) / (2.0**32 - 1), 1e-9, 1 - 1e-9)
    exact = np.array([statistics.NormalDist().inv_cdf(float(each)) for each in uniform])
    return float(np.abs(found - exact).max())


def _rolled_states_error() -> float:
    """The error of the shipped lamp's states against float64 on the CPU, root mean square."""
    weights = load_weights("lava-64")
    dynamics = make_dynamics(weights.recipe)
    arrays = {
        "weights": weights.arrays["dynamics"],
        "bases": dynamics.basis_changes(fixed_bases(weights.arrays)),
        "states": mx.random.normal(
            (_ROLLED_LAMP_COUNT, weights.recipe.generator.state_size), key=mx.random.key(1)
        ),
    }
    shape = (_ROLLED_STEP_COUNT, *arrays["states"].shape)
    arrays["noise"] = mx.random.normal(shape, key=mx.random.key(2))
    mx.eval(arrays)

    def roll(arrays: Tree) -> npt.NDArray[np.float64]:
        states = arrays["states"]
        for step in range(_ROLLED_STEP_COUNT):
            states = dynamics.step(arrays["weights"], arrays["bases"], states, arrays["noise"][step])
            if step % 50 == 0:
                mx.eval(states)
        return np.array(states).astype(np.float64)

    with on_checked_device():
        found = roll(arrays)
    with mx.stream(mx.cpu):
        exact = roll(tree_map(lambda array: array.astype(mx.float64), arrays))
    return float(np.sqrt(((found - exact) ** 2).mean()))


def _state_norm_error() -> float:
    """The largest relative change of a state's norm by rotations of untrained weights."""
    recipe = override(load_recipe("lava"), {"dynamics.rho": 1.0})
    dynamics = make_dynamics(recipe)
    with on_checked_device():
        weights, bases = dynamics.init(mx.random.key(0)), dynamics.basis_changes(dynamics.init_bases())
        states = mx.random.normal((_ROLLED_LAMP_COUNT, recipe.generator.state_size), key=mx.random.key(1))
        before = np.linalg.norm(np.array(states), axis=1)
        for step in range(_ROLLED_STEP_COUNT):
            states = dynamics.step(weights, bases, states, mx.zeros_like(states))
            if step % 50 == 0:
                mx.eval(states)
        after = np.linalg.norm(np.array(states), axis=1)
    change = np.abs(after / before - 1)
    return float(change.max()) if np.isfinite(change).all() else math.inf


# --- convolutions ---


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
