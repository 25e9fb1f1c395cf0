"""Which files are the system's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxlava.paths import is_systems_own, is_taken, names_in


@pytest.mark.parametrize(
    "name", [".DS_Store", "._lamp.mov", "._.DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", ".localized"]
)
def test_files_of_the_system(name: str) -> None:
    assert is_systems_own(name)


@pytest.mark.parametrize("name", ["lamp.mov", ".git", ".env", "_lamp.mov", "DS_Store", "config.json"])
def test_files_of_the_user(name: str) -> None:
    assert not is_systems_own(name)


def test_what_a_folder_holds(tmp_path: Path) -> None:
    assert names_in(tmp_path / "missing") == names_in(tmp_path) == set()
    assert not is_taken(tmp_path / "missing") and not is_taken(tmp_path)
    (tmp_path / ".DS_Store").touch()
    assert not is_taken(tmp_path)
    (tmp_path / "lamp.mov").touch()
    assert names_in(tmp_path) == {"lamp.mov"}
    assert is_taken(tmp_path) and is_taken(tmp_path / "lamp.mov")
    assert names_in(tmp_path / "lamp.mov") == set()
