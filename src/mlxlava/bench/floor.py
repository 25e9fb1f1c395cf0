"""The least that a training step has to compute and move, counted from the layers of a recipe.

Divided by the rates that the same machine reaches at one large matrix product and at copying, that is a
floor under the time of a step, for any framework that multiplies every tap (mlxlava does with fewer
products, and pays with passes over memory)::

    step_cost(recipe, "plain").seconds(matmul_rate, copy_rate)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

from mlxlava.config import Recipe

_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a dense layer, for one item (a frame, a clip or a state).

    Attributes:
        inputs, outputs: channels.
        taps: places of the kernel.
        products: places at which the kernel is applied; of a transposed convolution, those of its input.
        read, written: places of its input and of its output.
    """

    inputs: int
    outputs: int
    taps: int = 1
    products: int = 1
    read: int = 1
    written: int = 1

    @property
    def weights(self) -> int:
        """Numbers in the kernel, bias aside."""
        return self.taps * self.inputs * self.outputs

    @property
    def flops(self) -> int:
        """Of one pass; the two gradients take as many as the value does."""
        return 2 * self.weights * self.products

    @property
    def floats(self) -> int:
        """Numbers of its input and its output."""
        return self.read * self.inputs + self.written * self.outputs


@dataclasses.dataclass(frozen=True)
class Passes:
    """How often a step has to go through some layers.

    Attributes:
        layers: in their order.
        items: frames, clips or states of a pass.
        forward: values.
        by_weights: gradients by the weights.
        by_input: gradients by the input, for all but the first layer.
        to_input: the same for the first layer.
    """

    layers: Sequence[Layer]
    items: int
    forward: int = 1
    by_weights: int = 1
    by_input: int = 1
    to_input: int = 1


@dataclasses.dataclass(frozen=True)
class Cost:
    """Floating point operations, and bytes if each pass reads its operands and writes its result once."""

    flops: float
    bytes: float

    def seconds(self, matmul_rate: float, copy_rate: float) -> float:
        """The floor under the time: neither can be quicker than its rate (FLOP/s, bytes/s)."""
        return max(self.flops / matmul_rate, self.bytes / copy_rate)


def _dense(*widths: int) -> list[Layer]:
    return [Layer(inputs, outputs) for inputs, outputs in pairwise(widths)]


