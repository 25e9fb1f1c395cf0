"""The wheel: all that is needed to play, train and measure, and nothing that only a checkout needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(
        find_spec("hatchling") is None, reason="hatchling builds it; the extra `dev` brings it"
    ),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs a checkout"),
]


def files_below(folder: Path) -> set[str]:
    """Paths in a folder, without what Python and macOS leave there."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts and path.name[0] != "."}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/.gitkeep")}


def test_it_has_the_package_and_the_shipped_weights(names: set[str]) -> None:
    package = {name.removeprefix("mlxlava/") for name in names if name.startswith("mlxlava/")}
    weights = {f"weights/{name}" for name in files_below(ROOT / "weights")}
    assert "weights/lava/weights.safetensors" in weights
    assert package == files_below(ROOT / "src/mlxlava") | weights


def test_it_has_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"mlxlava"} and len(tops) == 2


def test_it_can_measure_but_has_no_results_and_no_peer(names: set[str]) -> None:
    assert {"mlxlava/bench/suite.py", "mlxlava/bench/measures.py"} <= names
    assert not [name for name in names if "results" in name or "torch" in name or "benchmarks" in name]
