"""Files that an operating system puts into folders by itself: neither pictures nor anybody's work."""

from __future__ import annotations

from pathlib import Path

_NAMES = {".ds_store", ".localized", "thumbs.db", "desktop.ini"}
# AppleDouble: "._NAME" holds what macOS knows of NAME, on disks that cannot keep it (exFAT, SMB).
_APPLE_DOUBLE = "._"


def is_systems_own(name: str) -> bool:
    """Whether a file of this name was made by macOS or Windows and not by the user or a program of theirs."""
    return name.startswith(_APPLE_DOUBLE) or name.lower() in _NAMES


def names_in(folder: Path) -> set[str]:
    """The names in a folder, without the system's own; none where there is no folder."""
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not is_systems_own(path.name)}


def is_taken(path: Path) -> bool:
    """Whether something is there that must not be written over: a file, or a folder that is not empty.

    Opening a folder in the Finder leaves a ``.DS_Store`` in it; that one is empty all the same.
    """
    return bool(names_in(path)) if path.is_dir() else path.exists()
