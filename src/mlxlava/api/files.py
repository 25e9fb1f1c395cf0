"""Write the weights of a run, and say what weights, recipes and this machine are."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxlava.config import Recipe, describe_settings, load_recipe

if TYPE_CHECKING:
    from mlxlava.rollout.weights import Weights


def export(
    run: str | Path, folder: str | Path, *, half: bool = False, score: Mapping[str, Any] | None = None
) -> Weights:
    """Write the averaged weights of a run with a model card and a sample picture, to be played anywhere.

    Where the run's footage is still at hand, the lamp is slowed to its pace.

    Args:
        run: folder of the run.
        folder: folder to write, which ``load`` takes; weights that are there are replaced.
        half: store float16: half the size. They are played as float32.
        score: what ``score`` returned of the run, for the card.

    Returns:
        What was written: the recipe, the arrays, and in ``about`` what the card tells, for example ``steps``
        and ``pace`` (which is missing if the footage is gone).

    Raises:
        UserError: ``run`` is no run or has no checkpoint, ``score`` is none, or the folder cannot be written.
    """
    from mlxlava.rollout.export import export as export_run

    return export_run(Path(run), Path(folder), half=half, score=None if score is None else dict(score))


def info(weights: str | Path | None = None) -> dict[str, str]:
    """Describe this machine, or what weights were learned from and how.

    Args:
        weights: shipped weights by name, or a weights or run folder; the machine when None.

    Returns:
        Names and texts, as ``mlxlava info`` shows them. Of a machine: versions, device, memory, the library
        for matrix products, the cache folder and the shipped weights.

    Raises:
        UserError: there are no such weights, or they are damaged.
    """
    if weights is not None:
        from mlxlava.rollout.export import describe_weights
        from mlxlava.rollout.weights import load_weights

        return describe_weights(load_weights(weights))

    from mlxlava import __version__
    from mlxlava.backend import describe
    from mlxlava.paths import cache_folder
    from mlxlava.rollout.weights import shipped_weights

    return {
        "mlxlava": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **describe(),
        "cache": str(cache_folder()),
        "weights": ", ".join(path.name for path in shipped_weights()) or "none",
    }


def settings(recipe: str | Path | Recipe = "lava") -> list[tuple[str, Any, str]]:
    """List the settings of a recipe, which ``train(settings=…)`` changes.

    Args:
        recipe: name of a recipe, a TOML or JSON file, or a recipe.

    Returns:
        Of each setting its name, for example ``data.size``, its value, and what it is.

    Raises:
        UserError: there is no such recipe, or it is wrong.
    """
    return describe_settings(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
