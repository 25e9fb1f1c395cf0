"""The networks that a recipe names: where to add one of another kind."""

from __future__ import annotations

from mlxlava.config import Recipe
from mlxlava.models.discriminator import FramesDiscriminator
from mlxlava.models.duralava import RecurrentDiscriminator, TransposedGenerator
from mlxlava.models.generator import ShuffleGenerator

Generator = ShuffleGenerator | TransposedGenerator
Discriminator = FramesDiscriminator | RecurrentDiscriminator


def make_generator(recipe: Recipe) -> Generator:
    """The generator that the recipe names."""
    kinds: dict[str, type[Generator]] = {"shuffle": ShuffleGenerator, "transposed": TransposedGenerator}
    return kinds[recipe.generator.kind](recipe)


def make_discriminator(recipe: Recipe) -> Discriminator:
    """The discriminator that the recipe names."""
    kinds: dict[str, type[Discriminator]] = {
        "frames": FramesDiscriminator,
        "recurrent": RecurrentDiscriminator,
    }
    return kinds[recipe.discriminator.kind](recipe)
