"""Counts the least work and memory traffic of a training step, from the layers of a recipe.

The work is divided by the rate of one large matrix product on this machine, and the traffic by the rate of a
copy. This gives a lower bound (a floor) for the time of a step. It holds for frameworks that multiply every
tap of a kernel. (mlxlava needs fewer products, at the cost of more memory traffic.) ::

    step_cost(recipe, "plain").min_seconds(matmul_rate, copy_rate)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

from mlxlava.config import Recipe

_BYTES_PER_FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a dense layer, for one item (a frame, a clip or a state).

    Attributes:
        inputs, outputs: number of channels.
        taps: number of taps of the kernel.
        kernel_places: number of places at which the kernel is applied. For a transposed convolution these are
            the places of its input.
        input_places, output_places: number of places (pixels) of the input and of the output.
    """

    inputs: int
    outputs: int
    taps: int = 1
    kernel_places: int = 1
    input_places: int = 1
    output_places: int = 1

    @property
    def weight_count(self) -> int:
        """Number of weights in the kernel, without the bias."""
        return self.taps * self.inputs * self.outputs

    @property
    def flops(self) -> int:
        """Floating point operations of one pass. Each of the two gradients takes as many as the value."""
        return 2 * self.weight_count * self.kernel_places

    @property
    def input_and_output_floats(self) -> int:
        """Number of floats in the input and the output."""
        return self.input_places * self.inputs + self.output_places * self.outputs


@dataclasses.dataclass(frozen=True)
class LayerPasses:
    """How many passes a step has to make through some layers.

    Attributes:
        layers: the layers, in their order.
        items: number of frames, clips or states in a pass.
        forward: number of passes that compute values.
        weight_gradients: number of passes that compute gradients with respect to weights.
        input_gradients: number of passes that compute gradients with respect to the inputs of layers, except
            the first layer.
        first_input_gradients: the same number for the first layer.
    """

    layers: Sequence[Layer]
    items: int
    forward: int = 1
    weight_gradients: int = 1
    input_gradients: int = 1
    first_input_gradients: int = 1


@dataclasses.dataclass(frozen=True)
class WorkCost:
    """Floating point operations, and bytes read and written if each pass touches its arrays once."""

    flops: float
    bytes: float

    def min_seconds(self, matmul_rate: float, copy_rate: float) -> float:
        """The lower bound of the time, for rates in FLOP/s and bytes/s."""
        return max(self.flops / matmul_rate, self.bytes / copy_rate)


def _dense_layers(*widths: int) -> list[Layer]:
    return [Layer(inputs, outputs) for inputs, outputs in pairwise(widths)]


