"""Makes the networks that a recipe names. A network of another kind is added here."""

from __future__ import annotations

import math

from mlxlava.backend.cpu.chunks import network_in_chunks
from mlxlava.config import Recipe
from mlxlava.models.discriminator import FramesDiscriminator
from mlxlava.models.duralava import RecurrentDiscriminator, TransposedGenerator
from mlxlava.models.encoder import Encoder
from mlxlava.models.generator import ShuffleGenerator

Generator = ShuffleGenerator | TransposedGenerator
Discriminator = FramesDiscriminator | RecurrentDiscriminator


def make_generator(recipe: Recipe) -> Generator:
    """The generator that the recipe names."""
    if recipe.generator.kind == "transposed":
        return TransposedGenerator(recipe)
    return network_in_chunks(ShuffleGenerator(recipe), math.prod(recipe.data.size))


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
