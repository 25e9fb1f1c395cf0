"""Imports point one way, and MLX comes through one door."""

from __future__ import annotations

import ast
import json
import os
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
    {"awake", "cores", "errors", "failures", "products", "resize", "text"},
    {"schema"},
    {"paths", "records"},
    {"config", "console", "normality"},
    {"integrity"},
    {"backend", "playback"},
    {"machine"},
    {"footage", "models"},
    {"training", "rollout"},
    {"evaluation", "exporting"},
    {"bench", "checks"},
    {"api"},
    {"cli"},
    {"__main__"},
]
WITHOUT_MLX = [
    "awake",
    "config",
    "console",
    "cores",
    "errors",
    "evaluation.correlation",
    "evaluation.distances",
    "evaluation.features",
    "evaluation.measures",
    "failures",
    "footage.colour",
    "footage.crop",
    "footage.cuts",
    "footage.dataset",
    "footage.simulated_lamp",
    "footage.pictures",
    "footage.prepare",
    "footage.raster",
    "footage.source",
    "footage.timing",
    "footage.video",
    "integrity",
    "normality",
    "paths",
    "playback.clock",
    "playback.keys",
    "playback.options",
    "playback.player",
    "playback.screens.terminal",
    "playback.screens.web",
    "playback.screens.window",
    "playback.session",
    "playback.writers",
    "products",
    "records",
    "resize",
    "schema",
    "text",
    "training.curves",
    "training.memory_plan",
    "training.report",
    "training.report_page",
    "training.warning_signs",
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


IMPORTED = """
import json, os, sys, threading
before = dict(os.environ)
import mlxlava
dir(mlxlava), mlxlava.UserError, mlxlava.__version__
changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
print(json.dumps({
    "changed": sorted(changed),
    "ours": sorted(name for name in sys.modules if name.startswith("mlxlava")),
    "ctypes": "ctypes" in sys.modules,
    "threads": len(os.listdir("/proc/self/task")),
    "loaded": sorted({line.split()[5] for line in open("/proc/self/maps") if ".so" in line}),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process has loaded")
def test_importing_the_package_changes_nothing_in_the_host_process(tmp_path: Path) -> None:
    """No library is loaded before others, nothing is compiled, no allocator is told anything."""
    cache, kernels = tmp_path / "cache", tmp_path / "tmp"
    kernels.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(kernels)}
    command = [sys.executable, "-c", IMPORTED]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(ended.stdout)
    assert found["changed"] == []
    assert found["ours"] == ["mlxlava", "mlxlava.errors"]
    assert not found["ctypes"]  # which is how glibc's allocator would be told
    assert found["threads"] == 1
    foreign = ("mlx", "dnnl", "blas", "gomp", "numpy")
    assert not [path for path in found["loaded"] if any(name in Path(path).name for name in foreign)]
    assert not cache.exists() and not list(kernels.iterdir())
    assert ended.stderr == ""


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
        "sys.argv = ['mlxlava', 'loop', '--frames', '1', '-o', 'never.gif']\n"
        "from mlxlava.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    if sys.platform.startswith("linux"):
        assert "mlxlava[cpu]" in ended.stderr