def _downsampling_layers(size: Sequence[int], widths: Sequence[int]) -> list[Layer]:
    """4×4 convolutions of stride 2 over frames of a size.

    ``widths`` begins with the channels of the input.
    """
    layers, places = [], math.prod(size)
    for inputs, outputs in pairwise(widths):
        layers.append(Layer(inputs, outputs, 16, places // 4, places, places // 4))
        places //= 4
    return layers


def generator_layers(recipe: Recipe) -> list[Layer]:
    """The layers of the generator: state → frame."""
    net, shuffles = recipe.generator, recipe.generator.kind == "shuffle"
    places = math.prod(recipe.data.size) // 4 ** len(net.widths)
    layers = _dense_layers(net.state_size, places * net.widths[0])
    for inputs, outputs in pairwise((*net.widths, net.last_width if shuffles else 3)):
        # A 3×3 convolution to four phases, or a 4×4 transposed convolution.
        taps, channels = (9, 4 * outputs) if shuffles else (16, outputs)
        layers.append(Layer(inputs, channels, taps, places, places, places if shuffles else 4 * places))
        places *= 4
    if shuffles:
        layers.append(Layer(net.last_width, 3, 9, places, places, places))
    return layers


def state_step_layers(recipe: Recipe) -> list[Layer]:
    """The layers of the state step. Changes of basis are counted too, though they have no learned weights."""
    size, hidden = recipe.generator.state_size, recipe.dynamics.hidden
    if recipe.dynamics.kind == "penalised":
        return _dense_layers(size, *hidden, size)
    coupling = [Layer(size, size), *_dense_layers(size // 2, *hidden, size // 4), Layer(size, size)]
    return coupling * recipe.dynamics.couplings


def encoder_layers(recipe: Recipe) -> tuple[list[Layer], list[Layer]]:
    """Layers of the encoder: those that see single frames, and those that see all frames of a clip."""
    net = recipe.encoder
    frames = _downsampling_layers(recipe.data.size, (3, *net.widths))
    end = math.prod(recipe.data.size) // 4 ** len(net.widths)
    hidden = _dense_layers(net.context_frames * end * net.widths[-1], *net.hidden)
    last = hidden[-1].outputs if hidden else net.context_frames * end * net.widths[-1]
    return frames, [*hidden, *(Layer(last, recipe.generator.state_size) for _ in range(2))]


def discriminator_layers(recipe: Recipe) -> tuple[list[Layer], list[Layer]]:
    """Layers of the discriminator: those that see single frames, and those that see all frames of a clip."""
    net, area = recipe.discriminator, math.prod(recipe.data.size)
    frames = _downsampling_layers(recipe.data.size, (3, *net.widths))
    last, end = net.widths[-1], area // 4 ** len(net.widths)
    if net.kind == "recurrent":
        frames += _dense_layers(end * last, net.features)
        # The recurrent cell, which sees one frame at a time.
        frames += _dense_layers(net.features + net.state, *net.hidden, net.state)
        return [*frames, *_dense_layers(net.state, net.hidden[-1] if net.hidden else net.state, 1)], []
    frames.append(Layer(last, last // 2, 16, end // 4, end, end // 4))
    frames += _dense_layers(end // 4 * (last // 2), 1)
    count = recipe.data.drawn_frames or recipe.data.seq_len
    if count == 1:
        return frames, []
    joint = Layer(count * last, last, 16, end // 4, end, end // 4)
    return frames, [Layer(1, last), joint, *_dense_layers(end // 4 * last, *net.hidden, 1)]


def step_passes(recipe: Recipe, kind: str) -> list[LayerPasses]:
    """The passes that a training step has to make.

    Args:
        recipe: recipe that is trained.
        kind: ``alone`` (without the discriminator), ``plain``, or ``penalty`` (with gradient penalties).

    Elementwise work, normalisation, losses and optimisers are left out, since this is a lower bound.
    """
    data, judged = recipe.data, kind != "alone"
    count = data.drawn_frames or data.seq_len
    clips = data.batch_size * (judged + (recipe.encoder.context_frames > 0))  # rolled and drawn
    found = [
        LayerPasses(generator_layers(recipe), clips * count),
        LayerPasses(state_step_layers(recipe), clips * data.seq_len),
    ]
    if recipe.encoder.context_frames:
        frames, together = encoder_layers(recipe)
        # No gradient with respect to real frames is needed.
        seen = data.batch_size * recipe.encoder.context_frames
        found += [
            LayerPasses(frames, seen, first_input_gradients=0),
            LayerPasses(together, data.batch_size),
        ]
    if not judged:
        return found
    if recipe.loss.kind == "bce":
        # There are two backward passes through drawn frames, since the two losses weigh a clip's logits
        # differently.
        real = {"first_input_gradients": 0}
        drawn = {"input_gradients": 2, "first_input_gradients": 1}
    else:
        # The gradients of both losses with respect to a clip differ by a factor. One pass gives both
        # (objective.py).
        real, drawn = {"first_input_gradients": 0}, {}
    if kind == "penalty":
        # The gradient with respect to the frames differs from that of the loss only by a factor, so it costs
        # nothing more. Its own gradient needs one more pass like the value (leaky ReLUs have no curvature),
        # and one more gradient with respect to the weights.
        real = drawn = {"forward": 2, "weight_gradients": 2}
    for layers, items in zip(
        discriminator_layers(recipe), (data.batch_size * count, data.batch_size), strict=True
    ):
        # Layers that see a whole clip get feature maps of its frames. Gradients with respect to these are
        # always needed.
        first = (
            {}
            if items == data.batch_size * count
            else {"first_input_gradients": drawn.get("input_gradients", 1)}
        )
        found += [LayerPasses(layers, items, **{**one, **first}) for one in (real, drawn)]
    return found


def step_cost(recipe: Recipe, kind: str) -> WorkCost:
    """The least work of one training step; ``kind`` as in :func:`step_passes`."""
    flops = moved = 0
    for one in step_passes(recipe, kind):
        for index, layer in enumerate(one.layers):
            times = (
                one.forward
                + one.weight_gradients
                + (one.input_gradients if index else one.first_input_gradients)
            )
            flops += times * one.items * layer.flops
            moved += times * (one.items * layer.input_and_output_floats + layer.weight_count)
    return WorkCost(flops, _BYTES_PER_FLOAT * moved)