def _halvings(size: Sequence[int], widths: Sequence[int]) -> list[Layer]:
    """4×4 convolutions of stride 2 over frames of a size; ``widths`` begin with the input's channels."""
    layers, places = [], math.prod(size)
    for inputs, outputs in pairwise(widths):
        layers.append(Layer(inputs, outputs, 16, places // 4, places, places // 4))
        places //= 4
    return layers


def generator(recipe: Recipe) -> list[Layer]:
    """State → frame."""
    net, shuffles = recipe.generator, recipe.generator.kind == "shuffle"
    places = math.prod(recipe.data.size) // 4 ** len(net.widths)
    layers = _dense(net.state_size, places * net.widths[0])
    for inputs, outputs in pairwise((*net.widths, net.last_width if shuffles else 3)):
        # A 3×3 convolution to four phases, or a 4×4 transposed convolution.
        taps, channels = (9, 4 * outputs) if shuffles else (16, outputs)
        layers.append(Layer(inputs, channels, taps, places, places, places if shuffles else 4 * places))
        places *= 4
    if shuffles:
        layers.append(Layer(net.last_width, 3, 9, places, places, places))
    return layers


def state_step(recipe: Recipe) -> list[Layer]:
    """State → next state; changes of basis are counted, though they have no learned weights."""
    size, hidden = recipe.generator.state_size, recipe.dynamics.hidden
    if recipe.dynamics.kind == "penalised":
        return _dense(size, *hidden, size)
    coupling = [Layer(size, size), *_dense(size // 2, *hidden, size // 4), Layer(size, size)]
    return coupling * recipe.dynamics.couplings


def encoder(recipe: Recipe) -> tuple[list[Layer], list[Layer]]:
    """What sees single frames, and what sees the frames of a clip together."""
    net = recipe.encoder
    frames = _halvings(recipe.data.size, (3, *net.widths))
    end = math.prod(recipe.data.size) // 4 ** len(net.widths)
    hidden = _dense(net.context_frames * end * net.widths[-1], *net.hidden)
    last = hidden[-1].outputs if hidden else net.context_frames * end * net.widths[-1]
    return frames, [*hidden, *(Layer(last, recipe.generator.state_size) for _ in range(2))]


def discriminator(recipe: Recipe) -> tuple[list[Layer], list[Layer]]:
    """What sees single frames, and what sees the frames of a clip together."""
    net, area = recipe.discriminator, math.prod(recipe.data.size)
    frames = _halvings(recipe.data.size, (3, *net.widths))
    last, end = net.widths[-1], area // 4 ** len(net.widths)
    if net.kind == "recurrent":
        frames += _dense(end * last, net.features)
        frames += _dense(net.features + net.state, *net.hidden, net.state)  # the cell, a frame at a time
        return [*frames, *_dense(net.state, net.hidden[-1] if net.hidden else net.state, 1)], []
    frames.append(Layer(last, last // 2, 16, end // 4, end, end // 4))
    frames += _dense(end // 4 * (last // 2), 1)
    count = recipe.data.drawn_frames or recipe.data.seq_len
    if count == 1:
        return frames, []
    joint = Layer(count * last, last, 16, end // 4, end, end // 4)
    return frames, [Layer(1, last), joint, *_dense(end // 4 * last, *net.hidden, 1)]


def passes(recipe: Recipe, kind: str) -> list[Passes]:
    """The passes that a training step has to make.

    Args:
        recipe: what is trained.
        kind: ``alone`` (without the discriminator), ``plain`` or ``penalty`` (with gradient penalties).

    Elementwise work, normalisation, losses and optimisers are left out: this is a floor.
    """
    data, judged = recipe.data, kind != "alone"
    count = data.drawn_frames or data.seq_len
    clips = data.batch_size * (judged + (recipe.encoder.context_frames > 0))  # rolled and drawn
    found = [
        Passes(generator(recipe), clips * count),
        Passes(state_step(recipe), clips * data.seq_len),
    ]
    if recipe.encoder.context_frames:
        frames, together = encoder(recipe)
        # Nobody asks for a gradient by real frames.
        found += [Passes(frames, data.batch_size * recipe.encoder.context_frames, to_input=0)]
        found += [Passes(together, data.batch_size)]
    if not judged:
        return found
    if recipe.loss.kind == "bce":
        # Drawn frames go backwards twice: the two losses weigh the logits of a clip differently.
        real = {"to_input": 0}
        drawn = {"by_input": 2, "to_input": 1}
    else:
        # The losses' gradients by a clip differ by a factor: once serves both (step.py).
        real, drawn = {"to_input": 0}, {}
    if kind == "penalty":
        # The slope by the frames is, but for that factor, what goes backwards anyway; its own gradient is
        # a pass like the value's (leaky ReLUs have no curvature) and one more by the weights.
        real = drawn = {"forward": 2, "by_weights": 2}
    for layers, items in zip(discriminator(recipe), (data.batch_size * count, data.batch_size), strict=True):
        # Of what sees a clip together, the input is a map of the frames: its gradient is always needed.
        first = {} if items == data.batch_size * count else {"to_input": drawn.get("by_input", 1)}
        found += [Passes(layers, items, **{**one, **first}) for one in (real, drawn)]
    return found


def step_cost(recipe: Recipe, kind: str) -> Cost:
    """The least work of one training step; ``kind`` as in :func:`passes`."""
    flops = moved = 0
    for one in passes(recipe, kind):
        for index, layer in enumerate(one.layers):
            times = one.forward + one.by_weights + (one.by_input if index else one.to_input)
            flops += times * one.items * layer.flops
            moved += times * (one.items * layer.floats + layer.weights)
    return Cost(flops, _FLOAT * moved)
