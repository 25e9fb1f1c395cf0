"""Any JSON at all, and any text, is either taken or described in a short line."""

# mypy: disallow_untyped_decorators=False

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from mlxlava import records
from mlxlava.config import recipe_from_dict, recipe_to_dict
from mlxlava.errors import UserError
from mlxlava.schema import Check, Mismatch, parse_json
from mlxlava.text import clean_text, markdown_cell, markdown_code

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

_SCHEMAS = {
    name: check for name, check in vars(records).items() if name.isupper() and not name.startswith("_")
}
_KEYS = st.sampled_from("step seconds format step_fps recipe footage sources schedule decisions".split())  # noqa: SIM905
_SETTINGS = [
    (section, name)
    for section, table in recipe_to_dict(recipe_from_dict({})).items()
    if isinstance(table, dict)
    for name in table
]
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner) | st.dictionaries(_KEYS | st.text(), inner), max_leaves=20
)
pytestmark = pytest.mark.slow

_FEW = hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", [name for name in _SCHEMAS if callable(_SCHEMAS[name])])
def test_any_value_is_taken_or_described(name: str) -> None:
    check: Check = _SCHEMAS[name]

    @_FEW
    @hypothesis.given(_VALUES)
    def try_value(value: Any) -> None:
        try:
            check(value, "")
        except Mismatch as problem:
            assert clean_text(str(problem)).isprintable()
            assert len(str(problem)) < 1000

    try_value()


@_FEW
@hypothesis.given(st.text() | st.binary() | _VALUES.map(json.dumps))
def test_any_text_is_parsed_or_refused(text: str | bytes) -> None:
    with contextlib.suppress(Mismatch):
        parse_json(text)


@_FEW
@hypothesis.given(st.sampled_from(_SETTINGS), _VALUES)
def test_any_setting_is_taken_or_refused(path: tuple[str, str], value: Any) -> None:
    with contextlib.suppress(UserError):
        recipe_from_dict({path[0]: {path[1]: value}})


@_FEW
@hypothesis.given(st.text())
def test_any_text_is_shown_safely(text: str) -> None:
    for shown in (clean_text(text), markdown_cell(text), markdown_code(text)):
        assert not [each for each in shown if ord(each) < 32 or 127 <= ord(each) < 160]
    assert "<" not in markdown_cell(text) + markdown_code(text)
