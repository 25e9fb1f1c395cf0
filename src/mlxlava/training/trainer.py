"""The trainer that a recipe needs: of all networks, or of the upsampling network of a lamp that grows."""

from __future__ import annotations

from mlxlava.config import Recipe
from mlxlava.training.schedule import Schedule
from mlxlava.training.step import Trainer
from mlxlava.training.upsampling import UpsamplerTrainer

AnyTrainer = Trainer | UpsamplerTrainer


def make_trainer(recipe: Recipe, steps: int | Schedule) -> AnyTrainer:
    """The trainer of a recipe, for a number of training steps or for the schedule of a run."""
    trainer = UpsamplerTrainer if recipe.generator.upsampler_widths else Trainer
    return trainer(recipe, steps)
