"""Which files are the system's own; files that are written as a whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxlava.paths import Draft, atomic_folder, is_system_file, is_taken, list_names, write_text_atomically


@pytest.mark.parametrize(
    "name", [".DS_Store", "._lamp.mov", "._.DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", ".localized"]
)
def test_files_of_the_system(name: str) -> None:
    assert is_system_file(name)


@pytest.mark.parametrize("name", ["lamp.mov", ".git", ".env", "_lamp.mov", "DS_Store", "config.json"])
def test_files_of_the_user(name: str) -> None:
    assert not is_system_file(name)


def test_what_a_folder_holds(tmp_path: Path) -> None:
    assert list_names(tmp_path / "missing") == list_names(tmp_path) == set()
    assert not is_taken(tmp_path / "missing") and not is_taken(tmp_path)
    (tmp_path / ".DS_Store").touch()
    assert not is_taken(tmp_path)
    (tmp_path / "lamp.mov").touch()
    assert list_names(tmp_path) == {"lamp.mov"}
    assert is_taken(tmp_path) and is_taken(tmp_path / "lamp.mov")
    assert list_names(tmp_path / "lamp.mov") == set()


def test_a_file_is_written_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    write_text_atomically(file, "ö 1\n")
    write_text_atomically(file, "ö 2\n")
    assert file.read_text(encoding="utf-8") == "ö 2\n"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text_atomically(file, "ö 3\n")
    assert file.read_text(encoding="utf-8") == "ö 2\n"
    assert list(tmp_path.iterdir()) == [file]


# A process that is killed while it writes a file and a folder, and (in "swap") while it replaces a folder.
KILLED = """
import os, sys
from pathlib import Path
from mlxlava.paths import Draft, atomic_folder

def die(*_): os.kill(os.getpid(), 9)

folder = Path(sys.argv[1])
if sys.argv[2] == "swap":
    with atomic_folder(folder / "weights", "test") as draft:
        (draft / "new").touch()
        rename = Path.rename
        Path.rename = lambda path, target: die() if path.suffix == ".tmp" else rename(path, target)
else:
    Draft(folder / "config.json")
    with atomic_folder(folder / "weights", "test") as draft:
        (draft / "new").touch()
        die()
"""


def kill_in(folder: Path, when: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), when])
    assert ended.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    kill_in(tmp_path, "draft")
    assert len(list(tmp_path.iterdir())) == 2
    assert not is_taken(tmp_path)  # so that the same command can be given again
    (tmp_path / ".notes.1a2b3c4d.tmp").touch()  # another program's
    write_text_atomically(tmp_path / "log.jsonl", "")
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", ".notes.1a2b3c4d.tmp"}


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "weights", "test") as draft:
        (draft / "old").touch()
    kill_in(tmp_path, "swap")
    assert not (tmp_path / "weights").exists()
    write_text_atomically(tmp_path / "config.json", "{}")
    assert list_names(tmp_path) == {"weights", "config.json"} == {path.name for path in tmp_path.iterdir()}
    assert list_names(tmp_path / "weights") == {"old"}


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    with Draft(tmp_path / "config.json") as one, atomic_folder(tmp_path / "weights", "test") as two:
        (two / "new").touch()
        write_text_atomically(tmp_path / "config.json", "{}")
        assert one.path.exists() and two.exists()
    assert list_names(tmp_path) == {"config.json", "weights"} == {path.name for path in tmp_path.iterdir()}
    assert list_names(tmp_path / "weights") == {"new"}
