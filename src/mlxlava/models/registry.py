"""Makes the networks that a recipe names. A network of another kind is added here."""

from __future__ import annotations

import math
from itertools import pairwise

from mlxlava.backend.cpu.chunks import network_in_chunks
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.models.discriminator import FramesDiscriminator
from mlxlava.models.duralava import RecurrentDiscriminator, TransposedGenerator
from mlxlava.models.encoder import Encoder
from mlxlava.models.generator import ShuffleGenerator
from mlxlava.models.upsampler import CascadedGenerator, Upsampler

_MAX_PLAYED_WEIGHTS = 2**29

Generator = ShuffleGenerator | TransposedGenerator | CascadedGenerator
Discriminator = FramesDiscriminator | RecurrentDiscriminator


def make_generator(recipe: Recipe) -> Generator:
    """The generator that the recipe names; if the lamp has grown, with its upsampling network.

    Raises:
        UserError: what is played would have more than 2^29 weights (2 GB).
    """
    if (count := _count_played_weights(recipe)) > _MAX_PLAYED_WEIGHTS:
        raise UserError(
            f"recipe: generator and state step would have {count} weights, more than {_MAX_PLAYED_WEIGHTS}; "
            "give smaller generator.widths, generator.state_size or dynamics.hidden"
        )
    generator: ShuffleGenerator | TransposedGenerator
    if recipe.generator.kind == "transposed":
        generator = TransposedGenerator(recipe)
    else:
        generator = network_in_chunks(ShuffleGenerator(recipe), math.prod(recipe.drawn_size))
    if not recipe.generator.upsampler_widths:
        return generator
    return CascadedGenerator(generator, make_upsampler(recipe))


def _count_played_weights(recipe: Recipe) -> int:
    """About how many weights a generator and a state step have, from the widths of their layers alone."""
    generator, dynamics = recipe.generator, recipe.dynamics
    coarsest = math.prod(side // 2 ** len(generator.widths) for side in recipe.drawn_size)
    count: int = generator.state_size * coarsest * generator.widths[0]
    for widths in (generator.widths, generator.upsampler_widths):
        count += 36 * sum(a * b for a, b in pairwise((*widths, generator.last_width)))
    dense = (generator.state_size, *dynamics.hidden, generator.state_size)
    layers = dynamics.couplings if dynamics.kind == "stationary" else 1
    return count + layers * sum(a * b for a, b in pairwise(dense))


def make_upsampler(recipe: Recipe) -> Upsampler:
    """The upsampling network of a lamp that has grown."""
    return network_in_chunks(Upsampler(recipe), math.prod(recipe.data.size))


def make_discriminator(recipe: Recipe) -> Discriminator:
    """The discriminator that the recipe names."""
    if recipe.discriminator.kind == "recurrent":
        return RecurrentDiscriminator(recipe)
    discriminator = FramesDiscriminator(recipe)
    return network_in_chunks(discriminator, discriminator.count * math.prod(recipe.data.size))


def make_encoder(recipe: Recipe) -> Encoder | None:
    """The encoder; None if the recipe has none."""
    if not recipe.encoder.context_frames:
        return None
    return network_in_chunks(
        Encoder(recipe), recipe.encoder.context_frames * math.prod(recipe.encoder_input_size)
    )
