"""Makes the networks that a recipe names. A network of another kind is added here."""

from __future__ import annotations

import math

from mlxlava.backend.cpu.chunks import network_in_chunks
from mlxlava.config import Recipe
from mlxlava.models.discriminator import FramesDiscriminator
from mlxlava.models.duralava import RecurrentDiscriminator, TransposedGenerator
from mlxlava.models.encoder import Encoder
from mlxlava.models.generator import ShuffleGenerator
from mlxlava.models.upsampler import CascadedGenerator, Upsampler

Generator = ShuffleGenerator | TransposedGenerator | CascadedGenerator
Discriminator = FramesDiscriminator | RecurrentDiscriminator


def make_generator(recipe: Recipe) -> Generator:
    """The generator that the recipe names; if the lamp has grown, with its upsampling network."""
    generator: ShuffleGenerator | TransposedGenerator
    if recipe.generator.kind == "transposed":
        generator = TransposedGenerator(recipe)
    else:
        generator = network_in_chunks(ShuffleGenerator(recipe), math.prod(recipe.drawn_size))
    if not recipe.generator.upsampler_widths:
        return generator
    return CascadedGenerator(generator, make_upsampler(recipe))


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
