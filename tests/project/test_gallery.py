"""The gallery: a page, a picture and a link for each lamp."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import load_tool

TOOL = Path(__file__).parents[2] / "tools/gallery.py"

pytestmark = pytest.mark.device


gallery = load_tool("gallery")


def test_every_lamp_has_a_page_a_picture_and_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for _ in range(2):  # an older gallery is replaced
        gallery.write_gallery(["lava-64"], folder)
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:href|src)="([^"]*)"', index) == ["lava-64.html", "lava-64.webp"]
    assert "64×64, 5.2 MB" in index
    assert "<title>Lava lamp lava-64</title>" in (folder / "lava-64.html").read_text(encoding="utf-8")
    with Image.open(folder / "lava-64.webp") as picture:
        assert picture.size == (256, 256)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "lava-64.html", "lava-64.webp"]


def test_a_run_that_is_not_there_has_not_been_learned(tmp_path: Path) -> None:
    assert not gallery.is_learned(tmp_path / "flame")


def test_weights_that_are_not_there_are_said_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--without-flame", "--folder", str(tmp_path), "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gallery: ") and done.stderr.count("\n") == 1
