"""docs/reference.md is what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from mlxlava.cli import cli
from mlxlava.config import Recipe, setting_rows

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/reference.py"

pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="needs a checkout")


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("reference", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_says(tool: Any) -> None:
    assert tool.TARGET.read_text(encoding="utf-8") == tool.page(), "make reference"


def test_no_command_option_or_setting_is_left_out(tool: Any) -> None:
    text = tool.page()
    for name, command in cli.commands.items():
        part = text.partition(f"\n### mlxlava {name}\n")[2].partition("\n### ")[0]
        for each in command.params:
            if each.param_type_name == "option":
                assert re.search(rf"`{re.escape(each.opts[0])}[` ]", part), (name, each.opts)
    for setting, _, _ in setting_rows(Recipe()):
        assert f"| `{setting}` |" in text


def test_every_variable_of_the_package_is_told(tool: Any) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r'"(MLXLAVA_[A-Z_]+)"', source))
    assert read and read <= tool.VARIABLES.keys()
