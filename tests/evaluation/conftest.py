"""Footage for the tests of this room."""

from __future__ import annotations

import pytest

from mlxlava.footage.dataset import Footage
from mlxlava.footage.prepare import prepare_lamp


@pytest.fixture(scope="package")
def lamp(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """Four minutes of the built-in lamp, 16×16: four pieces of 300 frames."""
    folder = tmp_path_factory.mktemp("lamp") / "footage"
    return prepare_lamp(folder, size=(16, 16), minutes=4, fps=5, every_nth=1, seed=0, theme="classic")
