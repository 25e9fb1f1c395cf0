"""The wheel has all that is needed to play, train and measure, and no more; the sdist what tests need too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import mlxlava

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


def build(target: str, folder: Path) -> Path:
    """Build ``wheel`` or ``sdist``."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
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


def test_it_is_small_enough_to_install_over_a_slow_line(wheel: Path) -> None:
    """7.8 MB in November 2026, of which 7.3 are the shipped weights."""
    assert wheel.stat().st_size < 9e6


def test_its_version_is_that_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"mlxlava-{mlxlava.__version__}-py3-none-any.whl"


def test_type_checkers_see_its_types(names: set[str]) -> None:
    assert "mlxlava/py.typed" in names


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a clone, for its list of files"
)
def test_the_sdist_has_what_is_tracked_and_no_more(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.splitlines() if not name.startswith(("starts/", ".ci/"))}
    with tarfile.open(build("sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed - {"PKG-INFO"} <= tracked | {".gitignore"}
    assert tracked - {".gitignore"} <= packed
