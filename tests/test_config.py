"""Settings: read, checked, changed; a mistake names the nearest right thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxlava.config import (
    Recipe,
    load_recipe,
    override,
    parse_settings,
    parse_size,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
    setting_rows,
)
from mlxlava.errors import UserError


def toml(values: dict[str, Any]) -> str:
    """A TOML file of plain values and one level of tables; JSON's values are TOML's as well."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["lava", "duralava"])
def test_a_recipe_survives_toml_and_json(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    file = tmp_path / "mine.toml"
    file.write_text(toml(recipe_to_dict(recipe)))
    assert load_recipe(file) == recipe
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe


def test_the_recipes_are_found_by_name() -> None:
    assert recipe_names() == ["duralava", "lava", "lava-256x128"]
    with pytest.raises(UserError, match=r"lawa.*lava"):
        load_recipe("lawa")


def test_a_recipe_extends_another() -> None:
    large, small = load_recipe("lava-256x128"), load_recipe("lava")
    assert (large.data.size, large.growth.start_recipe) == ((256, 128), "lava")
    assert large.encoder == small.encoder and large.training.betas == small.training.betas


def test_duralava_is_the_published_recipe() -> None:
    """Number by number, as duralava published it."""
    recipe = load_recipe("duralava")
    data, training = recipe.data, recipe.training
    assert (data.size, data.every_nth, data.batch_size, data.seq_len) == ((64, 64), 6, 32, 20)
    assert data.drawn_frames == 0
    assert (recipe.generator.kind, recipe.generator.state_size) == ("transposed", 64)
    assert recipe.generator.widths == (256, 128, 64, 32)
    assert (recipe.dynamics.kind, recipe.dynamics.hidden) == ("penalised", (512, 512))
    discriminator = recipe.discriminator
    assert (discriminator.kind, discriminator.widths) == ("recurrent", (32, 64, 128, 256))
    assert (discriminator.features, discriminator.state, discriminator.hidden) == (128, 128, (512, 512))
    assert (recipe.loss.kind, recipe.loss.normality) == ("bce", 0.1)
    assert (training.optimizer, training.learning_rate, training.schedule) == ("sgd", 1e-3, "cosine")
    assert (training.epochs, training.steps, training.carried_states, training.reset_probability) == (
        200,
        0,
        True,
        0.5,
    )
    assert (training.update_clipping, training.ema) == (0, 0)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'generator\.withs'; did you mean generator\.widths\?"):
        override(Recipe(), {"generator.withs": [8]})
    with pytest.raises(UserError, match="did you mean training"):
        recipe_from_dict({"trainig": {"steps": 3}})


def test_a_setting_is_found_in_another_section() -> None:
    for given in ("batch_size", "training.batch_size", "datta.batchsize"):
        with pytest.raises(UserError, match=r"did you mean data\.batch_size\?"):
            override(Recipe(), {given: 8})
    with pytest.raises(UserError, match=r"generator\.widths or discriminator\.widths or encoder\.widths"):
        override(Recipe(), {"widths": [8]})
    with pytest.raises(UserError, match="known: size, every_nth"):
        override(Recipe(), {"data.zzz": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.size", "70"),
        ("data.size", [64, 0]),
        ("data.batch_size", 0),
        ("data.batch_size", "many"),
        ("data.drawn_frames", 33),
        ("data.drawn_frames", 1),
        ("generator.state_size", 30),
        ("generator.widths", []),
        ("generator.widths", [256, 128, 64, 32, 16, 8, 4]),
        ("discriminator.widths", [8, 8, 8, 8, 8, 8]),  # 64 halved six times, and once more
        ("dynamics.rho", 1.5),
        ("dynamics.kind", "stationery"),
        ("loss.kind", "bce"),
        ("training.learning_rate", -1),
        ("training.learning_rate", True),
        ("training.update_clipping", -1),
        ("training.ema", 1),
        ("training.epochs", 3),  # beside steps
    ],
)
def test_a_wrong_value_is_one_line(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        override(load_recipe("lava"), {key: value})
    assert "\n" not in str(error.value)
    assert key.partition(".")[2].partition("_")[0] in str(error.value)


def test_sizes_are_square_or_height_by_width() -> None:
    assert parse_size("64") == (64, 64)
    assert parse_size("48x96") == (48, 96)
    for wrong in ("70", "0", "64x", "big", "64x70"):
        with pytest.raises(UserError, match=r"16|size"):
            parse_size(wrong)


def test_settings_on_the_command_line_are_toml_or_words() -> None:
    settings = parse_settings(["generator.widths=[8, 4]", "data.crop=auto", "training.learning_rate=1e-3"])
    assert settings == {
        "generator.widths": [8, 4],
        "data.crop": "auto",
        "training.learning_rate": 1e-3,
    }
    with pytest.raises(UserError, match="="):
        parse_settings(["steps"])


def test_every_setting_has_help() -> None:
    rows = setting_rows(load_recipe("duralava"))
    assert all(text for _, _, text in rows)
    assert ("training.optimizer", "sgd", "adam or sgd") in rows


def test_settings_keep_working_under_the_names_that_they_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_settings(["loss.alone=0.25"]) == {"loss.d_start": 0.25}
    assert capsys.readouterr().err == "mlxlava: the setting loss.alone is called loss.d_start now\n"

    file = tmp_path / "old.toml"
    file.write_text("[training]\nclip = 2.0\n", encoding="utf-8")
    assert load_recipe(file).training.update_clipping == 2.0
    assert "training.clip is called training.update_clipping" in capsys.readouterr().err

    # Files of runs and weights are read without a word.
    values = recipe_to_dict(load_recipe("lava"))
    values["encoder"]["views"] = values["encoder"].pop("context_frames")
    assert recipe_from_dict(values) == load_recipe("lava")
    assert override(load_recipe("lava"), {"encoder.views": 3}).encoder.context_frames == 3
    assert capsys.readouterr().err == ""
