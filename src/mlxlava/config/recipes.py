"""Reading and writing recipes: TOML and JSON files, ``section.key=value``, and plain tables.

The TOML files in the package's folder ``recipes/`` and the ``config.json`` of runs and weights hold the same
keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mlxlava.config.settings import Recipe, section_names, setting_rows
from mlxlava.errors import UserError
from mlxlava.schema import read_bytes, read_object, show, table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"

_MAX_RECIPE_BYTES = 2**20
_MAX_ANCESTORS = 8  # recipes that a recipe extends, one after the other

# Old names of settings, with their present names. Older files of runs and weights have the old names.
_RENAMED_SETTINGS = {
    "encoder.views": "encoder.context_frames",
    "loss.alone": "loss.d_start",
    "loss.evidence": "loss.elbo_weight",
    "training.carry": "training.carried_states",
    "training.clip": "training.update_clipping",
}
# Settings that are gone. They are ignored in older files of runs and weights, where they change no picture.
_REMOVED_SETTINGS = ("growth.factor", "growth.rest", "growth.rest_steps")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A clause for a message: the known word nearest to ``word``, or all known words."""
    close = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _did_you_mean_setting(path: str, known: Sequence[str]) -> str:
    """A clause for a message: settings of the same name elsewhere, the nearest setting, or ``known``."""
    names = [name for name, _, _ in setting_rows(Recipe())]
    section, _, key = path.rpartition(".")
    found = [name for name in names if name.endswith(f".{key}")]
    if not found:
        found = difflib.get_close_matches(path, names, n=1, cutoff=0.75)
    if not found:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        found = [f"{section}.{name}".lstrip(".") for name in near]
    return f"did you mean {' or '.join(found)}?" if found else f"known: {', '.join(known)}"


def _convert_value(value: Any, kind: Any, where: str) -> Any:
    """Check the type of a value. Lists become tuples."""
    origin = get_origin(kind)
    if origin is tuple:
        args = get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise UserError(f"recipe: {where} must be a list")
        if args[-1] is Ellipsis:
            return tuple(_convert_value(item, args[0], where) for item in value)
        if len(value) != len(args):
            raise UserError(f"recipe: {where} must hold {len(args)} numbers")
        return tuple(_convert_value(item, arg, where) for item, arg in zip(value, args, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 1000:  # too large for a float
            return math.inf if value > 0 else -math.inf
        return float(value)
    if type(value) is not kind:
        raise UserError(f"recipe: {where} must be {kind.__name__}, not {show(value)}")
    return value


def _build_section(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = _RENAMED_SETTINGS.get(f"{where}{key}", f"{where}{key}")
        key = path.removeprefix(where)
        if path in _REMOVED_SETTINGS:
            continue
        if key not in fields:
            raise UserError(f"recipe: unknown key {show(path)}; {_did_you_mean_setting(path, list(fields))}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UserError(f"recipe: {path} must be a table of settings")
            arguments[key] = _build_section(typing.cast(type, kind), value, f"{path}.")
            continue
        arguments[key] = _convert_value(value, kind, path)
        choices = fields[key].metadata.get("choices", ())
        if choices and arguments[key] not in choices:
            raise UserError(f"recipe: {path} = {show(value)}; {did_you_mean(str(value), choices)}")
    return cls(**arguments)


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested tables; a missing key takes its default, an unknown one is an error."""
    if not isinstance(values, Mapping):
        raise UserError(f"recipe: it must be a table of settings, not {show(values)}")
    return typing.cast(Recipe, _build_section(Recipe, values))


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested tables of plain values, for JSON or TOML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(recipe)))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _RECIPES_FOLDER.glob("[!.]*.toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (one that comes with the package) or from a TOML or JSON file."""
    return _load_recipe(name_or_path, 0)


def _load_recipe(name_or_path: str | Path, ancestors: int) -> Recipe:
    """``load_recipe`` of a recipe that so many others extend."""
    name = str(name_or_path)
    path = _RECIPES_FOLDER / f"{name}.toml" if name in recipe_names() else Path(name_or_path)
    if not path.is_file():
        raise UserError(f"recipe: no recipe or file named {name!r}; {did_you_mean(name, recipe_names())}")
    if ancestors > _MAX_ANCESTORS:
        raise UserError(f"recipe: {path} extends another one, and so on, more than {_MAX_ANCESTORS} times")
    values = _read_recipe_file(path)
    parent = values.pop("extends", None)
    for section, changes in values.items():
        for key in changes if isinstance(changes, dict) else ():
            _current_setting_name(f"{section}.{key}")
    if parent is None:
        return recipe_from_dict({"name": path.stem, **values})
    if not isinstance(parent, str) or "\0" in parent:
        raise UserError(f"recipe: {path}: extends must name a recipe, not {show(parent)}")
    inherited = recipe_to_dict(_load_recipe(parent, ancestors + 1))
    for section, changes in values.items():
        old = inherited.get(section, {})
        both = isinstance(changes, dict) and isinstance(old, dict)
        inherited[section] = {**old, **changes} if both else changes
    return recipe_from_dict({**inherited, "name": values.get("name", path.stem)})


def _read_recipe_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML or JSON file."""
    if path.suffix == ".json":
        found: dict[str, Any] = read_object(path, "recipe", table())
        return found
    data = read_bytes(path, "recipe", _MAX_RECIPE_BYTES)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise UserError(f"recipe: cannot read {path}: it is nested too deeply") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of more than 4300 digits
        raise UserError(f"recipe: cannot read {path}: {error}") from error


def override(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with dotted settings replaced, for example ``{"data.seq_len": 20}``."""
    values = recipe_to_dict(recipe)
    for path, value in settings.items():
        *sections, key = path.split(".")
        table = values
        for section in sections:
            if not isinstance(table.get(section), dict):
                advice = _did_you_mean_setting(path, section_names())
                raise UserError(f"recipe: unknown section {section!r}; {advice}")
            table = table[section]
        if isinstance(table.get(key), dict):
            raise UserError(f"recipe: {path} is a section; name a setting in it")
        table[key] = value
    return recipe_from_dict(values)


def _current_setting_name(path: str) -> str:
    """The present name of a setting that a user names. Prints a line if the user gave an old name."""
    name = _RENAMED_SETTINGS.get(path, path)
    if name != path:
        print(f"mlxlava: the setting {path} is called {name} now", file=sys.stderr)
    return name


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``section.key=value`` pairs; a value is TOML (``4e-4``, ``[64, 128]``), else a bare word."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found or not key.strip():
            raise UserError(
                f"--set: cannot read {pair!r}; give section.key=value, for example data.seq_len=20"
            )
        name = _current_setting_name(key.strip())
        try:
            settings[name] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            settings[name] = text.strip()
    return settings
