"""What other packages do not promise to keep is used in few places, and only of versions that were tried."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/mlxlava"

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs a checkout")

# Module of another package whose name begins with an underscore, and the package that brings it.
PACKAGES = {"pygame._sdl2.video": "pygame-ce", "textual_image._sixel": "textual-image"}


def imported(tree: ast.AST) -> set[str]:
    """Names of all modules that may be meant by a module's imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def private_modules() -> set[str]:
    found = set()
    for path in SOURCE.rglob("*.py"):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            first, *rest = name.split(".")
            private = any(re.match(r"_(?!_)", part) for part in rest)
            if private and first != "mlxlava" and first not in sys.stdlib_module_names:
                found.add(name)
    return found


def test_private_modules_of_other_packages_are_few_and_known() -> None:
    found = private_modules()
    assert {name for name in found if not any(name.startswith(known) for known in PACKAGES)} == set()
    assert all(any(name.startswith(known) for name in found) for known in PACKAGES)  # none is left over


# aiohttp: HttpConnection is derived from its protocol (playback/screens/web_limits.py).
@pytest.mark.parametrize("package", [*PACKAGES.values(), "aiohttp"])
def test_a_package_of_which_more_is_used_has_an_upper_bound(package: str) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bounds = re.findall(rf'"{package}(?:\[[\w,]+\])?([<>=][^";]*)', text)
    assert bounds and all(re.search(r">=[\d.]+,<\d", bound) for bound in bounds), bounds


def test_what_is_used_of_pygame_is_there() -> None:
    video = pytest.importorskip("pygame._sdl2.video", reason="needs the extra `window`")
    assert {"clear", "present", "to_surface"} <= set(dir(video.Renderer))
    assert {"draw", "from_surface", "update"} <= set(dir(video.Texture))


def test_what_is_used_of_textual_image_is_there() -> None:
    sixel = pytest.importorskip("textual_image._sixel", reason="needs the extra `terminal`")
    assert callable(sixel.image_to_sixels) and sixel.SixelOptions(colors=16).colors == 16
