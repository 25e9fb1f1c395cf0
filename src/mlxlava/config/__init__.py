"""Every setting, and reading and writing recipes.

May import errors and schema. A recipe says what to train and how. It is always passed as a whole. Start with
settings.py: there each setting stands with its default, its help and its bounds. The other files: checks.py
(settings that must fit together), recipes.py (files and tables), sizes.py.
"""

from mlxlava.config.recipes import (
    did_you_mean,
    load_recipe,
    override,
    parse_settings,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
)
from mlxlava.config.settings import SCREENS, WATCH_SCREENS, Data, Recipe, Training, setting_rows
from mlxlava.config.sizes import check_size, format_size, parse_size

__all__ = [
    "SCREENS",
    "WATCH_SCREENS",
    "Data",
    "Recipe",
    "Training",
    "check_size",
    "did_you_mean",
    "format_size",
    "load_recipe",
    "override",
    "parse_settings",
    "parse_size",
    "recipe_from_dict",
    "recipe_names",
    "recipe_to_dict",
    "setting_rows",
]
