"""Which files are the system's own; files that are written as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxlava.paths import is_systems_own, is_taken, names_in, write_whole


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


def test_a_file_is_written_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    write_whole(file, "ö 1\n")
    write_whole(file, "ö 2\n")
    assert file.read_text(encoding="utf-8") == "ö 2\n"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "ö 3\n")
    assert file.read_text(encoding="utf-8") == "ö 2\n"
    assert list(tmp_path.iterdir()) == [file]
