"""Text of strangers, made safe for terminals and for Markdown."""

from __future__ import annotations

import pytest

from mlxlava.text import clean_text, markdown_cell, markdown_code


@pytest.mark.parametrize("hidden", ["\x1b", "\x07", "\x9b", "\u202e", "\u200b", "\udcff", "\x00", "\u2028"])
def test_what_a_terminal_obeys_or_hides_is_replaced(hidden: str) -> None:
    assert clean_text(f"a{hidden}[31mb") == "a\ufffd[31mb"


def test_a_text_is_cut_and_breaks_of_lines_become_spaces() -> None:
    assert clean_text("a\nb\tc") == "a b c"
    assert clean_text("a\nb", keep="\n") == "a\nb"
    assert clean_text("x" * 100, 10) == "x" * 9 + "…"
    assert clean_text("Lampe für «zwölf» 灯 ½") == "Lampe für «zwölf» 灯 ½"


def test_nothing_in_a_card_is_markup() -> None:
    bad = "<script>alert(1)</script> | `x` [a](javascript:b) ![c](d)"
    assert "<" not in markdown_cell(bad)
    assert "[a](" not in markdown_cell(bad)
    code = markdown_code(bad)
    assert not set("<>`") & set(code)
    assert "\\|" in code
