"""Imports point one way, and MLX comes through one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/mlxlava"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
)

# Rooms and modules from low to high: each imports from those before it, or from its own room.
LAYERS = [
    {"awake", "errors", "failures", "products", "resize"},
    {"paths"},
    {"config", "console", "normality"},
    {"backend", "playback"},
    {"footage", "models"},
    {"training", "rollout"},
    {"evaluation"},
    {"api", "check"},
    {"cli"},
    {"__main__"},
]
WITHOUT_MLX = [
    "awake",
    "config",
    "console",
    "errors",
    "evaluation.correlation",
    "evaluation.distances",
    "evaluation.features",
    "evaluation.measures",
    "failures",
    "footage.crop",
    "footage.cuts",
    "footage.dataset",
    "footage.lamp",
    "footage.pictures",
    "footage.prepare",
    "footage.video",
    "normality",
    "paths",
    "playback.clock",
    "playback.keys",
    "playback.player",
    "playback.screens.terminal",
    "playback.screens.web",
    "playback.screens.window",
    "playback.session",
    "playback.writers",
    "products",
    "resize",
    "training.plan",
]
NEEDS = {"playback.screens.web": "aiohttp", "playback.screens.window": "pygame"}  # what is in an extra


def imports_of(module: str) -> set[str]:
    """All that a module imports, wherever it stands in it."""
    found = set()
    path = SOURCE / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{name.name}" if node.module == "mlxlava" else node.module
                for name in node.names
            }
    return found


def layer_of(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module.partition(".")[0] in layer)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    own = {name.partition(".")[2] for name in imports_of(module) if name.startswith("mlxlava.")} - {
        "__version__"
    }
    room = module.partition(".")[0]
    for other in own - {room}:
        there = other.partition(".")[0]
        assert layer_of(other) < layer_of(module) or there == room, f"{module} imports {other}"
    assert "cli" not in own or module == "__main__"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "backend.device"])
def test_mlx_comes_through_the_backend(module: str) -> None:
    assert not [name for name in imports_of(module) if name.partition(".")[0] == "mlx"]


def loaded_by(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


def test_what_has_no_need_of_mlx_does_not_load_it() -> None:
    installed = [name for name in WITHOUT_MLX if name not in NEEDS or find_spec(NEEDS[name])]
    loaded = loaded_by("; ".join(f"import mlxlava.{name}" for name in [*installed, "cli"]))
    assert "mlx.core" not in loaded


def test_help_loads_nothing_slow() -> None:
    loaded = loaded_by("from mlxlava.cli import cli; cli.main(['loop', '--help'], standalone_mode=False)")
    assert "mlxlava.cli" in loaded
    assert not loaded & {"mlx.core", "numpy", "PIL", "rich"}


def test_without_a_back_end_one_line_names_the_extra() -> None:
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mlx.core': raise ImportError('libmlx.so: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "sys.argv = ['mlxlava', 'info']\n"
        "from mlxlava.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    if sys.platform.startswith("linux"):
        assert "mlxlava[cpu]" in ended.stderr
