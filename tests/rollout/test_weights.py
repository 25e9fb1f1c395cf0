"""Weights: whole or not there, and checked when read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxlava.backend import Tree, arrays_by_name, mx, tree_map
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.integrity import check_digests
from mlxlava.paths import shipped_weights_folders
from mlxlava.rollout.weights import Weights, load_weights, save_weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def state(tiny: Recipe) -> Tree:
    return Trainer(tiny, 6).init()


@pytest.fixture
def weights(tiny: Recipe, state: Tree) -> Weights:
    return Weights(tiny, 5.0, playable_arrays(state), {"steps": 6})


@pytest.fixture
def folder(weights: Weights, tmp_path: Path) -> Path:
    save_weights(weights, tmp_path / "weights", card="# a lamp", sample=b"png")
    return tmp_path / "weights"


def change(folder: Path, edit: Callable[[dict[str, mx.array]], Any]) -> None:
    """Rewrite the tensors of a folder, as an older version would: without digests."""
    (folder / "SHA256SUMS").unlink()
    file = folder / "weights.safetensors"
    arrays = mx.load(str(file))
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    edit(arrays)
    mx.save_safetensors(str(file), arrays)


NAME = "generator.up0.weight"


def test_weights_come_back_as_they_were(weights: Weights, folder: Path) -> None:
    read = load_weights(folder)
    assert (read.recipe, read.step_fps, read.about) == (weights.recipe, 5.0, {"steps": 6})
    written = arrays_by_name(weights.arrays)
    for name, array in arrays_by_name(read.arrays).items():
        assert np.array_equal(np.array(array), np.array(written[name])), name
    assert (folder / "README.md").read_text() == "# a lamp"


def test_half_weights_are_read_as_float32(weights: Weights, tmp_path: Path) -> None:
    half = tree_map(lambda a: a.astype(mx.float16), weights.arrays)
    save_weights(Weights(weights.recipe, 5.0, half, {}), tmp_path / "half")
    read = arrays_by_name(load_weights(tmp_path / "half").arrays)
    assert read[NAME].dtype == mx.float32
    whole = arrays_by_name(weights.arrays)[NAME]
    assert np.allclose(np.array(read[NAME]), np.array(whole), atol=1e-3)


def test_new_weights_replace_old_ones_but_nothing_else(
    weights: Weights, folder: Path, tmp_path: Path
) -> None:
    save_weights(weights, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "weights.safetensors",
    ]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").touch()
    with pytest.raises(UserError, match="not weights"):
        save_weights(weights, tmp_path / "photos")
    assert (tmp_path / "photos/holiday.jpg").exists()
    with pytest.raises(UserError, match="not weights"):
        save_weights(weights, tmp_path / "photos/holiday.jpg")
    assert (tmp_path / "photos/holiday.jpg").is_file()


def test_a_folder_that_was_only_looked_at_is_empty(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/.DS_Store").touch()
    save_weights(weights, tmp_path / "new")
    assert load_weights(tmp_path / "new").step_fps == 5.0


def test_old_weights_stay_where_the_new_ones_cannot_take_their_place(
    weights: Weights, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match="what was there before is kept"):
        save_weights(weights, folder)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (folder / "sample.png").read_bytes() == b"png"
    load_weights(folder)


def test_a_file_that_vanishes_meanwhile_is_no_failure(
    weights: Weights, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On exFAT macOS removes "._NAME" with NAME, while the old folder is being removed."""
    (folder / "._config.json").touch()
    unlink = os.unlink

    def vanishes(path: Any, **options: Any) -> None:
        unlink(path, **options)
        if Path(path).name.startswith("._"):
            raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "unlink", vanishes)
    save_weights(weights, folder)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda a: a.pop(NAME), f"does not have {NAME}"),
        (lambda a: a.update(more=mx.zeros(3)), "has more"),
        (lambda a: a.update({NAME: a[NAME][:1]}), "does not match the recipe.*" + NAME),
        (lambda a: a.update({NAME: a[NAME] * float("nan")}), f"{NAME} contains numbers that are not finite"),
        (lambda a: a.update({NAME: a[NAME].astype(mx.int32)}), f"{NAME} is .*int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, edit: Callable[[Any], Any], said: str) -> None:
    change(folder, edit)
    with pytest.raises(UserError, match=said) as error:
        load_weights(folder)
    assert "\n" not in str(error.value)


def test_weights_of_another_recipe_are_refused(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["generator"]["widths"] = [10, 6]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not match the recipe"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "{", "no JSON"),
        ("config.json", "[]", "must hold an object"),
        ("config.json", '{"format": 7}', "format 7"),
        ("config.json", '{"format": 1}', "lacks step_fps"),
        ("weights.safetensors", "short", "damaged"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, text: str, said: str) -> None:
    (folder / "SHA256SUMS").unlink()
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=said):
        load_weights(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_weights(folder)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_one_changed_bit_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is damaged") as error:
        load_weights(folder)
    assert "\n" not in str(error.value)


def test_shipped_weights_have_digests() -> None:
    for folder in shipped_weights_folders():
        assert check_digests(folder, "weights"), folder


def test_a_true_speed_that_cannot_be_is_refused(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "step_fps": 0}))
    with pytest.raises(UserError, match="step_fps"):
        load_weights(folder)


def test_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match="lawa is not there; did you mean lava"):
        load_weights("lawa")
