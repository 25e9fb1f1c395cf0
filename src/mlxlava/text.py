"""Text of strangers, made safe to show: in a terminal, in a table, in a model card, on a page."""

from __future__ import annotations

import html
import unicodedata

# Control characters (escape sequences begin with one), characters that change the direction of writing or are
# not seen, halves of characters (bytes of a file name that are no UTF-8), and breaks of lines.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_CELL_CHARACTERS = 300
# No backtick ends the code. Angle brackets would be HTML where a program does not know code in tables.
_IN_CODE = {"`": "'", "|": "\\|", "<": "‹", ">": "›"}


def clean_text(text: str, longest: int | None = None, *, keep: str = "") -> str:
    """The text without characters that a terminal obeys, or that hide what is there.

    Args:
        text: any text.
        longest: a longer text is cut, and ends in an ellipsis.
        keep: characters that stay, for example a line break.
    """
    if longest is not None and len(text) > longest:
        text = text[: max(0, longest - 1)] + "…"
    if text.isprintable():
        return text
    return "".join(
        " " if each in "\t\n\r" and each not in keep else _REPLACEMENT if _is_hidden(each, keep) else each
        for each in text
    )


def _is_hidden(character: str, keep: str) -> bool:
    return character not in keep and unicodedata.category(character) in _HIDDEN_CATEGORIES


def markdown_cell(value: object) -> str:
    """A value of a stranger as text in a table of Markdown: nothing in it is markup or HTML."""
    text = html.escape(clean_text(str(value), _MAX_CELL_CHARACTERS), quote=False)
    return "".join(f"\\{each}" if each in "\\`*_[]|~!" else each for each in text)


def markdown_code(value: object) -> str:
    """A value of a stranger, to stand between two backticks in a table of Markdown."""
    text = clean_text(str(value), _MAX_CELL_CHARACTERS)
    return "".join(_IN_CODE.get(each, each) for each in text)
